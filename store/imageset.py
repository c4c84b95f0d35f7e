"""Image sets: a folder of Arrow shards with photos and what is known about them, and a manifest written last.

    shard-00000.arrow …   Arrow IPC file format, uncompressed, record batches of at most 64 rows, columns as in SCHEMA
    failures.parquet      image_id int64, file_name string, reason string: what could not be taken, and why
    sources.parquet       only where the set is brought up to date: what the folder looked like, columns as in SOURCES_SCHEMA
    manifest.json         {"schema": 1, "shards": [{"name", "rows", "bytes", "digest"}],
                           "images", "failures", "bytes", "source", "digest",
                           "removed": {"shard-00000": [0, 7]}, "sources": {"name", "digest"}}

In: rows, one at a time. Out: a set that is complete exactly if its manifest exists. Digests are BLAKE2b-128: of a
shard's bytes; of the 16-byte shard digests one after another for the whole set. The same rows give the same bytes.
Writing holds one shard in memory and 8 bytes per image; reading holds what is asked for.

A set is brought up to date without moving what stays: new photos are new shards, photos that are gone are named in
`removed` by their rows in the file as written, and no reader sees them. The digest of such a shard covers its removed rows
too. A manifest with removals, or with numbers left out where a shard was dissolved, has schema 2; others have schema 1 and
neither of the last two keys unless there is something to say. `rows`, `bytes` and `digest` of a shard in the manifest are
those of its file; `images` counts the photos that are present.
"""

import json
import re
from array import array
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from store.objects import ObjectMissing, ObjectStore, open_store

SCHEMA_VERSION, WITH_REMOVALS = 1, 2
BATCH_ROWS = 64
READERS = 16  # threads; without the pictures a shard is some 8 reads, on S3 each a round trip
LONGEST_REASON = 300  # letters; some quote what they refuse
SOURCES = ("user", "shop")  # consumer: its garments are queries; seller: its garments are the gallery
N_CATEGORIES = 13
MANIFEST, FAILURES, SOURCES_FILE = "manifest.json", "failures.parquet", "sources.parquet"
LOCK = "lock.json"  # of who brings the set up to date; a killed update leaves it
COMPACT_OVER = 0.5  # of a shard's rows: with a larger share removed, an update moves the others to a new shard

ITEM = pa.struct(
    [
        ("category_id", pa.int8()),  # 1..13
        ("style", pa.int32()),  # garments with equal pair_id and equal style > 0 are the same garment
        ("bbox", pa.list_(pa.float32(), 4)),  # x1 y1 x2 y2, pixels of the upright image
        ("segmentation", pa.list_(pa.list_(pa.float32()))),  # polygons x y x y …, pixels
        ("scale", pa.int8()),  # these four 1..3 as DeepFashion2 has them, 0 unknown
        ("occlusion", pa.int8()),
        ("zoom_in", pa.int8()),
        ("viewpoint", pa.int8()),
    ]
)
SCHEMA = pa.schema(
    [
        ("image_id", pa.int64()),
        ("image", pa.large_binary()),  # the encoded bytes as supplied
        ("width", pa.int32()),  # of the upright image, pixels
        ("height", pa.int32()),
        ("source", pa.string()),  # one of SOURCES
        ("pair_id", pa.int64()),  # 0 unknown
        ("product_id", pa.string()),  # empty unknown
        ("file_name", pa.string()),
        ("digest", pa.binary(16)),  # BLAKE2b-128 of `image`
        ("weak_box", pa.bool_()),  # boxes too loose to judge detection by
        ("items", pa.list_(ITEM)),
    ]
)
FAILURE_SCHEMA = pa.schema([("image_id", pa.int64()), ("file_name", pa.string()), ("reason", pa.string())])
SOURCES_SCHEMA = pa.schema(
    [
        ("image_id", pa.int64()),
        ("name", pa.string()),  # as file_name
        ("size", pa.int64()),  # bytes
        ("mtime_ns", pa.int64()),  # last change, nanoseconds since 1970; 0 in a bucket, -1 too new to be relied on
        ("etag", pa.string()),  # as the bucket tells it; empty in a folder
        ("digest", pa.binary(16)),  # as in SCHEMA, as are these
        ("product_id", pa.string()),
        ("pair_id", pa.int64()),
    ]
)
TRUTH_COLUMNS = [name for name in SCHEMA.names if name != "image"]
LISTED_COLUMNS = tuple(name for name in TRUTH_COLUMNS if name != "items")


class ImageSetError(ValueError):
    """An image set that cannot be read or may not be written; one line."""

    user_facing = True  # jobs.cli prints it as one line


