"""`lightrec fit | validate | test | predict`: a thin layer over LightningCLI.

What it adds: names are resolved before parsing; model and data of a checkpoint need not be repeated; the data are made
before the model and tell it `num_items` and `max_length`; a run has a folder; results carry their protocol.
"""

from __future__ import annotations

import inspect
import os
import re
import signal
import sys
import time
from argparse import ArgumentError
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from jsonargparse import set_parsing_settings
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, ProgressBar, TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

import lightrec
from lightrec import extensions
from lightrec.callbacks import EpochLines, ExampleTable, Interruptible, PredictionWriter
from lightrec.checkpoint import allowed_class, build_model, check_vocabulary, read_checkpoint
from lightrec.cli import arguments, parser_errors, prediction, report
from lightrec.cli.log_filter import quiet
from lightrec.data.datamodule import SequenceDataModule
from lightrec.errors import InputError
from lightrec.ops.registry import check_choice, use_kernel
from lightrec.recommender import RankingEvaluation, SequenceRecommender
from lightrec.tracking import Tracking, end_run, make_logger

TRAINER_DEFAULTS = {
    "max_epochs": 200,
    "devices": 1,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 10,
    "use_distributed_sampler": False,  # it counts rows twice; our loaders shard exactly
    "enable_model_summary": False,
}
_LINKS = {
    "num_items": ("model.init_args.num_items", "model.init_args.items.init_args.num_items"),
    "max_length": ("model.init_args.max_length", "model.init_args.encoder.init_args.max_length"),
}
_DESCRIPTIONS = {
    "fit": "Train a model; the best checkpoint by validation NDCG@10 and the last one are kept in a folder of the run.",
    "validate": "Measure a checkpoint on the validation part of its data, or of others with the same items.",
    "test": "Measure a checkpoint on the test part of its data, or of others with the same items.",
    "predict": "Write recommendations for every user of the data, or for those in --histories, to a parquet file.",
}
_CKPT_PATH = (
    "The checkpoint; model and data come from it, other data flags override.",
    "Go on with this checkpoint (last.ckpt), in the folder of its run and with its configuration.",
)
_RUN_FOLDER = "LIGHTREC_RUN_FOLDER"  # how processes that Lightning launches learn where their run is kept


def run(command: str, argv: list[str]) -> int:
    """Runs one of the four commands; returns the exit code.

    Raises:
        InputError: anything that the user can mend.
    """
    quiet()
    torch.backends.cudnn.allow_tf32 = False  # 32-true means it: cuDNN's recurrent networks alone would keep 10 bits
    # Only warned about by default: a YAML from a stranger must not be able to name os.system.
    set_parsing_settings(import_path_denylist=["os", "subprocess"])  # and all that is on its own list
    flags = {arg.split("=")[0] for arg in argv}
    asks_only = bool({"-h", "--help", "--print_config"} & flags) or any(flag.endswith(".help") for flag in flags)
    given = arguments.read(argv)
    if command == "predict" and given.typed("--histories") and not asks_only:
        with _kernel(given.value("--kernel")):
            return prediction.for_histories(argv)
    about = None if asks_only else _complete(command, given)
    _check_linked(given)
    try:
        with _kernel(given.value("--kernel")):
            return LightrecCLI(command, given, about).exit_code
    except MisconfigurationException as error:  # Lightning's word for a flag that does not fit the others
        raise InputError(str(error)) from error


def _kernel(choice: str | None) -> AbstractContextManager:
    """The choice of --kernel, which holds while the command runs. It, or that of the environment, is checked before
    anything is prepared."""
    choice = None if choice == "null" else choice
    check_choice(choice)
    return use_kernel(choice) if choice else nullcontext()


