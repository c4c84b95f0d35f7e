"""Image sets: a folder of Arrow shards with photos and what is known about them; reading them.

    shard-00000.arrow …   Arrow IPC file format, uncompressed, record batches of at most 64 rows, columns as in SCHEMA
    failures.parquet      image_id int64, file_name string, reason string: what could not be taken, and why
    sources.parquet       only where the set can be updated: how the folder looked, columns as in SOURCES_SCHEMA
    manifest.json         written last, so a set is complete exactly if it is there; see `store.manifest`

`store.imageset_write` writes and updates sets. An update leaves finished shards alone: new photos are new shards, and
photos that are gone are named in the manifest by their rows; no reader sees them. Reading holds in memory what is asked
for.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from store import arrow  # noqa: F401  (before any array is made)
from store.files import digest
from store.manifest import SOURCES_FILE, ImageSetError, Manifest, Shard, read_manifest
from store.objects import ObjectMissing, ObjectStore, open_store

FAILURES = "failures.parquet"
SOURCES = ("user", "shop")  # consumer: its garments are queries; seller: its garments are the gallery
FARTHEST = 1_000_000  # pixels; a polygon that reaches farther costs the evaluation its memory
READERS = 16  # threads; without the pictures a shard is some 8 reads, on S3 each a round trip
_LEAST = {"image_id": 0, "width": 1, "height": 1, "pair_id": 0}
_WHOLE = ("style", "scale", "occlusion", "zoom_in", "viewpoint")  # fields of an item that are 0 or more

ATTRIBUTES = pa.map_(pa.string(), pa.string())
ITEM = pa.struct(
    [
        ("category_id", pa.int16()),  # place in the set's list of categories, counted from 1
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
        ("attributes", ATTRIBUTES),  # what else is known: price, title, url, colour, …
    ]
)
# Shards made before categories were data: category_id in 8 bits, no attributes.
_OLD_ITEMS = pa.list_(pa.struct([("category_id", pa.int8()), *list(ITEM)[1:]]))
FAILURE_SCHEMA = pa.schema([("image_id", pa.int64()), ("file_name", pa.string()), ("reason", pa.string())])
SOURCES_SCHEMA = pa.schema(
    [
        ("image_id", pa.int64()),
        ("name", pa.string()),  # as file_name
        ("size", pa.int64()),  # bytes
        ("mtime_ns", pa.int64()),  # last change, nanoseconds since 1970; 0 in a bucket, -1 too new to be relied on
        ("etag", pa.string()),  # as the bucket tells it; empty in a folder
        ("digest", pa.binary(16)),  # as in SCHEMA
        ("product_id", pa.string()),  # what the metadata said of it, likewise
        ("pair_id", pa.int64()),
        ("facts", pa.binary()),  # BLAKE2b-128 of the attributes and items that it names; empty without any
    ]
)
TRUTH_COLUMNS = [name for name in SCHEMA.names if name != "image"]
LISTED_COLUMNS = tuple(name for name in TRUTH_COLUMNS if name not in ("items", "attributes"))


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
    """One row; fields as in SCHEMA."""

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
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """A photo that could not be taken. image_id -1: it has none."""

    image_id: int
    file_name: str
    reason: str


def open_imageset(uri: str | Path, *, endpoint_url: str | None = None) -> "ImageSet":
    """A finished image set; only its manifest is read. Raises as `store.manifest.read_manifest`."""
    store = open_store(uri, endpoint_url=endpoint_url)
    return ImageSet(store, read_manifest(store))


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

    @property
    def categories(self) -> tuple[str, ...]:
        """Names; that of category id n stands at place n, counted from 1. Empty where nobody stated any."""
        return self.manifest.categories

    @property
    def sets(self) -> "tuple[ImageSet, ...]":
        """The sets it consists of: itself, where it is not a `store.joined.JoinedSet`."""
        return (self,)

    @property
    def is_remote(self) -> bool:
        """Whether shards come from a bucket, so that whole ones are held in memory."""
        return self.store.local_path is None

    def check_ids(self) -> None:
        """Refuse an image_id that occurs twice; within one set its writer has done that."""

    def read(self, shard_name: str, columns: list[str] | None = None) -> pa.Table:
        """The rows of the shard named "shard-00000", in the order of the file; removed ones are left out.

        Only `columns` are read, in SCHEMA's order; None: all, and the bytes must match their digest. Raises
        ImageSetError for an unknown name or column, and where the file is missing or not the one in the manifest.
        """
        shard = self._by_name.get(shard_name)
        if shard is None:
            raise ImageSetError(f"{self.uri}: no shard {shard_name!r}; it has {len(self.shards)}, shard-00000 and up")
        unknown = set(columns or ()) - set(SCHEMA.names)
        if unknown:
            raise ImageSetError(f"{self.uri}: no column {sorted(unknown)}; there are {', '.join(SCHEMA.names)}")
        place = f"{self.uri}/{shard.key}"
        try:
            table = self._read_all(shard) if columns is None else self._read_some(shard, columns)
        except ObjectMissing as error:
            raise ImageSetError(f"{place} is missing; ingest again") from error
        except (pa.ArrowException, MemoryError) as error:
            raise ImageSetError(f"{place} is no shard of an image set: {str(error)[:200]}") from error
        if (reason := _table_problem(table, len(self.categories))) is not None:
            raise ImageSetError(f"{place}: {reason}; ingest again")
        if table.num_rows != (want := shard.rows_written):
            raise ImageSetError(f"{place} has {table.num_rows} rows, the manifest says {want}; ingest again")
        return present_rows(table, shard)

    def truth(self) -> pa.Table:
        """Every column but `image`, all shards in order."""
        return self.photos(TRUTH_COLUMNS).drop_columns(["shard", "row"])

    def photos(self, columns: Sequence[str] = LISTED_COLUMNS) -> pa.Table:
        """These columns of every photo in SCHEMA's order, all shards in order.

        They are followed by `shard` (string, "shard-00000") and `row` (int64), the photo's row in `read(shard)`. Raises
        ImageSetError as `read` does, and ValueError where `image` is asked for.
        """
        if "image" in columns:
            raise ValueError("listing the photos of a set: want columns other than image; read(shard) has the bytes")

        def listed(shard: Shard) -> pa.Table:
            table = self.read(shard.name, list(columns))
            names = pa.repeat(pa.scalar(shard.name, pa.string()), len(table))
            rows = pa.array(np.arange(len(table), dtype=np.int64))
            return table.append_column("shard", names).append_column("row", rows)

        fields = [field for field in SCHEMA if field.name in columns]
        schema = pa.schema([*fields, ("shard", pa.string()), ("row", pa.int64())])
        with ThreadPoolExecutor(READERS) as pool:
            return pa.concat_tables([schema.empty_table(), *pool.map(listed, self.shards)])

    def failures(self) -> pa.Table:
        """What could not be taken: FAILURE_SCHEMA. Raises ImageSetError if failures.parquet is missing or not one."""
        return self._parquet(FAILURES, self.store.read, FAILURE_SCHEMA)

    def sources(self) -> pa.Table | None:
        """How the folder looked when the set was last updated, columns as in SOURCES_SCHEMA.

        None where the set has no listing, or one that the manifest does not name: a killed update may leave its own.
        """
        try:
            data = self.store.read(SOURCES_FILE) if self.manifest.sources else b""
        except ObjectMissing:
            return None
        if not data or digest(data) != self.manifest.sources:
            return None
        return self._parquet(SOURCES_FILE, lambda _: data, SOURCES_SCHEMA)

    def _parquet(self, key: str, read: Callable[[str], bytes], schema: pa.Schema) -> pa.Table:
        try:
            # No threads: one that still holds Python's bytes when the process ends crashes it.
            table = pq.ParquetFile(pa.BufferReader(read(key)), pre_buffer=False).read(use_threads=False)
        except ObjectMissing as error:
            raise ImageSetError(f"{self.uri}/{key} is missing; ingest again") from error
        except (pa.ArrowException, OSError) as error:
            raise ImageSetError(f"{self.uri}/{key} cannot be read: {str(error)[:200]}; ingest again") from error
        if table.schema == pa.schema(list(schema)[:-1]) and schema is SOURCES_SCHEMA:  # made before `facts` were
            table = table.append_column(schema.field("facts"), pa.repeat(b"", len(table)))
        if table.schema != schema:
            raise ImageSetError(f"{self.uri}/{key} has other columns than an image set's; ingest again")
        return table

    def _read_all(self, shard: Shard) -> pa.Table:
        if self.store.local_path is not None:
            with self.store.open(shard.key) as file:
                data = file.read_buffer()  # the mapped file itself, not a copy
        else:
            data = pa.py_buffer(self.store.read(shard.key))
        self._check_size(shard, data.size)
        if (actual := digest(memoryview(data))) != shard.written_digest:
            problem = f"has digest {actual}, the manifest says {shard.written_digest}: damaged or replaced"
            raise ImageSetError(f"{self.uri}/{shard.key} {problem}; ingest again")
        return read_columns(pa.BufferReader(data), SCHEMA.names)

    def _read_some(self, shard: Shard, columns: list[str]) -> pa.Table:
        with self.store.open(shard.key) as file:
            self._check_size(shard, file.size())
            # a copy: Arrow reads some columns into a buffer that has room for all, pictures too, and keeps it
            return read_columns(file, columns).combine_chunks()

    def _check_size(self, shard: Shard, size: int) -> None:
        if size != shard.bytes:
            want = f"the manifest says {shard.bytes}"
            raise ImageSetError(f"{self.uri}/{shard.key} has {size} bytes, {want}: cut short or replaced; ingest again")


def present_rows(table: pa.Table, shard: Shard) -> pa.Table:
    """Of a shard's rows as written, those that are not removed."""
    return table.filter(pa.array(shard.present)) if shard.removed else table