@dataclass(frozen=True)
class Item:
    """One annotated garment; fields as in ITEM."""

    category_id: int
    style: int
    bbox: tuple[float, float, float, float]
    segmentation: tuple[tuple[float, ...], ...] = ()
    scale: int = 0
    occlusion: int = 0
    zoom_in: int = 0
    viewpoint: int = 0


@dataclass(frozen=True)
class Photo:
    """One row; fields as in SCHEMA. `image` is the encoded file."""

    image_id: int
    image: bytes = field(repr=False)
    width: int
    height: int
    source: str
    pair_id: int = 0
    product_id: str = ""
    file_name: str = ""
    weak_box: bool = False
    items: tuple[Item, ...] = ()


@dataclass(frozen=True)
class Failure:
    """A photo that could not be taken. image_id -1: it has none."""

    image_id: int
    file_name: str
    reason: str


@dataclass(frozen=True)
class Shard:
    name: str  # shard-00000; the file is NAME.arrow
    rows: int  # present, without the removed ones
    bytes: int
    digest: (
        str  # hex; of the file's bytes and, where there are any, of the removed rows: what work on the shard depends on
    )
    removed: tuple[int, ...] = ()  # rows of the file, rising
    file_digest: str = ""  # hex, of the file's bytes; empty where nothing is removed: `digest` is it

    @property
    def rows_written(self) -> int:
        return self.rows + len(self.removed)

    def without(self, removed: Collection[int]) -> "Shard":
        """The same file with these rows removed, instead of those that are so far.

        >>> shard = Shard("shard-00000", 3, 900, "00" * 16)
        >>> shard.without([2]).rows, shard.without([2]).digest == shard.digest, shard.without([2]).without([]) == shard
        (2, False, True)
        """
        of_file, rows = self.file_digest or self.digest, tuple(sorted(removed))
        if not rows:
            return Shard(self.name, self.rows_written, self.bytes, of_file)
        identity = _digest(bytes.fromhex(of_file) + np.array(rows, "<i8").tobytes()).hex()
        return Shard(self.name, self.rows_written - len(rows), self.bytes, identity, rows, of_file)


@dataclass(frozen=True)
class Manifest:
    shards: tuple[Shard, ...]
    images: int  # present
    failures: int
    bytes: int
    source: dict[str, Any]  # {"adapter": …, "arguments": {…}}
    digest: str  # hex; of what is present
    schema: int = SCHEMA_VERSION
    sources: str = ""  # hex, digest of sources.parquet; empty where there is none


@dataclass(frozen=True)
class Removal:
    """What taking photos away does to the shards of a set."""

    keep: tuple[Shard, ...]  # stay, some with more rows removed
    dissolve: tuple[Shard, ...]  # more than COMPACT_OVER removed: the rows still present, if any, move to a new shard


# ------------------------------------------------------------------------------------------------ writing


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
) -> Manifest:
    """Write rows, in their order, as an image set.

    Args:
        rows: photos and failures; a photo that breaks a rule (`problem`) becomes a failure with that reason.
        uri: a folder, file:// or s3://; shards of an ingestion that did not finish are replaced.
        source: what made the rows, {"adapter", "arguments"}; goes into the manifest.
        max_images, max_bytes: a shard ends before it exceeds either (encoded bytes); a larger photo stands alone.
        endpoint_url: of an S3-compatible server.
        overwrite: replace a finished image set. Its manifest goes first, so that a mixture is never taken for a set.
        sources: called after the last row for the table of sources.parquet (SOURCES_SCHEMA); None: there is none.

    Raises:
        ImageSetError: the folder holds something else or a finished set; or an image_id occurs twice: no manifest.
    """
    if max_images < 1 or max_bytes < 1:
        raise ValueError(f"want max_images and max_bytes above 0, got {max_images} and {max_bytes}")
    store = open_store(uri, endpoint_url=endpoint_url)
    store.probe(write=True)
    stale = _clear_the_way(store, overwrite)
    writer = _Writer(max_images, max_bytes, lambda name, data: store.write(f"{name}.arrow", data))
    writer.add(rows)
    writer.finish()
    _refuse_twins(store, writer.shards, writer.image_ids)
    for key in stale - {f"{shard.name}.arrow" for shard in writer.shards}:
        store.delete(key)
    return _publish(store, writer.shards, writer.failures, source, sources and sources())


