"""`lightrec fit | validate | test | predict` as a user types them, on a toy log."""

import csv
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
import torch
import yaml

from lightrec.cli import main
from lightrec.testing import toy_log


def _checkpoint(path):
    return torch.load(path, weights_only=True)


def test_fit_leaves_a_complete_run_folder(run_folder):
    config = yaml.safe_load((run_folder / "config.yaml").read_text())
    assert config["model"]["class_path"] == "lightrec.models.sasrec.SASRec"
    assert config["ckpt_path"] is None
    with (run_folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sum(bool(row["val/ndcg@10"]) for row in rows) == 2
    assert {path.name for path in (run_folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}


def test_fit_names_the_best_epoch_and_the_next_command(small, capsys):
    assert main(["fit", *small, "--run_folder", "run"]) == 0
    out = capsys.readouterr().out
    assert "val/ndcg@10" in out
    assert "next: lightrec test --ckpt_path run/checkpoints/best.ckpt" in out


def test_fit_without_a_run_folder_makes_one_by_model_and_data(small):
    assert main(["fit", *small]) == 0
    assert main(["fit", *small]) == 0
    folders = list(Path("runs", "SASRec-toy").iterdir())
    assert len(folders) == 2
    assert all((folder / "config.yaml").is_file() for folder in folders)


def test_catalog_size_and_length_are_told_by_the_data(run_folder):
    arguments = _checkpoint(run_folder / "checkpoints" / "best.ckpt")["lightrec"]["model"]["init_args"]
    assert (arguments["num_items"], arguments["max_length"]) == (30, 8)


def test_short_names_in_yaml_and_nested_slots_are_resolved(small, tmp_path):
    recipe = {
        "model": {
            "class_path": "SASRec",
            "init_args": {
                "hidden_size": 8,
                "optimizer": {"class_path": "AdamW", "init_args": {"learning_rate": 2e-3}},
                "objective": {"class_path": "SampledSoftmax", "init_args": {"num_negatives": 5}},
            },
        }
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe).replace("0.002", "2e-3"))
    rest = small[small.index("--data.path") :]
    assert main(["fit", "--config", "recipe.yaml", *rest, "--run_folder", "run"]) == 0
    model = _checkpoint("run/checkpoints/best.ckpt")["lightrec"]["model"]["init_args"]
    assert model["objective"]["class_path"] == "lightrec.objectives.sampled.SampledSoftmax"
    assert model["objective"]["init_args"]["num_negatives"] == 5
    assert model["optimizer"]["init_args"]["learning_rate"] == 2e-3


def test_nested_slot_on_the_command_line_is_resolved(small):
    flags = ["--model.objective", "BinaryCrossEntropy", "--trainer.max_epochs", "1"]
    assert main(["fit", *small, *flags, "--run_folder", "run"]) == 0
    model = _checkpoint("run/checkpoints/best.ckpt")["lightrec"]["model"]["init_args"]
    assert model["objective"]["class_path"].endswith("sampled.BinaryCrossEntropy")


def test_seed_is_the_seed_of_the_data_unless_that_is_given_apart(small):
    one = ["--trainer.max_epochs", "1"]
    assert main(["fit", *small, *one, "--seed_everything", "7", "--run_folder", "a"]) == 0
    assert main(["fit", *small, *one, "--seed_everything", "7", "--data.seed", "3", "--run_folder", "b"]) == 0
    assert main(["fit", "--config", "b/config.yaml", "--seed_everything", "9", "--run_folder", "c"]) == 0
    seeds = [_checkpoint(f"{run}/checkpoints/last.ckpt")["lightrec"]["data"]["init_args"]["seed"] for run in "abc"]
    assert seeds == [7, 3, 9]


def test_test_needs_the_checkpoint_only_and_writes_results_with_the_protocol(best, run_folder, capsys):
    assert main(["test", "--ckpt_path", best]) == 0
    out = capsys.readouterr().out
    assert "protocol P4" in out and "seen items removed" in out and "ndcg" in out
    record = json.loads((run_folder / "results.json").read_text())
    assert record["protocol"]["num_test_rows"] == 64
    assert 0 <= record["metrics"]["test/ndcg@10"] <= 1
    assert len(record["checkpoint_sha256"]) == 64


def test_data_flags_change_the_protocol_and_keep_the_other_result(best, capsys):
    assert main(["test", "--ckpt_path", best, "--results", "r.json"]) == 0
    assert main(["test", "--ckpt_path", best, "--results", "r.json", "--data.exclude_seen", "false"]) == 0
    assert "protocol P3" in capsys.readouterr().out
    assert json.loads(Path("r.json").read_text())["protocol"]["tag"] == "P3"
    (kept,) = Path().glob("r-P4-*.json")
    assert json.loads(kept.read_text())["protocol"]["tag"] == "P4"


@pytest.mark.parametrize("candidates", ["uniform-100", "popularity-100"])
def test_sampled_metrics_carry_their_name(best, capsys, candidates):
    assert main(["test", "--ckpt_path", best, "--results", "full.json"]) == 0
    capsys.readouterr()
    assert main(["test", "--ckpt_path", best, "--data.candidates", candidates, "--results", "sampled.json"]) == 0
    assert f"the target among {candidates}" in capsys.readouterr().out
    full, sampled = (json.loads(Path(f"{name}.json").read_text()) for name in ("full", "sampled"))
    assert "test/ndcg@10" in full["metrics"] and not any("[" in name for name in full["metrics"])
    assert set(sampled["metrics"]) == {f"{name}[{candidates}]" for name in full["metrics"]}
    assert sampled["protocol"]["candidates"] == candidates


def test_ranks_of_users_give_the_metric_back(best):
    flags = ["--evaluation.per_user", "ranks.parquet", "--evaluation.cohorts", "true", "--results", "r.json"]
    assert main(["test", "--ckpt_path", best, *flags]) == 0
    metrics = json.loads(Path("r.json").read_text())["metrics"]
    rank = pl.read_parquet("ranks.parquet")["rank"]
    assert len(rank) == 64
    assert (rank.fill_null(10**6) <= 10).mean() == pytest.approx(metrics["test/hr@10"], abs=1e-12)
    assert any("/history:" in name for name in metrics) and any("/items:" in name for name in metrics)


def test_evaluation_and_search_are_chosen_by_name_or_in_a_file(best):
    named = ["--evaluation", "RankingEvaluation", "--search", "ExactSearch", "--evaluation.ks", "[3]"]
    assert main(["test", "--ckpt_path", best, *named, "--results", "a.json"]) == 0
    Path("judge.yaml").write_text("evaluation: {ks: [3], per_user: ranks.parquet}\nsearch: ExactSearch\n")
    assert main(["test", "--ckpt_path", best, "--config", "judge.yaml", "--results", "b.json"]) == 0
    a, b = (json.loads(Path(f"{name}.json").read_text()) for name in "ab")
    assert a["metrics"] == b["metrics"] and set(a["metrics"]) >= {"test/hr@3", "test/coverage@3"}
    assert not any("@10" in name for name in a["metrics"])
    assert a["model"]["search"]["class_path"] == "lightrec.search.exact.ExactSearch"
    assert len(pl.read_parquet("ranks.parquet")) == 64


def test_a_part_with_a_default_takes_flags_without_a_name(small):
    flags = ["--model.optimizer.learning_rate", "0.5", "--model.optimizer.warmup_steps", "3"]
    assert main(["fit", *small, *flags, "--trainer.max_epochs", "1", "--run_folder", "run"]) == 0
    found = _checkpoint("run/checkpoints/last.ckpt")["lightrec"]["model"]["init_args"]["optimizer"]
    assert found["class_path"] == "lightrec.recommender.optimizer.AdamW"
    assert (found["init_args"]["learning_rate"], found["init_args"]["warmup_steps"]) == (0.5, 3)


def test_validate_gives_what_training_saw(best, run_folder):
    assert main(["validate", "--ckpt_path", best, "--results", "v.json"]) == 0
    with (run_folder / "metrics.csv").open() as file:
        seen = [float(row["val/ndcg@10"]) for row in csv.DictReader(file) if row["val/ndcg@10"]]
    assert json.loads(Path("v.json").read_text())["metrics"]["val/ndcg@10"] == pytest.approx(max(seen), abs=1e-6)


def test_resuming_equals_never_stopping(small):
    four = ["--trainer.max_epochs", "4", "--patience", "0"]
    assert main(["fit", *small, *four, "--run_folder", "whole"]) == 0
    assert main(["fit", *small, "--patience", "0", "--run_folder", "parts"]) == 0
    assert main(["fit", "--ckpt_path", "parts/checkpoints/last.ckpt", "--trainer.max_epochs", "4"]) == 0
    whole, parts = (_checkpoint(f"{run}/checkpoints/last.ckpt")["state_dict"] for run in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert not Path("runs").exists()  # the run went on where it was
    assert _checkpoint("whole/checkpoints/last.ckpt")["epoch"] == 3  # also where the best is older
    with open("whole/metrics.csv") as a, open("parts/metrics.csv") as b:
        assert a.read() == b.read()


def test_ctrl_c_keeps_a_checkpoint_says_how_to_resume_and_loses_nothing(small):
    lasting = [*small, "--trainer.max_epochs", "10000", "--patience", "0", "--data.batch_size", "8"]
    command = [sys.executable, "-m", "lightrec", "fit", *lasting, "--run_folder", "run"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not process.stdout.readline().startswith("epoch "):
        assert process.poll() is None
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "lightrec fit --ckpt_path run/checkpoints/last.ckpt" in out
    assert "Traceback" not in err
    stopped = _checkpoint("run/checkpoints/last.ckpt")
    more = ["--trainer.max_epochs", str(stopped["epoch"] + 1)]
    assert main(["fit", "--config", "run/config.yaml", "--ckpt_path", "run/checkpoints/last.ckpt", *more]) == 0
    assert main(["fit", *lasting, *more, "--run_folder", "whole"]) == 0
    whole, parts = (_checkpoint(f"{run}/checkpoints/last.ckpt") for run in ("whole", "run"))
    assert whole["global_step"] == parts["global_step"]
    assert all(torch.equal(whole["state_dict"][name], parts["state_dict"][name]) for name in whole["state_dict"])


def test_predict_lists_every_user_once_by_external_id(best):
    assert main(["predict", "--ckpt_path", best, "--output", "p.parquet", "-k", "4"]) == 0
    frame = pl.read_parquet("p.parquet")
    assert frame["user_id"].to_list() == [f"user-{i}" for i in range(64)]
    histories = toy_log().histories
    for user, items, scores in frame.iter_rows():
        assert len(items) == len(set(items)) == len(scores) == 4
        assert scores == sorted(scores, reverse=True)
        assert not set(items) & {f"item-{i}" for i in histories[int(user.split("-")[1])]}


def test_predict_for_histories_equals_predict_for_the_same_users(best, toy_csv, capsys):
    assert main(["predict", "--ckpt_path", best, "--output", "a.parquet"]) == 0
    assert main(["predict", "--ckpt_path", best, "--output", "b.parquet", "--histories", str(toy_csv)]) == 0
    a, b = pl.read_parquet("a.parquet"), pl.read_parquet("b.parquet")
    assert a["item_ids"].equals(b["item_ids"]) and a["user_id"].equals(b["user_id"])


def test_unknown_items_of_new_histories_are_reported_and_skipped(best, capsys):
    Path("new.csv").write_text("user,item,time\nanna,item-1,1000000000\nanna,nowhere,1000000060\nbob,gone,1000000000\n")
    assert main(["predict", "--ckpt_path", best, "--histories", "new.csv", "--output", "p.parquet", "-k", "3"]) == 0
    err = capsys.readouterr().err
    assert "2 events with 2 unknown items" in err and "bob" in err
    lists = dict(pl.read_parquet("p.parquet").select("user_id", "item_ids").iter_rows())
    assert len(lists["anna"]) == 3 and lists["bob"] == []


@pytest.mark.slow
def test_two_processes_train_and_test_and_predict_like_one(small, best):
    two = ["--config", str(Path(__file__).parents[2] / "configs" / "trainer" / "ddp_cpu.yaml")]

    def lightrec(*argv):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "lightrec", *argv], capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    out = lightrec("fit", *small, *two, "--run_folder", "run")
    assert out.count("epoch   2") == 1 and Path("run/checkpoints/best.ckpt").is_file()
    lightrec("test", "--ckpt_path", best, *two, "--results", "two.json", "--evaluation.per_user", "two.parquet")
    assert main(["test", "--ckpt_path", best, "--results", "one.json", "--evaluation.per_user", "one.parquet"]) == 0
    one, two_results = (json.loads(Path(f"{name}.json").read_text())["metrics"] for name in ("one", "two"))
    assert one.keys() == two_results.keys()
    assert all(two_results[name] == pytest.approx(value, abs=1e-12) for name, value in one.items())
    assert pl.read_parquet("one.parquet").equals(pl.read_parquet("two.parquet"))
    lightrec("predict", "--ckpt_path", best, *two, "--output", "p2.parquet")
    assert main(["predict", "--ckpt_path", best, "--output", "p1.parquet"]) == 0
    columns = ["user_id", "item_ids"]
    assert pl.read_parquet("p1.parquet", columns=columns).equals(pl.read_parquet("p2.parquet", columns=columns))


def test_bf16_mixed_trains(small):
    flags = ["--trainer.precision", "bf16-mixed", "--trainer.max_epochs", "1", "--run_folder", "run"]
    assert main(["fit", *small, *flags]) == 0
    assert Path("run/checkpoints/best.ckpt").is_file()


def test_compiled_encoder_leaves_an_ordinary_checkpoint(small, monkeypatch):
    seen = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **options: seen.append((type(module), options)))
    assert main(["fit", *small, "--compile", "true", "--trainer.max_epochs", "1", "--run_folder", "run"]) == 0
    assert [(kind.__name__, options) for kind, options in seen] == [("SASRecEncoder", {"dynamic": True})]


def test_flags_of_a_command_and_of_a_model_are_explained(capsys):
    assert main(["fit", "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: lightrec fit [flags]")
    assert "leave the whole history out of the ranking" in text and "--ckpt_path" in text
    assert main(["fit", "--model.help", "SASRec"]) == 0
    assert "attention heads; must divide hidden_size" in capsys.readouterr().out


def test_test_after_fit_leaves_results(small, capsys):
    flags = ["--trainer.max_epochs", "1", "--test_after_fit", "true", "--run_folder", "run"]
    assert main(["fit", *small, *flags]) == 0
    assert "protocol P4" in capsys.readouterr().out
    assert Path("run/results.json").is_file()


def test_a_recommender_is_composed_of_named_parts_that_are_told_the_data(small):
    parts = {
        "class_path": "lightrec.recommender.EncoderRecommender",
        "init_args": {
            "items": {"class_path": "lightrec.items.embedding.ItemEmbedding", "init_args": {"hidden_size": 8}},
            "encoder": {"class_path": "SASRecEncoder", "init_args": {"hidden_size": 8}},
            "objective": "NextItem",
        },
    }
    Path("parts.yaml").write_text(yaml.safe_dump({"model": parts}))
    rest = small[small.index("--data.path") :]
    assert main(["fit", "--config", "parts.yaml", *rest, "--trainer.max_epochs", "1", "--run_folder", "run"]) == 0
    model = _checkpoint("run/checkpoints/last.ckpt")["lightrec"]["model"]["init_args"]
    assert model["items"]["init_args"]["num_items"] == 30 and model["encoder"]["init_args"]["max_length"] == 8
    assert main(["test", "--ckpt_path", "run/checkpoints/best.ckpt"]) == 0


@pytest.mark.parametrize("name", ["default", "debug", "long"])
def test_trainer_recipes_run(name, small):
    recipe = Path(__file__).parents[2] / "configs" / "trainer" / f"{name}.yaml"
    assert main(["fit", "--config", str(recipe), *small, "--trainer.max_epochs", "1", "--run_folder", "run"]) == 0


def test_trackers_are_written_beside_the_csv_log(small):
    for kind, extra in (("tensorboard", "tensorboard"), ("none", None)):
        flags = ["--trainer.max_epochs", "1", "--tracking", kind, "--run_folder", kind]
        assert main(["fit", *small, *flags]) == 0
        assert Path(kind, "metrics.csv").exists() == (kind != "none")
        assert extra is None or any(Path(kind, extra).iterdir())


class TestComplaints:
    """Each mistake is one line that names the flag, what was expected and what to do; exit code 2."""

    @pytest.mark.parametrize(
        ("flags", "said"),
        [
            (["--model.hiden_size", "4"], "did you mean hidden_size"),
            (["--trainer.max_epoch", "4"], "did you mean --trainer.max_epochs"),
            (["--datta.path", "x"], "did you mean --data.path"),
            (["--model.hidden_size", "abc"], "--model.hidden_size cannot be 'abc'; expected int"),
            (["--data.split", "random"], "leave_one_out"),
            (["--model", "SASRek"], "did you mean SASRec"),
            (["--model.objective", "NextItems"], "did you mean NextItem"),
            (["--model.objective", "GBCE", "--model.objective.num_negative", "3"], "did you mean num_negatives"),
            (
                ["--model.objective.positions", "last"],
                "add --model.objective NAME; positions is an option of BinaryCrossEntropy",
            ),
            (["--model.optimizer.decay", "quadratic"], "decay"),
            (["--evaluation", "Ranking"], "installed: RankingEvaluation"),
            (["--evaluation.kss", "[10]"], "did you mean ks"),
            (["--search", "ExactSaerch"], "did you mean ExactSearch"),
            (["--model", "Popularity", "--search", "ExactSearch"], "--search"),
            (["--model.max_length", "9"], "use --data.max_length"),
            (["--model.num_items", "9"], "leave it out"),
            (["--model.num_heads", "3"], "hidden_size (8) must be divisible by num_heads (3)"),
            (["--data.source", "ml-1mm"], "ml-1m"),
            (["--data.path", "nowhere.csv"], "nowhere.csv"),
            (["--trainer.devices", "0"], "devices"),
            (["--monitor", "val/ndgc@10"], "did you mean val/ndcg@10"),
            (["--evaluation.ks", "[1,5]"], "--evaluation.ks"),
            (["--model", "torch.nn.Linear"], "SequenceRecommender"),
            (["--model", "nowhere.Model"], "No module named 'nowhere'"),
            (["--config", "nowhere.yaml"], "nowhere.yaml"),
            (["word"], "'word'"),
        ],
    )
    def test_wrong_flag(self, complaint, small, flags, said):
        line = complaint("fit", *small, "--trainer.max_epochs", "1", *flags)
        assert said in line
        assert "\n" not in line and "Traceback" not in line

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("trainer: {max_epoch: 3}", "key 'trainer.max_epoch' in wrong.yaml is unknown; did you mean"),
            ("trainr: {max_epochs: 3}", "did you mean --trainer.max_epochs"),
            ("data: {sorce: x}", "did you mean --data.source"),
            ("model: {class_path: SASRec, init_args: {hiden_size: 3}}", "did you mean hidden_size"),
            ("model: {class_path: SASRek}", "did you mean SASRec"),
            ("a: [1\nb: 2", "wrong.yaml line 2"),
            ("- a list", "must hold keys"),
        ],
    )
    def test_wrong_yaml(self, complaint, small, text, said):
        Path("wrong.yaml").write_text(text)
        assert said in complaint("fit", *small, "--config", "wrong.yaml")

    @pytest.mark.parametrize(
        "config",
        [
            {"model": {"class_path": "os.system", "init_args": {"command": "touch pwned"}}},
            {"trainer": {"callbacks": [{"class_path": "os.system", "init_args": {"command": "touch pwned"}}]}},
            {"trainer": {"logger": {"class_path": "subprocess.run", "init_args": {"args": ["touch", "pwned"]}}}},
        ],
    )
    def test_a_strangers_yaml_cannot_name_a_shell(self, complaint, small, config):
        Path("wrong.yaml").write_text(yaml.safe_dump(config))
        assert "which it may not" in complaint("fit", *small, "--config", "wrong.yaml")
        assert not Path("pwned").exists()

    def test_run_folder_of_another_run_is_left_alone(self, complaint, small, run_folder):
        before = (run_folder / "metrics.csv").read_text()
        assert "holds a run already" in complaint("fit", *small, "--run_folder", str(run_folder))
        assert (run_folder / "metrics.csv").read_text() == before

    def test_model_is_missing(self, complaint):
        assert "choose one of" in complaint("fit", "--data.source", "ml-100k")

    def test_checkpoint_is_missing(self, complaint):
        assert "--ckpt_path" in complaint("test")
        assert "does not exist" in complaint("test", "--ckpt_path", "nowhere.ckpt")

    def test_model_flag_that_contradicts_the_checkpoint(self, complaint, best):
        line = complaint("test", "--ckpt_path", best, "--model.hidden_size", "64")
        assert "hidden_size 64 was given, the checkpoint has 8" in line
        assert "checkpoint has" in complaint("test", "--ckpt_path", best, "--model", "GRU4Rec")

    def test_checkpoint_of_another_vocabulary(self, complaint, best):
        other = toy_log(num_items=40, seed=5).write_csv("other.csv")
        for command in ("test", "predict"):
            assert "another vocabulary" in complaint(command, "--ckpt_path", best, "--data.path", str(other))

    def test_pickle_that_poses_as_a_checkpoint(self, complaint):
        class Evil:
            def __reduce__(self):
                return os.system, ("touch pwned",)

        Path("evil.ckpt").write_bytes(pickle.dumps(Evil()))
        torch.save({"lightrec": Evil(), "state_dict": {}}, "evil2.ckpt")
        for name in ("evil.ckpt", "evil2.ckpt"):
            for argv in (["test", "--ckpt_path", name], ["recommend", name, "--items", "a"]):
                complaint(*argv)
        assert not Path("pwned").exists()

    def test_histories_that_cannot_be_read(self, complaint, best):
        assert "nowhere.csv" in complaint("predict", "--ckpt_path", best, "--histories", "nowhere.csv")
        line = complaint("predict", "--ckpt_path", best, "--histories", "x.csv", "--outptu", "p")
        assert "did you mean --output" in line

    def test_a_model_that_is_abstract(self, complaint, small):
        assert "SequenceRecommender" in complaint("fit", *small, "--model", "lightrec.recommender.SequenceRecommender")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("model", ["SASRec", "Mamba4Rec", "GRU4Rec"])
