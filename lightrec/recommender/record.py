"""What a checkpoint says about itself: how to build the model, where its data came from, the protocol, the catalog."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import lightrec
from lightrec.configurable import Configurable

FORMAT = 2
"""Of `checkpoint["lightrec"]`."""


def describe_run(model: Configurable, data: Any) -> dict:
    """Returns what `checkpoint["lightrec"]` holds.

    Args:
        model: a recommender.
        data: the data module that it is trained with, or None.
    """
    return {
        "format": FORMAT,
        "lightrec_version": lightrec.__version__,
        "plugin_api": lightrec.PLUGIN_API,
        "model": model.describe(),
        **_facts_of(data),
    }


# Constant while the data are: packing a catalog of a million titles at every epoch would be felt.
_known: WeakKeyDictionary[Any, dict] = WeakKeyDictionary()


def _facts_of(data: Any) -> dict:
    """Returns what a data module, or None, says of itself."""
    if data is None:
        return {"data": None, "protocol": None, "catalog": None, "max_length": None}
    if data not in _known:
        _known[data] = {
            "data": data.describe() if hasattr(data, "describe") else None,
            "protocol": data.protocol() if hasattr(data, "protocol") else None,
            "catalog": data.catalog.to_tensors() if hasattr(data, "catalog") else None,
            "max_length": getattr(data, "max_length", None),
        }
    return _known[data]
