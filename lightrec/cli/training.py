"""`lightrec fit | validate | test | predict`: from a command line to a Trainer.

Names are resolved before parsing. Model and data of a checkpoint need not be repeated. The data are made before the
model and tell it `num_items` and `max_length`. A run has a folder, and results carry their protocol.
"""

from __future__ import annotations

import re
import signal
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from jsonargparse import Namespace, set_parsing_settings
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, ProgressBar, TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightrec import extensions
from lightrec.callbacks import EpochLines, ExampleTable, Interruptible, PredictionWriter
from lightrec.checkpoint import build_model, check_vocabulary
from lightrec.cli import arguments, prediction, renamed, report, run_folder
from lightrec.cli.checkpoint import Checkpoint, complete
from lightrec.cli.command_line import CommandLine
from lightrec.cli.log_filter import quiet
from lightrec.cli.model_options import TOLD_BY_DATA, check_classes
from lightrec.cli.parser import make_parser, parse
from lightrec.configurable import options
from lightrec.data.datamodule import SequenceDataModule
from lightrec.data.readers import ReadAs
from lightrec.errors import InputError
from lightrec.ops.registry import check_choice, use_kernel
from lightrec.recommender import RankingEvaluation, SequenceRecommender
from lightrec.tracking import end_run, make_logger


def run(line: CommandLine) -> int:
    """Runs one of the four commands; returns the exit code.

    Raises:
        InputError: anything that the user can mend.
    """
    quiet()
    torch.backends.cudnn.allow_tf32 = False  # 32-true means it: cuDNN's recurrent networks alone would keep 10 bits
    # Only warned about by default: a YAML from a stranger must not be able to name os.system.
    set_parsing_settings(import_path_denylist=["os", "subprocess"])  # and all that is on its own list
    line, checkpoint = arguments.resolve(line), None
    if line.command == "predict" and line.histories:
        with _kernel(line.kernel):
            return prediction.for_histories(line)
    renamed.refuse(line)
    check_classes(line)
    if not line.asks_only:
        line, checkpoint = complete(line)
    _check_told_by_data(line)
    try:
        with _kernel(line.kernel):
            job = _prepare(line, checkpoint)
            return {"fit": _fit, "predict": _predict}.get(line.command, _measure)(job)
    except MisconfigurationException as error:  # Lightning's word for a flag that does not fit the others
        raise InputError(str(error)) from error


@dataclass(frozen=True)
class Job:
    """What a command works with, built from its configuration."""

    command: str
    parser: LightningArgumentParser
    config: Namespace
    checkpoint: Checkpoint | None
    data: SequenceDataModule
    model: SequenceRecommender
    trainer: dict[str, Any]
    """Arguments of the Trainer as configured, callbacks and loggers built."""
    ranks: str | None
    """The file for the rank of each user."""


def _kernel(choice: str | None) -> AbstractContextManager:
    """Returns what holds a choice of kernel. It, or that of the environment, is checked before data are prepared."""
    check_choice(choice)
    return use_kernel(choice) if choice else nullcontext()


def _check_told_by_data(line: CommandLine) -> None:
    """Refuses what the data decide: jsonargparse would drop it in silence."""
    for name, remedy in TOLD_BY_DATA.items():
        for flag in (f"--model.{name}", f"--model.init_args.{name}"):
            if line.value(flag) is not None:
                raise InputError(f"{flag} is told to the model by the data: {remedy}.")


def _prepare(line: CommandLine, checkpoint: Checkpoint | None) -> Job:
    """Parses, seeds and builds."""
    parser = make_parser(line.command)
    config = parse(parser, line)
    _seed(config, line)
    _check_model(config.model, checkpoint)
    built = _build(parser, config, checkpoint if line.command != "fit" else None)
    if checkpoint:
        check_vocabulary(checkpoint.content, built.data.catalog, checkpoint.path)
    _replace_parts(built.model, built, line.typed("--evaluation"))
    if config.compile:
        if not hasattr(built.model, "encoder"):
            raise InputError(f"--compile: {type(built.model).__name__} has no encoder to compile; leave it out.")
        built.model.encoder.compile(dynamic=True)
    return Job(line.command, parser, config, checkpoint, built.data, built.model, {**built.trainer}, line.ranks)


def _seed(config: Namespace, line: CommandLine) -> None:
    """Seeds everything, the data too unless they were given a seed of their own."""
    if config.seed_everything is False:
        return
    chosen = None if config.seed_everything is True else config.seed_everything  # None is a random one
    config.seed_everything = L.seed_everything(chosen, workers=True)
    apart = line.typed("--data.seed")
    if not apart and (line.typed("--seed_everything") or line.value("--data.seed") is None):
        config.data.seed = int(config.seed_everything)