def _complete(command: str, given: arguments.Given) -> _Checkpoint | None:
    """Puts what a checkpoint (or the run around it) knows before what was typed."""
    path = given.value("--ckpt_path")
    if path is None:
        if command == "fit":
            return None
        raise InputError(f"lightrec {command} needs --ckpt_path FILE, a checkpoint that `lightrec fit` wrote.")
    about = _Checkpoint(path)
    if command == "fit":
        config = about.run_folder / "config.yaml" if about.run_folder else None
        if config and config.is_file() and not given.configs:
            known = arguments.read_yaml(str(config))
        else:
            known = about.config() if not given.configs else {}
    else:
        known = about.config()
    if known:
        given.insert(str(path), known)
    return about


def _check_linked(given: arguments.Given) -> None:
    """Refuses what the data decide: jsonargparse would drop it in silence."""
    for name in _LINKS:
        for flag in (f"--model.{name}", f"--model.init_args.{name}"):
            if given.value(flag) is not None:
                remedy = f"use --data.{name}" if name == "max_length" else "leave it out"
                raise InputError(f"{flag} is told to the model by the data: {remedy}.")


class _Checkpoint:
    """The checkpoint that a command goes on with."""

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

    def config(self) -> dict:
        """Returns model and data as a configuration."""
        linked = set(_LINKS)
        init_args = {k: v for k, v in self.description["init_args"].items() if k not in linked}
        config: dict[str, Any] = {"model": {"class_path": self.description["class_path"], "init_args": init_args}}
        data = self.content["lightrec"].get("data")
        if data:
            config["data"] = data["init_args"]
        return config


