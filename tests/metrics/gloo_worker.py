"""The processes of `test_processes_agree_with_one_process...`, which write what each computed into a folder.

They are forked from one process that imported everything and computed nothing: importing takes longer than the work.
"""

import json
import os
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import torch.distributed as dist

from lightrec.metrics.ranking import RankingMetrics


def work(folder: Path, rank: int, world: int) -> None:
    spec = spec_from_file_location("rows", Path(__file__).with_name("test_ranking.py"))
    rows_of = module_from_spec(spec)
    spec.loader.exec_module(rows_of)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group-{world}", rank=rank, world_size=world)
    metrics = RankingMetrics(ks=(1, 5, 10), cohorts=True)
    for name, count in (("seven", 7), ("one", 1), ("many", 101)):
        metrics.set_catalog(rows_of.counts())
        own = [t[rank::world] for t in rows_of.random_rows(count, targets=2, seed=count)]
        for start in range(0, len(own[0]), 4):
            metrics.update(*(t[start : start + 4] for t in own))
        values = {metric: value.item() for metric, value in metrics.compute().items()}
        (folder / f"{name}-{world}-{rank}.json").write_text(json.dumps(values))
    dist.destroy_process_group()


def main(folder: Path) -> int:
    children = []
    for rank, world in ((0, 2), (1, 2), (0, 3), (1, 3), (2, 3)):
        child = os.fork()
        if not child:
            work(folder, rank, world)
            os._exit(0)
        children.append(child)
    return max(os.waitpid(child, 0)[1] for child in children)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])) != 0)
