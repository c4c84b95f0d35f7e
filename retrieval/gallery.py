"""A published gallery: open it, ask it, follow it. What `jobs/reindex_gallery.py` writes every night and shops read all day.

In: GALLERY, a folder or `s3://BUCKET/PREFIX`. Out: `Gallery`, one version, held until `refresh`:

    gallery = open_gallery("s3://BUCKET/gallery")
    similarity, ids = gallery.search(vectors, k=10)      # vectors (Q, D): each model's unit rows side by side
    gallery.lookup(ids[0])                               # image, box, category, product of each

    GALLERY/CURRENT              JSON: {"version", "published", "token", "history"}; replaced by conditional write
    GALLERY/versions/NAME/       version.json, written last, names every other file with its digest:
        vectors.npy ids.npy index.faiss dead.npy      `retrieval.ann`
        items.parquet                                 a row for each living id
        steps.safetensors                             what the search's steps learned
"""

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from retrieval import steps
from retrieval.ann import AnnIndex
from retrieval.ann_plan import Plan
from retrieval.steps import JOINED, Facts, Fitted
from store.cached import cache_folder
from store.objects import ObjectMissing, ObjectStore, StorageError, open_store

CURRENT, VERSIONS, RECORD = "CURRENT", "versions", "version.json"
ITEMS = pa.schema(
    [
        ("id", pa.int64()), ("image_id", pa.int64()), ("bbox", pa.list_(pa.float32(), 4)), ("category_id", pa.int8()),
        ("score", pa.float32()), ("product_id", pa.string()), ("file_name", pa.string()), ("digest", pa.binary(16)),
    ]
)  # fmt: skip
COPY = 1 << 24  # bytes
KEPT = 2  # versions of a bucket's gallery on this machine: what serves, and what a rollback goes to
LOCK, GONE = ".lock", ".gone-"  # of a fetched version's folder; how its name begins while it is removed
OPENING = (
    threading.Lock()
)  # NumPy parses a file's header as Python, and CPython 3.11 fails when two threads do so at once


class GalleryError(ValueError):
    """A gallery that cannot be used: one line with the place and the reason."""

    user_facing = True


def open_gallery(
    uri: str | Path, *, version: str | None = None, endpoint_url: str | None = None, check: bool = True
) -> "Gallery":
    """Open a gallery's current version, or one by name.

    Args:
        uri: folder or s3://BUCKET/PREFIX. A bucket's files are fetched once a machine, which keeps the two versions used last.
        check: compare every file with its digest, which reads them once; False leaves a folder's files unread.

    Raises:
        GalleryError: nothing published there, no such version, files that are not what was published.
    """
    store = open_store(uri, endpoint_url=endpoint_url)
    return Gallery(store, version or current(store)[0], check=check)


def current(store: ObjectStore) -> tuple[str, bytes]:
    """The name of the current version, and CURRENT's bytes, from which a conditional write starts.

    Raises:
        GalleryError: nothing is published, or CURRENT is no such file.
    """
    try:
        data = store.read(CURRENT)
    except ObjectMissing:
        raise GalleryError(f"{store.uri}: no gallery is published there; run jobs/reindex_gallery.py") from None
    try:
        name = json.loads(data)["version"]
        if isinstance(name, str) and name and "/" not in name:
            return name, data
    except (ValueError, TypeError, KeyError):
        pass
    raise GalleryError(f"{store.uri}/{CURRENT}: {len(data)} bytes that name no version; `--rollback` or publish anew")


def read_record(store: ObjectStore, name: str) -> dict[str, Any]:
    """version.json of one version.

    Raises:
        GalleryError: it is not there or not readable.
    """
    try:
        record = json.loads(store.read(f"{VERSIONS}/{name}/{RECORD}"))
    except ObjectMissing:
        raise GalleryError(f"{store.uri}: no version {name}; `--list` names those there are") from None
    except ValueError as error:
        raise GalleryError(f"{store.uri}/{VERSIONS}/{name}/{RECORD}: not readable: {error}") from None
    if not isinstance(record, dict) or record.get("schema") != 1:
        raise GalleryError(
            f"{store.uri}/{VERSIONS}/{name}: schema {record.get('schema') if isinstance(record, dict) else '?'}; this version reads 1"
        )
    return record


