"""Helpers for lengths, on rows that can be checked by eye."""

import torch

from lightrec.nn.sequence import last_state, positions_from_end, real_positions, valid_mask

LENGTHS = torch.tensor([3, 1])


def test_valid_mask_is_true_up_to_the_length():
    assert valid_mask(LENGTHS, 3).tolist() == [[True, True, True], [True, False, False]]


def test_positions_count_back_from_the_most_recent_item():
    assert positions_from_end(LENGTHS, 4).tolist() == [[2, 1, 0, 0], [0, 0, 0, 0]]


def test_last_state_is_that_of_the_last_real_item():
    hidden = torch.arange(12.0).view(2, 3, 2)
    assert last_state(hidden, LENGTHS).tolist() == [[4.0, 5.0], [6.0, 7.0]]


def test_real_positions_index_the_flattened_rows():
    assert real_positions(LENGTHS, 3).tolist() == [0, 1, 2, 3]
