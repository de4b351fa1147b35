"""For the tests of every plug-in, and for ours: contract checks and a toy log whose rule a right model finds."""

from lightrec.testing.contracts import (
    applicable_checks,
    check_batch_permutation,
    check_causality,
    check_checkpoint_round_trip,
    check_config_round_trip,
    check_gradients_at_length_one,
    check_learns_toy_rule,
    check_padding_invariance,
    check_recommender,
    check_seen_items_excluded,
    check_top_k_matches_full_scores,
)
from lightrec.testing.toy import ToyLog, toy_data, toy_log

__all__ = [
    "ToyLog",
    "applicable_checks",
    "check_batch_permutation",
    "check_causality",
    "check_checkpoint_round_trip",
    "check_config_round_trip",
    "check_gradients_at_length_one",
    "check_learns_toy_rule",
    "check_padding_invariance",
    "check_recommender",
    "check_seen_items_excluded",
    "check_top_k_matches_full_scores",
    "toy_data",
    "toy_log",
]
