"""Experiment tracking: `--tracking wandb | csv | tensorboard | none`, through Lightning's own loggers.

The CSV log is always written, except with `none`; the others stand beside it. Weights & Biases works without a key and
without a network: the run is then kept on disk, where `wandb sync` finds it, and a line says so.
"""

from __future__ import annotations

import inspect
import os
import socket
from pathlib import Path
from typing import Literal
from urllib.parse import urlparse

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from lightrec.errors import InputError

Tracking = Literal["wandb", "csv", "tensorboard", "none"]
BEST_METRIC = "val/ndcg@10"
_PROBE_SECONDS = 5.0


def make_logger(
    kind: Tracking, run_folder: str, name: str, config: dict, protocol: dict, strict: bool = False
) -> list[Logger]:
    """Builds the loggers of a run and gives each the resolved configuration and the protocol record.

    Args:
        kind: where to track beside the CSV log.
        run_folder: the folder of the run; everything is written below it.
        name: a name for people.
        config: the resolved configuration, primitives.
        protocol: how the numbers are made, primitives.
        strict: fail instead of falling back to an offline W&B run.

    Returns:
        The loggers, CSV first; empty for `none`.

    Raises:
        InputError: unknown kind, a missing package, or no network under `strict`.
    """
    if kind not in ("wandb", "csv", "tensorboard", "none"):
        raise InputError(f"--tracking {kind!r} is unknown; choose wandb, csv, tensorboard or none.")
    if kind == "none":
        return []
    folder = Path(run_folder)
    loggers: list[Logger] = [CSVLogger(str(folder), name="", version="")]
    if kind == "tensorboard":
        try:
            loggers.append(TensorBoardLogger(str(folder), name="", version="tensorboard"))
        except ModuleNotFoundError as error:
            raise InputError("--tracking tensorboard needs a package: pip install 'lightrec[tensorboard]'.") from error
    if kind == "wandb":
        loggers.append(_wandb_logger(folder, name, strict))
    for logger in loggers:
        if not isinstance(logger, TensorBoardLogger):  # which keeps text and scalars only
            logger.log_hyperparams({"config": config, "protocol": protocol})
    return loggers


def _wandb_logger(folder: Path, name: str, strict: bool) -> WandbLogger:
    if os.environ.get("WANDB_MODE") == "":  # wandb refuses the empty string with a stack trace
        del os.environ["WANDB_MODE"]
    try:
        import wandb
    except ModuleNotFoundError as error:
        raise InputError("--tracking wandb needs a package: pip install 'lightrec[wandb]'.") from error
    reason = _offline_reason(wandb)
    if reason and strict and "WANDB_MODE" not in os.environ:
        raise InputError(
            f"Weights & Biases cannot be reached online: {reason}; drop --tracking_strict to track offline."
        )
    if reason:
        rank_zero_info(
            f"Weights & Biases: tracking offline ({reason}); upload later with: wandb sync {folder}/wandb/*run-*"
        )
    folder.mkdir(parents=True, exist_ok=True)
    project = os.environ.get("WANDB_PROJECT", "lightrec")
    # Looking for the key has set wandb up for online use already, so the mode must be said when the run begins.
    mode = {"mode": "disabled" if os.environ.get("WANDB_MODE") == "disabled" else "offline"} if reason else {}
    # absolute, because the process that writes was started by the first run, perhaps in another working directory
    logger = WandbLogger(
        name=name, project=project, save_dir=str(folder.absolute()), offline=bool(reason), log_model=False, **mode
    )
    _start(logger)
    return logger


@rank_zero_only
def _start(logger: WandbLogger) -> None:
    logger.experiment.define_metric(BEST_METRIC, summary="max", step_metric="trainer/global_step")


def end_run(loggers: list[Logger]) -> None:
    """Ends the W&B run of a training that is complete; otherwise the next one of the process would write into it."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()


def _offline_reason(wandb) -> str | None:
    """Says why a run must stay on disk, or None. Asked before wandb starts: a failed start cannot be repeated."""
    mode = os.environ.get("WANDB_MODE")
    if mode in ("offline", "dryrun", "disabled"):
        return f"WANDB_MODE={mode}"
    url = os.environ.get("WANDB_BASE_URL") or wandb.Settings().base_url
    try:
        if not (os.environ.get("WANDB_API_KEY") or _has_key(wandb)):
            return "no API key; `wandb login` stores one"
    except Exception as error:  # an unreadable netrc or settings file must not stop a training
        return f"the API key could not be read: {error}"
    address = urlparse(url)
    try:
        socket.create_connection((address.hostname, address.port or 443), timeout=_PROBE_SECONDS).close()
    except OSError as error:
        return f"{address.hostname} does not answer: {error}"
    return None


def _has_key(wandb) -> bool:
    if "prompt" in inspect.signature(wandb.login).parameters:
        return wandb.login(prompt=False, verify=False)
    return bool(wandb.api.api_key)  # of which a later wandb warns
