"""Budgets: as many rows as fit, within limits, and a table that can be read and changed in public."""

import threading

import pytest
import torch

from lightrec.ops.blocks import BUDGETS, budget, bytes_for, rows_that_fit

CPU, GPU = torch.device("cpu"), torch.device("cuda")
MIB = 2**20


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("device", [CPU, GPU])
@pytest.mark.parametrize("purpose", BUDGETS)
def test_rows_fit_and_one_more_would_not(purpose, device):
    room = bytes_for(purpose, device)
    for size in (1, 7, 48404, room):
        rows = rows_that_fit(size, device, purpose)
        assert rows * size <= room < (rows + 1) * size


def test_limits_are_kept_where_more_or_fewer_would_fit():
    with budget("logits", 1000):
        assert rows_that_fit(10, CPU, "logits") == 100
        assert rows_that_fit(10, CPU, "logits", most=40) == 40
        assert rows_that_fit(500, CPU, "logits", least=64, most=1024) == 64
        assert rows_that_fit(10_000, CPU, "logits") == 1  # a row must be possible
        assert rows_that_fit(10, GPU, "logits", most=40) == 100  # a GPU takes all that fit
        assert rows_that_fit(0, CPU, "logits") == 1000  # rows without bytes


def test_a_cpu_and_a_gpu_have_budgets_of_their_own():
    assert (bytes_for("logits", CPU), bytes_for("logits", GPU)) == (8 * MIB, 256 * MIB)


def test_threads_share_a_budget_that_grows_with_them(threads):
    threads(1)
    assert bytes_for("attention weights", CPU) == MIB // 2
    threads(3)
    assert bytes_for("attention weights", CPU) == 6 * MIB


def test_a_budget_ends_with_its_block_and_may_be_nested():
    before = bytes_for("search", CPU)
    with budget("search", 5), pytest.raises(KeyError):
        with budget("search", 3):
            assert bytes_for("search", CPU) == bytes_for("search", GPU) == 3
        assert bytes_for("search", CPU) == 5
        raise KeyError
    assert bytes_for("search", CPU) == before


def test_a_budget_holds_for_other_threads():
    """The backward pass of a GPU runs in a thread of its own."""
    found = []
    with budget("scores", 5):
        thread = threading.Thread(target=lambda: found.append(bytes_for("scores", CPU)))
        thread.start()
        thread.join()
    assert found == [5]


def test_an_unknown_purpose_is_refused():
    with pytest.raises(ValueError, match="purpose 'soup' is unknown; choose logits, "):
        rows_that_fit(1, CPU, "soup")
    with pytest.raises(ValueError, match="purpose 'soup' is unknown"), budget("soup", 1):
        pass


def test_a_graph_with_a_budget_in_it_is_whole():
    def rows(x):
        return x * rows_that_fit(x.shape[1] * 4, x.device, "logits", 64, 1024)

    x = torch.ones(2, 3)
    assert torch.equal(torch.compile(rows, fullgraph=True, backend="eager")(x), rows(x))
