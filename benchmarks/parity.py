"""Whether two versions of lightrec train the same models: hashes of weights, lists and metrics, one line per model.

A refactoring must not change what a model learns. This script trains every built-in and plug-in model for 30 steps on
the toy log and on MovieLens-100K, all through the command line, and prints one line for each:

    toy SASRec weights 1f0c... (28) lists 77ab... metrics 90d1...

Run it in the environment of each version, on one machine and with one number of threads, and compare:

    OMP_NUM_THREADS=1 python benchmarks/parity.py --mirror DATA --output before.txt     # the commit before
    OMP_NUM_THREADS=1 python benchmarks/parity.py --mirror DATA --compare before.txt    # this one

`weights` are the floating tensors of the checkpoint, as a multiset, so that a renamed module compares equal. The
objective, the search and the evaluation are left out: their buffers are fitted from data. `lists` are the item ids and
scores of ten recommendations per user. `metrics` are those of the test part. The table `SPELLINGS` says what newer
versions call a flag. Each spelling is tried in turn, and the first that is accepted counts.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import itertools
import json
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import polars as pl
import torch

import lightrec
from lightrec.cli import main
from lightrec.testing import toy_log

STEPS = 30
NARROW = "--model.hidden_size 16 "
SMALL = NARROW + "--model.num_layers 2 "
HEADS = SMALL + "--model.num_heads 2 "
STATES = NARROW + "--model.state_size 8 "
PREFIXES = " --data.train_windows prefixes"
TIMES = " --data.with_times true"
FALLING = " --model.learning_rate 0.002 --model.weight_decay 0.01 --model.warmup_steps 5 --model.decay cosine"
SAMPLED = "--model GRU4Rec " + NARROW + "--model.objective SampledSoftmax --model.objective.num_negatives 8 "
REASONING = "--model ReaRec " + NARROW + "--model.num_steps 2 "
ATTENTIVE = REASONING + "--model.encoder SASRecEncoder --model.encoder.hidden_size 16 --model.encoder.num_heads 2 "
RECURRENT = REASONING + "--model.encoder GRU4RecEncoder --model.encoder.hidden_size 16 "
SELECTIVE = REASONING + "--model.encoder Mamba4RecEncoder --model.encoder.hidden_size 16 --model.encoder.state_size 8 "
BIDIRECTIONAL = REASONING + "--model.encoder BERT4RecEncoder --model.encoder.hidden_size 16 "
ERL = "--model.objective ERL --model.objective.weight 0.01 "
PRL = "--model.objective PRL --model.objective.warmup_epochs 0 "
AT_LAST = "--model.objective.positions last" + PREFIXES
AT_ALL = "--model.objective.positions all"
SRACL = "--model SASRec " + HEADS + "--model.objective SRACL --model.objective.hidden_size 16 "
SRACL += "--model.objective.text_size 8 --model.objective.num_neighbours 3 "
WEIGHTED = "--model SASRec --model.objective Weighted --model.objective.weights [1.0,0.5] --model.objective.objectives "
WEIGHTED += '[{"class_path":"lightrec.objectives.next_item.NextItem"},'
WEIGHTED += '{"class_path":"lightrec.objectives.sampled.SampledSoftmax","init_args":{"num_negatives":8}}] '

# Flags as the older version spells them.
MODELS = {
    "Popularity": "--model Popularity --data.train_windows all",
    "Markov": "--model Markov --data.train_windows all",
    "SASRec": "--model SASRec " + NARROW,
    "SASRec, query_norm": "--model SASRec --model.variant query_norm " + HEADS + FALLING,
    "SASRec, original2018": "--model SASRec --model.variant original2018 " + HEADS,
    "SASRec, pre_norm": "--model SASRec --model.variant pre_norm --model.attention_dropout 0.1 " + HEADS,
    "SASRec, post_norm": "--model SASRec --model.variant post_norm --model.activation gelu " + HEADS,
    "SASRec, linear decay": "--model SASRec " + HEADS + "--model.decay linear --model.warmup_steps 3",
    "SASRec, all windows": "--model SASRec --data.train_windows all " + HEADS,
    "SASRec, prefixes": "--model SASRec --model.objective NextItem " + AT_LAST + " " + HEADS,
    "SASRec, seen items ranked": "--model SASRec --data.exclude_seen false " + HEADS,
    "SASRec, 100 candidates": "--model SASRec --data.candidates uniform-100 " + HEADS,
    "SASRec, timeline": "--model SASRec --data.split global_timeline --data.timeline_targets all " + HEADS,
    "SASRec, bfloat16 head": "--model SASRec --model.objective NextItem --model.objective.head_dtype bfloat16 " + HEADS,
    "ESASRec": "--model ESASRec " + HEADS,
    "BERT4Rec": "--model BERT4Rec " + HEADS,
    "BERT4Rec, plain head": "--model BERT4Rec --model.head_transform false --model.output_bias false " + HEADS,
    "GRU4Rec": "--model GRU4Rec " + NARROW,
    "GRU4Rec, wide inside": "--model GRU4Rec --model.num_layers 2 --model.inner_size 24 " + NARROW,
    "GRU4RecSession": "--model GRU4RecSession --data.train_windows sessions --model.momentum 0.1 " + NARROW,
    "GRU4RecSession, bpr-max": "--model GRU4RecSession --data.train_windows sessions --model.loss bpr-max "
    "--model.constrained false --model.hidden_dropout 0.1 " + NARROW,
    "Mamba4Rec": "--model Mamba4Rec " + STATES,
    "Mamba4Rec, released": "--model Mamba4Rec --model.init released --model.num_layers 2 " + STATES,
    "HMamba": "--model HMamba " + STATES,
    "HMamba, paper": "--model HMamba --model.factor paper --model.power 1 --model.num_layers 2 " + STATES,
    "HMambaFull": "--model HMambaFull " + STATES,
    "HMambaFull, paper": "--model HMambaFull --model.compat algorithm1 --model.learn_kappa true " + STATES,
    "HMambaHalf": "--model HMambaHalf " + STATES,
    "HMambaHalf, paper": "--model HMambaHalf --model.compat algorithm1 " + STATES,
    "SIGMA": "--model SIGMA --model.objective NextItem " + AT_LAST + " " + STATES,
    "SIGMA, released": "--model SIGMA --model.compat released --model.objective NextItem " + AT_LAST + " " + STATES,
    "ReaRec, attention, ERL": ATTENTIVE + ERL + AT_LAST,
    "ReaRec, attention, ERL, paper": ATTENTIVE + ERL + "--model.objective.form paper " + AT_LAST,
    "ReaRec, attention, PRL": ATTENTIVE + PRL + AT_LAST,
    "ReaRec, attention, PRL, paper": ATTENTIVE + PRL + "--model.objective.form paper " + AT_LAST,
    "ReaRec, attention, PRL, all": ATTENTIVE + PRL + AT_ALL,
    "ReaRec, both directions, ERL": BIDIRECTIONAL + ERL + AT_LAST,
    "ReaRec, both directions, no dropout": BIDIRECTIONAL + "--model.encoder.dropout 0 " + ERL + AT_LAST,
    "ReaRec, recurrent, ERL": RECURRENT + ERL + AT_LAST,
    "ReaRec, recurrent, PRL": RECURRENT + PRL + AT_LAST,
    "ReaRec, recurrent, PRL, all": RECURRENT + PRL + AT_ALL,
    "ReaRec, Mamba, ERL": SELECTIVE + ERL + AT_LAST,
    "ReaRec, Mamba, PRL": SELECTIVE + PRL + AT_LAST,
    "ReaRec, Mamba, ERL, all": SELECTIVE + ERL + AT_ALL,
    "ReaRec, HMamba, ERL": SELECTIVE.replace("Mamba4RecEncoder", "HMambaEncoder") + ERL + AT_LAST,
    "SRACL": SRACL,
    "SRACL, paper": SRACL + "--model.objective.form paper --model.objective.synthesis mean",
    "SRACL, prefixes": SRACL + "--model.objective.pool prefixes --model.objective.exclude_same_user false "
    "--model.objective.objective NextItem --model.objective.objective.positions last" + PREFIXES,
    "SRACL, collaborative": SRACL + "--model.objective.text collaborative",
    "UniRec": "--model UniRec " + SMALL + TIMES,
    "IDNP": "--model IDNP " + NARROW + TIMES,
    "IDNP, one path": "--model IDNP --model.latent false --model.objective NeuralProcess "
    "--model.objective.distance kl " + NARROW + TIMES,
    "SampledSoftmax, position": SAMPLED + "--model.objective.shared position --model.objective.exclude window",
    "SampledSoftmax, row": SAMPLED + "--model.objective.shared row --model.objective.exclude window",
    "SampledSoftmax, batch": SAMPLED + "--model.objective.shared batch --model.objective.exclude target",
    "SampledSoftmax, batch, all": SAMPLED + "--model.objective.shared batch --model.objective.exclude nothing",
    "SampledSoftmax, distinct": SAMPLED + "--model.objective.shared batch --model.objective.distinct true",
    "SampledSoftmax, popularity": SAMPLED + "--model.objective.proposal popularity --model.objective.alpha 0.5 "
    "--model.objective.log_q true",
    "SampledSoftmax, popularity, batch": SAMPLED + "--model.objective.proposal popularity "
    "--model.objective.shared batch --model.objective.log_q true",
    "SampledSoftmax, in-batch": SAMPLED + "--model.objective.proposal in-batch --model.objective.shared batch "
    "--model.objective.log_q true",
    "BinaryCrossEntropy": "--model SASRec --model.objective BinaryCrossEntropy " + HEADS,
    "BinaryCrossEntropy, popularity": "--model SASRec --model.objective BinaryCrossEntropy "
    "--model.objective.num_negatives 4 --model.objective.proposal popularity --model.objective.shared row " + HEADS,
    "GBCE": "--model SASRec --model.objective GBCE --model.objective.num_negatives 8 " + HEADS,
    "Cloze": "--model BERT4Rec --model.objective Cloze --model.objective.mask_probability 0.4 "
    "--model.objective.max_masks 5 --model.objective.last_only_share 0.3 " + HEADS,
    "Weighted": WEIGHTED + HEADS,
    "Weighted, no dropout": WEIGHTED + HEADS + "--model.dropout 0",
    "SessionParallel, log_q": "--model GRU4RecSession --data.train_windows sessions --model.log_q 0.5 "
    "--model.alpha 0.5 --model.num_negatives 16 --model.embedding_dropout 0.2 " + NARROW,
}

# A flag, as a rule for all its values, or with one value; then what newer versions call it.
SPELLINGS = {
    "--model.learning_rate": ["--model.optimizer.learning_rate"],
    "--model.weight_decay": ["--model.optimizer.weight_decay"],
    "--model.warmup_steps": ["--model.optimizer.warmup_steps"],
    "--model.decay": ["--model.optimizer.decay"],
    "--model.momentum": ["--model.optimizer.momentum"],
    "--model.variant original2018": ["--model.fidelity released"],
    "--model.init released": ["--model.fidelity released"],
    "--model.compat released": ["--model.fidelity released"],
    "--model.compat algorithm1": ["--model.fidelity paper"],
    "--model.objective.form paper": ["--model.objective.fidelity paper"],
    "--model.objective.head_dtype bfloat16": ["--model.head_dtype bfloat16"],
}
accepted: set[str] = set()
# On 100,000 events the neighbours of all prefixes take a minute.
TOY_ONLY = {"SRACL, prefixes"}
# Of the checkpoint: what is fitted from data or only measures.
LEFT_OUT = ("objective.", "search.", "evaluation.", "metrics.")


def spellings(flags: str) -> list[list[str]]:
    """Returns the command line in every spelling: first as earlier lines were accepted, then the newest."""
    words = flags.split()
    choices = []
    for flag, value in zip(words[::2], words[1::2], strict=True):
        known = SPELLINGS.get(f"{flag} {value}") or [f"{name} {value}" for name in SPELLINGS.get(flag, [])]
        choices.append(sorted([*known, f"{flag} {value}"], key=lambda pair: pair.split()[0] not in accepted))
    return [" ".join(chosen).split() for chosen in itertools.product(*choices)]


def toy(folder: Path) -> list[str]:
    """Writes the toy log and a table of its items, whose titles are of three kinds; returns the flags of both."""
    log = toy_log(num_users=60, min_length=5)
    log.write_csv(folder / "toy.csv")
    kinds = ("red lipstick matte", "cordless drill battery", "garden hose water")
    titles = [f"{kinds[item % 3]} number{item // 3}" for item in range(1, log.num_items + 1)]
    items = [f"item-{item}" for item in range(1, log.num_items + 1)]
    pl.DataFrame({"item": items, "title": titles}).write_csv(folder / "items.csv")
    files = ["--data.path", str(folder / "toy.csv"), "--data.item_path", str(folder / "items.csv")]
    return [*files, "--data.max_length", "12", "--data.batch_size", "4"]


def movielens(mirror: str) -> list[str]:
    """Returns the flags of MovieLens-100K."""
    small = ["--data.max_length", "20", "--data.batch_size", "16"]
    return ["--data.source", "ml-100k", "--data.mirror", mirror, *small]


def digest(*parts: bytes) -> str:
    """Returns twelve digits of one hash over all parts."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part)
    return whole.hexdigest()[:12]


