"""argparse for the small commands, with complaints in one line."""

from __future__ import annotations

import argparse

from lightrec import extensions
from lightrec.errors import InputError


class Options(argparse.ArgumentParser):
    """Raises, with a near match, where argparse prints its usage and exits.

    Raises:
        InputError: from `parse_args`, for a flag that is unknown, missing or has a wrong value.
    """

    def __init__(self, prog: str, description: str | None = None):
        super().__init__(prog, description=description, allow_abbrev=False)

    def error(self, message: str):
        if message.startswith("unrecognized arguments: "):
            word = message.split()[2].split("=")[0]
            flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
            near = extensions.suggestion(word, flags) or f"; see `{self.prog} --help`."
            raise InputError(f"{'flag' if word.startswith('-') else 'word'} {word!r} is unknown{near}")
        raise InputError(f"{message}; see `{self.prog} --help`.")
