"""Files that runs and galleries keep: whatever they hold, it is used, counts as absent, or is refused in one line."""

import json

import numpy as np
import pyarrow as pa
import pytest
from handmade import version
from hypothesis import given
from hypothesis import strategies as st

from jobs.runs import tables
from jobs.runs.lock import KEY, Lock, alive, described
from jobs.runs.marks import Outcome, Unit, as_json, mark_of, read_marks
from retrieval.gallery import open_gallery
from retrieval.gallery_files import GalleryError
from store.errors import UserError
from store.objects import open_store
from tests.fuzz import guard

BOXES = {"image_id": [1, 2], "bbox": [[0, 0, 2, 2], [1, 1, 3, 3]], "score": [0.5, 0.25], "category_id": [1, 13]}
UNIT = Unit("detect/near/shard-00000", ("detections/near/shard-00000.parquet",), {"code": 1, "settings": {"a": 1}}, 2)
MARK = mark_of(
    UNIT, Outcome({UNIT.outputs[0]: "00" * 16}, 2, {"read": 0.5}, ({"image_id": 1, "reason": "x"},)), {"x": "1 2"}
)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    store = open_store(tmp_path_factory.mktemp("valid"))
    tables.write(store, "x.parquet", tables.table(tables.DETECTIONS, BOXES))
    return store.read("x.parquet")


@guard.fuzzed()
@given(data=st.data())
def test_any_table_is_finite_or_refused(data, table, tmp_path_factory):
    store = open_store(tmp_path_factory.getbasetemp() / "tables")
    store.write("x.parquet", data.draw(guard.broken([table])))
    guard.inputs["test_run_files"] += 1
    try:
        rows = tables.read(store, "x.parquet")
    except UserError as error:
        assert "\n" not in str(error) and "delete it and start the run again" in str(error)
        return
    for name in {"bbox", "score"} & {*rows.column_names}:
        column = rows.column(name).combine_chunks().drop_null()
        numbers = column.flatten() if pa.types.is_nested(column.type) else column
        if pa.types.is_floating(numbers.type):
            assert np.isfinite(numbers.drop_null().to_numpy(zero_copy_only=False)).all()


@guard.fuzzed()
@given(content=guard.replaced(MARK))
def test_any_mark_is_a_mark_or_none(content, tmp_path_factory):
    store = open_store(tmp_path_factory.getbasetemp() / "marks")
    store.write(UNIT.mark_key, json.dumps(content).encode("utf-8", "surrogatepass"))
    guard.inputs["test_run_files"] += 1
    for mark in read_marks(store).values():
        assert dict(mark.get("outputs", {})) is not None and list(mark.get("failures", [])) is not None
        assert as_json(mark.get("basis") is None)


@guard.fuzzed()
@given(content=st.one_of(guard.replaced(json.loads(Lock(open_store("/nowhere"))._content())), guard.ODD))
def test_any_lock_has_a_holder_or_none(content, tmp_path_factory):
    store = open_store(tmp_path_factory.getbasetemp() / "locks")
    store.write(KEY, json.dumps(content).encode("utf-8", "surrogatepass"))
    guard.inputs["test_run_files"] += 1
    holder = Lock(store).holder()
    assert alive(holder) in (True, False) and described(holder).startswith("run ")


@guard.fuzzed()
@given(data=st.data())
def test_any_version_opens_or_is_a_gallery_error(data, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "versions"
    store = open_store(folder)
    if not store.exists("CURRENT"):
        store.write("record", json.dumps(version(store, "000001-x", [1, 2, 3])).encode())
        store.write("CURRENT", b'{"version": "000001-x"}')
    record = data.draw(guard.replaced(json.loads(store.read("record"))))
    store.write("versions/000001-x/version.json", json.dumps(record).encode("utf-8", "surrogatepass"))
    guard.inputs["test_run_files"] += 1
    try:
        assert len(open_gallery(folder)) == 3
    except GalleryError as error:
        assert str(folder) in str(error)