def removal(images: "ImageSet", image_ids: Collection[int]) -> Removal:
    """Look where photos lie that are to leave a set; only ids are read, and only where there is anything to remove."""
    if not image_ids:
        return Removal(tuple(images.shards), ())
    photos = images.photos(["image_id"])
    leaving = photos.filter(pc.is_in(photos["image_id"], pa.array(image_ids, pa.int64())))
    rows: dict[str, list[int]] = {}
    for name, row in zip(leaving["shard"].to_pylist(), leaving["row"].to_pylist(), strict=True):
        rows.setdefault(name, []).append(row)
    keep: list[Shard] = []
    dissolve: list[Shard] = []
    for shard in images.shards:
        if shard.name in rows:
            present = _present(shard)
            shard = shard.without({*shard.removed, *(present[row] for row in rows[shard.name])})
        (dissolve if len(shard.removed) > COMPACT_OVER * shard.rows_written else keep).append(shard)
    return Removal(tuple(keep), tuple(dissolve))


def update_imageset(
    images: "ImageSet",
    rows: Iterable[Photo | Failure],
    removed: Removal,
    *,
    source: dict[str, Any],
    sources: Callable[[], pa.Table] | None = None,
    max_images: int = 256,
    max_bytes: int = 64_000_000,
    still_mine: Callable[[], None] = lambda: None,
) -> Manifest:
    """Bring a set up to date: shards that stay are not touched, rows go to new shards with the next numbers.

    Whoever reads meanwhile, or after this was killed, sees the set as it was: the manifest is written last, and files that it
    names, or that a dissolved shard left, lie there until the update after. Hold a lock: two at once are found out, not merged.

    Args:
        images: the set as it is.
        rows: photos to add, and every failure that stands (failures.parquet is written anew).
        removed: of `removal`; a photo that is replaced is in it and in `rows`.
        source, sources, max_images, max_bytes: as in `write_imageset`.
        still_mine: called before the manifest is written; raises where the lock was lost.

    Raises:
        ImageSetError: another update came between; or an image_id occurs twice: the set stays as it was.
    """
    store, shards = images.store, (*removed.keep, *removed.dissolve)
    named = {f"{shard.name}.arrow" for shard in images.shards}
    for info in store.list("shard-"):
        if info.key not in named:
            store.delete(info.key)
    first = 1 + max((_number(shard.name) for shard in shards), default=-1)
    writer = _Writer(max_images, max_bytes, lambda name, data: _create(store, f"{name}.arrow", data), first)
    for shard in removed.dissolve:
        writer.add(_rows_of(images, shard))
    writer.add(rows)
    writer.finish()
    if len(writer.image_ids):
        kept = replace(images.manifest, shards=removed.keep)
        stays = ImageSet(store, kept).photos(["image_id"])["image_id"].to_numpy()
        _refuse_twins(store, [*removed.keep, *writer.shards], array("q", [*stays.tolist(), *writer.image_ids]))
    table = sources and sources()

    def unless_another_came() -> None:
        still_mine()
        if _read_manifest(store) != images.manifest:
            raise ImageSetError(f"{store.uri}: another update finished meanwhile; start the same line again")

    return _publish(store, [*removed.keep, *writer.shards], writer.failures, source, table, unless_another_came)


def failures_table(failures: Iterable[Failure]) -> pa.Table:
    """As failures.parquet holds them."""
    rows = [
        {
            "image_id": failure.image_id if 0 <= failure.image_id < 2**63 else -1,
            "file_name": utf8(failure.file_name),
            "reason": utf8(failure.reason)[:LONGEST_REASON],
        }
        for failure in failures
    ]
    return pa.Table.from_pylist(rows, schema=FAILURE_SCHEMA)


def problem(photo: Photo) -> str | None:
    """Why a photo may not stand in an image set, or None.

    A box must be finite, x1 < x2 and y1 < y2, and touch the picture; it may reach over the edge, as published boxes do.
    """
    if not 0 <= photo.image_id < 2**63:
        return f"image_id {photo.image_id} is not within 0..2^63-1"
    if photo.source not in SOURCES:
        return f"source {photo.source!r} is neither user nor shop"
    if photo.width < 1 or photo.height < 1:
        return f"size {photo.width} x {photo.height}"
    if not 0 <= photo.pair_id < 2**63:
        return f"pair_id {photo.pair_id} is not within 0..2^63-1"
    for number, item in enumerate(photo.items, 1):
        if (reason := _item_problem(item, photo.width, photo.height)) is not None:
            return f"item {number}: {reason}"
    return None


