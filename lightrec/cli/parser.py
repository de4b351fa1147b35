"""The parser of `fit`, `validate`, `test` and `predict`: every flag with its type, default and line of help."""

from __future__ import annotations

from argparse import ArgumentError
from typing import Literal

import lightning as L
from jsonargparse import ActionConfigFile, Namespace
from lightning.pytorch.cli import LightningArgumentParser

import lightrec
from lightrec.cli import arguments, parser_errors
from lightrec.cli.command_line import CommandLine
from lightrec.cli.model_options import TOLD_BY_DATA
from lightrec.data.datamodule import SequenceDataModule
from lightrec.errors import InputError
from lightrec.interfaces import Search
from lightrec.recommender import SequenceRecommender
from lightrec.recommender.evaluation import Evaluation
from lightrec.tracking import Tracking

TRAINER_DEFAULTS = {
    "max_epochs": 200,
    "devices": 1,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 10,
    "use_distributed_sampler": False,  # it counts rows twice; our loaders shard exactly
    "enable_model_summary": False,
}
# The parts of a model that may ask for what the data tell: the model itself, and a part that its recipe composes.
_LISTENERS = {"num_items": ("items",), "max_length": ("encoder",)}
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
_EVALUATION = (
    "How the model is judged, by name; null is as the model says. RankingEvaluation needs no name: "
    "--evaluation.ks [1,10] are its cut-offs, --evaluation.cohorts adds metrics by kinds of users and items, "
    "--evaluation.beyond false leaves coverage and popularity out. --evaluation.per_user FILE writes the rank of each "
    "user, with validate and test."
)
_SEARCH = "How a state becomes a list, by name, such as ExactSearch; null is as the model says."


def make_parser(command: str) -> LightningArgumentParser:
    """Builds the parser of a command; it raises where argparse would exit."""
    parser = LightningArgumentParser(
        prog="lightrec",
        usage=f"lightrec {command} [flags]",
        description=_DESCRIPTIONS[command],
        dump_header=[f"lightrec {lightrec.__version__}, lightning {L.__version__}"],
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument(
        "-c", "--config", action=ActionConfigFile, help="Path to a configuration file in json or yaml format."
    )
    parser.add_argument(
        "--seed_everything",
        type=bool | int,
        default=0,
        help="Seed of the weights, the data and every training step; true takes a random one.",
    )
    parser.add_lightning_class_args(L.Trainer, "trainer")
    parser.set_defaults({f"trainer.{name}": value for name, value in TRAINER_DEFAULTS.items()})
    parser.add_lightning_class_args(SequenceRecommender, "model", subclass_mode=True)
    parser.add_lightning_class_args(SequenceDataModule, "data")
    for name in TOLD_BY_DATA:
        parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")
        for part in _LISTENERS[name]:
            parser.link_arguments(f"data.{name}", f"model.init_args.{part}.init_args.{name}", apply_on="instantiate")
    parser.add_argument("--ckpt_path", type=str | None, default=None, help=_CKPT_PATH[command == "fit"])
    parser.add_argument(
        "--kernel", type=str | None, default=None, help="Kernel, or op=name,op=name; see `lightrec kernels`."
    )
    parser.add_argument("--search", type=Search | None, default=None, help=_SEARCH)
    parser.add_argument("--compile", type=bool, default=False, help="Compile the encoder (torch.compile).")
    if command == "fit":
        _add_fit_flags(parser)
    if command == "predict":
        _add_predict_flags(parser)
    else:
        parser.add_argument("--evaluation", type=Evaluation | None, default=None, help=_EVALUATION)
    if command in ("validate", "test"):
        parser.add_argument("--results", type=str | None, default=None, help="Where to write results.json.")
    return parser


def _add_fit_flags(parser: LightningArgumentParser) -> None:
    parser.add_argument("--run_folder", type=str | None, default=None, help="Default runs/MODEL-DATA/TIME.")
    parser.add_argument("--tracking", type=Tracking, default="csv", help="Beside the CSV log.")
    parser.add_argument("--tracking_strict", type=bool, default=False, help="Fail if the tracker is out of reach.")
    parser.add_argument("--tune_allocator", type=Literal["auto", "off"], default="auto", help="glibc thresholds.")
    parser.add_argument("--test_after_fit", type=bool, default=False, help="Test the best checkpoint at the end.")
    parser.add_argument("--patience", type=int, default=10, help="Validations without improvement; 0 never stops.")
    parser.add_argument("--monitor", type=str, default="val/ndcg@10", help="Metric that decides, larger is better.")


def _add_predict_flags(parser: LightningArgumentParser) -> None:
    parser.add_argument("--output", type=str, default="predictions.parquet", help="Parquet file to write.")
    parser.add_argument("-k", "--k", type=int, default=10, help="Length of the lists.")
    parser.add_argument(
        "--histories",
        type=str | None,
        default=None,
        help="A log of other people, in any format that data.path reads, instead of those in the data.",
    )


def parse(parser: LightningArgumentParser, line: CommandLine) -> Namespace:
    """Parses a command line whose names are resolved.

    Raises:
        InputError: a flag or a key that is unknown, or has a wrong value.
    """
    try:
        return parser.parse_args(arguments.for_parser(line))
    except ArgumentError as error:
        raise InputError(parser_errors.explain(str(error), list(parser.get_defaults().keys()), line.configs)) from error
