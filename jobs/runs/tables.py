"""The Parquet tables of a run: their columns, and writing them so that the same rows give the same bytes."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from detection.detections import Detections
from postproc.hypotheses import Hypotheses
from retrieval.hypotheses import HYPOTHESES, as_column
from store.arrow import numpy_dtype
from store.errors import UserError
from store.files import digest
from store.objects import ObjectStore, StorageError

BOX = pa.list_(pa.float32(), 4)  # px, x1 y1 x2 y2 of the upright image
# COCO run-length encoding, size: height, width; null: none. Parquet cannot hold the null of a fixed list
MASK = pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.binary())])

DETECTIONS = pa.schema(
    [("image_id", pa.int64()), ("bbox", BOX), ("score", pa.float32()), ("category_id", pa.int16()), ("mask", MASK)]
)
FUSED = DETECTIONS.append(pa.field("votes", pa.int8()))  # detectors that agree
ITEMS = pa.schema([
    ("image_id", pa.int64()), ("item", pa.int32()), ("bbox", BOX), ("score", pa.float32()),
    ("category_id", pa.int16()), ("votes", pa.int8()), ("hypotheses", HYPOTHESES),
])  # fmt: skip
RANKINGS = pa.schema([
    ("query_image_id", pa.int64()), ("query_item", pa.int32()), ("query_bbox", BOX), ("query_score", pa.float32()),
    ("query_category_id", pa.int16()), ("query_hypotheses", HYPOTHESES), ("gallery_image_id", pa.list_(pa.int64())),
    ("gallery_item", pa.list_(pa.int32())), ("gallery_bbox", pa.list_(BOX)), ("similarity", pa.list_(pa.float32())),
])  # fmt: skip
INDEX_IDS = pa.schema([  # row i: vector i of the index
    ("image_id", pa.int64()), ("item", pa.int32()), ("bbox", BOX), ("score", pa.float32()),
    ("category_id", pa.int16()), ("hypotheses", HYPOTHESES),
])  # fmt: skip
FAILURES = pa.schema({"image_id": pa.int64(), "shard": pa.string(), "stage": pa.string(), "reason": pa.string()})


def embeddings_schema(dim: int, dtype: str) -> pa.Schema:
    kind = {"float16": pa.float16(), "float32": pa.float32()}[dtype]
    return pa.schema([("image_id", pa.int64()), ("item", pa.int32()), ("embedding", pa.list_(kind, dim))])


def table(schema: pa.Schema, columns: Mapping[str, Any]) -> pa.Table:
    """A table from arrays or lists; an (N, D) array becomes a column of fixed lists; a column not given is null."""
    n = len(next(iter(columns.values())))
    return pa.table([_column(columns.get(f.name), f.type, n) for f in schema], schema=schema)


def _column(values: Any, kind: pa.DataType, n: int) -> pa.Array:
    if values is None:
        return pa.nulls(n, kind)
    if pa.types.is_fixed_size_list(kind):
        flat = np.ascontiguousarray(values, numpy_dtype(kind.value_type)).reshape(-1)
        return pa.FixedSizeListArray.from_arrays(pa.array(flat, kind.value_type), kind.list_size)
    if isinstance(values, Hypotheses):
        return as_column(values)
    if isinstance(values, np.ndarray):
        return pa.array(values.astype(numpy_dtype(kind)), kind)
    return pa.array(values, kind)


def detections(found: Sequence[tuple[int, Detections]]) -> pa.Table:
    """The detections table of a shard from (image_id, detections) of its photos, in the shard's order."""
    found = [(image_id, answer) for image_id, answer in found if len(answer)]
    answers = [answer for _, answer in found]
    image_ids = np.array([image_id for image_id, _ in found], np.int64)
    masks = [[None] * len(answer) if answer.masks is None else answer.masks for answer in answers]
    columns = {
        "image_id": np.repeat(image_ids, [len(answer) for answer in answers]),
        "bbox": np.concatenate([np.zeros((0, 4), np.float32), *(answer.boxes for answer in answers)]),
        "score": np.concatenate([np.zeros(0, np.float32), *(answer.scores for answer in answers)]),
        "category_id": np.concatenate([np.zeros(0, np.int16), *(answer.categories for answer in answers)]),
        "mask": [mask for of_photo in masks for mask in of_photo],
    }
    return table(DETECTIONS, columns)


