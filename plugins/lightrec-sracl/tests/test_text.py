"""Vectors of texts that say something, and of those that say nothing."""

import numpy as np
import pytest

from lightrec import InputError

text = pytest.importorskip("lightrec_sracl.text", reason="lightrec-sracl is not installed")
pytestmark = pytest.mark.filterwarnings("error:invalid value:RuntimeWarning")


@pytest.mark.parametrize(
    "texts",
    [
        ["red lipstick"] * 7,
        ["lipstick"] * 2,
        [f"red lipstick {name}" for name in ("anna", "bert", "carl", "dora")],  # what differs is in one text only
    ],
)
def test_texts_that_are_all_alike_are_refused(texts):
    with pytest.raises(InputError, match=f"same vector of all {len(texts)} texts .*lipstick.*collaborative"):
        text.encode_texts([*texts, ""], "tfidf", 8)


def test_one_text_that_differs_is_told_from_the_others():
    vectors = text.encode_texts(["red lipstick"] * 3 + ["cordless drill", "", "cordless drill"], "tfidf", 8)
    assert np.allclose(vectors[:3] @ vectors[:4].T, [[1, 1, 1, 0]] * 3, atol=1e-5)
    assert np.allclose(vectors[3] @ vectors[5], 1, atol=1e-5) and not vectors[4].any()


def test_a_single_text_is_like_nothing_else():
    vectors = text.encode_texts(["", "red lipstick"], "tfidf", 8)
    assert not vectors[0].any() and np.linalg.norm(vectors[1]) == pytest.approx(1)


def test_items_that_everybody_had_say_nothing_about_each_other():
    items, owner = np.tile(np.arange(1, 6), 3), np.repeat(np.arange(3), 5)
    assert not text.collaborative_vectors(items, owner, 5, 8).any()
    vectors = text.collaborative_vectors(items[:-1], owner[:-1], 5, 8)  # the last user lacks the last item
    assert vectors.any(1).all() and vectors[0] @ vectors[1] > 0.99 > vectors[0] @ vectors[4]
