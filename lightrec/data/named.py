"""A part of the data module by its short name."""

from __future__ import annotations

from typing import TypeVar

from lightrec import extensions
from lightrec.errors import InputError

Kind = TypeVar("Kind")


def by_name(name: str, flag: str, group: str, built_in: dict[str, type[Kind]]) -> Kind:
    """Makes the part of a short name, with its defaults; a built-in wins a contest of names.

    Args:
        name: `prefixes`, or the name that a plug-in declared.
        flag: which flag takes it, for the message.
        group: entry-point group without `lightrec.`.
        built_in: ours, by name.

    Raises:
        InputError: nobody has a part of this name, or the plug-in that does is broken.
    """
    if name in built_in:
        return built_in[name]()
    plugins = [plugin for plugin in extensions.installed(group) if not plugin.builtin]
    if not any(name in (plugin.name, plugin.full_name) for plugin in plugins):
        known = [*built_in, *(plugin.full_name for plugin in plugins)]
        raise InputError(f"{flag} {name!r} is unknown; choose {', '.join(known)}.")
    return extensions.load(extensions.resolve(group, name))()