def rows_of(column: pa.ChunkedArray) -> np.ndarray:
    """A column of fixed lists as (N, D) array."""
    whole = column.combine_chunks()
    whole = pa.concat_arrays(whole.chunks) if isinstance(whole, pa.ChunkedArray) else whole
    return whole.flatten().to_numpy(zero_copy_only=False).reshape(-1, column.type.list_size)


def write(store: ObjectStore, key: str, rows: pa.Table) -> str:
    """Publish a table; returns its BLAKE2b-128, hex. Compression and row groups are fixed: equal rows, equal bytes."""
    return publish(store, key, _bytes_of(rows))


def digest_of(rows: pa.Table) -> str:
    """BLAKE2b-128, hex, of the file that `write` would publish."""
    return digest(_bytes_of(rows))


def _bytes_of(rows: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd", compression_level=3, row_group_size=65_536)
    return sink.getvalue().to_pybytes()


def publish(store: ObjectStore, key: str, data: bytes) -> str:
    """Write an object; returns its BLAKE2b-128, hex."""
    store.write(key, data)
    return digest(data)


def read(store: ObjectStore, key: str, columns: list[str] | None = None) -> pa.Table:
    """A table that a run wrote, or some of its columns.

    Raises:
        ObjectMissing: there is none.
        UserError: it is damaged, or holds a number that is not finite: every comparison with it would be wrong.
    """
    data = store.read(key)
    with _table_errors(store, key, len(data)):
        # Threads of Parquet would outlive a process that ends now.
        rows = pq.ParquetFile(pa.BufferReader(data), pre_buffer=False).read(columns=columns, use_threads=False)
    return _checked(store, key, rows)


def read_blocks(store: ObjectStore, key: str, n_rows: int) -> Iterator[pa.Table]:
    """The same table from top to bottom, `n_rows` at a time: memory holds one block. Raises as `read` does."""
    with store.open(key) as file:
        with _table_errors(store, key, file.size()):
            batches = pq.ParquetFile(file, pre_buffer=False).iter_batches(n_rows, use_threads=False)
        while True:
            with _table_errors(store, key, file.size()):
                batch = next(batches, None)
            if batch is None:
                return
            yield _checked(store, key, pa.Table.from_batches([batch]))


@contextlib.contextmanager
def _table_errors(store: ObjectStore, key: str, size: int) -> Iterator[None]:
    try:
        yield
    except StorageError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = f"{size} bytes that are no Parquet table ({' '.join(str(error).split())[:100]})"
        raise UserError(f"{store.uri}/{key}: {reason}; delete it and start the run again") from error


def _checked(store: ObjectStore, key: str, rows: pa.Table) -> pa.Table:
    """The rows as a run of today writes them; a UserError where a number is not finite."""
    for place, (name, column) in enumerate(zip(rows.column_names, rows.columns, strict=True)):
        if name in ("category_id", "query_category_id"):  # 8 bits wide in tables written before categories were data
            rows = rows.set_column(place, name, column.cast(pa.int16()))
        for chunk in column.chunks:
            while pa.types.is_list(chunk.type) or pa.types.is_fixed_size_list(chunk.type):
                chunk = chunk.flatten()
            chunk = chunk.field("score") if chunk.type == HYPOTHESES.value_type else chunk
            chunk = chunk.drop_null()
            if pa.types.is_floating(chunk.type) and not np.isfinite(chunk.to_numpy(zero_copy_only=False)).all():
                advice = "delete it and start the run again; was it written by another program?"
                raise UserError(f"{store.uri}/{key}: {name} has a number that is not finite; {advice}")
    return rows
