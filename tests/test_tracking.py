"""Tracking: what a run writes is read back and compared; no network is ever needed."""

import csv
import json
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lightrec.cli import main
from lightrec.errors import InputError
from lightrec.testing import toy_log
from lightrec.tracking import make_logger

_BLOCK = 32 * 1024


def wandb_records(path):
    """Reads the records of a W&B run file: a 7-byte header, then LevelDB's log format in blocks of 32 KiB."""
    from wandb.proto import wandb_internal_pb2

    content, at, pending = Path(path).read_bytes(), 7, b""
    while at + 7 <= len(content):
        left = _BLOCK - at % _BLOCK
        if left < 7:  # a header never spans two blocks
            at += left
            continue
        length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        pending += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(pending)
            pending = b""
            yield record


def _key(item):
    return item.key or "/".join(item.nested_key)


def fit(folder, *flags, **env):
    log = folder / "toy.csv"
    if not log.exists():
        toy_log().write_csv(log)
    command = [sys.executable, "-m", "lightrec", "fit", "--model", "SASRec", "--model.hidden_size", "8"]
    command += ["--data.path", str(log), "--data.max_length", "8", "--trainer.max_epochs", "3"]
    command += ["--run_folder", str(folder / "run"), *flags]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    home = folder / "home"
    home.mkdir(exist_ok=True)
    environment |= {"OMP_NUM_THREADS": "1", "HOME": str(home), "NETRC": str(home / "none")} | env
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def csv_metrics(folder):
    (path,) = (folder / "run").rglob("metrics.csv")
    rows = list(csv.DictReader(path.open()))
    return [{k: float(v) for k, v in row.items() if v not in ("", None)} for row in rows]


@pytest.fixture(scope="module")
def offline_run(tmp_path_factory):
    pytest.importorskip("wandb")
    folder = tmp_path_factory.mktemp("offline")
    return folder, fit(folder, "--tracking", "wandb", WANDB_MODE="")


def test_a_run_without_key_or_network_is_kept_on_disk_and_says_so(offline_run):
    _, printed = offline_run
    assert "tracking offline (no API key" in printed and "wandb sync" in printed


def test_every_metric_of_the_run_file_equals_that_of_the_csv_log(offline_run):
    folder, _ = offline_run
    (path,) = (folder / "run").rglob("run-*.wandb")
    logged = {}
    for record in wandb_records(path):
        if record.WhichOneof("record_type") == "history":
            row = {_key(item): item.value_json for item in record.history.item}
            for name, value in row.items():
                if name.startswith(("train/", "val/")):
                    logged.setdefault((name, json.loads(row["trainer/global_step"])), json.loads(value))
    expected = {}
    for row in csv_metrics(folder):
        for name, value in row.items():
            if name.startswith(("train/", "val/")):
                expected[name, int(row["step"])] = value
    assert len([key for key in expected if key[0] == "val/ndcg@10"]) == 3
    assert logged.keys() == expected.keys()
    assert all(abs(logged[key] - expected[key]) <= 1e-12 * max(1, abs(expected[key])) for key in expected)


def test_the_run_file_holds_configuration_protocol_summary_rule_and_examples(offline_run):
    folder, _ = offline_run
    (path,) = (folder / "run").rglob("run-*.wandb")
    config, rules, tables = {}, [], []
    for record in wandb_records(path):
        kind = record.WhichOneof("record_type")
        updates = record.run.config.update if kind == "run" else record.config.update if kind == "config" else []
        config |= {item.key: json.loads(item.value_json) for item in updates if item.key}
        if kind == "metric":
            rules.append((record.metric.name, record.metric.summary.max))
        if kind == "history":
            tables += [_key(item) for item in record.history.item if "table" in item.value_json]
    assert config["protocol"]["tag"] == "P4" and config["protocol"]["targets_sha256"]
    assert config["config"]["model"]["class_path"] == "lightrec.models.sasrec.SASRec"
    assert ("val/ndcg@10", True) in rules
    assert any(name.startswith("examples") for name in tables)
    (table,) = (folder / "run").rglob("examples*.table.json")
    content = json.loads(table.read_text())
    assert content["columns"] == ["user", "history", "target", "recommended"]
    assert "Title " in content["data"][0][1] and content["data"][0][0].startswith("user-")


def test_two_trainings_of_a_process_are_two_runs(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb.finish()  # a training that another test broke off in this process leaves its run open
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    wandb.init().finish()  # wandb's own process, which writes all runs, stays where it was started
    monkeypatch.chdir(tmp_path)
    toy_log().write_csv("toy.csv")
    flags = ["--model", "SASRec", "--model.hidden_size", "8", "--data.path", "toy.csv", "--data.max_length", "8"]
    flags += ["--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--tracking", "wandb"]
    for folder in ("one", "two"):
        assert main(["fit", *flags, "--run_folder", folder]) == 0
        assert wandb.run is None
        assert len(list(Path(folder).rglob("run-*.wandb"))) == 1


def test_a_network_that_fails_ends_in_an_offline_run_within_seconds(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # a port where nobody listens
    monkeypatch.delenv("WANDB_MODE", raising=False)
    began = time.monotonic()
    with pytest.raises(InputError, match="127.0.0.1 does not answer"):
        make_logger("wandb", str(tmp_path), "strict", {}, {}, strict=True)
    assert time.monotonic() - began < 30


def test_an_unknown_tracker_is_said(tmp_path):
    with pytest.raises(InputError, match="choose wandb, csv, tensorboard or none"):
        make_logger("mlflow", str(tmp_path), "x", {}, {})


def test_none_writes_nothing(tmp_path):
    assert make_logger("none", str(tmp_path), "x", {}, {}) == [] and not list(tmp_path.iterdir())


def test_looking_for_a_key_warns_of_nothing_and_finds_a_stored_one(tmp_path):
    """In a process of its own: wandb keeps what it has found."""
    pytest.importorskip("wandb")
    code = "import wandb; from lightrec.tracking import _has_key; print(_has_key(wandb))"
    said = {}
    for name, netrc in (("without", ""), ("with", f"machine api.wandb.ai\n  login user\n  password {'0' * 40}\n")):
        home = tmp_path / name
        home.mkdir()
        (home / ".netrc").write_text(netrc)
        (home / ".netrc").chmod(0o600)
        kept = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
        environment = kept | {"HOME": str(home), "WANDB_BASE_URL": "https://api.wandb.ai"}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=home)
        said[name] = done.stdout.split()[-1], "deprecated" in done.stdout + done.stderr
    assert said == {"without": ("False", False), "with": ("True", False)}
