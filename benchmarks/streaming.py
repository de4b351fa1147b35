"""Times a stream that advances users' states against one that reads whole histories again.

    OMP_NUM_THREADS=1 python benchmarks/streaming.py [--write docs/benchmarks-streaming.md]

An event is handled when it was observed and ten items were recommended, seen ones left out. Users have histories of
L events before the clock starts. `step` advances the encoder's state; `re-encoding` keeps the last L items and reads
them again (`StreamingRecommender(history=L)`); both are the same class with the same bookkeeping. Weights are random,
since speed does not depend on them. One thread, process CPU time, medians and range of rounds in which all variants
take turns: ratios hold on a busy machine, times do not. Models that this version does not have are left out.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from lightrec import extensions
from lightrec.errors import InputError
from lightrec.ops.registry import explain
from lightrec.ops.selective_scan import ScanSpec
from lightrec.serving.stream import StreamingRecommender

MODELS = ("GRU4Rec", "Mamba4Rec", "HMamba", "SASRec")
AT_ONCE = (1, 64)


def build(name: str, num_items: int, length: int, hidden_size: int):
    """A model of the given width with its paper's other defaults, or None where it is not installed."""
    try:
        kind = extensions.load(extensions.resolve("models", name))
    except InputError as error:
        print(f"left out: {name} ({error})")
        return None
    options = {"max_length": length} if name == "SASRec" else {}
    torch.manual_seed(0)
    return kind(num_items, hidden_size=hidden_size, **options)


class Case:
    """One model, one way, one length: a stream whose users have their histories behind them."""

    def __init__(self, model, step: bool, length: int, num_items: int):
        self.stream = StreamingRecommender(model, max_users=max(AT_ONCE), history=None if step else length)
        self.items = np.random.default_rng(length)
        self.num_items = num_items
        histories = self.items.integers(1, num_items + 1, (max(AT_ONCE), length)).tolist()
        self.stream.observe_many([(user, item) for user, history in enumerate(histories) for item in history])
        self.state_bytes = self.stream.bytes_per_user
        self.seen_bytes = 4 * sum(len(set(history)) for history in histories) // len(histories)

    def handle(self, at_once: int, events: int) -> tuple[float, float]:
        """CPU and wall seconds an event, over at least `events` of them."""
        calls = -(-events // at_once)
        items = self.items.integers(1, self.num_items + 1, (calls, at_once)).tolist()
        users = list(range(at_once))
        cpu, wall = time.process_time(), time.perf_counter()
        for row in items:
            self.stream.observe_many(zip(users, row, strict=True))
            self.stream.recommend_many(users, 10)
        return (time.process_time() - cpu) / (calls * at_once), (time.perf_counter() - wall) / (calls * at_once)


def table(title: str, head: list[str], rows: list[list[str]]) -> str:
    lines = [f"## {title}", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows), ""])


def processor() -> str:
    """Cores and kind of this machine's processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} cores of {names[0] if names else platform.processor() or 'an unnamed processor'}"


def rate(seconds: list[float]) -> str:
    rates = sorted(1 / s for s in seconds)
    return f"{statistics.median(rates):,.0f} ({rates[0]:,.0f}–{rates[-1]:,.0f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="50,200,2000", help="events before the clock starts")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--num-items", type=int, default=3416, help="as MovieLens-1M")
    parser.add_argument("--hidden-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--events", type=int, default=64, help="events of a variant in a round")
    parser.add_argument("--write", type=Path, help="Markdown file for the tables")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lengths = [int(n) for n in options.lengths.split(",")]

    cases: dict[tuple[str, str, int], Case] = {}
    for name in options.models.split(","):
        for length in lengths:
            model = build(name, options.num_items, length, options.hidden_size)
            if model is None:
                break
            for step in (True, False):
                try:
                    case = Case(model, step, length, options.num_items)
                except InputError:  # no step form: re-encoding is all it can do
                    continue
                cases[name, "step" if step else "re-encoding", length] = case
    cpu: dict[tuple, list[float]] = {(*key, n): [] for key in cases for n in AT_ONCE}
    over: list[float] = []
    for turn in range(options.rounds + 1):
        for key, case in cases.items():
            for n in AT_ONCE:
                # A first round warms up; whole batches of long histories are handled once a round.
                used, passed = case.handle(n, options.events if turn and n * key[2] < 20_000 else n)
                if turn:
                    cpu[(*key, n)].append(used)
                    over.append(passed / used)

    kernel = next(name for name, reason in explain("selective_scan", ScanSpec(needs_grad=False)) if reason is None)
    kinds = list(dict.fromkeys(key[:2] for key in cases))
    heads = [f"L = {length:,}" for length in lengths]
    text = [
        "# Speed of streaming",
        "",
        "Events per second of CPU time, on one thread. L events came before. Then an event is observed and ten items",
        "are recommended, seen ones left out.",
        f"There are {options.num_items:,} items, hidden size {options.hidden_size}, each paper's other defaults and",
        "random weights.",
        f"A cell holds the median of {options.rounds} rounds in which all variants took turns, and the range in",
        "brackets.",
        "`step` advances a state, `re-encoding` keeps the last L items and reads them again.",
        "",
        f"`benchmarks/streaming.py`, {datetime.date.today()}, {processor()}, torch {torch.__version__}.",
        f"Scan kernel of re-encoding: {kernel}. Wall time over CPU time, median: {statistics.median(over):.2f}.",
        "",
    ]
    for n in AT_ONCE:
        rows = [[*kind, *(rate(cpu[(*kind, length, n)]) for length in lengths)] for kind in kinds]
        title = "One user at a time" if n == 1 else f"{n} users at a time"
        text.append(table(title, ["model", "way", *heads], rows))
    rows = [[*kind, *(f"{cases[(*kind, length)].state_bytes:,}" for length in lengths)] for kind in kinds]
    rows.append(["any", "seen items, if kept", *(f"{cases[(*kinds[0], n)].seen_bytes:,}" for n in lengths)])
    text.append(table("Bytes per user", ["model", "way", *heads], rows))
    print("\n".join(text))
    if options.write:
        options.write.write_text("\n".join(text))


if __name__ == "__main__":
    main()