def hash_weights(path: Path) -> tuple[str, int]:
    """Returns the hash of the floating tensors, whatever their names, and their number."""
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    tensors = {name: t for name, t in state.items() if isinstance(t, torch.Tensor) and not name.startswith(LEFT_OUT)}
    kept = [t for t in tensors.values() if t.is_floating_point()]
    shapes = [str((tuple(t.shape), t.dtype)).encode() for t in kept]
    data = [t.contiguous().view(torch.uint8).numpy().tobytes() if t.dim() else t.numpy().tobytes() for t in kept]
    hashes = sorted(digest(shape, part) for shape, part in zip(shapes, data, strict=True))
    return digest(*(h.encode() for h in hashes)), len(kept)


def hash_lists(path: Path) -> str:
    """Returns the hash of users, items and scores, sorted by user."""
    lists = pl.read_parquet(path).sort("user_id").explode("item_ids", "scores")
    scores = lists["scores"].cast(pl.Float32).to_numpy()
    return digest("\n".join(lists["user_id"] + " " + lists["item_ids"]).encode(), scores.tobytes())


def hash_metrics(path: Path) -> str:
    """Returns the hash of the ranking metrics."""
    metrics = json.loads(path.read_text())["metrics"]
    kept = {name: value for name, value in metrics.items() if name.split("/")[-1].startswith(("hr@", "ndcg@", "mrr@"))}
    return digest(json.dumps(kept, sort_keys=True).encode())


