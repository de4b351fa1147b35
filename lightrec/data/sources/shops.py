"""What people bought: Amazon reviews and the invoices of a shop."""

from __future__ import annotations

import gzip
from pathlib import Path

from lightrec.data.sources.source import File, Layout, Source

_NUMBERED = "the published sequences: order only, no times, users and items numbered by their authors"
_AMAZON = "No licence stated by the publisher (J. McAuley, Amazon reviews 2014); ask before publishing the data."


def amazon_beauty() -> Source:
    """Amazon Beauty 2014, 5-core: 22,363 people, 12,101 items, 198,502 reviews."""
    return _amazon(
        "beauty",
        "Beauty",
        "154f9863fbcf9a874e5457d4c5d1638cde661d1bee3ee72b62b155ce3fef7677",
        "0be14c1a6b9836c3665e28e6de7cf942b01c31e04ed53727849663bd15d92aa8",
        Layout(
            File(
                "amazon-beauty/Beauty.txt",
                ("sha256:226cce9c3105299ca0db9615d7d3fb32b3175e90da43100ae352599f0f0107b8",),
                "https://raw.githubusercontent.com/aHuiWang/CIKM2020-S3Rec/49a890dcb516c9ed3126564495234ea74d5cd566/data/Beauty.txt",
            ),
            format="sequence",
            note=_NUMBERED,
        ),
        {"users": 22_363, "items": 12_101, "events": 198_502},
    )


def amazon_sports() -> Source:
    """Amazon Sports and Outdoors 2014, 5-core: 35,598 people, 18,357 items, 296,337 reviews."""
    return _amazon(
        "sports",
        "Sports and Outdoors",
        "92d033d7e9d61bc476a598dcd13172ca54c3b9b196988d08076ebd0c26a0c951",
        "921a87153de98cb911651e935174e81649b145a58abf9d4f25e44e56db58c48d",
        Layout(
            File(
                "amazon-sports/Sports_and_Outdoors.txt",
                ("sha256:2a095e0648872beb9982408958290f5d655db5be2911c3756b5446de9f0b8de2",),
                "https://raw.githubusercontent.com/aHuiWang/CIKM2020-S3Rec/49a890dcb516c9ed3126564495234ea74d5cd566/"
                "data/Sports_and_Outdoors.txt",
            ),
            format="sequence",
            note=_NUMBERED,
        ),
        {"users": 35_598, "items": 18_357, "events": 296_337},
    )


def _amazon(
    key: str, label: str, log_sha256: str, items_sha256: str, sequences: Layout, expect: dict[str, int]
) -> Source:
    log = File(f"amazon-{key}/interactions.csv.gz", (f"sha256:{log_sha256}",))
    items = File(f"amazon-{key}/items.csv.gz", (f"sha256:{items_sha256}",))
    return Source(
        name=f"amazon-{key}",
        title=f"Amazon {label} (2014, 5-core)",
        licence=_AMAZON,
        layouts=(Layout(log, format="csv", columns={"user": 0, "item": 1, "time": 2}, header=True), sequences),
        companions=(items,),
        catalog=lambda files: _amazon_items(files.get(items.path)),
        expect=expect,
        note="5-core by its authors; times are days, so many are equal: file order decides",
    )


def online_retail() -> Source:
    """UCI Online Retail: invoices of a British shop, December 2010 to December 2011."""
    return Source(
        name="online-retail",
        title="UCI Online Retail",
        licence="CC BY 4.0: redistribution allowed with credit (D. Chen, UCI repository 352).",
        layouts=(
            Layout(
                File(
                    "online-retail/online-retail-dataset.csv.gz",
                    ("sha256:84f0b07106628b82b1441a656f29487cb57f69cf5fd903206811cf0a543a5ae8",),
                ),
                format="csv",
                columns={"user": "CustomerID", "item": "StockCode", "time": "InvoiceDate", "title": "Description"},
            ),
        ),
        expect={"events": 541_909},
        note="rows without a customer and cancelled invoices (numbers that begin with C) are dropped",
        drop_missing_user=True,
        void=("InvoiceNo", "C"),
    )


def _amazon_items(path: Path | None) -> dict[str, dict[str, str]]:
    if path is None:
        return {}
    import csv

    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    out = {}
    for column, name in (("title", "title"), ("categories", "categories_and_brand")):
        key = next((k for k in (rows[0] if rows else {}) if k.startswith(name)), None)
        if key:
            out[column] = {row["asin"]: row[key] for row in rows if row[key]}
    return out
