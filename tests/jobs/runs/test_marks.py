"""Marks: what says that a piece of work is finished."""

import json
from pathlib import Path

import pytest

from jobs.runs.marks import differences, read_json, read_marks
from store.objects import open_store


def test_differences_are_named_by_dotted_keys() -> None:
    old = {"fusion": {"iou_threshold": 0.55, "method": "wbf"}, "limit": None}
    new = {"fusion": {"iou_threshold": 0.6, "method": "wbf"}, "limit": 3}
    assert list(differences(old, new)) == ["fusion.iou_threshold", "limit"]


MARK = {
    "fingerprint": "x", "basis": {}, "outputs": {"a": "b"}, "seconds": {}, "failures": [],
    "finished": "2030-01-02T03:04:05+00:00",
}  # fmt: skip


@pytest.mark.parametrize("content, counts", [
    (MARK, True),
    (MARK | {"seconds": {"read": 1, "infer": 0.5}, "failures": [{"image_id": 3, "reason": "no photo"}]}, True),
    (MARK | {"stamps": {"a": "c"}, "replaced": ["a"]}, True),
    (MARK | {"stamps": []}, False),
    (MARK | {"replaced": {}}, False),
    (MARK | {"outputs": ["a"]}, False),
    (MARK | {"outputs": None}, False),
    (MARK | {"basis": "settings"}, False),
    (MARK | {"failures": {"image_id": 1}}, False),
    (MARK | {"failures": [3]}, False),
    (MARK | {"failures": [{"reason": "no photo"}]}, False),
    (MARK | {"seconds": {"read": "1"}}, False),
    (MARK | {"finished": 3}, False),
    *[({name: value for name, value in MARK.items() if name != lacking}, False) for lacking in MARK],
    ([], False),
    (3, False),
    (None, False),
])  # fmt: skip
def test_json_that_is_no_mark_counts_as_none(tmp_path: Path, content: object, counts: bool) -> None:
    store = open_store(tmp_path)
    store.write("done/detect/a/shard-00000.json", json.dumps(content).encode())
    assert (read_marks(store) != {}) is counts


def test_json_that_is_nested_too_deeply_counts_as_none(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.write("night.json", b'{"a":' * 100_000)
    assert read_json(store, "night.json") is None
