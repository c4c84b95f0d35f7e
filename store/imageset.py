"""Image sets: a folder of Arrow shards with photos and what is known about them, and a manifest written last.

    shard-00000.arrow …   Arrow IPC file format, uncompressed, record batches of at most 64 rows, columns as in SCHEMA
    failures.parquet      image_id int64, file_name string, reason string: what could not be taken, and why
    manifest.json         {"schema": 1, "shards": [{"name", "rows", "bytes", "digest"}],
                           "images", "failures", "bytes", "source", "digest"}

In: rows, one at a time. Out: a set that is complete exactly if its manifest exists. Digests are BLAKE2b-128: of a
shard's bytes; of the 16-byte shard digests one after another for the whole set. The same rows give the same bytes.
Writing holds one shard in memory and 8 bytes per image; reading holds what is asked for.
"""

import json
import re
from array import array
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from store.objects import ObjectMissing, ObjectStore, open_store

SCHEMA_VERSION = 1
BATCH_ROWS = 64
READERS = 16  # threads; without the pictures a shard is some 8 reads, on S3 each a round trip
LONGEST_REASON = 300  # letters; some quote what they refuse
SOURCES = ("user", "shop")  # consumer: its garments are queries; seller: its garments are the gallery
N_CATEGORIES = 13
MANIFEST, FAILURES = "manifest.json", "failures.parquet"

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
TRUTH_COLUMNS = [name for name in SCHEMA.names if name != "image"]


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
    rows: int
    bytes: int
    digest: str  # hex


@dataclass(frozen=True)
class Manifest:
    shards: tuple[Shard, ...]
    images: int
    failures: int
    bytes: int
    source: dict[str, Any]  # {"adapter": …, "arguments": {…}}
    digest: str  # hex
    schema: int = SCHEMA_VERSION


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
) -> Manifest:
    """Write rows, in their order, as an image set.

    Args:
        rows: photos and failures; a photo that breaks a rule (`problem`) becomes a failure with that reason.
        uri: a folder, file:// or s3://; shards of an ingestion that did not finish are replaced.
        source: what made the rows, {"adapter", "arguments"}; goes into the manifest.
        max_images, max_bytes: a shard ends before it exceeds either (encoded bytes); a larger photo stands alone.
        endpoint_url: of an S3-compatible server.
        overwrite: replace a finished image set. Its manifest goes first, so that a mixture is never taken for a set.

    Raises:
        ImageSetError: the folder holds something else or a finished set; or an image_id occurs twice: no manifest.
    """
    if max_images < 1 or max_bytes < 1:
        raise ValueError(f"want max_images and max_bytes above 0, got {max_images} and {max_bytes}")
    store = open_store(uri, endpoint_url=endpoint_url)
    store.probe(write=True)
    stale = _clear_the_way(store, overwrite)

    shards: list[Shard] = []
    failures: list[Failure] = []
    image_ids = array("q")
    writer = _ShardWriter()
    for row in rows:
        if isinstance(row, Photo) and (reason := problem(row)) is not None:
            row = Failure(row.image_id, row.file_name, reason)
        if isinstance(row, Failure):
            image_id = row.image_id if 0 <= row.image_id < 2**63 else -1
            failures.append(Failure(image_id, _utf8(row.file_name), _utf8(row.reason)[:LONGEST_REASON]))
            continue
        if writer.rows and (writer.rows == max_images or writer.image_bytes + len(row.image) > max_bytes):
            shards.append(writer.publish(store, len(shards)))
            writer = _ShardWriter()
        writer.add(row)
        image_ids.append(row.image_id)
    if writer.rows:
        shards.append(writer.publish(store, len(shards)))

    _refuse_twins(store, shards, image_ids)
    for key in stale - {f"{shard.name}.arrow" for shard in shards}:
        store.delete(key)
    store.write(FAILURES, _parquet([asdict(failure) for failure in failures], FAILURE_SCHEMA))
    manifest = Manifest(
        shards=tuple(shards),
        images=sum(shard.rows for shard in shards),
        failures=len(failures),
        bytes=sum(shard.bytes for shard in shards),
        source=source,
        digest=_set_digest(shards),
    )
    store.write(
        MANIFEST, json.dumps(_as_json(manifest), indent=1, ensure_ascii=False).encode("utf-8", "backslashreplace")
    )
    return manifest


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

    def publish(self, store: ObjectStore, number: int) -> Shard:
        if self._waiting:
            self._write_batch()
        self._file.close()
        data = memoryview(self._sink.getvalue())
        shard = Shard(f"shard-{number:05d}", self.rows, len(data), _digest(data).hex())
        store.write(f"{shard.name}.arrow", data)
        return shard

    def _write_batch(self) -> None:
        own = [name for name in SCHEMA.names if name not in ("digest", "items")]
        columns = {name: [getattr(photo, name) for photo in self._waiting] for name in own}
        columns |= {name: [_utf8(text) for text in columns[name]] for name in ("product_id", "file_name")}
        columns["digest"] = [_digest(photo.image) for photo in self._waiting]
        columns["items"] = [[vars(item) for item in photo.items] for photo in self._waiting]
        self._file.write_batch(pa.RecordBatch.from_pydict(columns, schema=SCHEMA))
        self._waiting.clear()