def _check_model(model: Namespace, checkpoint: Checkpoint | None) -> None:
    """Refuses a model that cannot be told the size of the catalog, or that is not the one of the checkpoint."""
    if not {"num_items", "items"} & set(options(extensions.import_path(model.class_path))):
        raise InputError(
            f"model {model.class_path} has no constructor argument `num_items` (nor `items`), so it cannot "
            "be told the size of the catalog: add one."
        )
    if checkpoint:
        checkpoint.check_model(model.class_path, _plain(model.get("init_args") or {}))


def _build(parser: LightningArgumentParser, config: Namespace, trained: Checkpoint | None) -> Namespace:
    """Builds data and model; with a checkpoint the model is built from what that says, and gets its weights."""
    instead = []
    if trained:
        # From its own description, not from flags, so that it is the model that was trained.
        def build(class_type: type, *args: Any, **arguments: Any) -> SequenceRecommender:
            return build_model(trained.content, trained.path)

        instead = [(build, SequenceRecommender, True)]
    try:
        return parser.instantiate(config, instantiators=instead)
    except ValueError as error:
        # What a constructor says of a value comes wrapped, once or more, in a complaint about types.
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        if not isinstance(cause, ValueError):
            raise
        raise InputError(str(cause)) from error


def _replace_parts(model: SequenceRecommender, built: Namespace, named: bool) -> None:
    """Gives the model the evaluation and the search that were chosen beside it.

    Args:
        model: whose parts they become.
        built: what the configuration says.
        named: whether `--evaluation NAME` was typed. Options without a name are for the kind that the model brings.
    """
    evaluation = built.get("evaluation")
    if type(evaluation) is RankingEvaluation and not named:
        model.evaluation = model.evaluation.with_options(**evaluation.describe()["init_args"])
    elif evaluation is not None:
        model.evaluation = evaluation
    if built.search is not None:
        if not hasattr(model, "search"):
            raise InputError(f"--search: {type(model).__name__} searches no table; leave it out.")
        model.search = built.search


def _trainer(job: Job, callbacks: list[L.Callback], last: list[L.Callback], **options: Any) -> L.Trainer:
    """Makes the Trainer, with a progress bar where somebody watches."""
    chosen = job.trainer | options
    if chosen["enable_progress_bar"] is None:  # in a file it would be noise; the line per epoch stays
        chosen["enable_progress_bar"] = sys.stdout.isatty()
    if chosen["enable_progress_bar"] and not any(isinstance(c, ProgressBar) for c in callbacks):
        callbacks = [*callbacks, TQDMProgressBar(refresh_rate=10)]
    return L.Trainer(**chosen | {"callbacks": [*callbacks, *last]})


def _callbacks(job: Job) -> list[L.Callback]:
    """Returns the callbacks that the user configured; a single one needs no brackets."""
    given = job.trainer["callbacks"] or []
    return [given] if isinstance(given, L.Callback) else list(given)


def _fit(job: Job) -> int:
    config, theirs = job.config, _callbacks(job)
    monitor = _monitor(job)
    resumed = job.checkpoint.run_folder if job.checkpoint else None
    data = config.data.source or Path(config.data.path or "").name.split(".")[0]
    folder = run_folder.choose(config.run_folder, resumed, type(job.model).__name__, data)
    last = folder / "checkpoints" / "last.ckpt"
    lines, interruptible = EpochLines(monitor), Interruptible(last)
    callbacks = [*theirs, lines, interruptible, *_defaults(job, theirs, monitor, last.parent)]
    logger = _loggers(job, folder) if job.trainer["logger"] is None else job.trainer["logger"]
    keep = [] if job.trainer["fast_dev_run"] else [run_folder.config_callback(job.parser, config, folder)]
    trainer = _trainer(job, callbacks, keep, logger=logger)
    count = sum(p.numel() for p in job.model.parameters())
    _say(f"{type(job.model).__name__}, {count:,} parameters; run folder {report.short(folder)}")
    read_as = ReadAs.from_meta(job.data.prepared.meta)
    if not config.data.source and (read_as.guessed or read_as.notes):
        for line in read_as.lines():
            _say(line)
    try:
        with run_folder.told_to_others(folder):
            trainer.fit(job.model, datamodule=job.data, ckpt_path=config.ckpt_path, weights_only=True)
    except SystemExit:  # Lightning's answer to Ctrl-C, after it has closed everything
        if not trainer.interrupted:
            raise
        again = f"lightrec fit --ckpt_path {report.short(last)}"
        _say(f"\ninterrupted; go on with: {again}" if last.is_file() else "\ninterrupted before the first checkpoint")
        return 128 + (interruptible.received or signal.SIGINT)
    end_run(trainer.loggers)
    kept = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.monitor]
    best = next((c.best_model_path for c in kept), "")
    if trainer.is_global_zero:
        outcome = report.Outcome(Path(best) if best else None, lines.best, job.data.protocol(), folder)
        report.after_fit(outcome, monitor, lines.best_epoch + 1, trainer.current_epoch)
    return _test(best, config, trainer.world_size) if best and config.test_after_fit else 0


