"""A published gallery: open it, search it, follow it. `jobs/reindex_gallery.py` writes it every night.

In: GALLERY, a folder or `s3://BUCKET/PREFIX`, with the files of `retrieval.gallery_files`. Out: `Gallery`, one version,
held until `refresh`:

    gallery = open_gallery("s3://BUCKET/gallery")
    similarity, ids = gallery.search(vectors, k=10)      # vectors (Q, D): each model's unit rows side by side
    gallery.lookup(ids[0])                               # image, box, category, product of each

A gallery of several parts is opened whole, or in part: `open_gallery(uri, parts=[0, 2])` reads and fetches these parts
alone. `jobs.gallery.serving` has the parts on several machines.
"""

import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from postproc.hypotheses import Hypotheses
from postproc.places import places
from retrieval import steps
from retrieval.ann import AnnIndex
from retrieval.ann_parts import AnnParts, Answer
from retrieval.ann_plan import IndexPlan
from retrieval.gallery_files import (
    LEARNED,
    VERSIONS,
    GalleryError,
    checked_parts,
    current,
    fetched,
    files_of,
    part_folder,
    part_records,
    read_record,
)
from retrieval.hypotheses import read_hypotheses
from retrieval.step_kinds import JOINED, Embeddings, GalleryFacts, Phase
from retrieval.steps import FittedSearch, Step
from store.objects import ObjectStore, StorageError, open_store

# What each of Q queries is: (Q,) int category ids that are certain, 0 for unknown; or what each may be
Category = np.ndarray | Hypotheses
# NumPy parses a file's header as Python, and CPython 3.11 fails when two threads do so at once
OPENING = threading.Lock()


def open_gallery(
    uri: str | Path,
    *,
    version: str | None = None,
    endpoint_url: str | None = None,
    check: bool = True,
    parts: Iterable[int] | None = None,
) -> "Gallery":
    """Open a gallery's current version, or one by name, with all its parts or those numbered, from 0.

    The files of a bucket, s3://BUCKET/PREFIX, are fetched once a machine, which keeps the two versions used last.
    `check` compares every file with its digest, which reads them once; False leaves a folder's files unread. Raises
    GalleryError for nothing published there, no such version or part, or files that are not what was published.
    """
    store = open_store(uri, endpoint_url=endpoint_url)
    return Gallery(store, version or current(store)[0], check=check, parts=parts)


class Opened(Protocol):
    """What a search works on: a version's record, the steps fitted to it, and the rows that these number."""

    @property
    def record(self) -> Mapping[str, Any]: ...
    @property
    def fitted(self) -> FittedSearch: ...  # `find` gives row numbers
    @property
    def ids(self) -> np.ndarray: ...  # (N,) int64 of these rows
    @property
    def facts(self) -> Any: ...  # GalleryFacts of these rows, looked at once they are found
    def nearest(self, queries: np.ndarray, k: int) -> Answer: ...  # of queries after the steps


