"""What was typed after `lightrec`, read once. Standard library only: `--help` answers before anything is loaded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

_LONG = {"-c": "--config", "-k": "--k"}
_ASKS_ONLY = {"-h", "--help", "--print_config"}


@dataclass(frozen=True)
class Flag:
    """A flag with its value, or a word that belongs to no flag."""

    name: str
    """`--data.path`, the long form; empty for a word that belongs to no flag."""
    value: str | None = None
    """None if none was given. For `--config` it is the name of the file."""
    joined: str = " "
    """What stood between name and value: a space or an equals sign."""
    config: dict[str, Any] | None = None
    """The content of the file that `--config` names, once it has been read."""


@dataclass(frozen=True)
class CommandLine:
    """One command with its flags. `arguments.resolve` reads the configuration files that it names."""

    command: str
    words: tuple[str, ...]
    """What follows the command, as it was typed."""
    flags: tuple[Flag, ...]

    @classmethod
    def read(cls, command: str, words: Sequence[str]) -> CommandLine:
        """Splits words into flags. A word after a flag is its value, unless it begins with two dashes."""
        flags: list[Flag] = []
        waiting = list(words)
        while waiting:
            word = waiting.pop(0)
            if not word.startswith("-"):
                flags.append(Flag("", word))
                continue
            name, joined, value = word.partition("=")
            if re.fullmatch(r"-[A-Za-z].+", name):  # -k5
                name, joined, value = name[:2], " ", word[2:]
            elif not joined and waiting and not waiting[0].startswith("--"):
                joined, value = " ", waiting.pop(0)
            flags.append(Flag(_LONG.get(name, name), value if joined else None, joined or " "))
        return cls(command, tuple(words), tuple(flags))

    @property
    def asks_only(self) -> bool:
        """Whether help or the resolved configuration is all that is wanted."""
        names = {word.partition("=")[0] for word in self.words}
        return bool(names & _ASKS_ONLY) or any(name.endswith(".help") for name in names)

    @property
    def kernel(self) -> str | None:
        """The choice of `--kernel`; None leaves it to the environment and to priorities."""
        choice = self.value("--kernel")
        return None if choice == "null" else choice

    @property
    def checkpoint(self) -> str | None:
        return self.value("--ckpt_path")

    @property
    def histories(self) -> str | None:
        """The log of `--histories`, if that was typed and something is to be done with it."""
        return self.value("--histories") if self.typed("--histories") and not self.asks_only else None

    @property
    def ranks(self) -> str | None:
        """The file of `--evaluation.per_user`, if there is something to measure."""
        return self.value("--evaluation.per_user") if self.command in ("validate", "test") else None

    @property
    def keeps_allocator(self) -> bool:
        """Whether the allocator is left as it is."""
        return self.asks_only or self.value("--tune_allocator") in ("off", "false")

    @property
    def configs(self) -> list[tuple[str, dict[str, Any]]]:
        """The configuration files that were read, by name and in order."""
        return [(flag.value or "", flag.config) for flag in self.flags if flag.config is not None]

    def typed(self, name: str) -> bool:
        """Says whether a flag stands on the command line itself."""
        return any(flag.name == name for flag in self.flags)

    def value(self, name: str) -> Any:
        """Returns the last value of a flag (`--a.b`), else that of its key in the configuration files, else None."""
        found = None
        for _, config in self.configs:
            node: Any = config
            for key in name.removeprefix("--").split("."):
                node = node.get(key) if isinstance(node, dict) else None
            found = node if node is not None else found
        for flag in self.flags:
            if flag.name == name and flag.value is not None:
                found = flag.value
        return found

    def after(self, name: str, config: dict[str, Any]) -> CommandLine:
        """Returns this line with a configuration before all that it says."""
        return replace(self, flags=(Flag("--config", name, "=", config), *self.flags))