@dataclass(frozen=True)
class _Opened:
    """Everything of one version together, so that a search sees one version or the next, never some of both."""

    version: str
    record: dict[str, Any]
    index: AnnIndex
    items: pa.Table
    fitted: Fitted
    rows: np.ndarray  # of the index, that the steps look at: all, or the living where a step ranks every row anew
    ids: np.ndarray  # of these rows
    by_id: np.ndarray  # places of the living among these rows, by rising id: an id that was replaced has a dead row too
    item_order: np.ndarray  # rows of items.parquet by rising id

    @classmethod
    def of_files(cls, folder: Path, version: str, record: dict[str, Any]) -> "_Opened":
        index = AnnIndex.open(folder, Plan(**record["index"]), parameters=record["parameters"])
        items = pq.read_table(folder / "items.parquet", memory_map=True)
        models = [model["name"] for model in record["models"]]
        plan = steps.parse(record["search"]["steps"], models)
        alive = np.ones(len(index.ids), bool)
        alive[index.dead] = False
        anew = len(index.dead) and any(steps.KINDS[step.name].place == steps.RANKS for step in plan)
        taken = np.flatnonzero(alive) if anew else np.arange(len(alive))
        vectors = index.vectors[taken] if anew else index.vectors
        rows = {JOINED: vectors} if _joins(plan) else {steps.bases(models)[0]: vectors}
        fitted = Fitted(plan, record["search"]["weights"], rows)
        if "steps.safetensors" in record["files"]:
            learned = (folder / "steps.safetensors").read_bytes()
            fitted = steps.load(plan, rows, learned, record["search"]["weights"])
        ids, living = np.asarray(index.ids)[taken], np.flatnonzero(alive[taken])
        by_id = living[np.argsort(ids[living], kind="stable")]
        item_order = np.argsort(items["id"].to_numpy(), kind="stable")
        opened = cls(version, record, index, items, fitted, taken, ids, by_id, item_order)
        fitted.find = opened.find
        return opened

    @property
    def dims(self) -> dict[str, int]:
        return {model["name"]: model["dim"] for model in self.record["models"]}

    def columns(self) -> list[tuple[str, int, int]]:
        """Each model's name, first column of a search's vectors, and width."""
        starts = np.cumsum([0, *self.dims.values()]).tolist()
        return [(name, start, dim) for (name, dim), start in zip(self.dims.items(), starts, strict=False)]

    def find(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The index, answering with rows instead of ids: what expansion and lists want."""
        similarity, ids = self.index.search(np.ascontiguousarray(queries, np.float32), k)
        if not len(self.by_id):
            return similarity, ids
        place = np.searchsorted(self.ids[self.by_id], np.maximum(ids, 0))
        return similarity, np.where(ids >= 0, self.by_id[np.minimum(place, len(self.by_id) - 1)], -1)

    @cached_property
    def facts(self) -> Facts:
        """What steps on lists want to know of every row they look at."""
        ids = self.ids
        items = self.items.take(pa.array(self.item_order))
        known, place = items["id"].to_numpy(), np.zeros(len(ids), np.int64)
        if len(known):
            place = np.minimum(np.searchsorted(known, ids), len(known) - 1)
        columns = {
            name: items[name].to_numpy()[place] if len(known) else np.zeros(0)
            for name in ("category_id", "score", "image_id")
        }
        names, product = np.unique(
            items["product_id"].to_numpy(zero_copy_only=False).astype(str)[place], return_inverse=True
        )
        product = np.where(names[product] == "", -1, product) if len(names) else product
        return Facts(columns["category_id"], columns["score"], columns["image_id"], product)


class Gallery:
    """One version of a gallery. Reading it is safe from several threads, while one of them follows with `refresh`.

    Attributes:
        version: its name. record: version.json.
        dims: model -> numbers a row; `vectors` of a search are these models' unit rows side by side, in this order.
    """

    def __init__(self, store: ObjectStore, version: str, *, check: bool = True) -> None:
        self._store, self._check = store, check
        self._now = self._open(version)

    def _open(self, version: str) -> _Opened:
        record = read_record(self._store, version)
        with fetched(self._store, version, record, check=self._check) as folder:
            try:
                with OPENING:
                    return _Opened.of_files(folder, version, record)
            except (KeyError, TypeError, ValueError, OSError) as error:  # Arrow's errors are among these
                raise GalleryError(f"{self._store.uri}/{VERSIONS}/{version}: {type(error).__name__}: {error}") from None

    def __len__(self) -> int:
        """Garments that can be found."""
        return self._now.index.rows

    @property
    def version(self) -> str:
        return self._now.version

    @property
    def record(self) -> dict[str, Any]:
        return self._now.record

    @property
    def dims(self) -> dict[str, int]:
        return self._now.dims

    def search(
        self, vectors: np.ndarray, k: int, *, category: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best garments for every query, after the same steps as the evaluation.

        Args:
            vectors: (Q, D) float32, D the sum of `dims`: each model's unit row side by side.
            k: at least 1.
            category: (Q,) int, for steps that look at it (`category`); needed only then.

        Returns:
            similarity (Q, k) float32, falling; ids (Q, k) int64, equal ones by lower id where no step works on lists (there by the
                row that was put in first); -inf and -1 where there are fewer.

        Raises:
            GalleryError: vectors of another width or type, not finite, or no category where one is needed.
        """
        now = self._now  # a refresh in another thread changes nothing below
        vectors = np.asarray(vectors)
        width = sum(now.dims.values())
        if vectors.ndim != 2 or vectors.shape[1] != width or vectors.dtype != np.float32 or k < 1:
            models = " + ".join(f"{name} {dim}" for name, dim in now.dims.items())
            raise GalleryError(
                f"gallery: want vectors (Q, {width}) float32 ({models}) and k from 1, got {vectors.shape} {vectors.dtype}, {k}"
            )
        if not np.isfinite(vectors).all():
            row = int(np.argmin(np.isfinite(vectors).all(axis=1)))
            raise GalleryError(
                f"gallery: vector {row} has numbers that are not finite; look at the model that made them"
            )
        queries = {name: vectors[:, start : start + dim] for name, start, dim in now.columns()}
        if any(steps.KINDS[step.name].place >= steps.RANKS for step in now.fitted.steps):
            return self._on_lists(now, queries, k, category)
        (moved,) = now.fitted.transform(queries).values()
        return now.index.search(np.ascontiguousarray(moved, np.float32), k)

    @staticmethod
    def _on_lists(
        now: _Opened, queries: steps.Rows, k: int, category: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Steps that rank anew or change lists: they work on rows and know what the items are."""
        n = len(next(iter(queries.values())))
        if category is None and any(step.name == "category" for step in now.fitted.steps):
            raise GalleryError("gallery: its search has a category rule; give the category of each query")
        asked = np.zeros(n, np.int64) if category is None else np.asarray(category, np.int64)
        pool = now.record["search"]["pool"]
        rows, similarity = now.fitted.ask(queries, asked, now.facts, top_k=k, pool=max(pool, k))
        return similarity, np.where(rows >= 0, now.ids[np.maximum(rows, 0)] if len(now.ids) else -1, -1)

    @property
    def facts(self) -> Facts:
        """What steps on lists want to know of every row they look at."""
        return self._now.facts

    def lookup(self, ids: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
        """What the garments are: image_id, bbox x1 y1 x2 y2 px, category_id, score, product_id, file_name, digest; {} for an id not here.

        Args:
            ids: (N,) int64, as `search` returns them; -1 gives {}.
        """
        now = self._now
        wanted = np.asarray(ids, np.int64).reshape(-1)
        known = now.items["id"].to_numpy()
        if not len(known):
            return [{} for _ in wanted]
        place = now.item_order[np.minimum(np.searchsorted(known, wanted, sorter=now.item_order), len(known) - 1)]
        rows = now.items.take(pa.array(place)).to_pylist()
        return [row if row["id"] == one else {} for row, one in zip(rows, wanted.tolist(), strict=True)]

    def vectors(self, ids: np.ndarray) -> np.ndarray:
        """(N, D') float32: the stored rows, after the steps, of ids that are here."""
        now = self._now
        place = np.searchsorted(now.ids[now.by_id], ids)
        return np.asarray(now.index.vectors[now.rows[now.by_id[place]]], np.float32)

    @property
    def index(self) -> AnnIndex:
        return self._now.index

    @property
    def items(self) -> pa.Table:
        return self._now.items

    @property
    def fitted(self) -> Fitted:
        return self._now.fitted

    def refresh(self) -> bool:
        """Follow to the version that is current now; True if it is another. Searches begun before end on the old one.

        Raises:
            GalleryError: what is current cannot be used; the version held goes on answering.
        """
        name = current(self._store)[0]
        if name == self.version:
            return False
        self._now = self._open(name)
        return True


def _joins(plan: Sequence[steps.Step]) -> bool:
    return any(step.name == "concat" for step in plan)


# ---------------------------------------------------------------------------------------------------------------------
# Files of a version on this machine.


@contextmanager
def fetched(store: ObjectStore, name: str, record: Mapping[str, Any], *, check: bool = True) -> Iterator[Path]:
    """The folder of a version's files: a folder's own, or a bucket's as they were fetched, each checked.

    A bucket's stay where they are until the context ends; what was mapped within it can be read for good.

    Raises:
        GalleryError: a file that is missing or not what was published.
    """
    if store.local_path is not None:
        folder = store.local_path / VERSIONS / name
        for file, digest in record["files"].items() if check else ():
            found = digest_of(folder / file) if (folder / file).is_file() else "missing"
            if found != digest:
                raise GalleryError(f"{folder / file}: {found}, published as {digest}; `--rollback`, then publish anew")
        yield folder
        return
    text = json.dumps(record["files"], sort_keys=True)
    folder = cache_folder() / "galleries" / _short(store.uri) / _short(f"{name} {text}")
    with _held(folder):
        for file, digest in record["files"].items():
            if not ((folder / file).is_file() and digest_of(folder / file) == digest):
                _download(store, f"{VERSIONS}/{name}/{file}", folder / file, digest)
        _evict(folder.parent)
        yield folder


def _short(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Alone in a fetched version's folder, which is made where it is not there; its lock's time says when it was used last."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with suppress(FileExistsError):  # exist_ok would look at it once more, when it may be gone
            folder.mkdir()
        try:
            lock = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR, 0o666)
        except FileNotFoundError:  # removed since
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)  # given back when the process ends, however it ends
            if _lies_at(lock, folder):
                os.utime(lock)
                yield
                return
        finally:
            os.close(lock)


def _lies_at(lock: int, folder: Path) -> bool:
    """Whether an open lock is still the folder's: whoever waited for it may have got that of a folder that was removed."""
    try:
        return os.path.samestat(os.fstat(lock), os.stat(folder / LOCK))
    except FileNotFoundError:
        return False


def _evict(folder: Path) -> None:
    """Remove a gallery's fetched versions but the KEPT used last, and those that somebody is fetching or opening at this moment."""
    used = []
    for path in folder.iterdir():
        if path.name.startswith(GONE):  # of a process that was killed, or another's at this moment
            shutil.rmtree(path, ignore_errors=True)
            continue
        try:
            used.append(((path / LOCK).stat().st_mtime_ns, path))
        except FileNotFoundError:  # removed, or just being made
            continue
    for _, path in sorted(used, reverse=True)[KEPT:]:
        try:
            lock = os.open(path / LOCK, os.O_RDWR)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _lies_at(lock, path):
                gone = path.with_name(f"{GONE}{secrets.token_hex(8)}")
                path.rename(gone)  # at once, so that nobody begins in what is half removed
                shutil.rmtree(gone, ignore_errors=True)
        except BlockingIOError:
            continue
        finally:
            os.close(lock)


def _download(store: ObjectStore, key: str, path: Path, digest: str) -> None:
    part = path.with_name(f"{path.name}.part")
    try:
        with store.open(key) as source, open(part, "wb") as target:
            while block := source.read(COPY):
                target.write(block)
    except ObjectMissing as error:
        raise GalleryError(
            f"{store.uri}/{key}: not there, though published; `--rollback`, then publish anew"
        ) from error
    found = digest_of(part)
    if found != digest:
        part.unlink()
        raise StorageError(f"{store.uri}/{key}: digest {found}, published as {digest}; restore it, or `--rollback`")
    os.replace(part, path)


def digest_of(path: Path) -> str:
    """BLAKE2b-128 of a file's bytes, hex."""
    with open(path, "rb") as file:
        make: Callable[[], Any] = lambda: hashlib.blake2b(digest_size=16)  # noqa: E731
        return hashlib.file_digest(file, make).hexdigest()