@dataclass(frozen=True)
class _Opened:
    """One version's files together, so that a search uses one version or the next, never files of both."""

    version: str
    record: dict[str, Any]
    parts: tuple[int, ...]
    index: AnnIndex | AnnParts
    items: pa.Table
    fitted: FittedSearch
    rows: np.ndarray  # of the index that the steps work on: all, or the living where a step ranks every row anew
    ids: np.ndarray  # of these rows
    by_id: np.ndarray  # places of the living among `rows`, by rising id; a replaced id also has a dead row, not here
    item_order: np.ndarray  # rows of items.parquet by rising id

    @classmethod
    def of_files(cls, folder: Path, version: str, record: dict[str, Any], parts: tuple[int, ...]) -> "_Opened":
        indexes, tables = [], []
        for part in parts:
            place, entry = folder / part_folder(record, part), part_records(record)[part]
            # versions written until November 2026 hold a forecast of seconds
            plan = IndexPlan(**{name: value for name, value in entry["index"].items() if name != "build_s"})
            indexes.append(AnnIndex.open(place, plan, parameters=entry["parameters"]))
            tables.append(pq.read_table(pa.memory_map(os.fsencode(place / "items.parquet"))))
        index: AnnIndex | AnnParts = indexes[0] if len(parts) == 1 else AnnParts(indexes)
        items = pa.concat_tables(tables)
        search_steps, name = steps_of(record)
        ranks_all = any(step.kind.phase == Phase.RANKING for step in search_steps)
        if ranks_all and isinstance(index, AnnParts):
            raise ValueError("a step that ranks every garment anew cannot work on several parts")
        only_living = len(index.dead) > 0 and ranks_all
        is_dead = np.zeros(len(index.ids), bool)
        is_dead[index.dead] = True
        rows = np.flatnonzero(~is_dead) if only_living else np.arange(len(index.ids))
        vectors: Any = index.vectors[rows] if only_living else index.vectors
        weights = record["search"]["weights"]
        fitted = FittedSearch(search_steps, weights, {name: vectors})
        if LEARNED in record["files"]:
            fitted = steps.load(search_steps, {name: vectors}, (folder / LEARNED).read_bytes(), weights)
        ids, living = np.asarray(index.ids)[rows], np.flatnonzero(~is_dead[rows])
        by_id = living[np.argsort(ids[living], kind="stable")]
        item_ids = items["id"].to_numpy()
        item_order = np.argsort(item_ids, kind="stable")
        if not np.array_equal(item_ids[item_order], ids[by_id]):
            raise ValueError(f"{len(item_ids)} items, which are not the {len(by_id)} garments of the index")
        opened = cls(version, record, parts, index, items, fitted, rows, ids, by_id, item_order)
        fitted.find = opened.find
        return opened

    def nearest(self, queries: np.ndarray, k: int) -> Answer:
        return self.index.search(queries, k)

    def find(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The index's answer with places among `rows` instead of ids, as query expansion and steps on lists want it."""
        similarity, ids = self.index.search(np.ascontiguousarray(queries, np.float32), k)
        if not len(self.by_id):
            return similarity, ids
        place = np.searchsorted(self.ids[self.by_id], np.maximum(ids, 0))
        return similarity, np.where(ids >= 0, self.by_id[np.minimum(place, len(self.by_id) - 1)], -1)

    @cached_property
    def facts(self) -> GalleryFacts:
        """What steps on lists need to know of every row."""
        return facts_of(self.items.take(pa.array(self.item_order)), self.ids)


def facts_of(items: pa.Table, ids: np.ndarray) -> GalleryFacts:
    """What steps on lists need to know of garments `ids` (N,); `items` are rows of items.parquet by rising id."""
    item_ids = items["id"].to_numpy()
    if not len(item_ids):
        nothing = np.zeros(0, np.int64)
        return GalleryFacts(Hypotheses.own(nothing, nothing), np.zeros(0), nothing, nothing)
    place = np.minimum(np.searchsorted(item_ids, ids), len(item_ids) - 1)
    products = items["product_id"].to_numpy(zero_copy_only=False).astype(str)[place]
    names, product = np.unique(products, return_inverse=True)
    score, photo = (items[name].to_numpy()[place] for name in ("score", "image_id"))
    hypotheses = read_hypotheses(items)[place]
    return GalleryFacts(hypotheses, score, photo, np.where(names[product] == "", -1, product))


def dims_of(record: Mapping[str, Any]) -> dict[str, int]:
    """Model -> width of its rows, of a version."""
    return {model["name"]: model["dim"] for model in record["models"]}


def steps_of(record: Mapping[str, Any]) -> tuple[tuple[Step, ...], str]:
    """The steps of a version's search, and the name of the one entry of embeddings that they work on in the end."""
    models = [model["name"] for model in record["models"]]
    search_steps = steps.parse(record["search"]["steps"], models)
    joined = any(step.name == "concat" for step in search_steps)
    return search_steps, JOINED if joined else steps.bases(models)[0]


class Gallery:
    """One version of a gallery. Several threads may search it, while one of them follows with `refresh`.

    Attributes:
        version: its name. record: version.json. parts: the numbers of the parts that are open; all else is of these.
        dims: model -> width of its rows; a search's `vectors` are these models' unit rows side by side, in this order.
    """

    def __init__(
        self,
        store: ObjectStore,
        version: str,
        *,
        check: bool = True,
        parts: Iterable[int] | None = None,
        record: dict[str, Any] | None = None,
    ) -> None:
        """Open a version of the gallery in `store`; `record` is its version.json where that is not written yet."""
        self._store, self._check = store, check
        self._wanted = None if parts is None else tuple(parts)
        self._opened = self._open(version, record)

    def _open(self, version: str, record: dict[str, Any] | None = None) -> _Opened:
        record = read_record(self._store, version) if record is None else record
        parts = checked_parts(record, self._wanted)
        try:
            files = files_of(record, parts)
            with fetched(self._store, version, record, check=self._check, files=files) as folder, OPENING:
                return _Opened.of_files(folder, version, record, parts)
        except (GalleryError, StorageError):
            raise
        except Exception as error:  # FAISS, NumPy, Arrow and safetensors have errors of their own for a foreign file
            place, reason = f"{self._store.uri}/{VERSIONS}/{version}", f"{type(error).__name__}: {error}"
            raise GalleryError(f"{place}: cannot be opened ({reason}); `--rollback` or publish anew") from error

    def __len__(self) -> int:
        """Number of garments that can be found."""
        return self._opened.index.rows

    @property
    def version(self) -> str:
        return self._opened.version

    @property
    def record(self) -> dict[str, Any]:
        return self._opened.record

    @property
    def parts(self) -> tuple[int, ...]:
        return self._opened.parts

    @property
    def dims(self) -> dict[str, int]:
        return dims_of(self.record)

    @property
    def index(self) -> AnnIndex | AnnParts:
        return self._opened.index

    @property
    def items(self) -> pa.Table:
        return self._opened.items

    @property
    def fitted(self) -> FittedSearch:
        return self._opened.fitted

    def search(self, vectors: np.ndarray, k: int, *, category: Category | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The best garments for every query, after the same steps as the evaluation.

        `vectors` (Q, D) are float32, D the sum of `dims`: each model's unit row side by side. `category` is needed only
        where a step looks at it (`category`): (Q,) int, the category_id of each query, which is then certain, 0 where
        nobody knows it; or `postproc.hypotheses.Hypotheses`, what each of the Q may be. Raises GalleryError for k under
        1, vectors of another width or type, or not finite, and no category, or those of another number of queries,
        where they are needed.

        Returns:
            similarity (Q, k) float32, falling; ids (Q, k) int64, equal similarities by lower id, or where a step works
            on lists by the row that was put in first; -inf and -1 where there are fewer.
        """
        return search(self._opened, vectors, k, category)  # a refresh in another thread changes nothing there

    def lookup(self, ids: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
        """The rows of items.parquet with these ids (N,), as `search` gives them; {} for -1 and ids not in it."""
        rows = {row["id"]: row for row in self.table(ids).to_pylist()}
        return [dict(rows.get(one, {})) for one in np.asarray(ids, np.int64).reshape(-1).tolist()]

    def table(self, ids: Sequence[int] | np.ndarray, similarity: np.ndarray | None = None) -> pa.Table:
        """`lookup` as a table, for `to_pandas()`: a row for each id (N,) that is in the gallery, in their order.

        `similarity` (N,), as `search` gives it, becomes the first column.
        """
        opened = self._opened
        place = places(opened.items["id"].to_numpy(), np.asarray(ids, np.int64).reshape(-1), opened.item_order)
        rows = opened.items.take(pa.array(place[place >= 0]))
        if similarity is None:
            return rows
        return rows.add_column(0, "similarity", pa.array(np.asarray(similarity, np.float32).reshape(-1)[place >= 0]))

    def vectors(self, ids: np.ndarray) -> np.ndarray:
        """(N, D') float32: the stored rows, after the steps, of ids that are in the gallery."""
        opened, ids = self._opened, np.asarray(ids, np.int64)
        place = places(opened.ids[opened.by_id], ids, np.arange(len(opened.by_id)))
        if (place < 0).any():
            raise GalleryError(f"gallery: no garment {ids[place.argmin()]}; ids are those that `search` returns")
        return np.asarray(opened.index.vectors[opened.rows[opened.by_id[place]]], np.float32)

    def refresh(self) -> bool:
        """Follow to the version that is current now; True if it is another. Searches under way end on the old one.

        Raises GalleryError where the current version cannot be used; the version held goes on answering.
        """
        name, held = current(self._store)[0], self._opened
        if name == held.version:
            return False
        opened = self._open(name)
        count, before = (len(part_records(one.record)) for one in (opened, held))
        if self._wanted is not None and count != before:  # part 1 of 2 has other garments than part 1 of 4
            raise GalleryError(f"gallery: {name} has {count} parts, {held.version} has {before}; open the new ones")
        self._opened = opened
        return True


def search(opened: Opened, vectors: np.ndarray, k: int, category: Category | None) -> Answer:
    """As `Gallery.search`, of what is opened."""
    dims, vectors = dims_of(opened.record), np.asarray(vectors)
    width = sum(dims.values())
    if vectors.ndim != 2 or vectors.shape[1] != width or vectors.dtype != np.float32 or k < 1:
        models = " + ".join(f"{name} {dim}" for name, dim in dims.items())
        raise GalleryError(
            f"gallery: want vectors (Q, {width}) float32 ({models}) and k from 1, "
            f"got {vectors.shape} {vectors.dtype}, {k}"
        )
    if not np.isfinite(vectors).all():
        row = int(np.argmin(np.isfinite(vectors).all(axis=1)))
        advice = "look at the model that made them"
        raise GalleryError(f"gallery: vector {row} has numbers that are not finite; {advice}")
    columns = np.split(vectors, np.cumsum(list(dims.values()))[:-1], axis=1)
    queries = dict(zip(dims, columns, strict=True))
    if any(step.kind.phase >= Phase.RANKING for step in opened.fitted.steps):
        return _search_lists(opened, queries, k, category)
    (moved,) = opened.fitted.transform(queries).values()
    return opened.nearest(np.ascontiguousarray(moved, np.float32), k)


def _search_lists(opened: Opened, queries: Embeddings, k: int, category: Category | None) -> Answer:
    """A search with steps that rank anew or change lists; they work on rows and need the facts of the items."""
    if category is None and any(step.name == "category" for step in opened.fitted.steps):
        raise GalleryError("gallery: its search has a category rule; give the category of each query")
    n = len(next(iter(queries.values())))
    if category is not None and len(category) != n:
        raise GalleryError(f"gallery: {n} queries, categories of {len(category)}")
    if not isinstance(category, Hypotheses):
        ids = np.zeros(n, np.int64) if category is None else np.asarray(category, np.int64)
        category = Hypotheses.own(ids, np.ones(n))  # none of a query without a category, such as a text
    pool = max(opened.record["search"]["pool"], k)
    rows, similarity = opened.fitted.rank(queries, category, opened.facts, top_k=k, pool=pool)
    return similarity, np.where(rows >= 0, opened.ids[np.maximum(rows, 0)] if len(opened.ids) else -1, -1)
