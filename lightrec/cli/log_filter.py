"""Keeps what Lightning says to everybody out of the way of what it says to you."""

from __future__ import annotations

import logging
import re
import warnings

_LINES = re.compile(
    r"💡|Tip:|litlogger|litmodels|[GTH]PU available|IPU available|`Trainer\.(fit|validate|test|predict)` stopped|"
    r"Seed set to|Restor(ing|ed all) states|Loaded model weights|Loading `|Using (bfloat16|16bit)|"
    r"Initializing distributed|distributed_backend|All distributed processes|^-+$|LOCAL_RANK: |"
    r"attempting graceful shutdown|MLU available|Trainer already configured|"
    r"that has Tensor Cores"  # docs/scaling.md says what 32-true is, and what is faster
)
_WARNINGS = (
    r".*does not have many workers.*",
    r".*Experiment logs directory .* exists and is not empty.*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*smaller than the logging interval.*",
    r".*It is recommended to use `self\.log\(.*sync_dist=True\)`.*",
    r".*LeafSpec.*deprecated.*",
    r".*`training_step` returned `None`.*",
    r".*The `srun` command is available.*",
    r".*resuming from a checkpoint that ended before the epoch ended.*",
    r".*dirpath has changed from.*",
    r".*Trying to infer the `batch_size`.*",
    r".*GPU available but not used.*",
)


class _Filter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        return bool(text.strip()) and not _LINES.search(text)


def quiet() -> None:
    """Filters advertisements, announcements and warnings that do not apply; everything else is let through."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "lightning_utilities"):
        for handler in logging.getLogger(name).handlers:
            if not any(isinstance(f, _Filter) for f in handler.filters):
                handler.addFilter(_Filter())
    for pattern in _WARNINGS:
        warnings.filterwarnings("ignore", message=pattern)