def _item_problem(item: Item, width: int, height: int) -> str | None:
    if not 1 <= item.category_id <= N_CATEGORIES:
        return f"category_id {item.category_id} is not within 1..{N_CATEGORIES}"
    if not 0 <= item.style < 2**31:
        return f"style {item.style} is not within 0..2^31-1"
    if len(item.bbox) != 4 or not all(map(_fits, item.bbox)):
        return f"box {list(item.bbox)} is not four finite numbers"
    x1, y1, x2, y2 = item.bbox
    if not (np.float32(x1) < np.float32(x2) and np.float32(y1) < np.float32(y2)):
        return f"box {list(item.bbox)} is not x1 < x2 and y1 < y2"
    if x2 <= 0 or y2 <= 0 or x1 >= width or y1 >= height:
        return f"box {list(item.bbox)} lies outside the {width} x {height} picture"
    for polygon in item.segmentation:
        if len(polygon) % 2 or not all(map(_fits, polygon)):
            return "a segmentation polygon is not pairs of finite numbers"
    for name in ("scale", "occlusion", "zoom_in", "viewpoint"):
        if not 0 <= getattr(item, name) <= 127:
            return f"{name} {getattr(item, name)} is not within 0..127"
    return None


def _fits(value: float) -> bool:
    """Finite, in float32 too."""
    return abs(value) < 2.0**127


class _Writer:
    """Rows to shards, numbered from `first` on; `write(name, data)` stores one."""

    def __init__(
        self, max_images: int, max_bytes: int, write: Callable[[str, memoryview], None], first: int = 0
    ) -> None:
        self.max_images, self.max_bytes, self.write, self.first = max_images, max_bytes, write, first
        self.shards: list[Shard] = []
        self.failures: list[Failure] = []
        self.image_ids = array("q")
        self._shard = _ShardWriter()

    def add(self, rows: Iterable[Photo | Failure]) -> None:
        for row in rows:
            if isinstance(row, Photo) and (reason := problem(row)) is not None:
                row = Failure(row.image_id, row.file_name, reason)
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
            rows, data = self._shard.rows, self._shard.close()
            self.shards.append(Shard(name, rows, len(data), _digest(data).hex()))
            self.write(name, data)
            self._shard = _ShardWriter()


class _ShardWriter:
    """One shard in memory, batch by batch."""

    def __init__(self) -> None:
        self.rows = 0
        self.image_bytes = 0
        self._waiting: list[Photo] = []
        self._sink = pa.BufferOutputStream()
        self._file = pa.ipc.new_file(self._sink, SCHEMA)

    def add(self, photo: Photo) -> None:
        self._waiting.append(photo)
        self.rows += 1
        self.image_bytes += len(photo.image)
        if len(self._waiting) == BATCH_ROWS:
            self._write_batch()

    def close(self) -> memoryview:
        """The file's bytes."""
        if self._waiting:
            self._write_batch()
        self._file.close()
        return memoryview(self._sink.getvalue())

    def _write_batch(self) -> None:
        own = [name for name in SCHEMA.names if name not in ("digest", "items")]
        columns = {name: [getattr(photo, name) for photo in self._waiting] for name in own}
        columns |= {name: [utf8(text) for text in columns[name]] for name in ("product_id", "file_name")}
        columns["digest"] = [_digest(photo.image) for photo in self._waiting]
        columns["items"] = [[vars(item) for item in photo.items] for photo in self._waiting]
        self._file.write_batch(pa.RecordBatch.from_pydict(columns, schema=SCHEMA))
        self._waiting.clear()


def _clear_the_way(store: ObjectStore, overwrite: bool) -> set[str]:
    """The shard keys already there, now without a manifest and a listing. Raises ImageSetError where something else lives."""
    keys = [info.key for info in store.list()]
    own = (MANIFEST, FAILURES, SOURCES_FILE, LOCK)
    foreign = [key for key in keys if key not in own and not re.fullmatch(r"shard-\d{5,}\.arrow", key)]
    if foreign:
        raise ImageSetError(f"{store.uri} is not empty and no image set (it has {foreign[0]}); choose another place")
    if MANIFEST in keys or store.exists(MANIFEST):  # a store may list late
        if not overwrite:
            raise ImageSetError(f"{store.uri} already holds an image set; choose another place, or overwrite it")
        store.delete(MANIFEST)
    if SOURCES_FILE in keys:
        store.delete(SOURCES_FILE)
    return {key for key in keys if key.endswith(".arrow")}


def _create(store: ObjectStore, key: str, data: memoryview) -> None:
    """Write a shard there is none of yet; not even who lost the lock unawares puts one over another's."""
    if not store.create(key, data):  # type: ignore[arg-type]
        raise ImageSetError(
            f"{store.uri}/{key} appeared meanwhile: another update is at work; start the same line again"
        )


