"""Every pattern over the messages of jsonargparse and of Lightning matches what the installed version says."""

import re
from argparse import ArgumentError
from pathlib import Path

import lightning
import pytest
from jsonargparse import set_parsing_settings

from lightrec.cli import arguments, log_filter, parser_errors
from lightrec.cli.command_line import CommandLine
from lightrec.cli.parser import make_parser


@pytest.fixture(scope="module")
def parser():
    set_parsing_settings(import_path_denylist=["os", "subprocess"])  # as `lightrec fit` does
    return make_parser("fit")


def said(parser, *words):
    """What jsonargparse says about a wrong command line."""
    line = arguments.resolve(CommandLine.read("fit", ["--data.source", "ml-100k", *words]))
    with pytest.raises(ArgumentError) as error:
        parser.parse_args(arguments.for_parser(line))
    return str(error.value)


SASREC = ("--model", "SASRec")
EVIL = '{"class_path": "os.system", "init_args": {"command": "true"}}'


@pytest.mark.parametrize(
    ("pattern", "words", "groups"),
    [
        ("_UNKNOWN_OPTION", (*SASREC, "--model.hiden_size", "4"), ("lightrec.models.sasrec.SASRec", "hiden_size")),
        ("_UNRECOGNISED", (*SASREC, "--datta.path", "x"), ("--datta.path",)),
        ("_DENIED", (*SASREC, "--trainer.callbacks", f"[{EVIL}]"), ("os.system",)),
        ("_NO_SUBCLASS", ("--model", "torch.nn.Linear"), None),
        ("_NO_IMPORT", ("--model", "nowhere.Model"), ("nowhere.Model", "No module named 'nowhere'")),
        ("_KEY", (*SASREC, "--model.hidden_size", "x"), None),
        ("_SUBTYPES", (*SASREC, "--model.inner_size", "x"), None),
        ("_EXPECTED", (*SASREC, "--patience", "x"), None),
        ("_GIVEN", (*SASREC, "--patience", "x"), ("x",)),
        ("_REQUIRED", (), None),
    ],
)
def test_a_pattern_matches_a_real_message(parser, pattern, words, groups):
    found = getattr(parser_errors, pattern).search(said(parser, *words))
    assert found, said(parser, *words)
    assert groups is None or found.groups() == groups


@pytest.mark.parametrize(
    ("text", "groups"),
    [("trainer: {max_epoch: 3}", ("trainer", "max_epoch")), ("trainr: {max_epochs: 3}", (None, "trainr.max_epochs"))],
)
def test_an_unknown_key_of_a_file_is_found(parser, tmp_path, text, groups):
    (tmp_path / "wrong.yaml").write_text(text)
    message = said(parser, *SASREC, "--config", str(tmp_path / "wrong.yaml"))
    assert parser_errors._UNKNOWN_KEY.search(message).groups() == groups


def test_a_nested_argument_is_read_as_its_value(parser):
    message = said(parser, *SASREC, "--model.objective.positions", "last")
    given, *_ = [value.strip() for value in parser_errors._GIVEN.findall(message) if "NestedArg" in value]
    assert parser_errors._NESTED.match(given)[1] == "last"


LIGHTNING = "\n".join(path.read_text() for path in Path(lightning.__file__).parent.rglob("*.py"))


def words_of(pattern):
    """The longest run of plain words in a pattern."""
    return max(re.split(r"\\|\.\*|[()\[\]|^$+?]", pattern), key=len).strip()


@pytest.mark.parametrize("pattern", log_filter._WARNINGS)
def test_a_warning_that_is_filtered_is_still_one_of_those_that_are_given(pattern):
    import torch

    sources = LIGHTNING + (Path(torch.__file__).parent / "utils" / "_pytree.py").read_text()
    sources += (Path(torch.__file__).parent / "serialization.py").read_text()
    joined = re.sub(r'"\s*\n\s*f?"', "", sources)  # a sentence over several lines of source
    assert words_of(pattern) in joined


@pytest.mark.parametrize(
    "fragment",
    [
        "GPU available: ",
        "TPU available: ",
        " stopped: ",
        "Seed set to ",
        "Restoring states from ",
        "Restored all states",
        "Loaded model weights",
        " Automatic Mixed Precision (AMP)",
        "Loading `train_dataloader` to estimate",
        "Initializing distributed: ",
        "distributed_backend=",
        "All distributed processes registered.",
        "LOCAL_RANK: ",
        "attempting graceful shutdown",
        "Trainer already configured",
        "that has Tensor Cores",
        "litlogger",
        "litmodels",
        "Tip:",
    ],
)
def test_a_line_that_is_filtered_is_still_one_of_those_that_are_printed(fragment):
    assert fragment in LIGHTNING
    whole = {  # what the source puts together
        " stopped: ": "`Trainer.fit` stopped: `max_epochs=3` reached.",
        "Restored all states": "Restored all states from the checkpoint at last.ckpt",
        "Loaded model weights": "Loaded model weights from the checkpoint at last.ckpt",
        " Automatic Mixed Precision (AMP)": "Using bfloat16 Automatic Mixed Precision (AMP)",
    }
    assert log_filter._LINES.search(whole.get(fragment, f"{fragment}..."))
