"""From ranges of a log to batches: `windows` says what a row is, `plans` which rows are together, `collate` cuts them
out of the long arrays, and `loader` goes through them and knows where it stands."""

from lightrec.data.batches.collate import EvaluationBatches, Events, SampledCandidates, TrainingBatches, gather
from lightrec.data.batches.loader import BatchLoader
from lightrec.data.batches.plans import (
    Batching,
    BucketedPlan,
    DrawnPlan,
    FixedPlan,
    Plan,
    PrefixDraw,
    exact_plan,
    session_plan,
)
from lightrec.data.batches.windows import Windows, event_pairs, last_windows, strided_windows

__all__ = [
    "BatchLoader",
    "Batching",
    "BucketedPlan",
    "DrawnPlan",
    "EvaluationBatches",
    "Events",
    "FixedPlan",
    "Plan",
    "PrefixDraw",
    "SampledCandidates",
    "TrainingBatches",
    "Windows",
    "event_pairs",
    "exact_plan",
    "gather",
    "last_windows",
    "session_plan",
    "strided_windows",
]
