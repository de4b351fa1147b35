"""`lightrec predict`: recommendations for every user, as a parquet file of external ids."""

from __future__ import annotations

import lightning as L


def add_arguments(parser) -> None:
    """Adds the flags of `predict`."""
    parser.add_argument("--output", type=str, default="predictions.parquet", help="Parquet file to write.")
    parser.add_argument("-k", "--k", type=int, default=10, help="Length of the lists.")
    parser.add_argument("--histories", type=str | None, default=None, help="A log of new users, instead of the data.")


class Writer(L.Callback):
    """Writes."""

    def __init__(self, config):
        pass
