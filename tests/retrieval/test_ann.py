"""Each kind of approximate index against a sort of all products: what it finds, what it leaves out, what it refuses."""

import subprocess
import sys
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retrieval import ann, ann_build
from retrieval.ann import AnnIndex
from retrieval.ann_files import write_rows
from retrieval.ann_tune import recall
from tests.retrieval.clustered import brute_force, built, gallery, planned, unit

KINDS = ("flat", "hnsw", "ivf_flat", "ivf_pq")
NONE = np.zeros(0, np.int64)


@pytest.fixture(scope="module")
def rows() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return gallery(3000, 60, 32)


@pytest.fixture(scope="module", params=KINDS)
def index(request, rows, tmp_path_factory) -> AnnIndex:
    return built(tmp_path_factory.mktemp(request.param), request.param, *rows[:2])


def test_what_is_found_is_true_and_nearly_all(index, rows):
    vectors, ids, queries = rows
    similarity, found = index.search(queries, 10)
    want = brute_force(vectors, ids, queries, 10)[1]
    share = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, want, strict=True)])
    assert share == 1.0 if index.plan.kind == "flat" else share >= 0.9
    row_of = {number: row for row, number in enumerate(ids)}
    for line, query in enumerate(queries.astype(np.float64)):
        own = np.array([vectors[row_of[i]].astype(np.float64) @ query for i in found[line]]).astype(np.float32)
        np.testing.assert_array_equal(similarity[line], own)  # the float64 product of that very row, rounded once
    assert (np.diff(similarity, axis=1) <= 0).all()
    assert similarity.dtype == np.float32 and found.dtype == np.int64
    assert recall(index, queries) == pytest.approx(share)  # no ties here, so both ways of counting agree


def test_exact_is_the_sort_whatever_the_kind(index, rows):
    vectors, ids, queries = rows
    for got, want in zip(index.exact(queries, 7), brute_force(vectors, ids, queries, 7), strict=True):
        np.testing.assert_array_equal(got, want)


def test_every_row_finds_itself_and_more_than_all_are_padded(index, rows):
    vectors, ids, _ = rows
    np.testing.assert_array_equal(index.search(vectors[:300], 1)[1][:, 0], ids[:300])
    similarity, found = index.search(vectors[:2], 3005)
    assert sorted(found[0, :3000]) == sorted(ids)
    assert found[0, 3000:].tolist() == [-1] * 5 and similarity[0, 3000:].tolist() == [-np.inf] * 5


def test_parts_and_order_of_the_queries_do_not_matter(index, rows):
    queries = rows[2]
    whole = index.search(queries, 5)
    order = np.random.default_rng(1).permutation(len(queries))
    for got, want in zip(index.search(queries[order], 5), whole, strict=True):
        np.testing.assert_array_equal(got, want[order])
    assert index.search(queries[:0], 5)[1].shape == (0, 5)


def test_the_removed_never_come_back_and_the_added_are_found(index, rows, tmp_path):
    vectors, ids, _ = rows
    new, new_ids = unit(np.random.default_rng(5).normal(size=(50, 32))), np.arange(50)
    gone = brute_force(vectors, ids, vectors[:1], 200)[1][0]  # the 200 nearest of row 0: far more than k candidates
    changed = index.with_changes(tmp_path / "1", new, new_ids, gone)
    assert changed.rows == 3000 + 50 - 200
    assert changed.dead_share == (0 if index.plan.kind == "flat" else 200 / 3050)
    found = changed.search(np.concatenate([vectors[:1], vectors[ids == gone[100]]]), 10)[1]
    assert (found >= 0).all() and not np.isin(found, gone).any()
    np.testing.assert_array_equal(changed.search(new, 1)[1][:, 0], new_ids)
    everything = changed.search(vectors[:1], 3050)[1][0]
    assert sorted(everything[:2850]) == sorted([*np.setdiff1d(ids, gone), *new_ids]) and (everything[2850:] == -1).all()
    assert index.search(vectors[:1], 1)[1][0, 0] == ids[0]  # the version before stays as it was