class _Parser(LightningArgumentParser):
    """A parser that raises instead of exiting."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{**kwargs, "exit_on_error": False, "allow_abbrev": False})


class _SaveConfig(SaveConfigCallback):
    """Keeps the resolved configuration in the folder of the run."""

    def __init__(self, parser: LightningArgumentParser, config: Any, folder: Path):
        super().__init__(parser, config, save_to_log_dir=False)
        self.folder = folder

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        config = self.config.clone()
        for key in ("ckpt_path", "run_folder", "config"):  # facts of this start, not of the run
            if key in config:
                config[key] = None
        self.folder.mkdir(parents=True, exist_ok=True)
        self.parser.save(config, str(self.folder / "config.yaml"), skip_unset=False, overwrite=True, multifile=False)


class LightrecCLI(LightningCLI):
    """Parses, builds and runs one command.

    Args:
        command: fit, validate, test or predict.
        given: the command line, names resolved.
        about: the checkpoint to go on with.
    """

    def __init__(self, command: str, given: arguments.Given, about: _Checkpoint | None):
        self.command, self.given, self.about = command, given, about
        self.exit_code = 0
        super().__init__(
            model_class=SequenceRecommender,
            datamodule_class=SequenceDataModule,
            subclass_mode_model=True,
            parser_class=_Parser,
            parser_kwargs={
                "prog": "lightrec",
                command: {
                    "usage": f"lightrec {command} [flags]",
                    "description": _DESCRIPTIONS[command],
                    "dump_header": [f"lightrec {lightrec.__version__}, lightning {L.__version__}"],
                },
            },
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=0,
            auto_configure_optimizers=False,  # models own their optimiser
            load_from_checkpoint_support=False,  # checkpoints describe themselves, see lightrec.checkpoint
            save_config_callback=_SaveConfig if command == "fit" else None,
            args=[command, *given.args],
        )

    def subcommands(self) -> dict[str, set[str]]:
        # One parser, not four: each takes a while to build. Weights are always loaded safely.
        skip = {"model", "dataloaders", "train_dataloaders", "val_dataloaders", "datamodule"}
        return {self.command: skip | {"ckpt_path", "weights_only", "verbose", "return_predictions"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for source, targets in _LINKS.items():
            for target in targets:
                parser.link_arguments(f"data.{source}", target, apply_on="instantiate")
        parser.add_argument("--ckpt_path", type=str | None, default=None, help=_CKPT_PATH[self.command == "fit"])
        parser.add_argument(
            "--kernel", type=str | None, default=None, help="Kernel, or op=name,op=name; see `lightrec kernels`."
        )
        parser.add_argument("--compile", type=bool, default=False, help="Compile the encoder (torch.compile).")
        if self.command == "fit":
            self._add_fit_arguments(parser)
        if self.command == "predict":
            prediction.add_arguments(parser)
        else:
            parser.add_argument("--evaluation.ks", type=list[int], default=[1, 5, 10, 20], help="Cut-offs of metrics.")
            parser.add_argument(
                "--evaluation.cohorts", type=bool, default=False, help="Metrics by kinds of users, items."
            )
            parser.add_argument("--evaluation.beyond", type=bool, default=True, help="Coverage and popularity.")
        if self.command in ("validate", "test"):
            parser.add_argument(
                "--evaluation.per_user", type=str | None, default=None, help="Parquet file for the rank of each user."
            )
            parser.add_argument("--results", type=str | None, default=None, help="Where to write results.json.")

    def _add_fit_arguments(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--run_folder", type=str | None, default=None, help="Default runs/MODEL-DATA/TIME.")
        parser.add_argument("--tracking", type=Tracking, default="csv", help="Beside the CSV log.")
        parser.add_argument("--tracking_strict", type=bool, default=False, help="Fail if the tracker is out of reach.")
        parser.add_argument("--tune_allocator", type=Literal["auto", "off"], default="auto", help="glibc thresholds.")
        parser.add_argument("--test_after_fit", type=bool, default=False, help="Test the best checkpoint at the end.")
        parser.add_argument("--patience", type=int, default=10, help="Validations without improvement; 0 never stops.")
        parser.add_argument("--monitor", type=str, default="val/ndcg@10", help="Metric that decides, larger is better.")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        try:
            self.config = parser.parse_args(args)
        except ArgumentError as error:
            flags = [flag for flag in self._parser(self.command)._option_string_actions if flag.startswith("--")]
            configs = list(zip(self.given.files, self.given.configs, strict=True))
            raise InputError(parser_errors.explain(str(error), flags, configs)) from error

    def _parse_ckpt_path(self) -> None:
        """Lightning overrides explicit flags in silence here; `_check_model_flags` refuses them instead."""

    # Building

    def before_instantiate_classes(self) -> None:
        config = self.config[self.command]
        if self._seed_data() and config.seed_everything is not False:
            config.data.seed = int(config.seed_everything)
        model_class = extensions.import_path(config.model.class_path)
        names = inspect.signature(model_class.__init__).parameters
        if "num_items" not in names and "items" not in names:
            raise InputError(
                f"model {config.model.class_path} has no constructor argument `num_items` (nor `items`), so it cannot "
                "be told the size of the catalog: add one."
            )
        if self.about:
            self._check_model_flags(config.model)

    def _seed_data(self) -> bool:
        """Says whether `--seed_everything` is the seed of the data, too: unless that was given apart."""
        if self.given.typed("--data.seed"):
            return False
        return self.given.typed("--seed_everything") or self.given.value("--data.seed") is None

    def _check_model_flags(self, model: Any) -> None:
        """Refuses flags that contradict the checkpoint."""
        mine = {"class_path": model.class_path, "init_args": _plain(model.get("init_args") or {})}
        theirs = self.about.description
        differences = _differences(mine, theirs, "model")
        if differences:
            raise InputError(
                f"{self.about.path} holds another model than asked for: {'; '.join(differences[:4])}; "
                "leave the --model flags out."
            )

    def instantiate_classes(self) -> None:
        instead = []
        if self.about and self.command != "fit":
            # Built from its own description, not from flags, so that it is the model that was trained.
            content, path = self.about.content, self.about.path
            instead = [(lambda class_type, *args, **kwargs: build_model(content, path), SequenceRecommender, True)]
        try:
            # As LightningCLI does, which cannot pass on what builds the model instead.
            self.config_init = self.parser.instantiate(self.config, instantiators=instead)
            self.datamodule, self.model = self._get(self.config_init, "data"), self._get(self.config_init, "model")
            self.trainer = self.instantiate_trainer()
        except ValueError as error:
            # What a constructor says comes wrapped, once or more, in a complaint about types.
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, InputError):
                cause = cause.__cause__
            if cause is None:
                raise
            raise cause from None

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        config = self.config[self.command]
        if self.about:
            check_vocabulary(self.about.content, self.datamodule.catalog, self.about.path)
        if self.command != "predict":
            options = config.evaluation
            self.model.evaluation = RankingEvaluation(
                ks=options.ks,
                cohorts=options.cohorts,
                beyond=options.beyond,
                per_user=bool(options.get("per_user")),
            )
        if config.compile:
            if not hasattr(self.model, "encoder"):
                raise InputError(f"--compile: {type(self.model).__name__} has no encoder to compile; leave it out.")
            self.model.encoder.compile(dynamic=True)
        trainer_config = {**self._get(self.config_init, "trainer"), **kwargs}
        callbacks = trainer_config["callbacks"] or []
        callbacks = [callbacks] if isinstance(callbacks, L.Callback) else list(callbacks)  # one needs no brackets
        if self.command == "fit":
            callbacks += self._fit_callbacks(callbacks)
            if trainer_config["logger"] is None:
                trainer_config["logger"] = self._loggers()
        else:
            trainer_config["logger"] = trainer_config["logger"] or False
            trainer_config["enable_checkpointing"] = False
            if self.command == "predict":
                callbacks.append(PredictionWriter(config.output, config.k))
        if trainer_config["enable_progress_bar"] is None:  # in a file it would be noise; the line an epoch stays
            trainer_config["enable_progress_bar"] = sys.stdout.isatty()
        if trainer_config["enable_progress_bar"] and not any(isinstance(c, ProgressBar) for c in callbacks):
            callbacks.append(TQDMProgressBar(refresh_rate=10))
        trainer_config["callbacks"] = callbacks
        return self._instantiate_trainer(trainer_config, [])

    def _fit_callbacks(self, theirs: list[L.Callback]) -> list[L.Callback]:
        config = self.config[self.command]
        monitor = config.monitor
        if self.datamodule.candidates != "full" and "[" not in monitor:
            monitor += f"[{self.datamodule.candidates}]"
        cut = re.search(r"@(\d+)", monitor)
        if cut and int(cut[1]) not in config.evaluation.ks:
            raise InputError(f"--monitor {monitor} is not measured: --evaluation.ks is {config.evaluation.ks}.")
        self.folder = self._choose_folder()
        self.save_config_kwargs = {"folder": self.folder}
        checkpoints = self.folder / "checkpoints"
        self.lines = EpochLines(monitor)
        self.interruptible = Interruptible(str(checkpoints / "last.ckpt"))
        callbacks: list[L.Callback] = [self.lines, self.interruptible]
        if config.patience and not any(isinstance(c, EarlyStopping) for c in theirs):
            callbacks.append(EarlyStopping(monitor, mode="max", patience=config.patience, strict=False))
        if not any(isinstance(c, ModelCheckpoint) for c in theirs):
            best = {"filename": "best", "monitor": monitor, "mode": "max"}
            # Not `save_last=True`: that writes only when the best changes, so a crash could cost every epoch since.
            last = {"filename": "last", "save_on_train_epoch_end": True}
            callbacks += [
                ModelCheckpoint(dirpath=checkpoints, enable_version_counter=False, **options)
                for options in (best, last)
            ]
        if config.tracking == "wandb":
            callbacks.append(ExampleTable())
        return callbacks

    def _choose_folder(self) -> Path:
        config = self.config[self.command]
        if config.run_folder:
            folder = Path(config.run_folder)
            resumed = self.about and self.about.run_folder == folder.absolute()
            if rank_zero_only.rank == 0 and not resumed and (folder / "config.yaml").exists():
                raise InputError(
                    f"--run_folder {folder} holds a run already: go on with it (lightrec fit --ckpt_path "
                    f"{folder / 'checkpoints' / 'last.ckpt'}), or choose another folder."
                )
            return folder
        if os.environ.get(_RUN_FOLDER):
            return Path(os.environ[_RUN_FOLDER])
        if self.about and self.about.run_folder:
            return self.about.run_folder
        data = config.data.source or Path(config.data.path).name.split(".")[0]
        base = Path("runs", f"{type(self.model).__name__}-{data}")
        stamp = time.strftime("%Y%m%d-%H%M%S")
        taken = (base / (stamp if not i else f"{stamp}-{i}") for i in range(10_000))
        return next(folder for folder in taken if not folder.exists())

    def _loggers(self) -> list | bool:
        config = self.config[self.command]
        before = report.metrics_before(self.folder, self.about.content["global_step"]) if self.about else []
        self._dump_config()
        name = "/".join(self.folder.parts[-2:])
        protocol = self.datamodule.protocol()
        loggers = make_logger(
            config.tracking, str(self.folder), name, self.config_dump, protocol, strict=config.tracking_strict
        )
        for logger in loggers:
            if isinstance(logger, CSVLogger) and before:
                report.continue_csv(logger, before)
        return loggers or False

    # Running

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        if self.command == "fit":
            kwargs |= {"ckpt_path": self.config[subcommand].ckpt_path, "weights_only": True}
        # Otherwise the model was built from the checkpoint, with its weights.
        if self.command == "predict":
            kwargs["return_predictions"] = False
        if self.command in ("validate", "test"):
            kwargs["verbose"] = False
        return kwargs

    def _run_subcommand(self, subcommand: str) -> None:
        if self.command == "fit":
            self._fit()
        elif self.command == "predict":
            self.trainer.predict(**self._prepare_subcommand_kwargs(subcommand))
        else:
            getattr(self.trainer, subcommand)(**self._prepare_subcommand_kwargs(subcommand))
            report.write_results(self)

    def _fit(self) -> None:
        count = sum(p.numel() for p in self.model.parameters())
        _say(f"{type(self.model).__name__}, {count:,} parameters; run folder {report.short(self.folder)}")
        os.environ[_RUN_FOLDER] = str(self.folder)
        last = self.folder / "checkpoints" / "last.ckpt"
        try:
            self.trainer.fit(**self._prepare_subcommand_kwargs("fit"))
        except SystemExit:  # Lightning's answer to Ctrl-C, after it has closed everything
            if not self.trainer.interrupted:
                raise
            again = f"lightrec fit --ckpt_path {report.short(last)}"
            _say(
                f"\ninterrupted; go on with: {again}" if last.is_file() else "\ninterrupted before the first checkpoint"
            )
            self.exit_code = 128 + (self.interruptible.received or signal.SIGINT)
            return
        finally:
            os.environ.pop(_RUN_FOLDER, None)
        end_run(self.trainer.loggers)
        best = report.after_fit(self)
        if best and self.config.fit.test_after_fit:
            self._test(best)

    def _test(self, best: str) -> None:
        if self.trainer.world_size > 1:
            _say("--test_after_fit tests in one process only; use the command above.")
            return
        accelerator = str(self.config.fit.trainer.accelerator)
        self.exit_code = run("test", ["--ckpt_path", best, "--trainer.accelerator", accelerator])


def _plain(node: Any) -> Any:
    if hasattr(node, "as_dict"):
        node = node.as_dict()
    if isinstance(node, dict):
        return {key: _plain(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_plain(part) for part in node]
    return node


def _differences(mine: Any, theirs: Any, where: str) -> list[str]:
    if isinstance(mine, dict) and isinstance(theirs, dict):
        found = []
        for key, value in mine.items():
            if key in _LINKS or key not in theirs:
                continue
            found += _differences(value, theirs[key], f"{where}.{key}".replace(".init_args", ""))
        return found
    if mine == theirs or (where.endswith("class_path") and str(mine) == str(theirs)):
        return []
    return [f"--{where} {mine} was given, the checkpoint has {theirs}"]


@rank_zero_only
def _say(text: str) -> None:
    print(text, flush=True)
