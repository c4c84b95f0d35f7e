"""Marks: what says that a piece of work is finished."""

import json
from pathlib import Path

import pytest

from jobs.runs.marks import differences, read_marks
from store.objects import open_store


def test_differences_are_named_by_dotted_keys() -> None:
    old = {"fusion": {"iou_threshold": 0.55, "method": "wbf"}, "limit": None}
    new = {"fusion": {"iou_threshold": 0.6, "method": "wbf"}, "limit": 3}
    assert list(differences(old, new)) == ["fusion.iou_threshold", "limit"]


@pytest.mark.parametrize("content, counts", [
    ({"fingerprint": "x", "basis": {}, "outputs": {"a": "b"}, "failures": []}, True),
    ({"fingerprint": "x"}, True),
    ({"outputs": ["a"]}, False),
    ({"outputs": None}, False),
    ({"basis": "settings"}, False),
    ({"failures": {"image_id": 1}}, False),
    ([], False),
    (3, False),
    (None, False),
])  # fmt: skip
def test_json_that_is_no_mark_counts_as_none(tmp_path: Path, content: object, counts: bool) -> None:
    store = open_store(tmp_path)
    store.write("done/detect/a/shard-00000.json", json.dumps(content).encode())
    assert (read_marks(store) != {}) is counts