def test_past_a_fifth_the_dead_are_left_out(index, rows, tmp_path):
    vectors, ids, queries = rows
    most = index.with_changes(tmp_path / "1", vectors[:0], NONE, ids[:600])  # 600 / 3000 is not above 0.2
    assert most.dead_share == (0 if index.plan.kind == "flat" else 0.2)
    after = most.with_changes(tmp_path / "2", vectors[:0], NONE, ids[600:601])  # 601 / 3000 is
    assert after.dead_share == 0 and len(np.load(tmp_path / "2" / "vectors.npy")) == 2399
    assert not (tmp_path / "2" / "dead.npy").exists()
    for version in (most, after):
        alive = slice(3000 - version.rows, None)
        np.testing.assert_array_equal(
            version.exact(queries, 5)[1], brute_force(vectors[alive], ids[alive], queries, 5)[1]
        )
        assert recall(version, queries) >= 0.9


def test_an_id_removed_and_added_at_once_has_its_new_row(index, rows, tmp_path):
    vectors, ids, _ = rows
    other = unit(-vectors[:1] + 0.01)
    changed = index.with_changes(tmp_path / "1", other, ids[:1], ids[:1])
    assert changed.rows == 3000
    assert changed.search(other, 1)[1][0, 0] == ids[0]
    assert changed.search(vectors[:1], 1)[1][0, 0] != ids[0]
    again = changed.with_changes(tmp_path / "2", vectors[:1], ids[:1], ids[:1])  # and back
    assert again.search(vectors[:1], 1)[1][0, 0] == ids[0] and again.search(other, 1)[1][0, 0] != ids[0]


@pytest.mark.parametrize(
    "add, remove, message",
    [
        ([], [12345], "12345"),  # never there
        ([0], [], "in the gallery already"),  # there, and staying
        ([12345, 12345], [], "stands for several rows"),
        ([-5], [], "negative"),
    ],
)
def test_changes_that_contradict_are_refused(tmp_path, add, remove, message):
    vectors, ids, _ = gallery(20, 0, 8)
    first = built(tmp_path, "flat", vectors, ids)
    add_ids = np.array([ids[0] if i == 0 else i for i in add], np.int64)
    with pytest.raises(ValueError, match=message):
        first.with_changes(tmp_path / "next", vectors[: len(add)], add_ids, np.array(remove, np.int64))
    with pytest.raises(ValueError, match="not empty"):
        first.with_changes(tmp_path, vectors[:0], NONE, NONE)


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
@pytest.mark.parametrize("n", [0, 1])
def test_a_gallery_of_none_and_of_one(tmp_path, kind, n):
    index = built(tmp_path, kind, np.eye(4, dtype=np.float32)[:n], np.array([7] * n, np.int64))
    similarity, found = index.search(np.eye(4, dtype=np.float32)[:2], 2)
    assert found.tolist() == ([[7, -1], [7, -1]] if n else [[-1, -1]] * 2)
    assert similarity[0].tolist() == ([1.0, -np.inf] if n else [-np.inf] * 2)
    more = index.with_changes(tmp_path / "1", np.eye(4, dtype=np.float32)[1:3], np.array([1, 2]), NONE)
    assert more.search(np.eye(4, dtype=np.float32)[2:3], 1)[1].tolist() == [[2]]
    none = more.with_changes(tmp_path / "2", np.empty((0, 4), np.float32), NONE, np.array([1, 2, 7][: 2 + n]))
    assert none.rows == 0 and none.search(np.eye(4, dtype=np.float32), 1)[1].tolist() == [[-1]] * 4


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_copies_come_by_lower_id(tmp_path, kind):
    vectors = np.repeat(np.eye(8, dtype=np.float32)[:2], 4, axis=0)
    ids = np.array([40, 10, 30, 20, 8, 6, 7, 5], np.int64)
    found = built(tmp_path, kind, vectors, ids).search(np.eye(8, dtype=np.float32)[:2], 5)[1]
    assert found.tolist() == [[10, 20, 30, 40, 5], [5, 6, 7, 8, 10]]  # four at 1.0, then the lowest id at 0.0


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n=st.integers(0, 40), q=st.integers(0, 5), d=st.sampled_from([1, 3, 16]), k=st.integers(1, 45), half=st.booleans(),
    dead=st.integers(0, 40), block=st.sampled_from([1, 7, 64]), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_flat_is_a_sort_of_all_products(tmp_path_factory, n, q, d, k, half, dead, block, seed):
    rng = np.random.default_rng(seed)
    signs = rng.integers(0, 2, (n + q, d)) * 2.0 - 1  # many copies and many ties
    vectors, queries = unit(signs)[:n], unit(signs)[n:]
    ids = rng.choice(100, n, replace=False).astype(np.int64)
    folder = tmp_path_factory.mktemp("flat")
    ann_build.write_vectors(folder, vectors, ids, half=half)
    gone = rng.choice(n, min(dead, n), replace=False).astype(np.int64)
    write_rows(folder / "dead.npy", gone.shape, gone.dtype, [np.sort(gone)])
    index = AnnIndex.open(folder, planned("flat", n, d))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ann, "EXACT_BLOCK", block)  # the answer does not depend on it
        got = index.search(queries, k)
    alive = np.setdiff1d(np.arange(n), gone)
    stored = vectors.astype(np.float16).astype(np.float32) if half else vectors
    for have, want in zip(got, brute_force(stored[alive], ids[alive], queries, k), strict=True):
        np.testing.assert_array_equal(have, want)


