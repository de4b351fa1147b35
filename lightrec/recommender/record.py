"""What a checkpoint says about itself: how to build the model, where its data came from, the protocol, the catalog."""

from __future__ import annotations

from typing import Any

import lightrec
from lightrec.configurable import Configurable

FORMAT = 2
"""Of `checkpoint["lightrec"]`."""

_KEPT = "_data_facts"


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


def _facts_of(data: Any) -> dict:
    # Constant while the data are: packing a catalog of a million titles at every epoch would be felt.
    kept = getattr(data, _KEPT, None)
    if kept is None:
        kept = {
            "data": data.describe() if hasattr(data, "describe") else None,
            "protocol": data.protocol() if hasattr(data, "protocol") else None,
            "catalog": data.catalog.to_tensors() if hasattr(data, "catalog") else None,
            "max_length": getattr(data, "max_length", None),
        }
        if data is not None:
            setattr(data, _KEPT, kept)
    return kept