def read_columns(file: pa.NativeFile, columns: list[str]) -> pa.Table:
    """The columns of a shard's file in SCHEMA's order, validated: a matching digest does not make a file harmless.

    Shards made before there were attributes have none, and their category ids are widened. Raises pa.ArrowException for
    other columns, and for lengths and offsets that lead out of the file.
    """
    wanted = [field for field in SCHEMA if field.name in columns]
    try:
        try:
            reader = _open(file, wanted)
        except pa.ArrowInvalid:
            if "attributes" not in columns:
                raise
            older = [field for field in wanted if field.name != "attributes"]
            reader = _open(file, older or [SCHEMA.field("image_id")])  # for the number of rows
        table = _widened(reader.read_all(), wanted)
    except UnicodeDecodeError as error:
        raise pa.ArrowInvalid(f"a column's name is not UTF-8: {error}") from error
    except OSError as error:
        if isinstance(file, pa.BufferReader | pa.MemoryMappedFile):
            raise pa.ArrowInvalid(str(error)) from error
        raise
    table.validate(full=True)
    return table


def _open(file: pa.NativeFile, wanted: Sequence[pa.Field]) -> pa.RecordBatchFileReader:
    """A reader of these columns alone; pa.ArrowInvalid where the file has others in their place."""
    places = [SCHEMA.get_field_index(field.name) for field in wanted]
    reader = pa.ipc.open_file(file, options=pa.ipc.IpcReadOptions(included_fields=places))
    found = [
        (field.name, SCHEMA.field("items").type if field.type == _OLD_ITEMS else field.type) for field in reader.schema
    ]
    if found != [(field.name, field.type) for field in wanted]:
        raise pa.ArrowInvalid("its columns are not those of an image set")
    return reader


