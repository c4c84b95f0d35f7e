"""A run's tables: the same rows give the same bytes, and what cannot be trusted is named when it is read."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from jobs.runs import tables
from store.errors import UserError
from store.objects import ObjectStore, open_store

BOX = [0.0, 0.0, 2.0, 2.0]


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(tmp_path)


def write(store: ObjectStore, schema: pa.Schema, **columns: object) -> str:
    return tables.write(store, "x.parquet", tables.table(schema, columns))


def test_equal_rows_give_equal_bytes_and_come_back(store: ObjectStore) -> None:
    digests = [
        write(store, tables.DETECTIONS, image_id=[1], bbox=[BOX], score=[0.5], category_id=[13]) for _ in range(2)
    ]
    assert digests[0] == digests[1]
    assert tables.read(store, "x.parquet").to_pylist() == [
        {"image_id": 1, "bbox": BOX, "score": 0.5, "category_id": 13, "mask": None}
    ]
    assert tables.read(store, "x.parquet", ["score"]).column_names == ["score"]


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("schema, column, values", [
    (tables.DETECTIONS, "bbox", lambda bad: [BOX, [0.0, 0.0, bad, 1.0]]),
    (tables.DETECTIONS, "score", lambda bad: [0.5, bad]),
    (tables.FUSED, "bbox", lambda bad: [BOX, [bad] * 4]),
    (tables.ITEMS, "score", lambda bad: [0.5, bad]),
    (tables.embeddings_schema(2, "float16"), "embedding", lambda bad: [[0.0, 1.0], [0.0, bad]]),
    (tables.embeddings_schema(2, "float32"), "embedding", lambda bad: [[0.0, 1.0], [bad, 0.0]]),
    (tables.RANKINGS, "similarity", lambda bad: [[0.5, 0.25], [bad]]),
    (tables.RANKINGS, "gallery_bbox", lambda bad: [[BOX], [BOX, [bad] * 4]]),
])  # fmt: skip
def test_a_number_that_is_not_finite_is_refused(
    store: ObjectStore, schema: pa.Schema, column: str, values: object, number: float
) -> None:
    boxes = {name: [BOX, BOX] for name in ("bbox", "query_bbox") if name in schema.names}
    write(store, schema, **boxes | {schema.names[0]: [1, 2], column: values(number)})  # type: ignore[operator]
    with pytest.raises(UserError, match=rf"x.parquet: {column} has a number that is not finite; delete it and start"):
        tables.read(store, "x.parquet")
    with pytest.raises(UserError, match=rf"x.parquet: {column} has a number that is not finite; delete it and start"):
        list(tables.read_blocks(store, "x.parquet", 1))


@pytest.mark.parametrize("n_rows, want", [(1, [1, 1, 1]), (2, [2, 1]), (3, [3]), (9, [3])])
def test_a_table_in_blocks(store: ObjectStore, n_rows: int, want: list[int]) -> None:
    write(store, tables.DETECTIONS, image_id=[1, 2, 3], bbox=[BOX] * 3, score=[0.5] * 3, category_id=[1] * 3)
    blocks = list(tables.read_blocks(store, "x.parquet", n_rows))
    assert [len(block) for block in blocks] == want
    assert pa.concat_tables(blocks) == tables.read(store, "x.parquet")


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1garbagePAR1", b"no table at all"])
def test_a_damaged_table_is_named(store: ObjectStore, data: bytes) -> None:
    store.write("x.parquet", data)
    with pytest.raises(UserError, match=rf"x.parquet: {len(data)} bytes that are no Parquet table .*; delete it and"):
        tables.read(store, "x.parquet")
    with pytest.raises(UserError, match=rf"x.parquet: {len(data)} bytes that are no Parquet table .*; delete it and"):
        list(tables.read_blocks(store, "x.parquet", 1))