def command(words: list[str]) -> str | None:
    """Runs one command without output; returns what went wrong, or None."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = main(words)
        except Exception:
            return traceback.format_exc()
    return None if code == 0 else said.getvalue()


def train(flags: str, data: list[str], run: Path) -> str | None:
    """Trains in the first spelling that is accepted; returns what went wrong with all of them, or None."""
    steps = ["--trainer.max_steps", str(STEPS), "--trainer.accelerator", "cpu"]
    quiet = ["--tracking", "none", "--patience", "0", "--trainer.enable_progress_bar", "false"]
    complaints = []
    for spelling in spellings(flags):
        wrong = command(["fit", *data, *spelling, *steps, *quiet, "--run_folder", str(run)])
        if wrong is None:
            accepted.update(spelling[::2])
            return None
        complaints.append(wrong.strip().splitlines()[-1])
    return " | ".join(complaints)


def line(flags: str, data: list[str], run: Path) -> str:
    """Trains, recommends and tests; returns the hashes, or the reason why there are none."""
    wrong = train(flags, data, run)
    if wrong:
        return f"FAILED {wrong.splitlines()[-1][:300]}"
    best = ["--ckpt_path", str(run / "checkpoints" / "last.ckpt"), "--trainer.accelerator", "cpu"]
    quiet = ["--trainer.enable_progress_bar", "false"]
    wrong = command(["predict", *best, *quiet, "--output", str(run / "lists.parquet")])
    wrong = wrong or command(["test", *best, *quiet, "--results", str(run / "results.json")])
    weights, count = hash_weights(run / "checkpoints" / "last.ckpt")
    if wrong:
        return f"weights {weights} ({count}) FAILED {wrong.strip().splitlines()[-1][:300]}"
    lists, metrics = hash_lists(run / "lists.parquet"), hash_metrics(run / "results.json")
    return f"weights {weights} ({count}) lists {lists} metrics {metrics}"


def compare(lines: dict[str, str], before: Path) -> int:
    """Prints what differs from an earlier output; returns how many lines do."""
    earlier = dict(text.split(": ", 1) for text in before.read_text().splitlines() if ": " in text and text[0] != "#")
    differing = {name: text for name, text in lines.items() if earlier.get(name) != text}
    for name, text in differing.items():
        print(f"differs  {name}\n  before {earlier.get(name, 'absent')}\n  now    {text}")
    print(f"{len(lines) - len(differing)} of {len(lines)} lines are equal to {before.name}.")
    return len(differing)


def run_all() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mirror", help="folder of data sets with MovieLens-100K; without it only the toy log is used")
    parser.add_argument("--output", type=Path, help="file for the lines")
    parser.add_argument("--compare", type=Path, help="an earlier output to compare with")
    parser.add_argument("--only", default="", help="run only lines whose name contains this text")
    parser.add_argument("--keep", type=Path, help="folder for the runs; by default nothing is kept")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    lines = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["LIGHTREC_CACHE"] = str(Path(temporary) / "cache")
        logs = {"toy": toy(folder)} | ({"ml-100k": movielens(options.mirror)} if options.mirror else {})
        head = f"# lightrec {lightrec.__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads"
        print(head, flush=True)
        began = time.perf_counter()
        for log, data in logs.items():
            for number, (model, flags) in enumerate(MODELS.items()):
                name = f"{log} {model}"
                left_out = log != "toy" and model in TOY_ONLY
                if options.only.lower() in name.lower() and not left_out:
                    lines[name] = line(flags, data, folder / f"{log}-{number}")
                    print(f"{name}: {lines[name]}", flush=True)
        print(f"# {len(lines)} lines in {time.perf_counter() - began:.0f} s")
    if options.output:
        text = [head, *(f"{name}: {found}" for name, found in lines.items())]
        options.output.write_text("\n".join(text) + "\n")
    if options.compare:
        return int(compare(lines, options.compare) > 0)
    return int(any("FAILED" in found for found in lines.values()))


if __name__ == "__main__":
    sys.exit(run_all())
