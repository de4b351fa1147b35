"""The folder of a run: which one it is, and the configuration that is kept in it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning as L
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities import rank_zero_only

from lightrec.errors import InputError

_VARIABLE = "LIGHTREC_RUN_FOLDER"  # how processes that Lightning launches learn where their run is kept


def choose(named: str | None, resumed: Path | None, model: str, data: str) -> Path:
    """Returns the folder of a run.

    Args:
        named: what `--run_folder` says.
        resumed: folder of the run that goes on.
        model: name of the model, for a new folder.
        data: name of the data, for a new folder.

    Raises:
        InputError: the named folder holds another run.
    """
    if named:
        folder = Path(named)
        if rank_zero_only.rank == 0 and resumed != folder.absolute() and (folder / "config.yaml").exists():
            raise InputError(
                f"--run_folder {folder} holds a run already: go on with it (lightrec fit --ckpt_path "
                f"{folder / 'checkpoints' / 'last.ckpt'}), or choose another folder."
            )
        return folder
    if os.environ.get(_VARIABLE):
        return Path(os.environ[_VARIABLE])
    if resumed:
        return resumed
    base = Path("runs", f"{model}-{data}")
    stamp = time.strftime("%Y%m%d-%H%M%S")
    taken = (base / (stamp if not i else f"{stamp}-{i}") for i in range(10_000))
    return next(folder for folder in taken if not folder.exists())


@contextmanager
def told_to_others(folder: Path) -> Iterator[None]:
    """Lets the processes that are launched inside keep their run in this folder, too."""
    os.environ[_VARIABLE] = str(folder)
    try:
        yield
    finally:
        os.environ.pop(_VARIABLE, None)


def config_callback(parser: LightningArgumentParser, config: Namespace, folder: Path) -> L.Callback:
    """Returns what keeps the resolved configuration in the folder of the run, from the moment that training begins.

    Args:
        parser: writes the configuration.
        config: what it resolved.
        folder: of the run.
    """
    return _ConfigFile(parser, config, folder)


class _ConfigFile(L.Callback):  # private, so that `--help` does not offer it as a callback
    def __init__(self, parser: LightningArgumentParser, config: Namespace, folder: Path):
        self.parser, self.config, self.folder = parser, config, folder

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit" or not trainer.is_global_zero:
            return
        config = self.config.clone()
        for key in ("ckpt_path", "run_folder", "config"):  # facts of this start, not of the run
            if key in config:
                config[key] = None
        self.folder.mkdir(parents=True, exist_ok=True)
        self.parser.save(config, str(self.folder / "config.yaml"), skip_unset=False, overwrite=True, multifile=False)
