"""The options of a model or of one of its parts, as a user gives them."""

from __future__ import annotations

from lightrec import extensions
from lightrec.configurable import options

# What the data tell a model, and what to do instead of telling it yourself.
TOLD_BY_DATA = {"num_items": "leave it out", "max_length": "use --data.max_length"}


def options_of(class_path: str) -> list[str]:
    """Returns the options of a class by its dotted path, those that it passes on included; none if it is not there."""
    try:
        names = list(options(extensions.import_path(class_path)))
    except (ImportError, AttributeError, ValueError):
        return []
    return [name for name in names if name not in TOLD_BY_DATA]
