"""A batch knows what it has per row and what per position."""

import dataclasses

import pytest
import torch
from torch import Tensor

from lightrec.data.batch import Axis, Batch, Column

WIDTH = 4  # of the window, and on purpose of everything that has one entry per row


@pytest.fixture
def batch():
    items = torch.tensor([[1, 5, 3, 7], [4, 6, 0, 0], [2, 8, 9, 0]])
    row = torch.arange(3 * WIDTH).view(3, WIDTH)
    return Batch(
        items,
        torch.tensor([4, 2, 3]),
        torch.arange(3),
        target_ids=row,
        seen_ids=row + 100,
        candidate_ids=row + 200,
        history_lengths=torch.tensor([9, 2, 3]),
        timestamps=items * 10,
        target_timestamps=row + 300,
        columns={
            "age": Column(torch.tensor([20, 30, 40]), "row"),
            "genres": Column(row + 400, "row"),
            "dwell": Column(items * 0.5, "position"),
            "image": Column(items[..., None] * torch.ones(2), "position"),
        },
    )


def tensors(batch: Batch) -> dict[str, tuple[Tensor, Axis]]:
    fields = {f.name: (getattr(batch, f.name), f.metadata["per"]) for f in dataclasses.fields(batch) if f.metadata}
    return fields | {name: (column.values, column.per) for name, column in batch.columns.items()}


def test_every_field_but_the_columns_declares_its_axis():
    undeclared = [f.name for f in dataclasses.fields(Batch) if f.metadata.get("per") not in Axis.__args__]
    assert undeclared == ["columns"]


@pytest.mark.parametrize("width", [1, 3, 4, 9])
def test_a_cut_leaves_what_belongs_to_rows_alone_even_if_it_is_as_wide_as_the_window(batch, width):
    before, after = tensors(batch), tensors(batch.cut(width))
    assert after.pop("lengths")[0].tolist() == [min(n, width) for n in (4, 2, 3)]
    for name, (values, per) in after.items():
        whole = before[name][0]
        assert per == before[name][1] and torch.equal(values, whole[:, :width] if per == "position" else whole), name


def test_the_inputs_of_next_item_prediction_lose_one_position_and_nothing_else(batch):
    before, after = tensors(batch), tensors(batch.without_last())
    assert after.pop("lengths")[0].tolist() == [3, 1, 2]
    for name, (values, per) in after.items():
        whole = before[name][0]
        assert torch.equal(values, whole[:, :-1] if per == "position" else whole), name


@pytest.mark.parametrize("index", [slice(1, 3), torch.tensor([2, 0, 0]), torch.tensor([True, False, True])], ids=str)
def test_rows_are_taken_of_every_tensor(batch, index):
    before, after = tensors(batch), tensors(batch.rows(index))
    assert len(batch.rows(index)) == len(torch.arange(3)[index])
    for name, (values, _) in after.items():
        assert torch.equal(values, before[name][0][index]), name


def test_a_change_reaches_columns_and_keeps_their_axis(batch):
    moved = batch.map(lambda t: t.float()).to("meta")
    assert all(values.is_meta and values.dtype == torch.float32 for values, _ in tensors(moved).values())
    assert {name: column.per for name, column in moved.columns.items()} == {
        "age": "row",
        "genres": "row",
        "dwell": "position",
        "image": "position",
    }


def test_a_column_that_does_not_say_what_it_belongs_to_is_refused(batch):
    with pytest.raises(TypeError, match=r"columns\['age'\] is a Tensor: give Column\(values, per='row'\)"):
        batch.replace(columns={"age": torch.zeros(3)})
    with pytest.raises(ValueError, match="per 'user' is unknown; choose row, position"):
        Column(torch.zeros(3), "user")
