"""Times training steps against the length of histories: scans are linear where attention is not.

    OMP_NUM_THREADS=1 python benchmarks/length.py [--write docs/benchmarks-length.md]

A step is the loss, its gradients and the optimizer's update, on rows of exactly L items, as many rows as make about
`--positions` positions. Models have one width and otherwise the defaults of their papers. Two tables: whole steps, with
the full softmax over the catalog, which costs the same at every length; and the encoder alone, forward and backward,
which is where models differ. One thread, process CPU time per real position, medians and range of rounds in which all
variants take turns: ratios hold on a busy machine, times do not. A state-space model has a row for each scan kernel
that can run it. Models that this version does not have are left out. `--write` also draws an SVG beside the table, for
which matplotlib must be installed.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import torch

from lightrec import extensions
from lightrec.configurable import options
from lightrec.data.batch import Batch
from lightrec.errors import InputError
from lightrec.interfaces import History, total
from lightrec.ops.registry import explain, use_kernel
from lightrec.ops.selective_scan import ScanSpec

MODELS = ("SASRec", "GRU4Rec", "Mamba4Rec", "HMamba", "SIGMA")
SCANS = ("Mamba4Rec", "HMamba", "SIGMA")
# Okabe and Ito's colours, which can be told apart with any colour vision; one for each model, dashes for a kernel.
COLOURS = {"SASRec": "#D55E00", "GRU4Rec": "#555555", "Mamba4Rec": "#0072B2", "HMamba": "#009E73", "SIGMA": "#CC79A7"}


def build(name: str, num_items: int, length: int, hidden_size: int):
    """A model of the given width with its paper's other defaults, or None where it is not installed."""
    try:
        kind = extensions.load(extensions.resolve("models", name))
    except InputError as error:
        print(f"left out: {name} ({error})")
        return None
    size = {"max_length": length} if "max_length" in options(kind) else {}
    torch.manual_seed(0)
    return kind(num_items, hidden_size=hidden_size, **size)


