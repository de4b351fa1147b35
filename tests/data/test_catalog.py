"""What the integers of items stand for."""

import io

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightrec.data.catalog import Catalog


def catalog(titles=("Alien (1979)", None, "Die Brücke")):
    frame = pl.DataFrame({"item": ["10", "007", "x y"]})
    return Catalog(frame.with_columns(title=pl.Series(titles)) if titles else frame)


def test_ids_go_there_and_back_and_zero_is_unknown():
    assert catalog().encode(["x y", 10, "7", "007"]) == [3, 1, 0, 2]
    assert [catalog().decode(i) for i in (1, 2, 3)] == ["10", "007", "x y"]


@pytest.mark.parametrize("outside", [0, -1, 4])
def test_an_internal_id_outside_is_refused(outside):
    with pytest.raises(ValueError, match=f"{outside} is outside 1..3"):
        catalog().decode(outside)


def test_an_item_without_title_shows_its_id():
    assert [catalog().title(i) for i in (1, 2, 3)] == ["Alien (1979)", "007", "Die Brücke"]
    assert catalog(titles=None).titles is None and catalog(titles=None).title(1) == "10"


def test_search_ignores_case():
    assert catalog().search("ALIEN") == [1] and catalog(titles=None).search("x") == [3]


def test_a_checkpoint_carries_it_as_plain_tensors():
    buffer = io.BytesIO()
    torch.save(catalog().to_tensors(), buffer)
    buffer.seek(0)
    again = Catalog.from_tensors(torch.load(buffer, weights_only=True))
    assert (again.item_ids, again.titles) == (catalog().item_ids, catalog().titles)


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(text, text), max_size=8, unique_by=lambda pair: pair[0]), st.booleans())
def test_tensors_hold_any_text(pairs, titled):
    columns = {"item": [item for item, _ in pairs]} | ({"title": [title for _, title in pairs]} if titled else {})
    packed = Catalog(pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.String))).to_tensors()
    again = Catalog.from_tensors(packed)
    assert again.item_ids == columns["item"]
    assert again.titles == ([title or None for title in columns["title"]] if titled else None)