def _monitor(job: Job) -> str:
    """Returns the full name of the metric that decides.

    Raises:
        InputError: its cut-off is not measured.
    """
    monitor, evaluation = job.config.monitor, job.model.evaluation
    if job.data.candidates != "full" and "[" not in monitor:
        monitor += f"[{job.data.candidates}]"
    cut = re.search(r"@(\d+)", monitor)
    if cut and isinstance(evaluation, RankingEvaluation) and int(cut[1]) not in evaluation.metrics.ks:
        raise InputError(f"--monitor {monitor} is not measured: --evaluation.ks is {list(evaluation.metrics.ks)}.")
    return monitor


def _defaults(job: Job, theirs: list[L.Callback], monitor: str, checkpoints: Path) -> list[L.Callback]:
    """Returns early stopping, checkpoints and examples, as far as the user brought none of his own."""
    callbacks: list[L.Callback] = []
    if job.config.patience and not any(isinstance(c, EarlyStopping) for c in theirs):
        callbacks.append(EarlyStopping(monitor, mode="max", patience=job.config.patience, strict=False))
    if not any(isinstance(c, ModelCheckpoint) for c in theirs):
        best = {"filename": "best", "monitor": monitor, "mode": "max"}
        # Not `save_last=True`: that writes only when the best changes, so a crash could cost every epoch since.
        last = {"filename": "last", "save_on_train_epoch_end": True}
        callbacks += [
            ModelCheckpoint(dirpath=checkpoints, enable_version_counter=False, **options) for options in (best, last)
        ]
    if job.config.tracking == "wandb":
        callbacks.append(ExampleTable())
    return callbacks


def _loggers(job: Job, folder: Path) -> list | bool:
    before = report.metrics_before(folder, job.checkpoint.content["global_step"]) if job.checkpoint else []
    text = job.parser.dump(job.config, skip_link_targets=False, skip_unset=False, format="yaml")
    loggers = make_logger(
        job.config.tracking,
        str(folder),
        "/".join(folder.parts[-2:]),
        yaml.safe_load(text),
        job.data.protocol(),
        strict=job.config.tracking_strict,
    )
    for logger in loggers:
        if isinstance(logger, CSVLogger) and before:
            report.continue_csv(logger, before)
    return loggers or False


def _test(best: str, config: Namespace, processes: int) -> int:
    if processes > 1:
        _say("--test_after_fit tests in one process only; use the command above.")
        return 0
    return run(
        CommandLine.read("test", ["--ckpt_path", best, "--trainer.accelerator", str(config.trainer.accelerator)])
    )


def _measure(job: Job) -> int:
    options = {"logger": job.trainer["logger"] or False, "enable_checkpointing": False}
    trainer = _trainer(job, _callbacks(job), [], **options)
    {"validate": trainer.validate, "test": trainer.test}[job.command](job.model, datamodule=job.data, verbose=False)
    evaluation = job.model.evaluation
    values = {name: float(value) for name, value in evaluation.compute().items()}
    if job.ranks:
        if not isinstance(evaluation, RankingEvaluation):
            raise InputError(f"--evaluation.per_user: {type(evaluation).__name__} has no rank of each user.")
        report.write_per_user(job.ranks, evaluation.metrics, job.data.prepared.users, trainer)
    if trainer.is_global_zero:
        checkpoint = job.checkpoint
        outcome = report.Outcome(
            checkpoint.path, values, job.data.protocol(), checkpoint.run_folder or checkpoint.path.parent
        )
        part = {"test": "test", "validate": "val"}[job.command]
        report.write_results(outcome, part, _model_of(job), checkpoint.epochs, job.config.results)
    return 0


def _model_of(job: Job) -> dict[str, Any]:
    """Describes the model, with the search if another one was chosen."""
    description = job.checkpoint.description
    return description if job.config.search is None else {**description, "search": job.model.search.describe()}


def _predict(job: Job) -> int:
    writer = PredictionWriter(job.config.output, job.config.k)
    options = {"logger": job.trainer["logger"] or False, "enable_checkpointing": False}
    trainer = _trainer(job, [*_callbacks(job), writer], [], **options)
    trainer.predict(job.model, datamodule=job.data, return_predictions=False)
    return 0


def _plain(node: Any) -> Any:
    if hasattr(node, "as_dict"):
        node = node.as_dict()
    if isinstance(node, dict):
        return {key: _plain(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_plain(part) for part in node]
    return node


@rank_zero_only
def _say(text: str) -> None:
    print(text, flush=True)
