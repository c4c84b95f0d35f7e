"""Writing image sets, and bringing them up to date.

In: rows, one at a time. Out: a set that is complete exactly if its manifest exists. The same rows give the same
bytes. One shard is held in memory, and 8 bytes per image.
"""

import re
from array import array
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from store.categories import DEEPFASHION2
from store.files import digest, hasher
from store.imageset import (
    FAILURE_SCHEMA,
    FAILURES,
    SCHEMA,
    Failure,
    ImageSet,
    Item,
    Photo,
    present_rows,
    read_columns,
)
from store.manifest import (
    MANIFEST,
    SOURCES_FILE,
    Counts,
    ImageSetError,
    Manifest,
    Shard,
    manifest_bytes,
    manifest_of,
    read_manifest,
)
from store.objects import ObjectStore, open_store
from store.photo_checks import checked

BATCH_ROWS = 64
LONGEST_REASON = 300  # letters; some quote what they refuse
LOCK = "lock.json"  # names the process that updates the set; a killed update leaves it
PLAIN_COLUMNS = [
    name for name in SCHEMA.names if name not in ("digest", "items", "attributes")
]  # fields of a Photo, as they are
COMPACT_OVER = 0.5  # of a shard's rows: with a larger share removed, an update moves the others to a new shard


@dataclass(frozen=True)
class Removal:
    """What removing photos does to the shards of a set."""

    keep: tuple[Shard, ...]  # some with more rows removed
    dissolve: tuple[Shard, ...]  # more than COMPACT_OVER removed: the rows still present, if any, move to a new shard


def write_imageset(
    rows: Iterable[Photo | Failure],
    uri: str | Path,
    *,
    source: dict[str, Any],
    max_images: int = 256,
    max_bytes: int = 64_000_000,
    endpoint_url: str | None = None,
    overwrite: bool = False,
    sources: Callable[[], pa.Table] | None = None,
    categories: Sequence[str] = DEEPFASHION2,
    skipped: Mapping[str, int] | None = None,
) -> Manifest:
    """Write rows, in their order, as an image set.

    Args:
        rows: photos and failures; what breaks a rule (`store.photo_checks`) becomes a failure with the reason.
        uri: a folder, file:// or s3://; shards of an ingestion that did not finish are replaced.
        source: what made the rows, {"adapter", "arguments"}; goes into the manifest.
        max_images, max_bytes: a shard ends before it exceeds either (encoded bytes); a larger photo stands alone.
        endpoint_url: of an S3-compatible server.
        overwrite: replace a finished set. Its manifest is deleted first, so that a mixture is never taken for a set.
        sources: called after the last row for the table of sources.parquet (SOURCES_SCHEMA); None: there is none.
        categories: names of the items' category ids, id 1 first; may grow while rows are read.
        skipped: what was left out without a look -> how many; may grow likewise.

    Raises:
        ImageSetError: the folder holds something else or a finished set; or an image_id occurs twice: no manifest.
    """
    if max_images < 1 or max_bytes < 1:
        raise ValueError(f"want max_images and max_bytes above 0, got {max_images} and {max_bytes}")
    store = open_store(uri, endpoint_url=endpoint_url)
    store.probe(write=True)
    stale = _clear_the_way(store, overwrite)
    writer = _Writer(max_images, max_bytes, store.write, categories)
    writer.add(rows)
    writer.finish()
    _refuse_duplicates(store, writer.shards, writer.image_ids)
    for key in stale - {shard.key for shard in writer.shards}:
        store.delete(key)
    manifest = manifest_of(writer.shards, len(writer.failures), source, categories, skipped)
    return _publish(store, writer.failures, manifest, sources and sources())


def removal_of(images: ImageSet, image_ids: Collection[int]) -> Removal:
    """What removing these photos does to the shards of a set; nothing is read but ids, if any are to go."""
    if not image_ids:
        return Removal(tuple(images.shards), ())
    photos = images.photos(["image_id"])
    leaving = photos.filter(pc.is_in(photos["image_id"], pa.array(image_ids, pa.int64())))
    rows: dict[str, list[int]] = {}
    for name, row in zip(leaving["shard"].to_pylist(), leaving["row"].to_pylist(), strict=True):
        rows.setdefault(name, []).append(row)
    keep, dissolve = list[Shard](), list[Shard]()
    for shard in images.shards:
        if shard.name in rows:
            shard = shard.without({*shard.removed, *np.flatnonzero(shard.present)[rows[shard.name]].tolist()})
        (dissolve if len(shard.removed) > COMPACT_OVER * shard.rows_written else keep).append(shard)
    return Removal(tuple(keep), tuple(dissolve))


