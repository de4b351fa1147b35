"""lightrec: sequential recommendation on PyTorch Lightning.

The public names are resolved when they are first used, so that reading the version, listing plug-ins or printing
help never imports torch.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("lightrec")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

PLUGIN_API = 2  # raised when a change breaks plug-ins written for the number before

_HOME = {
    "Batch": "lightrec.data.batch",
    "Column": "lightrec.data.batch",
    "Corpus": "lightrec.data.corpus",
    "SequenceDataModule": "lightrec.data.datamodule",
    "History": "lightrec.interfaces",
    "SequenceEncoder": "lightrec.interfaces",
    "ItemTable": "lightrec.interfaces",
    "Objective": "lightrec.interfaces",
    "Term": "lightrec.interfaces",
    "Search": "lightrec.interfaces",
    "SequenceRecommender": "lightrec.recommender",
    "EncoderRecommender": "lightrec.recommender",
    "Optimizer": "lightrec.recommender",
    "Evaluation": "lightrec.recommender",
    "RankingMetrics": "lightrec.metrics.ranking",
    "load_recommender": "lightrec.serving",
    "StreamingRecommender": "lightrec.serving",
    "InputError": "lightrec.errors",
}
__all__ = [*_HOME, "PLUGIN_API", "__version__"]


def __getattr__(name: str):
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'lightrec' has no attribute {name!r}; public names: {', '.join(__all__)}")


def __dir__():
    return sorted(__all__)
