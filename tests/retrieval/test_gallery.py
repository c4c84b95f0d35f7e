"""Reading a published gallery: what a search gives, what follows a publication, what is refused with one line."""

import contextlib
import json
import os
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import handmade
import numpy as np
import pyarrow.parquet as pq
import pytest
from handmade import DIM, rows, version

from postproc.hypotheses import Hypotheses
from retrieval.ann_files import MAGIC
from retrieval.gallery import open_gallery
from retrieval.gallery_files import GalleryError, fetched
from store.files import digest, file_digest, hasher
from store.objects import StorageError, open_store


def point(store: Any, name: str) -> None:
    store.write("CURRENT", json.dumps({"version": name, "history": []}).encode())


@pytest.fixture(params=["folder", "bucket"])
def where(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A place for a gallery, and a cache of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return f"{request.getfixturevalue('s3_bucket')}/gallery" if request.param == "bucket" else str(tmp_path / "gallery")


# ------------------------------------------------------------------------------------------------ searching


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_a_search_is_a_sort_of_all_products(where: str, kind: str) -> None:
    store, ids = open_store(where), [7, 3, 20, 11, 5]
    version(store, "000001-x", ids, kind=kind, gone=[30])
    point(store, "000001-x")
    gallery = open_gallery(where)
    asked = rows([1, 2], seed=9)
    similarity, found = gallery.search(asked, 7)
    products = asked.astype(np.float64) @ rows(ids).T.astype(np.float64)
    order = np.argsort(-products, axis=1)
    assert found.tolist() == [[*(ids[i] for i in line), -1, -1] for line in order]
    np.testing.assert_allclose(similarity[:, :5], np.take_along_axis(products, order, 1), atol=1e-6)
    assert np.isneginf(similarity[:, 5:]).all() and len(gallery) == 5


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_a_folder_name_need_not_be_utf8(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    version(open_store(folder), "000001-x", list(range(20)), kind=kind)
    point(open_store(folder), "000001-x")
    assert open_gallery(folder).search(rows([7, 11]), 1)[1].tolist() == [[7], [11]]


def test_copies_of_a_row_come_by_rising_id(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    version(store, "000001-x", [9, 4, 6], replaced={})
    path = tmp_path / "versions" / "000001-x"
    np.save(path / "vectors.npy", np.repeat(rows([1]), 3, axis=0))
    point(store, "000001-x")
    assert open_gallery(tmp_path, check=False).search(rows([1]), 3)[1].tolist() == [[4, 6, 9]]


def test_a_garment_that_was_replaced_answers_with_its_new_row(tmp_path: Path) -> None:
    """A graph keeps the dead row, but it is neither found nor looked up, and queries do not move towards it."""
    store = open_store(tmp_path)
    expanded = ({"step": "concat"}, {"step": "alpha_qe", "k": 1, "alpha": 0})
    version(store, "000001-x", list(range(20)), kind="hnsw", replaced={4: 5}, steps=expanded)
    point(store, "000001-x")
    gallery = open_gallery(tmp_path)
    assert len(gallery.index.ids) == 21 and len(gallery) == 20
    np.testing.assert_array_equal(gallery.vectors(np.array([4])), rows([4]))
    similarity, ids = gallery.search(rows([4]), 1)
    assert ids.tolist() == [[4]] and similarity[0, 0] == pytest.approx(
        1.0, abs=1e-6
    )  # moved towards itself: where it was


def test_a_step_that_ranks_anew_leaves_the_dead_out(tmp_path: Path) -> None:
    """k-reciprocal over all rows would return the dead ones; it must rank as if they had never been there."""
    steps = ({"step": "concat"}, {"step": "k_reciprocal", "k1": 4, "k2": 2})
    for name, gone in (("with", [40, 41, 42]), ("without", [])):
        store = open_store(tmp_path / name)
        version(store, "000001-x", list(range(25)), kind="hnsw", steps=steps, gone=gone)
        point(store, "000001-x")
    asked = rows([40, 41, 50], seed=0)
    got, want = (open_gallery(tmp_path / name).search(asked, 25) for name in ("with", "without"))
    assert got[1].tolist() == want[1].tolist() and set(got[1][0]) == set(range(25))
    np.testing.assert_allclose(got[0], want[0], atol=1e-6)


def test_steps_on_lists_know_categories_and_products(tmp_path: Path) -> None:
    steps = ({"step": "concat"}, {"step": "category", "rule": "hard"}, {"step": "group", "by": "product"})
    store, ids = open_store(tmp_path), list(range(40))
    version(store, "000001-x", ids, steps=steps)
    point(store, "000001-x")
    gallery, asked = open_gallery(tmp_path), rows([1], seed=3)
    with pytest.raises(GalleryError, match="give the category of each query"):
        gallery.search(asked, 3)
    found = gallery.lookup(gallery.search(asked, 5, category=np.array([2]))[1][0])
    assert [row["id"] for row in found if row] == sorted([1, 14, 27], key=lambda one: -float(asked[0] @ rows([one])[0]))


SOFT = ({"step": "concat"}, {"step": "category", "rule": "soft", "penalty": 0.5})


@pytest.mark.parametrize("category, losses", [
    (np.array([7]), [0.5, 0.25 * 0.5, 0.0]),  # certain: 1, 1/4 and 0 that an item is of another category
    (Hypotheses(np.array([[7, 1]]), np.array([[0.3, 0.1]])),  # 7 or, a third as probably, 1
     [0.75 * 0.5, (1 - 3 / 4 * 3 / 4 - 1 / 4 * 1 / 4) * 0.5, 0.25 * 0.5]),
    (np.array([0]), [0.0, 0.0, 0.0]),
    (Hypotheses(np.array([[0, 0]]), np.zeros((1, 2))), [0.0, 0.0, 0.0]),
])  # fmt: skip
def test_a_soft_rule_weighs_all_that_query_and_garment_may_be(tmp_path: Path, category: Any, losses: list) -> None:
    """Garment 13 is of category 1, 19 of 7 or, a third as probably, of 1, and 6 of 7 alone."""
    store, ids = open_store(tmp_path), [13, 19, 6]
    version(store, "000001-x", ids, steps=SOFT, hypotheses={19: {7: 0.6, 1: 0.2}})
    point(store, "000001-x")
    asked = rows([3], seed=5)
    similarity, found = open_gallery(tmp_path).search(asked, 3, category=category)
    place = [found[0].tolist().index(one) for one in ids]
    np.testing.assert_allclose(similarity[0, place], rows(ids) @ asked[0] - losses, atol=1e-6)


def test_items_of_a_release_without_hypotheses_are_of_their_own_category(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    record = version(store, "000001-x", [13, 6], steps=SOFT)
    path = tmp_path / "versions" / "000001-x" / "items.parquet"
    pq.write_table(pq.read_table(path).drop_columns("hypotheses"), path)
    files = record["files"] | {"items.parquet": file_digest(path)}
    store.write("versions/000001-x/version.json", json.dumps(record | {"files": files}).encode())
    point(store, "000001-x")
    asked = rows([3], seed=5)
    similarity, found = open_gallery(tmp_path).search(asked, 2, category=np.array([7]))
    want = rows([13, 6]) @ asked[0] - [0.5, 0]
    np.testing.assert_allclose(similarity[0, np.argsort(-found[0])], want, atol=1e-6)


@pytest.mark.parametrize("category", [np.array([1, 2]), Hypotheses.own(np.array([1, 2]), np.ones(2))])
def test_categories_of_other_queries_are_refused(tmp_path: Path, category: Any) -> None:
    store = open_store(tmp_path)
    version(store, "000001-x", [1], steps=SOFT)
    point(store, "000001-x")
    with pytest.raises(GalleryError, match="gallery: 1 queries, categories of 2"):
        open_gallery(tmp_path).search(rows([1]), 1, category=category)


def test_a_garment_is_looked_up_by_its_id(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    version(store, "000001-x", [8, 2])
    point(store, "000001-x")
    found = open_gallery(tmp_path).lookup([2, -1, 8, 5])
    assert [row.get("image_id") for row in found] == [2, None, 8, None]
    assert found[0]["product_id"] == "p1" and found[2]["bbox"] == [0, 0, 9, 9]


def test_a_table_has_the_rows_of_a_lookup(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    version(store, "000001-x", [8, 2, 5])
    point(store, "000001-x")
    gallery, ids = open_gallery(tmp_path), np.array([8, -1, 2, 7])
    assert gallery.table(ids).to_pylist() == [gallery.lookup([8])[0], gallery.lookup([2])[0]]
    rows = gallery.table(ids, np.array([0.75, -np.inf, 0.5, 0.25], np.float32))
    assert rows.column_names[0] == "similarity" and rows["similarity"].to_pylist() == [0.75, 0.5]
    assert rows["id"].to_pylist() == [8, 2]


@pytest.mark.parametrize("vectors, k, want", [
    (np.zeros((2, DIM + 1), np.float32), 3,
     r"want vectors \(Q, 6\) float32 \(m 6\) and k from 1, got \(2, 7\) float32, 3"),
    (np.zeros((2, DIM)), 3, r"got \(2, 6\) float64"),
    (np.zeros((2, DIM), np.float32), 0, r"got \(2, 6\) float32, 0"),
    (np.zeros(DIM, np.float32), 1, r"got \(6,\)"),
    (np.array([[1.0] * DIM, [np.nan] * DIM], np.float32), 1, r"vector 1 has numbers that are not finite"),
])  # fmt: skip
def test_queries_that_do_not_fit_are_refused(tmp_path: Path, vectors: np.ndarray, k: int, want: str) -> None:
    store = open_store(tmp_path)
    version(store, "000001-x", [1])
    point(store, "000001-x")
    with pytest.raises(GalleryError, match=want):
        open_gallery(tmp_path).search(vectors, k)


# ------------------------------------------------------------------------------------------------ opening


def test_what_cannot_be_opened_says_so_in_one_line(where: str) -> None:
    store = open_store(where)
    with pytest.raises(GalleryError, match=r"no gallery is published there; run jobs/reindex_gallery.py"):
        open_gallery(where)
    deep = b"[" * 100_000
    for spoiled in (b"", b"[]", b'{"version": ""}', b'{"version": "../x"}', b'{"version": 3}', deep):
        store.write("CURRENT", spoiled)
        with pytest.raises(GalleryError, match=rf"CURRENT: {len(spoiled)} bytes that name no version"):
            open_gallery(where)
    point(store, "000001-x")
    with pytest.raises(GalleryError, match=r"no version 000001-x; `--list` names those there are"):
        open_gallery(where)
    store.write("versions/000001-x/version.json", b'{"schema": 3}')
    with pytest.raises(GalleryError, match=r"versions/000001-x: schema 3; this version reads 1 and 2"):
        open_gallery(where)
    store.write("versions/000001-x/version.json", b"{")
    with pytest.raises(GalleryError, match=r"version.json: not readable"):
        open_gallery(where)


@pytest.mark.parametrize("file", ["vectors.npy", "ids.npy", "items.parquet"])
def test_a_file_that_is_not_what_was_published_is_refused(where: str, file: str) -> None:
    store = open_store(where)
    version(store, "000001-x", [1, 2, 3])
    point(store, "000001-x")
    key = f"versions/000001-x/{file}"
    good = store.read(key)
    store.write(key, good[:-1] + b"?")
    with pytest.raises((GalleryError, StorageError), match=r"published as \w{32}"):
        open_gallery(where)
    store.delete(key)
    with pytest.raises(GalleryError, match=r"missing, published as|not there, though published"):
        open_gallery(where)
    store.write(key, good)
    assert len(open_gallery(where)) == 3


def test_a_record_that_lies_is_refused_as_the_gallerys_fault(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    record = version(store, "000001-x", [1, 2, 3])
    point(store, "000001-x")
    for wrong in (
        {"index": record["index"] | {"dim": 7}},
        {"index": {"kind": "flat"}},
        {"models": [{}]},
        {"search": None},
        {"search": {"steps": 3}},
        {"files": {"vectors.npy": 7}},
        {"parameters": 3},
    ):
        store.write("versions/000001-x/version.json", json.dumps(record | wrong).encode())
        with pytest.raises(GalleryError, match=r"versions/000001-x.*(cannot be opened \(\w+Error: |published as 7)"):
            open_gallery(tmp_path)
    for part, value, said in (
        ("files", [], "files is '[]'"),
        ("files", None, "files is 'None'"),
        ("index", [], "index is '[]'"),
        ("index", {"kind": []}, "the kind of its index is '[]'"),
        ("rows", "x", "rows is 'x'"),
        ("results", ["x"], "results is "),
        ("gate", 3, "gate is '3'"),
        ("gate", {"a": 3}, "gate is "),
        ("parts", 3, "parts is '3'"),
        ("parts", [{"index": {}, "rows": 3}], "parts is "),
    ):
        store.write("versions/000001-x/version.json", json.dumps(record | {part: value}).encode())
        with pytest.raises(GalleryError, match=rf"versions/000001-x/version.json: not readable: {re.escape(said)}"):
            open_gallery(tmp_path)
    for missing in record.keys() - {"schema"}:
        rest = {name: value for name, value in record.items() if name != missing}
        store.write("versions/000001-x/version.json", json.dumps(rest).encode())
        with contextlib.suppress(GalleryError):  # some are for people alone
            open_gallery(tmp_path)


def test_an_index_of_another_faiss_leaves_the_version_that_serves(tmp_path: Path) -> None:
    """Whole, sealed and published, but with bytes that this FAISS does not know."""
    store = open_store(tmp_path)
    version(store, "000001-x", [1, 2, 3], kind="hnsw")
    point(store, "000001-x")
    gallery = open_gallery(tmp_path)
    record = version(store, "000002-x", [1, 2, 3, 4], kind="hnsw")
    for body in (b"", b"IxFI" + bytes(100), b"What" + bytes(100), b"IHNs" + bytes(4)):
        sealed = body + MAGIC + hasher(body).digest()
        store.write("versions/000002-x/index.faiss", sealed)
        files = record["files"] | {"index.faiss": digest(sealed)}
        store.write("versions/000002-x/version.json", json.dumps(record | {"files": files}).encode())
        point(store, "000002-x")
        with pytest.raises(GalleryError, match=r"versions/000002-x: cannot be opened"):
            gallery.refresh()
        with pytest.raises(GalleryError, match=r"versions/000002-x: cannot be opened"):
            open_gallery(tmp_path)
        assert gallery.version == "000001-x" and gallery.search(rows([2]), 1)[1].tolist() == [[2]]


def test_items_of_other_garments_are_refused(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    version(store, "000001-x", [1, 2, 3])
    other = store.read("versions/000001-x/items.parquet")
    version(store, "000002-x", [1, 2, 4])
    store.write("versions/000002-x/items.parquet", other)
    point(store, "000002-x")
    with pytest.raises(GalleryError, match="3 items, which are not the 3 garments of the index"):
        open_gallery(tmp_path, check=False)


UNKNOWN = [([3, 9], 9), ([0], 0), ([-1], -1), ([2**62], 2**62)]


@pytest.mark.parametrize("ids, missing", [([2, 3], None), ([], None), *UNKNOWN])
def test_vectors_of_unknown_ids_are_refused(tmp_path: Path, ids: list, missing: int | None) -> None:
    store = open_store(tmp_path)
    version(store, "000001-x", [1, 2, 3])
    point(store, "000001-x")
    gallery = open_gallery(tmp_path)
    if missing is None:
        np.testing.assert_array_equal(gallery.vectors(np.array(ids, np.int64)), rows(ids).reshape(-1, DIM))
    else:
        with pytest.raises(GalleryError, match=f"gallery: no garment {missing}; ids are those that `search` returns"):
            gallery.vectors(np.array(ids))


def test_an_empty_gallery_knows_no_id(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    version(store, "000001-x", [])
    point(store, "000001-x")
    with pytest.raises(GalleryError, match="no garment 5"):
        open_gallery(tmp_path).vectors(np.array([5]))
    assert open_gallery(tmp_path).lookup([5, -1]) == [{}, {}]


def test_a_bucket_is_fetched_once(
    s3_bucket: str, s3_proxy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = open_store(f"{s3_bucket}/gallery")
    version(store, "000001-x", [1, 2, 3])
    point(store, "000001-x")
    counts = []
    for _ in range(2):
        del s3_proxy.sent[:]
        assert len(open_gallery(f"{s3_bucket}/gallery")) == 3
        counts.append(
            sum(
                method == "GET" and "/versions/" in path and "version.json" not in path
                for method, path in s3_proxy.sent
            )
        )
    assert counts == [3, 0]


def _versions_here(tmp_path: Path) -> list[Path]:
    return [lock.parent for lock in (tmp_path / "cache").rglob(".lock")]


def test_of_a_buckets_versions_the_two_used_last_stay_on_the_machine(
    s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    uri, other = f"{s3_bucket}/gallery", f"{s3_bucket}/other"
    for number in range(1, 6):
        version(open_store(uri), f"00000{number}-x", [number, number + 1])
    version(open_store(other), "000001-x", [1])
    open_gallery(other, version="000001-x")
    held = open_gallery(uri, version="000001-x")
    open_gallery(uri, version="000002-x")
    open_gallery(uri, version="000001-x")
    open_gallery(uri, version="000003-x")
    kept = _versions_here(tmp_path)
    open_gallery(uri, version="000001-x")
    assert len(kept) == 3 and set(_versions_here(tmp_path)) == set(kept), "another gallery's count for themselves"
    for one in kept:
        (one.parent / ".gone-killed").mkdir(exist_ok=True)  # whose remover was killed
    open_gallery(uri, version="000004-x")
    open_gallery(uri, version="000005-x")
    open_gallery(other, version="000001-x")
    assert len(_versions_here(tmp_path)) == 3 and not list((tmp_path / "cache").rglob(".gone-*"))
    assert held.search(rows([2]), 1)[1].tolist() == [[2]], "what is mapped stays readable"
    assert open_gallery(uri, version="000001-x").search(rows([2]), 1)[1].tolist() == [[2]]


def test_a_version_somebody_is_opening_is_not_removed(
    s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = open_store(f"{s3_bucket}/gallery")
    records = [version(store, f"00000{number}-x", [number]) for number in range(1, 5)]
    with fetched(store, "000001-x", records[0]) as folder:
        for number in (2, 3, 4):
            open_gallery(store.uri, version=f"00000{number}-x")
        assert len(_versions_here(tmp_path)) == 3
        assert all((folder / file).is_file() for file in records[0]["files"])
    open_gallery(store.uri, version="000004-x")
    assert len(_versions_here(tmp_path)) == 2 and not folder.exists()


class Far:
    """As much of a store as fetching wants, elsewhere than on this machine."""

    local_path = None

    def __init__(self, folder: Path) -> None:
        self.folder, self.uri = folder, "far://gallery"

    def open(self, key: str) -> Any:
        return open(self.folder / key, "rb")


def test_readers_of_one_machine_remove_nothing_from_under_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four of them open four versions in turn, with room for two."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    far: Any = Far(tmp_path / "far")
    records = [version(open_store(far.folder), f"00000{number}-x", [number]) for number in range(4)]

    def read(first: int) -> None:
        for turn in range(60):
            number = (first + turn) % 4
            with fetched(far, f"00000{number}-x", records[number]) as folder:
                time.sleep(0.001)
                assert {file: file_digest(folder / file) for file in records[number]["files"]} == records[number][
                    "files"
                ]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(read, range(4))) == [None] * 4
    with fetched(far, "000000-x", records[0]):
        assert len(_versions_here(tmp_path)) == 2 and not list((tmp_path / "cache").rglob(".gone-*"))


# ------------------------------------------------------------------------------------------------ following


def test_a_reader_follows_when_it_asks(where: str) -> None:
    store = open_store(where)
    version(store, "000001-x", [1, 2])
    version(store, "000002-x", [2, 3, 4])
    point(store, "000001-x")
    gallery = open_gallery(where)
    assert not gallery.refresh()
    point(store, "000002-x")
    assert gallery.version == "000001-x" and gallery.search(rows([1]), 1)[1].tolist() == [[1]]
    assert gallery.refresh() and (gallery.version, len(gallery)) == ("000002-x", 3)
    assert gallery.lookup([1]) == [{}]
    point(store, "000003-x")  # there is no such version
    with pytest.raises(GalleryError, match="no version 000003-x"):
        gallery.refresh()
    assert gallery.search(rows([3]), 1)[1].tolist() == [[3]]  # and what is held goes on answering


def test_searches_in_other_threads_see_one_version_or_the_next(tmp_path: Path) -> None:
    """Two versions without a common id, expansion and groups: a mixed answer would hold ids of both, or fail."""
    store = open_store(tmp_path)
    steps = ({"step": "concat"}, {"step": "alpha_qe", "k": 3}, {"step": "group", "by": "product"})
    few, many = list(range(10)), list(range(100, 190))
    version(store, "000001-x", few, steps=steps)
    version(store, "000002-x", many, steps=steps)
    point(store, "000001-x")
    gallery, asked = open_gallery(tmp_path), rows(range(8), seed=2)
    want = {}
    for name in ("000001-x", "000002-x"):
        point(store, name)
        gallery.refresh()
        want[name] = gallery.search(asked, 5)[1].tolist()
    wrong: list[Any] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                found = gallery.search(asked, 5)[1].tolist()
            except Exception as error:
                wrong.append(error)
                return
            if found not in want.values():
                wrong.append(found)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for turn in range(30):
        point(store, f"00000{1 + turn % 2}-x")
        assert gallery.refresh()
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_rows_by_hand_do_not_depend_on_their_company() -> None:
    np.testing.assert_array_equal(handmade.rows([5, 6])[1], handmade.rows([6])[0])