def test_a_run_on_a_gpu_goes_on_and_is_tested_on_a_cpu(small, capsys, model, precision):
    flags = ["--model", model, *small[2:], "--trainer.accelerator", "gpu", "--trainer.precision", precision]
    assert main(["fit", *flags, "--run_folder", "run"]) == 0
    assert "val/ndcg@10" in capsys.readouterr().out
    assert main(["fit", "--ckpt_path", "run/checkpoints/last.ckpt", "--trainer.max_epochs", "3"]) == 0
    best, found = ["--ckpt_path", "run/checkpoints/best.ckpt"], []
    for accelerator in ("cpu", "gpu"):
        where = ["--trainer.accelerator", accelerator, "--trainer.precision", "32-true"]
        assert main(["test", *best, *where, "--results", "found.json"]) == 0
        found.append(json.loads(Path("found.json").read_text())["metrics"])
        assert main(["predict", *best, *where, "--output", f"{accelerator}.parquet"]) == 0
    assert found[0].keys() == found[1].keys()
    assert all(found[0][name] == pytest.approx(value, abs=1e-6) for name, value in found[1].items())
    lists = [pl.read_parquet(f"{accelerator}.parquet") for accelerator in ("cpu", "gpu")]
    assert lists[0]["item_ids"].equals(lists[1]["item_ids"])