def _rows_of(images: "ImageSet", shard: Shard) -> Iterable[Photo]:
    """The photos of a shard that are present, as they were written."""
    if not shard.rows:
        return
    own = [name for name in SCHEMA.names if name not in ("digest", "items")]
    for row in ImageSet(images.store, replace(images.manifest, shards=(shard,))).read(shard.name).to_pylist():
        items = tuple(Item(**item) for item in row["items"])
        yield Photo(**{name: row[name] for name in own}, items=items)


def _publish(
    store: ObjectStore,
    shards: Sequence[Shard],
    failures: list[Failure],
    source: dict[str, Any],
    sources: pa.Table | None,
    last_look: Callable[[], None] = lambda: None,
) -> Manifest:
    """Write what is beside the shards, the manifest last."""
    store.write(FAILURES, _parquet(failures_table(failures)))
    digest = ""
    if sources is not None:
        data = _parquet(sources)
        store.write(SOURCES_FILE, data)
        digest = _digest(data).hex()
    manifest = Manifest(
        shards=tuple(shards),
        images=sum(shard.rows for shard in shards),
        failures=len(failures),
        bytes=sum(shard.bytes for shard in shards),
        source=source,
        digest=_set_digest(shards),
        schema=_schema(shards),
        sources=digest,
    )
    last_look()
    store.write(MANIFEST, _manifest_bytes(manifest))
    return manifest


def _refuse_twins(store: ObjectStore, shards: list[Shard], image_ids: array) -> None:
    ids = np.frombuffer(image_ids, dtype=np.int64) if len(image_ids) else np.empty(0, np.int64)
    ids = np.sort(ids)
    twins = ids[1:][ids[1:] == ids[:-1]]
    if not len(twins):
        return
    names: list[str] = []
    for shard in shards:
        with store.open(f"{shard.name}.arrow") as file:
            table = _without_removed(_read_columns(file, ["image_id", "file_name"]), shard)
        names += [row["file_name"] for row in table.to_pylist() if row["image_id"] == twins[0]]
    raise ImageSetError(
        f"image_id {twins[0]} occurs more than once ({', '.join(names[:4])}): ids must be unique in a set"
    )


# ------------------------------------------------------------------------------------------------ reading


def open_imageset(uri: str | Path, *, endpoint_url: str | None = None) -> "ImageSet":
    """Read the manifest of a finished image set.

    Raises:
        ImageSetError: nothing there, an ingestion that did not finish, or a manifest that is not one.
    """
    store = open_store(uri, endpoint_url=endpoint_url)
    return ImageSet(store, _read_manifest(store))


def _read_manifest(store: ObjectStore) -> Manifest:
    try:
        data = store.read(MANIFEST)
    except ObjectMissing as error:
        if store.list("shard-"):
            raise ImageSetError(
                f"{store.uri} has shards but no {MANIFEST}: its ingestion did not finish; run it again"
            ) from error
        raise ImageSetError(f"no image set at {store.uri} (no {MANIFEST}); make one with jobs/ingest.py") from error
    try:
        return _from_json(json.loads(data))
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        raise ImageSetError(f"{store.uri}/{MANIFEST} is not an image set's manifest: {repr(error)[:300]}") from error


