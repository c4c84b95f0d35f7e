"""The Parquet tables of a run: their columns, and writing them so that the same rows give the same bytes."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from store.objects import ObjectStore

BOX = pa.list_(pa.float32(), 4)  # px, x1 y1 x2 y2 of the upright image
MASK = pa.struct(
    [("size", pa.list_(pa.int32())), ("counts", pa.binary())]
)  # COCO run-length encoding, size: height, width; null: none. Parquet cannot hold the null of a fixed list

DETECTIONS = pa.schema(
    [("image_id", pa.int64()), ("bbox", BOX), ("score", pa.float32()), ("category_id", pa.int8()), ("mask", MASK)]
)
FUSED = DETECTIONS.append(pa.field("votes", pa.int8()))  # detectors that agree
ITEMS = pa.schema(
    [
        ("image_id", pa.int64()), ("item", pa.int32()), ("bbox", BOX), ("score", pa.float32()),
        ("category_id", pa.int8()), ("votes", pa.int8()),
    ]
)  # fmt: skip
RANKINGS = pa.schema(
    [
        ("query_image_id", pa.int64()), ("query_item", pa.int32()), ("query_bbox", BOX), ("query_score", pa.float32()),
        ("query_category_id", pa.int8()), ("gallery_image_id", pa.list_(pa.int64())), ("gallery_item", pa.list_(pa.int32())),
        ("gallery_bbox", pa.list_(BOX)), ("similarity", pa.list_(pa.float32())),
    ]
)  # fmt: skip
INDEX_IDS = pa.schema([("image_id", pa.int64()), ("item", pa.int32()), ("bbox", BOX)])  # row i: vector i of the index
FAILURES = pa.schema(
    [("image_id", pa.int64()), ("shard", pa.string()), ("stage", pa.string()), ("reason", pa.string())]
)


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
        flat = np.ascontiguousarray(values, kind.value_type.to_pandas_dtype()).reshape(-1)
        return pa.FixedSizeListArray.from_arrays(pa.array(flat, kind.value_type), kind.list_size)
    if isinstance(values, np.ndarray):
        return pa.array(values.astype(kind.to_pandas_dtype()), kind)
    return pa.array(values, kind)


def rows_of(column: pa.ChunkedArray) -> np.ndarray:
    """A column of fixed lists as (N, D) array."""
    whole = column.combine_chunks()
    whole = pa.concat_arrays(whole.chunks) if isinstance(whole, pa.ChunkedArray) else whole
    return whole.flatten().to_numpy(zero_copy_only=False).reshape(-1, column.type.list_size)


def write(store: ObjectStore, key: str, rows: pa.Table) -> str:
    """Publish a table; returns its BLAKE2b-128, hex. Compression and row groups are fixed, so equal rows are equal bytes."""
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd", compression_level=3, row_group_size=65_536)
    return publish(store, key, sink.getvalue().to_pybytes())


def publish(store: ObjectStore, key: str, data: bytes) -> str:
    """Write an object; returns its BLAKE2b-128, hex."""
    store.write(key, data)
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def read(store: ObjectStore, key: str, columns: list[str] | None = None) -> pa.Table:
    file = pq.ParquetFile(
        pa.BufferReader(store.read(key)), pre_buffer=False
    )  # threads would outlive a process that ends now
    return file.read(columns=columns, use_threads=False)