@pytest.mark.parametrize("bits", [4, 8])
def test_codes_of_earlier_releases_stay_readable_and_grow(bits, tmp_path, rows, monkeypatch):
    """Until November 2026 a code had 8 bits; such an index is searched as it was, and the next version keeps them."""
    vectors, ids, queries = rows
    monkeypatch.setattr(ann_build, "CODE_BITS", bits)
    (tmp_path / "old").mkdir()
    index = built(tmp_path / "old", "ivf_pq", vectors[:2900], ids[:2900])
    monkeypatch.undo()
    later = index.with_changes(tmp_path / "next", vectors[2900:], ids[2900:], ids[:100])
    for version, kept in ((index, slice(0, 2900)), (later, slice(100, 3000))):
        inverted = faiss.downcast_index(faiss.extract_index_ivf(version.faiss_index))
        assert inverted.pq.nbits == bits and inverted.code_size == 4
        want = brute_force(vectors[kept], ids[kept], queries, 10)[1]
        found = version.search(queries, 10)[1]
        assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, want, strict=True)]) >= 0.9


def test_float16_rows_are_compared_as_stored(tmp_path, rows):
    vectors, ids, queries = rows
    index = built(tmp_path, "ivf_flat", vectors, ids, half=True)
    similarity, found = index.with_parameters(nprobe=index.plan.n_lists).search(queries, 5)
    want_similarity, want = brute_force(vectors.astype(np.float16), ids, queries, 5)
    np.testing.assert_array_equal(similarity, want_similarity)
    np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize(
    "queries, k, message",
    [
        (np.zeros((1, 32), np.float32), 0, "k of at least 1"),
        (np.zeros((1, 31), np.float32), 1, "another model"),
        (np.zeros((1, 32)), 1, "float32"),
        (np.zeros(32, np.float32), 1, r"\(Q, 32\)"),
        (np.full((2, 32), np.nan, np.float32), 1, "query 0 has numbers that are not finite"),
    ],
)
def test_queries_that_cannot_be_compared_are_refused(index, queries, k, message):
    with pytest.raises(ValueError, match=message):
        index.search(queries, k)


def test_no_torch_comes_along():
    code = "import sys, retrieval.ann; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(ann.__file__).parents[1]).returncode == 0