class ImageSet:
    """A finished image set; picklable, and it holds no rows."""

    def __init__(self, store: ObjectStore, manifest: Manifest) -> None:
        self.store, self.manifest = store, manifest
        self._by_name = {shard.name: shard for shard in manifest.shards}

    @property
    def uri(self) -> str:
        return self.store.uri

    @property
    def shards(self) -> list[Shard]:
        return list(self.manifest.shards)

    @property
    def digest(self) -> str:
        return self.manifest.digest

    def read(self, shard_name: str, columns: list[str] | None = None) -> pa.Table:
        """One shard's rows, in the order of the file; removed ones are left out.

        Args:
            shard_name: as in `.shards`, "shard-00000".
            columns: these only, in SCHEMA's order, reading little else; None: all, and the bytes must fit their digest.

        Raises:
            ImageSetError: unknown name or column, or the file is missing or not the one the manifest tells of.
        """
        shard = self._by_name.get(shard_name)
        if shard is None:
            raise ImageSetError(f"{self.uri}: no shard {shard_name!r}; it has {len(self.shards)}, shard-00000 and up")
        unknown = set(columns or ()) - set(SCHEMA.names)
        if unknown:
            raise ImageSetError(f"{self.uri}: no column {sorted(unknown)}; there are {', '.join(SCHEMA.names)}")
        key = f"{shard.name}.arrow"
        try:
            table = self._read_all(key, shard) if columns is None else self._read_some(key, shard, columns)
        except ObjectMissing as error:
            raise ImageSetError(f"{self.uri}/{key} is missing; ingest again") from error
        except (pa.ArrowException, MemoryError) as error:
            raise ImageSetError(f"{self.uri}/{key} is no shard of an image set: {str(error)[:200]}") from error
        if (reason := _table_problem(table)) is not None:
            raise ImageSetError(f"{self.uri}/{key}: {reason}; ingest again")
        if table.num_rows != shard.rows_written:
            raise ImageSetError(
                f"{self.uri}/{key} has {table.num_rows} rows, the manifest says {shard.rows_written}; ingest again"
            )
        return _without_removed(table, shard)

    def truth(self) -> pa.Table:
        """Every column but `image`, all shards in order."""
        schema = pa.schema([SCHEMA.field(name) for name in TRUTH_COLUMNS])
        with ThreadPoolExecutor(READERS) as pool:
            tables = list(pool.map(lambda shard: self.read(shard.name, TRUTH_COLUMNS), self.shards))
        return pa.concat_tables([schema.empty_table(), *tables])

    def photos(self, columns: Sequence[str] = LISTED_COLUMNS) -> pa.Table:
        """Every photo without its bytes, all shards in order.

        Args:
            columns: of SCHEMA, not `image`; they come in SCHEMA's order.

        Returns:
            These columns, then `shard` (string, "shard-00000") and `row` (int64), the photo's row in `read(shard)`.

        Raises:
            ImageSetError: as `read`.
            ValueError: `image` is asked for.
        """
        if "image" in columns:
            raise ValueError("listing the photos of a set: want columns other than image; read(shard) has the bytes")

        def one(shard: Shard) -> pa.Table:
            table = self.read(shard.name, list(columns))
            names = pa.repeat(pa.scalar(shard.name, pa.string()), len(table))
            rows = pa.array(np.arange(len(table), dtype=np.int64))
            return table.append_column("shard", names).append_column("row", rows)

        fields = [field for field in SCHEMA if field.name in columns]
        schema = pa.schema([*fields, ("shard", pa.string()), ("row", pa.int64())])
        with ThreadPoolExecutor(READERS) as pool:
            return pa.concat_tables([schema.empty_table(), *pool.map(one, self.shards)])

    def failures(self) -> pa.Table:
        """What could not be taken: image_id, file_name, reason.

        Raises:
            ImageSetError: failures.parquet is missing or not one.
        """
        return self._parquet(FAILURES, self.store.read, FAILURE_SCHEMA)

    def sources(self) -> pa.Table | None:
        """What the folder looked like when the set was last brought up to date, columns as in SOURCES_SCHEMA.

        None where the set has no listing, or one that the manifest does not tell of: a killed update may leave the next one's.
        """
        try:
            data = self.store.read(SOURCES_FILE) if self.manifest.sources else b""
        except ObjectMissing:
            return None
        if not data or _digest(data).hex() != self.manifest.sources:
            return None
        return self._parquet(SOURCES_FILE, lambda _: data, SOURCES_SCHEMA)

    def _parquet(self, key: str, read: Callable[[str], bytes], schema: pa.Schema) -> pa.Table:
        try:
            data = pa.BufferReader(
                read(key)
            )  # no threads: one that lets go of Python's bytes as the process ends, ends it badly
            table = pq.ParquetFile(data, pre_buffer=False).read(use_threads=False)
        except ObjectMissing as error:
            raise ImageSetError(f"{self.uri}/{key} is missing; ingest again") from error
        except (pa.ArrowException, OSError) as error:
            raise ImageSetError(f"{self.uri}/{key} cannot be read: {str(error)[:200]}; ingest again") from error
        if table.schema != schema:
            raise ImageSetError(f"{self.uri}/{key} has other columns than an image set's; ingest again")
        return table

    def _read_all(self, key: str, shard: Shard) -> pa.Table:
        if self.store.local_path is not None:
            with self.store.open(key) as file:
                data = file.read_buffer()  # the mapped file itself, not a copy
        else:
            data = pa.py_buffer(self.store.read(key))
        self._check_size(key, shard, data.size)
        seen = _digest(memoryview(data)).hex()
        if seen != (shard.file_digest or shard.digest):
            want = f"the manifest says {shard.file_digest or shard.digest}"
            raise ImageSetError(f"{self.uri}/{key} has digest {seen}, {want}: damaged or replaced; ingest again")
        return _read_columns(pa.BufferReader(data), SCHEMA.names)

    def _read_some(self, key: str, shard: Shard, columns: list[str]) -> pa.Table:
        with self.store.open(key) as file:
            self._check_size(key, shard, file.size())
            return _read_columns(file, columns)

    def _check_size(self, key: str, shard: Shard, size: int) -> None:
        if size != shard.bytes:
            want = f"the manifest says {shard.bytes}"
            raise ImageSetError(f"{self.uri}/{key} has {size} bytes, {want}: cut short or replaced; ingest again")


