"""Plug-ins: find, resolve, explain and try what is installed. Standard library only.

A name comes from entry-point metadata (`lightrec.models`, `lightrec.encoders`, ...: key = short name, value =
`module:Class`); nothing is imported until it is used, and lightrec's own classes are declared in the same way. A
built-in wins a contest of names; a plug-in's homonym is addressed as `distribution:Name`. A plug-in that is broken or
made for another lightrec disturbs nobody until it is asked for, and then says what is wrong and what to do.

`LIGHTREC_PLUGINS=none` leaves every plug-in out, `LIGHTREC_PLUGINS=a,b` all but the distributions a and b.
"""

from lightrec.extensions.entry_points import (
    HOME,
    KINDS,
    Plugin,
    PluginError,
    Status,
    everything,
    import_path,
    installed,
    load,
    status,
    suggestion,
    summary,
)
from lightrec.extensions.import_check import LIMIT, Outcome, try_all
from lightrec.extensions.resolution import resolve
from lightrec.extensions.timed_call import call_in_time

__all__ = [
    "HOME",
    "KINDS",
    "LIMIT",
    "Outcome",
    "Plugin",
    "PluginError",
    "Status",
    "call_in_time",
    "everything",
    "import_path",
    "installed",
    "load",
    "resolve",
    "status",
    "suggestion",
    "summary",
    "try_all",
]
