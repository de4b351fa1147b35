"""For the tests of every plug-in, and for ours: contract checks and a toy log whose rule a right model finds.

Names are resolved when they are first used: whoever checks a kernel need not import what checks a recommender.
"""

from importlib import import_module

_HOME = {
    "ToyLog": "toy",
    "applicable_checks": "contracts",
    "check_batch_permutation": "contracts",
    "check_causality": "contracts",
    "check_checkpoint_round_trip": "contracts",
    "check_config_round_trip": "contracts",
    "check_export": "shipping",
    "check_gradients_at_length_one": "contracts",
    "check_kernel": "kernels",
    "check_learns_toy_rule": "contracts",
    "check_on_a_gpu": "shipping",
    "check_padding_invariance": "contracts",
    "check_recommender": "contracts",
    "check_seen_items_excluded": "contracts",
    "check_source": "datasets",
    "check_steps": "contracts",
    "check_top_k_matches_full_scores": "contracts",
    "check_two_processes": "shipping",
    "compare_speed": "shipping",
    "describe_source": "datasets",
    "toy_data": "toy",
    "toy_log": "toy",
}
__all__ = [*_HOME]


def __getattr__(name: str):
    if name in _HOME:
        return getattr(import_module(f"lightrec.testing.{_HOME[name]}"), name)
    raise AttributeError(f"module 'lightrec.testing' has no attribute {name!r}; public names: {', '.join(__all__)}")


def __dir__():
    return sorted(__all__)
