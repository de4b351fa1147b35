"""Splits and rows by their short names, and those of somebody else."""

import numpy as np
import pytest

from lightrec import extensions
from lightrec.data import rows, splits
from lightrec.data.batches import Windows
from lightrec.data.datamodule import SequenceDataModule
from lightrec.errors import InputError


@pytest.mark.parametrize("group,built_in", [("splits", splits.BUILT_IN), ("rows", rows.BUILT_IN)])
def test_what_is_declared_is_what_is_built_in(group, built_in):
    declared = {plugin.name: plugin.path for plugin in extensions.installed(group) if plugin.builtin}
    assert declared == {name: f"{kind.__module__}.{kind.__qualname__}" for name, kind in built_in.items()}


def test_a_name_is_that_of_a_part_with_its_defaults():
    assert splits.find_split("global_timeline").val_from == 0.8
    assert rows.find_rows("prefixes").per_user is None
    given = rows.Prefixes(per_user=3)
    assert rows.find_rows(given) is given


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(InputError, match="--data.split 'random' is unknown; choose leave_one_out, global_timeline"):
        splits.find_split("random")
    with pytest.raises(
        InputError, match="--data.train_windows 'some' is unknown; choose last, all, prefixes, sessions"
    ):
        rows.find_rows("some")


class FirstEvents(rows.Rows):
    """The first window of each user."""

    def windows(self, train, max_length):
        keep = train.lengths >= 2
        begin, end = train.history_begin[keep], train.history_end[keep]
        return Windows(train.user[keep], begin, np.minimum(begin + max_length + 1, end), {"long": (end - begin) > 3})


class NothingHeldOut(splits.Split):
    """Everything is learned from."""

    def parts(self, prepared):
        begin, end = prepared.offsets[:-1], prepared.offsets[1:]
        nobody = splits.Histories(*[np.zeros(0, np.int64)] * 4)
        train = splits.Histories(np.arange(len(begin)), begin, end, end)
        return splits.Parts(train, nobody, nobody, {"held_out": 0})


def test_parts_of_somebody_else_are_split_served_and_recorded(tmp_path):
    (tmp_path / "log.csv").write_text("user,item\n" + "".join(f"u{u},i{t}\n" for u in range(4) for t in range(2 + u)))
    data = SequenceDataModule(
        path=str(tmp_path / "log.csv"), split=NothingHeldOut(), train_windows=FirstEvents(), max_length=2
    )
    (batch,) = data.train_dataloader()
    assert sorted(batch.lengths.tolist()) == [2, 3, 3, 3] and int(data.item_counts.sum()) == 2 + 3 + 4 + 5
    assert batch.columns["long"].per == "row" and int(batch.columns["long"].values.sum()) == 2
    record = data.protocol()
    assert (record["split"], record["held_out"], record["train_windows"]) == ("NothingHeldOut", 0, "FirstEvents")
    assert data.corpus.train_windows == "FirstEvents" and record["prefixes_per_user"] is None
    with pytest.raises(InputError, match="no user to ask in the test part: --data.split NothingHeldOut puts none of 4"):
        data.test_dataloader()
    assert data.describe()["init_args"]["split"]["class_path"].endswith("NothingHeldOut")