def update_imageset(
    images: ImageSet,
    rows: Iterable[Photo | Failure],
    removed: Removal,
    *,
    source: dict[str, Any],
    sources: Callable[[], pa.Table] | None = None,
    max_images: int = 256,
    max_bytes: int = 64_000_000,
    check_lock: Callable[[], None] = lambda: None,
    categories: Sequence[str] | None = None,
    skipped: Mapping[str, int] | None = None,
) -> Manifest:
    """Bring a set up to date: shards that stay are not touched, rows go to new shards with the next numbers.

    Readers see the set as it was until the manifest is written, last of all; so they do after this was killed. Files of
    dissolved shards are deleted by the next update. Hold a lock: a second update at the same time is refused.

    Args:
        images: the set as it is.
        rows: photos to add, and every failure that stands (failures.parquet is rewritten).
        removed: what `removal_of` answers; a photo that is replaced is in it and in `rows`.
        source, sources, max_images, max_bytes, skipped: as in `write_imageset`.
        categories: likewise; the set's own and after them any new ones. None: the set's own.
        check_lock: called before the manifest is written; raises where the lock was lost.

    Raises:
        ImageSetError: another update came between; or an image_id occurs twice: the set stays as it was.
    """
    store, shards = images.store, (*removed.keep, *removed.dissolve)
    names = images.categories if categories is None else categories
    if tuple(names[: len(images.categories)]) != images.categories:
        raise ValueError(f"categories {list(names)[:20]}: an update may only add to those of the set")
    for key in sorted({info.key for info in store.list("shard-")} - {shard.key for shard in images.shards}):
        store.delete(key)
    first = 1 + max((shard.number for shard in shards), default=-1)
    writer = _Writer(max_images, max_bytes, lambda key, data: _create(store, key, data), names, first)
    for shard in removed.dissolve:
        writer.add(_photos_of(images, shard))
    writer.add(rows)
    writer.finish()
    if len(writer.image_ids):
        kept = ImageSet(store, replace(images.manifest, shards=removed.keep)).photos(["image_id"])["image_id"]
        _refuse_duplicates(store, [*removed.keep, *writer.shards], array("q", [*kept.to_pylist(), *writer.image_ids]))
    table = sources and sources()

    def refuse_another_update() -> None:
        check_lock()
        if read_manifest(store) != images.manifest:
            raise ImageSetError(f"{store.uri}: another update finished meanwhile; start the same line again")

    manifest = manifest_of([*removed.keep, *writer.shards], len(writer.failures), source, names, skipped)
    return _publish(store, writer.failures, manifest, table, refuse_another_update)


def failures_table(failures: Iterable[Failure]) -> pa.Table:
    """As failures.parquet holds them."""
    failures = list(failures)
    ids = [failure.image_id if 0 <= failure.image_id < 2**63 else -1 for failure in failures]
    names = [utf8(failure.file_name) for failure in failures]
    reasons = [utf8(failure.reason)[:LONGEST_REASON] for failure in failures]
    return pa.table([ids, names, reasons], schema=FAILURE_SCHEMA)


class _Writer:
    """Rows to shards, numbered from `first` on; `write(key, data)` stores one."""

    def __init__(
        self,
        max_images: int,
        max_bytes: int,
        write: Callable[[str, memoryview], None],
        categories: Sequence[str],
        first: int = 0,
    ) -> None:
        self.max_images, self.max_bytes, self.write, self.first = max_images, max_bytes, write, first
        self.categories = categories
        self.shards: list[Shard] = []
        self.failures: list[Failure] = []
        self.image_ids = array("q")
        self._shard = _ShardWriter()

    def add(self, rows: Iterable[Photo | Failure]) -> None:
        for row in (part for given in rows for part in checked(given, len(self.categories))):
            if isinstance(row, Failure):
                self.failures.append(row)
                continue
            full = self._shard.rows == self.max_images or self._shard.image_bytes + len(row.image) > self.max_bytes
            if self._shard.rows and full:
                self.finish()
            self._shard.add(row)
            self.image_ids.append(row.image_id)

    def finish(self) -> None:
        """Store the shard that is being filled."""
        if self._shard.rows:
            name = f"shard-{self.first + len(self.shards):05d}"
            data = self._shard.close()
            shard = Shard(name, self._shard.rows, len(data), digest(data), counts=self._shard.counts)
            self.shards.append(shard)
            self.write(shard.key, data)
            self._shard = _ShardWriter()