def _clear_the_way(store: ObjectStore, overwrite: bool) -> set[str]:
    """The shard keys already there, now without a manifest. Raises ImageSetError where something else lives."""
    keys = [info.key for info in store.list()]
    foreign = [key for key in keys if key not in (MANIFEST, FAILURES) and not re.fullmatch(r"shard-\d{5,}\.arrow", key)]
    if foreign:
        raise ImageSetError(f"{store.uri} is not empty and no image set (it has {foreign[0]}); choose another place")
    if MANIFEST in keys or store.exists(MANIFEST):  # a store may list late
        if not overwrite:
            raise ImageSetError(f"{store.uri} already holds an image set; choose another place, or overwrite it")
        store.delete(MANIFEST)
    return {key for key in keys if key.endswith(".arrow")}


def _refuse_twins(store: ObjectStore, shards: list[Shard], image_ids: array) -> None:
    ids = np.frombuffer(image_ids, dtype=np.int64) if len(image_ids) else np.empty(0, np.int64)
    ids = np.sort(ids)
    twins = ids[1:][ids[1:] == ids[:-1]]
    if not len(twins):
        return
    names: list[str] = []
    for shard in shards:
        with store.open(f"{shard.name}.arrow") as file:
            table = _read_columns(file, ["image_id", "file_name"])
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
    try:
        data = store.read(MANIFEST)
    except ObjectMissing as error:
        if store.list("shard-"):
            raise ImageSetError(
                f"{store.uri} has shards but no {MANIFEST}: its ingestion did not finish; run it again"
            ) from error
        raise ImageSetError(f"no image set at {store.uri} (no {MANIFEST}); make one with jobs/ingest.py") from error
    try:
        manifest = _from_json(json.loads(data))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ImageSetError(f"{store.uri}/{MANIFEST} is not an image set's manifest: {repr(error)[:300]}") from error
    return ImageSet(store, manifest)


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
        """One shard's rows.

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
        if table.num_rows != shard.rows:
            raise ImageSetError(
                f"{self.uri}/{key} has {table.num_rows} rows, the manifest says {shard.rows}; ingest again"
            )
        return table

    def truth(self) -> pa.Table:
        """Every column but `image`, all shards in order."""
        schema = pa.schema([SCHEMA.field(name) for name in TRUTH_COLUMNS])
        with ThreadPoolExecutor(READERS) as pool:
            tables = list(pool.map(lambda shard: self.read(shard.name, TRUTH_COLUMNS), self.shards))
        return pa.concat_tables([schema.empty_table(), *tables])

    def _read_all(self, key: str, shard: Shard) -> pa.Table:
        if self.store.local_path is not None:
            with self.store.open(key) as file:
                data = file.read_buffer()  # the mapped file itself, not a copy
        else:
            data = pa.py_buffer(self.store.read(key))
        self._check_size(key, shard, data.size)
        seen = _digest(memoryview(data)).hex()
        if seen != shard.digest:
            want = f"the manifest says {shard.digest}"
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


def _utf8(text: str) -> str:
    """A column holds UTF-8; names of files and strings of JSON need not."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def _digest(data: bytes | memoryview) -> bytes:
    return blake2b(data, digest_size=16).digest()


def _set_digest(shards: Iterable[Shard]) -> str:
    return _digest(b"".join(bytes.fromhex(shard.digest) for shard in shards)).hex()


def _parquet(rows: list[dict[str, Any]], schema: pa.Schema) -> memoryview:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink)
    return memoryview(sink.getvalue())


def _as_json(manifest: Manifest) -> dict[str, Any]:
    return {"schema": manifest.schema} | asdict(manifest)


def _shard(number: int, name: str, rows: int, bytes: int, digest: str) -> Shard:
    if name != f"shard-{number:05d}" or type(rows) is not int or type(bytes) is not int or rows < 1 or bytes < 1:
        raise ValueError(f"shard {number} is {name!r} with {rows!r} rows and {bytes!r} bytes")
    return Shard(name, rows, bytes, digest)


def _from_json(data: dict[str, Any]) -> Manifest:
    if data["schema"] != SCHEMA_VERSION:
        raise ValueError(f"schema {data['schema']!r}, this program reads {SCHEMA_VERSION}")
    shards = tuple(_shard(number, **entry) for number, entry in enumerate(data["shards"]))
    manifest = Manifest(shards, data["images"], data.get("failures", 0), data["bytes"], data["source"], data["digest"])
    if manifest.digest != _set_digest(shards):
        raise ValueError(f"digest {manifest.digest} does not follow from the shards'")
    if (manifest.images, manifest.bytes) != (sum(s.rows for s in shards), sum(s.bytes for s in shards)):
        raise ValueError("images or bytes do not add up")
    return manifest
