"""What a reasoning step costs when recommending, beside the encoder without reasoning.

    python benchmarks/cost_of_steps.py [--encoder attention|gru|mamba] [--hidden 64] [--items 12101] [--length 50]

Times `recommend` (encode, K steps, top 10 of the catalog) and the state alone, for K = 0..5 in turns, in seconds of one
thread (not of the clock, which other programs share), best of the rounds; prints how much more than K = 0 each takes.
Published for SASRec on a GPU: +3.5 % of the whole test at K = 2.
"""

from __future__ import annotations

import argparse
import copy
import time

import torch
from lightrec_rearec.model import ReaRec

from lightrec import Batch
from lightrec.models.gru4rec import GRU4RecEncoder
from lightrec.models.mamba4rec import Mamba4RecEncoder
from lightrec.models.sasrec import SASRecEncoder

STEPS = range(6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", choices=("attention", "gru", "mamba"), default="attention")
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--items", type=int, default=12101)
    parser.add_argument("--length", type=int, default=50)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    encoder = {
        "attention": lambda: SASRecEncoder(options.length, options.hidden, 2, 2),
        "gru": lambda: GRU4RecEncoder(options.hidden),
        "mamba": lambda: Mamba4RecEncoder(options.hidden),
    }[options.encoder]()
    models = [ReaRec(options.items, encoder=copy.deepcopy(encoder), num_steps=k).eval() for k in STEPS]
    ids = torch.randint(1, options.items + 1, (options.rows, options.length))
    batch = Batch(ids, torch.full((options.rows,), options.length), torch.arange(options.rows), seen_ids=ids)
    calls = {"recommend": lambda m: m.recommend(batch, 10), "state": lambda m: m.query(batch)}
    print(
        f"{options.encoder}, {options.hidden} wide, {options.items} items, {options.rows} histories of {options.length}"
    )
    for what, call in calls.items():
        taken = [[] for _ in models]
        with torch.no_grad():
            for round_ in range(options.rounds + 1):
                for times, model in zip(taken, models, strict=True):
                    start = time.thread_time()
                    call(model)
                    if round_:  # the first is for warming up
                        times.append(time.thread_time() - start)
        best = [min(times) for times in taken]
        for k, seconds in zip(STEPS, best, strict=True):
            print(f"{what:>9}  K = {k}  {1000 * seconds:7.2f} ms  {100 * (seconds / best[0] - 1):+6.1f} %")


if __name__ == "__main__":
    main()
