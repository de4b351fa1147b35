"""`lightrec kernels` explains the choice, and `--kernel` makes it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lightrec.cli import main
from lightrec.ops import registry


@pytest.fixture
def table(capsys):
    def run(*argv):
        capsys.readouterr()
        assert main(["kernels", "--json", "--device", "cpu", *argv]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def of(answer, op="selective_scan"):
    return {row["name"]: row for row in answer["kernels"] if row["op"] == op}


def test_one_kernel_of_each_op_is_chosen_by_priority(table):
    answer = table()
    assert answer["asked_for"] is None
    for op in {row["op"] for row in answer["kernels"]}:
        rows = of(answer, op).values()
        (chosen,) = [row for row in rows if row["chosen"]]
        able = [row["priority"] for row in rows if row["reason"] is None and row["only_by_name"] is None]
        assert chosen["priority"] == max(able) and chosen["chosen_by"] == "priority"


def test_a_named_kernel_is_shown_as_chosen_and_by_what(table):
    rows = of(table("--kernel", "selective_scan=reference"))
    assert rows["reference"]["chosen"] and rows["reference"]["chosen_by"] == "context"
    assert not rows["torch"]["chosen"]


def test_the_environment_is_named_as_what_chose():
    environment = {**os.environ, "LIGHTREC_KERNEL": "selective_scan=reference"}
    command = [sys.executable, "-m", "lightrec", "kernels"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    text = " ".join(done.stdout.replace("\u2502", " ").split())
    assert "runs, by" in text and "LIGHTREC_KERNEL" in text
    assert "asked for: selective_scan=reference" in text


def test_the_table_for_people_holds_every_kernel(capsys):
    assert main(["kernels"]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("selective_scan", "reference", "torch", "-100", "asked for: nothing"))


def test_help_does_not_import_torch():
    code = "import sys; from lightrec.cli import main; sys.exit(main(['kernels', '--help']) or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["kernels", "--kernel", "refrence"], "did you mean reference?"),
        (["kernels", "--kernel", "scan=torch"], "no op 'scan'"),
        (["kernels", "--jsn"], "did you mean --json?"),
    ],
)
def test_what_nobody_knows_is_explained(complaint, argv, said):
    assert said in complaint(*argv)


def test_a_training_with_an_unknown_kernel_ends_before_it_begins(complaint, small):
    assert "did you mean torch?" in complaint("fit", *small, "--kernel", "trch", "--run_folder", "run")
    assert not Path("run").exists()


def test_a_training_with_an_unknown_kernel_in_the_environment_ends_before_it_begins(complaint, small, monkeypatch):
    monkeypatch.setattr(registry, "_FROM_ENVIRONMENT", "trch")
    said = complaint("fit", *small, "--run_folder", "run")
    assert "did you mean torch?" in said and "LIGHTREC_KERNEL asks for it" in said
    assert not Path("run").exists()


def test_a_kernel_that_cannot_run_ends_a_training_in_one_line(complaint, small):
    flags = ["Mamba4Rec" if word == "SASRec" else word for word in small]
    said = complaint("fit", *flags, "--kernel", "mamba_ssm", "--run_folder", "run")
    assert "kernel 'mamba_ssm' was asked for but cannot run selective_scan: it runs on CUDA, not on cpu" in said


def test_a_training_runs_with_the_kernel_of_its_flag_or_configuration(small, tmp_path, monkeypatch):
    (tmp_path / "kernel_listener.py").write_text(
        "import lightning as L\n"
        "from pathlib import Path\n"
        "from lightrec.ops.registry import asked_for\n"
        "class Listener(L.Callback):\n"
        "    def on_train_start(self, trainer, pl_module):\n"
        "        Path('heard').write_text(str(asked_for('selective_scan')))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    flags = [*small, "--trainer.max_epochs", "1", "--trainer.callbacks", "kernel_listener.Listener"]
    assert main(["fit", *flags, "--run_folder", "one", "--kernel", "reference"]) == 0
    assert Path("heard").read_text() == "('reference', 'context')"
    assert yaml.safe_load(Path("one", "config.yaml").read_text())["kernel"] == "reference"
    Path("kernel.yaml").write_text("kernel: selective_scan=torch\n")
    assert main(["fit", "--config", "kernel.yaml", *flags, "--run_folder", "two"]) == 0
    assert Path("heard").read_text() == "('torch', 'context')"
    assert main(["fit", *flags, "--run_folder", "three"]) == 0
    assert Path("heard").read_text() == "(None, 'priority')"
