"""A small log with a rule: the next item is a function of the last one, but for some noise.

The rule is one cycle through the catalog. Nobody meets an item twice, so leaving seen items out of a ranking never
leaves out its target. Every item is about equally frequent: popularity knows next to nothing, and a model that reads
the last item knows all there is to know.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lightrec.data.datamodule import SequenceDataModule
from lightrec.data.options import LogFile, Protocol
from lightrec.data.rows import Rows


@dataclass(frozen=True)
class ToyLog:
    """Histories of items numbered 1..num_items, oldest first."""

    histories: list[list[int]]
    num_items: int
    successor: dict[int, int]
    """What the rule puts after each item."""

    def write_csv(self, path: str | Path) -> Path:
        """Writes columns user, item, time, title: users `user-0`, items `item-1`, titles `Title 1`."""
        path = Path(path)
        with path.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(("user", "item", "time", "title"))
            for user, history in enumerate(self.histories):
                for step, item in enumerate(history):
                    # An hour between events; people begin a minute apart, so that a cut in time goes through histories.
                    rows.writerow(
                        (f"user-{user}", f"item-{item}", 1_000_000_000 + 3600 * step + 60 * user, f"Title {item}")
                    )
        return path


def toy_log(
    num_users: int = 64,
    num_items: int = 30,
    min_length: int = 4,
    max_length: int = 12,
    noise: float = 0.1,
    seed: int = 0,
) -> ToyLog:
    """Draws a log.

    Args:
        num_users: histories.
        num_items: size of the catalog; each item occurs if there are enough users.
        min_length: events of the shortest history.
        max_length: events of the longest history, at most `num_items`.
        noise: share of events that ignore the rule.
        seed: of everything.

    Raises:
        ValueError: histories longer than the catalog, or bounds out of order.
    """
    if not 1 <= min_length <= max_length <= num_items:
        raise ValueError(
            f"need 1 <= min_length ({min_length}) <= max_length ({max_length}) <= num_items ({num_items})."
        )
    rng = np.random.default_rng(seed)
    cycle = (rng.permutation(num_items) + 1).tolist()
    successor = dict(zip(cycle, cycle[1:] + cycle[:1], strict=True))
    histories = []
    for user in range(num_users):
        history = [cycle[user % num_items]]
        for _ in range(int(rng.integers(min_length, max_length + 1)) - 1):
            following = successor[history[-1]]
            if following in history or rng.random() < noise:
                following = int(rng.choice([item for item in cycle if item not in history]))
            history.append(following)
        histories.append(history)
    return ToyLog(histories, num_items, successor)


def toy_data(
    folder: str | Path,
    log: ToyLog | None = None,
    max_length: int = 12,
    batch_size: int = 32,
    train_windows: Rows | str = "last",
    exclude_seen: bool = True,
    seed: int = 0,
    with_times: bool = False,
) -> SequenceDataModule:
    """Serves a toy log through the ordinary data module, read from a file and prepared like any other.

    Args:
        folder: where the log and the prepared data are written.
        log: what to serve; None draws the default log.
        max_length: most recent events that a model reads.
        batch_size: rows in a training batch.
        train_windows: see `SequenceDataModule`.
        exclude_seen: leave the history out of the ranking.
        seed: of the order of training.
        with_times: give times to the model.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = (log or toy_log()).write_csv(folder / "toy.csv")
    return SequenceDataModule(
        path=str(path),
        log=LogFile(user_column="user", item_column="item", time_column="time", title_column="title"),
        max_length=max_length,
        batch_size=batch_size,
        train_windows=train_windows,
        protocol=Protocol(exclude_seen=exclude_seen),
        seed=seed,
        with_times=with_times,
        cache_dir=str(folder / "cache"),
    )
