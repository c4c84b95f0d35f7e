"""Files that a `from` names: whatever they hold, rows are read, wrong ones are told apart, or one line refuses them."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import detection.stored
import retrieval.stored
from store.errors import UserError
from tests.fuzz import guard

ROWS = [
    {"image_id": 1, "category_id": 2, "bbox": [1.0, 2.0, 3.0, 4.0], "score": 0.5},
    {"image_id": 2, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 1,
     "segmentation": {"size": [9, 9], "counts": "abc"}},
]  # fmt: skip
TRUTH = {
    "images": [{"id": 1, "file_name": "a.png"}],
    "categories": [{"id": 1, "name": "cape"}, {"id": 2, "name": "hat"}],
}


def parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


BOXES = parquet(pa.table({
    "image_id": [1, 2], "bbox": [[0.0, 0.0, 2.0, 2.0], [1.0, 1.0, 3.0, 3.0]], "score": [0.5, 0.25],
    "category": ["cape", "hat"],
}))  # fmt: skip
EMBEDDINGS = parquet(pa.table({"image_id": [1, 2], "item": [0, 0], "embedding": [[1.0, 2.0], [0.0, 3.0]]}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stored")


def detections_are_sound_or_refused(**entry: str) -> None:
    guard.inputs["test_stored"] += 1
    try:
        spec, _ = detection.stored.from_fields({"name": "x"} | entry).found(None)
        read = detection.stored.read(spec, None)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000
        return
    sound = np.array([not reason for reason in read.wrong], bool)
    assert np.isfinite(read.boxes[sound]).all() and (read.boxes[sound, 2:] >= read.boxes[sound, :2]).all()
    assert ((read.scores[sound] >= 0) & (read.scores[sound] <= 1)).all()
    assert all(image is None or isinstance(image, int | str) for image in read.image)


@guard.fuzzed()
@given(content=guard.replaced(ROWS))
def test_any_coco_results(content, folder):
    (folder / "b.json").write_bytes(json.dumps(content).encode("utf-8", "surrogatepass"))
    detections_are_sound_or_refused(**{"from": str(folder / "b.json")})


@guard.fuzzed()
@given(content=guard.replaced(TRUTH), rows=guard.replaced(ROWS, 1))
def test_any_ground_truth(content, rows, folder):
    (folder / "b.json").write_bytes(json.dumps(rows).encode("utf-8", "surrogatepass"))
    (folder / "t.json").write_bytes(json.dumps(content).encode("utf-8", "surrogatepass"))
    detections_are_sound_or_refused(**{"from": str(folder / "b.json"), "images": str(folder / "t.json")})


@guard.fuzzed()
@given(data=st.data())
def test_any_table_of_boxes(data, folder):
    (folder / "b.parquet").write_bytes(data.draw(guard.broken([BOXES])))
    detections_are_sound_or_refused(**{"from": str(folder / "b.parquet")})


@guard.fuzzed()
@given(data=st.data())
def test_any_table_of_embeddings(data, folder):
    (folder / "e.parquet").write_bytes(data.draw(guard.broken([EMBEDDINGS])))
    guard.inputs["test_stored"] += 1
    try:
        spec, _ = retrieval.stored.from_fields({"name": "x", "from": str(folder / "e.parquet")}).found(None)
        read = retrieval.stored.read(spec, None)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000
        return
    sound = np.ones(len(read.image_id), bool)
    sound[list(read.wrong)] = False
    np.testing.assert_allclose(np.linalg.norm(read.embeddings[sound], axis=1), 1, atol=1e-5)
    assert not read.embeddings[~sound].any()