class Case:
    """One model at one length, with a training batch of full rows."""

    def __init__(self, model, num_items: int, length: int, positions: int):
        self.model = model.train()
        made = model.configure_optimizers()
        self.optimizer = made["optimizer"] if isinstance(made, dict) else made
        rows = max(1, positions // length)
        self.positions = rows * length
        generator = torch.Generator().manual_seed(length)
        item_ids = torch.randint(1, num_items + 1, (rows, length + 1), generator=generator)  # the last is a target
        self.batch = Batch(item_ids, torch.full((rows,), length + 1), torch.arange(rows))
        self.x = torch.randn(rows, length, model.encoder.hidden_size, generator=generator, requires_grad=True)
        self.lengths = torch.full((rows,), length)
        self.upstream = torch.randn(self.x.shape, generator=generator)

    def step(self) -> None:
        """A whole training step."""
        self.optimizer.zero_grad(set_to_none=True)
        total(self.model.loss(self.batch)).backward()
        self.optimizer.step()

    def encode(self) -> None:
        """The encoder, forward and backward."""
        self.optimizer.zero_grad(set_to_none=True)
        self.x.grad = None
        self.model.encoder(History(self.x, self.lengths)).backward(self.upstream)


def measure(cases: dict, rounds: int) -> tuple[dict, float]:
    """CPU microseconds a position of each (variant, length, part), and the median of wall over CPU time."""
    spent: dict[tuple, list[float]] = {}
    over = []
    for turn in range(rounds + 1):
        print(f"round {turn} of {rounds}", file=sys.stderr)
        for (variant, length), case in cases.items():
            for part in ("step", "encode"):
                with use_kernel(variant[1]):
                    cpu, wall = time.process_time(), time.perf_counter()
                    getattr(case, part)()
                    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
                if turn:  # the first warms up
                    spent.setdefault((variant, length, part), []).append(cpu / case.positions * 1e6)
                    over.append(wall / cpu)
    return spent, statistics.median(over)


def label(variant: tuple[str, str | None]) -> str:
    return variant[0] if variant[1] is None else f"{variant[0]}, {variant[1]} scan"


def table(spent: dict, variants: list, lengths: list[int], part: str, baseline) -> str:
    rows = ["| model | " + " | ".join(f"L = {n:,}" for n in lengths) + " |", "|" + "---|" * (len(lengths) + 1)]
    for variant in variants:
        cells = []
        for length in lengths:
            values = sorted(spent[variant, length, part])
            middle = statistics.median(values)
            cell = f"{middle:.1f} ({values[0]:.1f}–{values[-1]:.1f})"
            if variant != baseline and (baseline, length, part) in spent:
                cell += f", {statistics.median(spent[baseline, length, part]) / middle:.2f}×"
            cells.append(cell)
        rows.append(f"| {label(variant)} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def draw(spent: dict, variants: list, lengths: list[int], path: Path) -> None:
    """Draws cost per position against length, whole steps and encoders side by side, labels at the ends of lines."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FuncFormatter, NullLocator

    plain = FuncFormatter(lambda value, _: f"{value:,g}")
    with plt.rc_context({"svg.hashsalt": "lightrec", "font.family": "DejaVu Sans", "font.size": 10}):
        figure, axes = plt.subplots(1, 2, figsize=(11.5, 4.6), sharey=True)
        for axis, part, title in zip(axes, ("step", "encode"), ("Whole training step", "Encoder alone"), strict=True):
            axis.set_xscale("log")
            axis.set_yscale("log")
            for variant in variants:
                middle = [statistics.median(spent[variant, length, part]) for length in lengths]
                colour = COLOURS.get(variant[0], "#000000")
                axis.plot(
                    lengths, middle, color=colour, marker="o", markersize=4, linewidth=1.8,
                    linestyle=(0, (4, 2)) if variant[1] == "torch" else "-",
                )  # fmt: skip
            axis.set_title(title, loc="left", fontsize=11)
            axis.set_xticks(lengths, [f"{n:,}" for n in lengths])
            axis.xaxis.set_minor_locator(NullLocator())
            axis.set_xlabel("items in a history")
            axis.spines[["top", "right"]].set_visible(False)
            axis.grid(axis="y", which="major", color="#DDDDDD", linewidth=0.7)
            axis.set_axisbelow(True)
            axis.tick_params(axis="y", which="both", labelleft=True, length=0)
        low, high = (f(m for v in spent.values() for m in v) for f in (min, max))
        steps = [m * 10**e for e in range(-1, 5) for m in (1, 2, 5)]
        for axis in axes:
            axis.set_ylim(low * 0.8, high * 1.25)
            axis.set_yticks([s for s in steps if low * 0.8 <= s <= high * 1.25])
            axis.yaxis.set_major_formatter(plain)
            axis.yaxis.set_minor_locator(NullLocator())
        axes[0].set_ylabel("CPU microseconds per position", labelpad=8)
        figure.tight_layout(w_pad=12, rect=(0, 0, 0.86, 1))
        for axis, part in zip(axes, ("step", "encode"), strict=True):
            ends = [
                (statistics.median(spent[v, lengths[-1], part]), label(v), COLOURS.get(v[0], "#000000"))
                for v in variants
            ]
            _label_ends(axis, lengths[-1], ends)
        figure.savefig(path, format="svg", metadata={"Date": None})
        plt.close(figure)


def _label_ends(axis, x: float, ends: list[tuple[float, str, str]]) -> None:
    """Writes labels right of x, apart from each other by at least a line."""
    height = 15.0  # of a line of text, in pixels
    to_pixels, to_data = axis.transData, axis.transData.inverted()
    places = sorted((to_pixels.transform((x, y))[1], name, colour) for y, name, colour in ends)
    pixels = [place[0] for place in places]
    for _ in range(100):  # push neighbours apart until none overlap
        for i in range(len(pixels) - 1):
            lack = height - (pixels[i + 1] - pixels[i])
            if lack > 0:
                pixels[i] -= lack / 2
                pixels[i + 1] += lack / 2
    for (_, name, colour), pixel in zip(places, pixels, strict=True):
        y = to_data.transform((0, pixel))[1]
        axis.annotate(
            name, (x, y), xytext=(9, 0), textcoords="offset points", va="center", color=colour, fontsize=9,
            annotation_clip=False,
        )  # fmt: skip


def processor() -> str:
    """Cores and kind of this machine's processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} cores of {names[0] if names else platform.processor() or 'an unnamed processor'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="50,200,1000,4000")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--num-items", type=int, default=3416, help="as MovieLens-1M")
    parser.add_argument("--hidden-size", type=int, default=64)
    parser.add_argument("--positions", type=int, default=8000, help="of a step, about")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", type=Path, help="Markdown file for the tables; the plot has its name and .svg")
    given = parser.parse_args()
    torch.set_num_threads(1)
    lengths = [int(n) for n in given.lengths.split(",")]
    kernels = [name for name, reason in explain("selective_scan", ScanSpec()) if reason is None and name != "reference"]

    cases, variants = {}, []
    for name in given.models.split(","):
        for length in lengths:
            model = build(name, given.num_items, length, given.hidden_size)
            if model is None:
                break
            case = Case(model, given.num_items, length, given.positions)
            for kernel in kernels if name in SCANS else [None]:
                variants += [(name, kernel)] * ((name, kernel) not in variants)
                cases[(name, kernel), length] = case
    spent, over = measure(cases, given.rounds)
    baseline = ("SASRec", None)
    positions = {v[0]: getattr(cases[v, lengths[0]].model.objective, "positions", "all") for v in variants}
    last = [name for name, where in positions.items() if where == "last"]
    note = (
        "is not causal and is trained on the last position of each row. "
        "Its steps leave the softmax of all other positions out."
    )
    text = [
        "# Training speed against length",
        "",
        "CPU microseconds per real position on one thread. Rows have exactly L items, and as many rows as make about",
        f"{given.positions:,} positions per step. There are {given.num_items:,} items, hidden size "
        f"{given.hidden_size} and each paper's other defaults.",
        f"A cell holds the median of {given.rounds} rounds in which all variants took turns, then the range in "
        "brackets.",
        "The factor after it says how many times faster than SASRec at that length.",
        "",
        f"`benchmarks/length.py`, {datetime.date.today()}, {processor()}, torch {torch.__version__}.",
        f"Wall over CPU time, median: {over:.2f}.",
        "",
        "A recurrent network makes its steps one after another, so few long rows leave it little to do at a time.",
        *(f"{name} {note}" for name in last),
        "",
        "## Whole training step",
        "",
        "Full softmax, gradients and the optimizer's update.",
        "",
        table(spent, variants, lengths, "step", baseline),
        "",
        "## Encoder alone",
        "",
        "Forward and backward from item vectors to states.",
        "",
        table(spent, variants, lengths, "encode", baseline),
        "",
    ]
    print("\n".join(text))
    if given.write:
        picture = given.write.with_suffix(".svg")
        draw(spent, variants, lengths, picture)
        place = text.index("## Whole training step")
        text[place:place] = [f"![CPU time per position against the length of histories]({picture.name})", ""]
        given.write.write_text("\n".join(text))


if __name__ == "__main__":
    main()