def _present(shard: Shard) -> list[int]:
    """The rows of the file that are not removed, rising."""
    gone = set(shard.removed)
    return [row for row in range(shard.rows_written) if row not in gone]


def _without_removed(table: pa.Table, shard: Shard) -> pa.Table:
    if not shard.removed:
        return table
    mask = np.ones(len(table), dtype=bool)
    mask[list(shard.removed)] = False
    return table.filter(pa.array(mask))


def _read_columns(file: pa.NativeFile, columns: list[str]) -> pa.Table:
    """The columns in SCHEMA's order, sound enough to be looked into: whoever made the file may have signed it too.

    Raises:
        pa.ArrowException: other columns, or lengths and offsets that lead out of the file.
    """
    wanted = sorted(SCHEMA.get_field_index(name) for name in columns)
    try:
        reader = pa.ipc.open_file(file, options=pa.ipc.IpcReadOptions(included_fields=wanted))
        fields = [SCHEMA.field(place) for place in wanted]
        if [(field.name, field.type) for field in reader.schema] != [(field.name, field.type) for field in fields]:
            raise pa.ArrowInvalid("its columns are not those of an image set")
        table = reader.read_all()
    except UnicodeDecodeError as error:
        raise pa.ArrowInvalid(f"a column's name is not UTF-8: {error}") from error
    except OSError as error:
        if isinstance(file, pa.BufferReader | pa.MemoryMappedFile):
            raise pa.ArrowInvalid(str(error)) from error
        raise
    table.validate(full=True)
    return table


def _table_problem(table: pa.Table) -> str | None:
    """Why rows may not stand in an image set, or None: `problem`, for whole columns. Whether a box touches its picture is not asked again."""
    for name in table.column_names:
        column = table.column(name)
        if any(_has_nulls(chunk) for chunk in column.chunks):
            return f"{name} has rows without a value"
        if name in _LEAST and len(column) and pc.min(column).as_py() < _LEAST[name]:
            return f"{name} {pc.min(column).as_py()} is below {_LEAST[name]}"
    if "image_id" in table.column_names and len(pc.unique(table["image_id"])) < len(table):
        return "an image_id occurs more than once"
    if "source" in table.column_names and not pc.all(pc.is_in(table["source"], pa.array(SOURCES)), min_count=0).as_py():
        return "a source is neither user nor shop"
    if "items" not in table.column_names:
        return None
    return next((reason for chunk in table["items"].chunks if (reason := _items_problem(chunk.flatten()))), None)


_LEAST = {"image_id": 0, "width": 1, "height": 1, "pair_id": 0}


def _items_problem(items: pa.StructArray) -> str | None:
    columns = dict(zip(ITEM.names, items.flatten(), strict=True))
    for name, least, most in (("category_id", 1, N_CATEGORIES), *((name, 0, None) for name in _WHOLE)):
        values = columns[name].to_numpy()
        if (values < least).any() or (most is not None and (values > most).any()):
            return f"a {name} is not within {least}..{'' if most is None else most}"
    box = columns["bbox"].flatten().to_numpy().reshape(-1, 4)
    if not (np.isfinite(box).all() and (box[:, :2] < box[:, 2:]).all()):
        return "a box is not four finite numbers with x1 < x2 and y1 < y2"
    polygons = columns["segmentation"].flatten()
    odd = pc.bit_wise_and(pc.list_value_length(polygons), 1).to_numpy().any()
    if odd or not np.isfinite(polygons.flatten().to_numpy()).all():
        return "a segmentation polygon is not pairs of finite numbers"
    return None


_WHOLE = ("style", "scale", "occlusion", "zoom_in", "viewpoint")


def _has_nulls(column: pa.Array) -> bool:
    """Here or at any depth."""
    if column.null_count:
        return True
    if pa.types.is_struct(column.type):
        return any(map(_has_nulls, column.flatten()))
    return (pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type)) and _has_nulls(column.flatten())


# ------------------------------------------------------------------------------------------------ small parts