def _widened(table: pa.Table, wanted: Sequence[pa.Field]) -> pa.Table:
    """The table with the columns of today, where an older program wrote it."""
    if "attributes" in {column.name for column in wanted} - set(table.column_names):
        table = table.append_column(SCHEMA.field("attributes"), pa.array([[]] * len(table), ATTRIBUTES))
    return table.select([column.name for column in wanted]).cast(pa.schema(wanted))


def _table_problem(table: pa.Table, n_categories: int) -> str | None:
    """Why rows may not stand in an image set, or None: `photo_checks` for whole columns.

    Whether a box touches its picture is not checked again.
    """
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
    lists = (chunk.flatten() for chunk in table["items"].chunks)
    return next((reason for items in lists if (reason := _items_problem(items, n_categories))), None)


def _items_problem(items: pa.StructArray, n_categories: int) -> str | None:
    columns = dict(zip(ITEM.names, items.flatten(), strict=True))
    for name, least, most in (("category_id", 1, n_categories), *((name, 0, None) for name in _WHOLE)):
        values = columns[name].to_numpy()
        if (values < least).any() or (most is not None and (values > most).any()):
            return f"a {name} is not within {least}..{'' if most is None else most}"
    box = columns["bbox"].flatten().to_numpy().reshape(-1, 4)
    if not (np.isfinite(box).all() and (box[:, :2] < box[:, 2:]).all()):
        return "a box is not four finite numbers with x1 < x2 and y1 < y2"
    polygons = columns["segmentation"].flatten()
    lengths, coordinates = pc.list_value_length(polygons).to_numpy(), polygons.flatten().to_numpy()
    if (lengths % 2).any() or not np.isfinite(coordinates).all():
        return "a segmentation polygon is not pairs of finite numbers"
    if (lengths < 6).any() or (np.abs(coordinates) > FARTHEST).any():  # sets made before polygons were checked
        return f"a segmentation polygon has fewer than three corners, or one beyond {FARTHEST} pixels"
    return None


def _has_nulls(column: pa.Array) -> bool:
    """Here or at any depth."""
    if column.null_count:
        return True
    if pa.types.is_struct(column.type):
        return any(map(_has_nulls, column.flatten()))
    if pa.types.is_map(column.type):
        return _has_nulls(column.keys) or _has_nulls(column.items)
    return (pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type)) and _has_nulls(column.flatten())
