"""The checkpoint that a command goes on with: what it says of model and data, and flags that contradict it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightrec import extensions
from lightrec.checkpoint import allowed_class, read_checkpoint
from lightrec.cli import arguments
from lightrec.cli.command_line import CommandLine
from lightrec.cli.model_options import TOLD_BY_DATA
from lightrec.data import shorthand
from lightrec.errors import InputError

_DIFFERENCES_SHOWN = 4


class Checkpoint:
    """A checkpoint, read safely.

    Args:
        path: the file.

    Raises:
        InputError: it cannot be read, or names a class that may not be built.
    """

    def __init__(self, path: str):
        self.path = Path(path)
        self.content = read_checkpoint(self.path)
        self.description = self.content["lightrec"]["model"]
        allowed_class(self.description["class_path"])

    @property
    def run_folder(self) -> Path | None:
        """The folder of the run that wrote it, if it still lies there."""
        folder = self.path.absolute().parent
        return folder.parent if folder.name == "checkpoints" else None

    @property
    def epochs(self) -> int:
        """Epochs that its model was trained for."""
        return self.content.get("epoch", -1) + 1

    def config(self) -> dict[str, Any]:
        """Returns model and data as a configuration."""
        init_args = {k: v for k, v in self.description["init_args"].items() if k not in TOLD_BY_DATA}
        config: dict[str, Any] = {"model": {"class_path": self.description["class_path"], "init_args": init_args}}
        data = self.content["lightrec"].get("data")
        if data:
            config["data"] = shorthand.from_checkpoint(data["init_args"])
        return config

    def check_model(self, class_path: str, init_args: dict[str, Any]) -> None:
        """Makes sure that a configured model is the one of this checkpoint.

        Raises:
            InputError: an argument was given another value.
        """
        mine = {"class_path": class_path, "init_args": init_args}
        found = _differences(mine, self.description, "model")
        if found:
            raise InputError(
                f"{self.path} holds another model than asked for: {'; '.join(found[:_DIFFERENCES_SHOWN])}; "
                "leave the --model flags out."
            )


def complete(line: CommandLine) -> tuple[CommandLine, Checkpoint | None]:
    """Puts what a checkpoint, or the run around it, knows before what was typed.

    Raises:
        InputError: the command needs a checkpoint and none was named, or it cannot be read.
    """
    if line.checkpoint is None:
        if line.command == "fit":
            return line, None
        raise InputError(f"lightrec {line.command} needs --ckpt_path FILE, a checkpoint that `lightrec fit` wrote.")
    checkpoint = Checkpoint(line.checkpoint)
    if line.command == "fit" and line.configs:
        return line, checkpoint
    written = checkpoint.run_folder / "config.yaml" if checkpoint.run_folder else None
    if line.command == "fit" and written and written.is_file():
        known = arguments.read_yaml(str(written))
    else:
        known = checkpoint.config()
    return line.after(str(line.checkpoint), known), checkpoint


def _differences(mine: Any, theirs: Any, where: str) -> list[str]:
    """Compares what both name, however deep; an argument that only one of them knows has its default in the other."""
    if isinstance(mine, dict) and isinstance(theirs, dict):
        shared = [key for key in mine if key in theirs and key not in TOLD_BY_DATA]
        below = [_differences(mine[k], theirs[k], f"{where}.{k}".replace(".init_args", "")) for k in shared]
        return [difference for part in below for difference in part]
    if mine == theirs or (where.endswith(".class_path") and _same_class(mine, theirs)):
        return []
    return [f"--{where} {mine} was given, the checkpoint has {theirs}"]


def _same_class(mine: str, theirs: str) -> bool:
    """A class may have several paths: that of its module, and that of the package which exports it."""
    try:
        return extensions.import_path(mine) is extensions.import_path(theirs)
    except (ImportError, AttributeError):
        return False
