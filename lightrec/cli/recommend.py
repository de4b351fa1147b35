"""`lightrec recommend FILE --items a,b,c`: what would be shown to somebody with this history, by title."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lightrec import extensions
from lightrec.cli.command_line import CommandLine
from lightrec.cli.log_filter import quiet
from lightrec.cli.options import Options
from lightrec.data.datamodule import SequenceDataModule
from lightrec.errors import InputError
from lightrec.serving.loaded import LoadedRecommender, load_recommender

_MATCHES_SHOWN = 8
_HISTORY_SHOWN = 10


def run(line: CommandLine) -> int:
    """Prints the history and the recommendations; returns the exit code.

    Raises:
        InputError: a wrong flag, a title that fits no item or several, or no known item at all.
    """
    parser = Options("lightrec recommend", description=__doc__)
    parser.add_argument("checkpoint", help="a checkpoint that `lightrec fit` wrote")
    parser.add_argument("--items", default="", help="external item ids, oldest first, separated by commas")
    parser.add_argument("--title", action="append", default=[], help="an item by a part of its title; repeat for more")
    parser.add_argument("--user", help="somebody of the data that the checkpoint was trained on, by external id")
    parser.add_argument("-k", "--k", type=int, default=10, help="length of the list")
    parser.add_argument("--keep_seen", action="store_true", help="leave the items of the history in the ranking")
    options = parser.parse_args(line.words)
    quiet()
    loaded = load_recommender(options.checkpoint)
    history = [item.strip() for item in options.items.split(",") if item.strip()]
    history += [_by_title(loaded, text) for text in options.title]
    if options.user is not None:
        history = [*_of_user(loaded, options.user), *history]
    if not history:
        raise InputError("give a history: --items ID,ID,... (oldest first), --title TEXT or --user ID.")
    (lines,) = loaded.recommend([history], options.k, exclude_seen=not options.keep_seen)
    unknown = [item for _, item in loaded.unknown]
    if len(unknown) == len(history):
        near = extensions.suggestion(unknown[0], loaded.catalog.item_ids) or "; --title TEXT finds items by title."
        raise InputError(f"none of the items is known to {Path(options.checkpoint).name}: {', '.join(unknown)}{near}")
    if unknown:
        print(f"unknown and skipped: {', '.join(unknown)}", file=sys.stderr)
    console = Console(highlight=False)
    known = [i for i in loaded.catalog.encode(history) if i]
    shown = known[-_HISTORY_SHOWN:]
    past = Table("item", "title")
    for i in shown:
        past.add_row(loaded.catalog.decode(i), loaded.catalog.title(i))
    best = Table("#", "item", "title", "score")
    for place, line in enumerate(lines, start=1):
        best.add_row(str(place), line.item_id, line.title, f"{line.score:.3f}")
    part = f", the last {len(shown)} of {len(known)}" if len(shown) < len(known) else ""
    console.print(f"history, oldest first{part}", past, "recommended next", best, sep="\n")
    return 0


def _of_user(loaded: LoadedRecommender, user: str) -> list[str]:
    """Returns the whole history of somebody in the data, as external item ids."""
    if loaded.data is None:
        raise InputError("--user needs the data that the checkpoint was trained on, and it names none; use --items.")
    data = SequenceDataModule.from_description(loaded.data)
    users = data.prepared.users.to_list()
    if user not in users:
        raise InputError(
            f"--user {user!r} is not in the data{extensions.suggestion(user, users) or ';'} {len(users)} users."
        )
    row = users.index(user)
    start, stop = data.prepared.offsets[row : row + 2]
    return [data.catalog.decode(int(i)) for i in data.prepared.items[start:stop]]


def _by_title(loaded: LoadedRecommender, text: str) -> str:
    catalog = loaded.catalog
    found = catalog.search(text, limit=_MATCHES_SHOWN + 1)
    exact = [i for i in found if catalog.title(i).lower() == text.lower()]
    found = exact if len(exact) == 1 else found
    if len(found) == 1:
        return catalog.decode(found[0])
    if not found:
        near = extensions.suggestion(text, [catalog.title(i) for i in range(1, len(catalog) + 1)]) or "."
        raise InputError(f"--title {text!r} fits no item{near}")
    named = "; ".join(f"{catalog.decode(i)} = {catalog.title(i)}" for i in found[:_MATCHES_SHOWN])
    more = "; ..." if len(found) > _MATCHES_SHOWN else ""
    raise InputError(f"--title {text!r} fits several items, name one with --items: {named}{more}")