class _ShardWriter:
    """One shard in memory, batch by batch."""

    def __init__(self) -> None:
        self.rows = self.image_bytes = 0
        self.counts = Counts(0, 0, 0)
        self._waiting: list[Photo] = []
        self._sink = pa.BufferOutputStream()
        self._file = pa.ipc.new_file(self._sink, SCHEMA)

    def add(self, photo: Photo) -> None:
        self._waiting.append(photo)
        self.rows += 1
        self.image_bytes += len(photo.image)
        users, items, shop_items = self.counts
        on_shop = len(photo.items) if photo.source == "shop" else 0
        self.counts = Counts(users + (photo.source == "user"), items + len(photo.items), shop_items + on_shop)
        if len(self._waiting) == BATCH_ROWS:
            self._write_batch()

    def close(self) -> memoryview:
        """The file's bytes."""
        if self._waiting:
            self._write_batch()
        self._file.close()
        return memoryview(self._sink.getvalue())

    def _write_batch(self) -> None:
        columns = {name: [getattr(photo, name) for photo in self._waiting] for name in PLAIN_COLUMNS}
        columns |= {name: [utf8(text) for text in columns[name]] for name in ("product_id", "file_name")}
        columns["digest"] = [hasher(photo.image).digest() for photo in self._waiting]
        columns["items"] = [[vars(item) for item in photo.items] for photo in self._waiting]
        columns["attributes"] = [
            [(utf8(name), utf8(text)) for name, text in photo.attributes.items()] for photo in self._waiting
        ]
        self._file.write_batch(pa.RecordBatch.from_pydict(columns, schema=SCHEMA))
        self._waiting.clear()


def _clear_the_way(store: ObjectStore, overwrite: bool) -> set[str]:
    """Delete manifest and listing; returns the keys of the shards. Raises ImageSetError if it is no image set."""
    keys = own_keys(store)
    if MANIFEST in keys or store.exists(MANIFEST):  # a store may list late
        if not overwrite:
            advice = (
                "choose another place, replace it with --overwrite, or bring a plain folder's set up to date (--update)"
            )
            raise ImageSetError(f"{store.uri} already holds an image set; {advice}")
        store.delete(MANIFEST)
    if SOURCES_FILE in keys:
        store.delete(SOURCES_FILE)
    return {key for key in keys if key.endswith(".arrow")}


def own_keys(store: ObjectStore) -> list[str]:
    """The keys of a place where an image set may be written; an ImageSetError where it has files of something else."""
    keys = [info.key for info in store.list()]
    own = (MANIFEST, FAILURES, SOURCES_FILE, LOCK)
    foreign = [key for key in keys if key not in own and not re.fullmatch(r"shard-\d{5,}\.arrow", key)]
    if foreign:
        raise ImageSetError(f"{store.uri} is not empty and no image set (it has {foreign[0]}); choose another place")
    return keys


def _create(store: ObjectStore, key: str, data: memoryview) -> None:
    """Write a shard that is not there yet: an update that lost its lock unawares must not overwrite another's shard."""
    if not store.create(key, data):  # type: ignore[arg-type]
        reason = "appeared meanwhile: another update is at work; start the same line again"
        raise ImageSetError(f"{store.uri}/{key} {reason}")


def _photos_of(images: ImageSet, shard: Shard) -> Iterable[Photo]:
    """The photos of a shard that are present, as they were written."""
    if not shard.rows:
        return
    for row in ImageSet(images.store, replace(images.manifest, shards=(shard,))).read(shard.name).to_pylist():
        items = tuple(Item(**item) for item in row["items"])
        yield Photo(**{name: row[name] for name in PLAIN_COLUMNS}, items=items, attributes=dict(row["attributes"]))


def _publish(
    store: ObjectStore,
    failures: list[Failure],
    manifest: Manifest,
    sources: pa.Table | None,
    last_check: Callable[[], None] = lambda: None,
) -> Manifest:
    """Write what is beside the shards, the manifest last."""
    store.write(FAILURES, _parquet(failures_table(failures)))
    if sources is not None:
        data = _parquet(sources)
        store.write(SOURCES_FILE, data)
        manifest = replace(manifest, sources=digest(data))
    last_check()
    store.write(MANIFEST, manifest_bytes(manifest))
    return manifest


def _refuse_duplicates(store: ObjectStore, shards: list[Shard], image_ids: array) -> None:
    ids = np.sort(np.array(image_ids, dtype=np.int64))
    duplicates = ids[1:][ids[1:] == ids[:-1]]
    if not len(duplicates):
        return
    names: list[str] = []
    for shard in shards:
        with store.open(shard.key) as file:
            table = present_rows(read_columns(file, ["image_id", "file_name"]), shard)
        names += table.filter(pc.equal(table["image_id"], duplicates[0]))["file_name"].to_pylist()
    who = ", ".join(names[:4])
    raise ImageSetError(f"image_id {duplicates[0]} occurs more than once ({who}): ids must be unique in a set")


def utf8(text: str) -> str:
    """A column holds UTF-8; names of files and strings of JSON need not."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def _parquet(table: pa.Table) -> memoryview:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return memoryview(sink.getvalue())