def utf8(text: str) -> str:
    """A column holds UTF-8; names of files and strings of JSON need not."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def _digest(data: bytes | memoryview) -> bytes:
    return blake2b(data, digest_size=16).digest()


def _set_digest(shards: Iterable[Shard]) -> str:
    return _digest(b"".join(bytes.fromhex(shard.digest) for shard in shards)).hex()


def _parquet(table: pa.Table) -> memoryview:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return memoryview(sink.getvalue())


def _number(name: str) -> int:
    return int(name.removeprefix("shard-"))


def _schema(shards: Sequence[Shard]) -> int:
    """2 where an older program would read the set wrong or not at all: with removed rows, or with numbers left out."""
    plain = all(not shard.removed and _number(shard.name) == number for number, shard in enumerate(shards))
    return SCHEMA_VERSION if plain else WITH_REMOVALS


def _manifest_bytes(manifest: Manifest) -> bytes:
    return json.dumps(_as_json(manifest), indent=1, ensure_ascii=False).encode("utf-8", "backslashreplace")


def _as_json(manifest: Manifest) -> dict[str, Any]:
    shards = [
        {"name": s.name, "rows": s.rows_written, "bytes": s.bytes, "digest": s.file_digest or s.digest}
        for s in manifest.shards
    ]
    found = {"schema": manifest.schema, "shards": shards} | {
        name: getattr(manifest, name) for name in ("images", "failures", "bytes", "source", "digest")
    }
    if manifest.schema == WITH_REMOVALS:
        found["removed"] = {shard.name: list(shard.removed) for shard in manifest.shards if shard.removed}
    if manifest.sources:
        found["sources"] = {"name": SOURCES_FILE, "digest": manifest.sources}
    return found


def _from_json(data: dict[str, Any]) -> Manifest:
    if data["schema"] not in (SCHEMA_VERSION, WITH_REMOVALS) or type(data["schema"]) is not int:
        raise ValueError(f"schema {data['schema']!r}, this program reads {SCHEMA_VERSION} and {WITH_REMOVALS}")
    shards = _shards(data["shards"], data["removed"] if data["schema"] == WITH_REMOVALS else {}, data["schema"])
    if data["schema"] == SCHEMA_VERSION and data.get("removed"):
        raise ValueError(f"rows are removed, and its schema is {SCHEMA_VERSION}")
    sources = data["sources"]["digest"] if "sources" in data else ""
    if not isinstance(sources, str):
        raise ValueError(f"the digest of {SOURCES_FILE} is {str(sources)[:60]}")
    manifest = Manifest(
        shards,
        data["images"],
        data.get("failures", 0),
        data["bytes"],
        data["source"],
        data["digest"],
        data["schema"],
        sources,
    )
    if manifest.digest != _set_digest(shards):
        raise ValueError(f"digest {manifest.digest} does not follow from the shards'")
    if (manifest.images, manifest.bytes) != (sum(s.rows for s in shards), sum(s.bytes for s in shards)):
        raise ValueError("images or bytes do not add up")
    return manifest


def _shards(entries: list[dict[str, Any]], removed: dict[str, list[int]], schema: int) -> tuple[Shard, ...]:
    shards: list[Shard] = []
    for number, entry in enumerate(entries):
        shard = _shard(number if schema == SCHEMA_VERSION else None, **entry)
        if shards and _number(shard.name) <= _number(shards[-1].name):
            raise ValueError(f"{shard.name} stands after {shards[-1].name}")
        shards.append(shard.without(_removed(shard, removed[shard.name])) if shard.name in removed else shard)
    if unknown := set(removed) - {shard.name for shard in shards}:
        raise ValueError(f"removed names {min(unknown)!r}, which is no shard of it")
    return tuple(shards)


def _shard(number: int | None, name: str, rows: int, bytes: int, digest: str) -> Shard:
    """One entry; `number` is the only one it may have, None for any."""
    if number is None and re.fullmatch(r"shard-(\d{5}|[1-9]\d{5,8})", name, re.ASCII):
        number = _number(name)
    if number is None or name != f"shard-{number:05d}" or not (_counts(rows) and _counts(bytes)):
        raise ValueError(f"shard {number} is {name!r} with {rows!r} rows and {bytes!r} bytes")
    return Shard(name, rows, bytes, digest)


def _counts(value: object) -> bool:
    return type(value) is int and value > 0


def _removed(shard: Shard, rows: list[int]) -> list[int]:
    """Some rows of a shard, rising, and not all of them: a shard without a photo is left out of the manifest."""
    whole = all(type(row) is int and 0 <= row < shard.rows for row in rows)
    if not whole or not 0 < len(rows) < shard.rows or any(a >= b for a, b in pairwise(rows)):
        raise ValueError(f"rows {str(rows)[:60]} removed of {shard.name}, which has {shard.rows}")
    return rows
