"""run.json read back, of this program and of earlier ones; what is no record."""

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.runs.marks import expected
from jobs.runs.run_record import digests, read_record
from store.errors import UserError
from store.objects import open_store

SELECTED = {"limit": None, "rows": None, "users": 1, "shops": 2, "items": 3}
PART = {"uri": "runs/set", "digest": "ab", "images": 3, "shards": 2}


RECORD = {
    "schema": 2, "imagesets": [PART], "selected": SELECTED, "settings": {"limit": None},
    "detectors": [{"name": "near"}], "embedders": [], "boxes": ["true"], "versions": {},
    "recorded": "2030-01-02T03:04:05+00:00",
}  # fmt: skip


def read(folder: Path, content: Any) -> dict[str, Any]:
    (folder / "run.json").write_text(json.dumps(content))
    return read_record(open_store(folder))


def test_an_earlier_record_reads_as_one_of_one_set(tmp_path: Path) -> None:
    now = read(tmp_path, RECORD)
    older = {name: value for name, value in RECORD.items() if name not in ("imagesets", "selected")}
    assert read(tmp_path, older | {"schema": 1, "imageset": PART | {"selected": SELECTED}}) == now == RECORD
    assert digests(now) == ["ab"]
    assert read_record(open_store(tmp_path / "absent")) == {} and digests({}) == []


def test_marks_of_several_sets_are_expected(tmp_path: Path) -> None:
    record = read(tmp_path, RECORD | {"imagesets": [PART, PART | {"shards": 1}]})
    assert expected(record)["fuse"] == {"fuse/shard-00000", "fuse/shard-00001", "fuse/set1-shard-00000"}
    record["selected"] = SELECTED | {"rows": {"set1-shard-00000": [4]}}
    assert expected(record)["detect"] == {"detect/near/set1-shard-00000"}


@pytest.mark.parametrize("content", [
    {"imageset": ["a"]}, {"imageset": {"selected": [1]}},
    *[
        RECORD | wrong for wrong in (
            {"imageset": PART}, {"imagesets": {"uri": "a"}}, {"imagesets": ["a"]},
            {"imagesets": [PART | {"images": "3"}]}, {"selected": 3},
            {"selected": {"rows": [1]}}, {"detectors": ["near"]}, {"embedders": [{}]}, {"boxes": [1]},
            {"versions": []},
        )
    ],
    *[{name: value for name, value in RECORD.items() if name != lacking} for lacking in RECORD if lacking != "schema"],
])  # fmt: skip
def test_what_is_no_record_is_refused(tmp_path: Path, content: Any) -> None:
    with pytest.raises(UserError, match=r"run\.json is no record of a run; choose another --output"):
        read(tmp_path, content)
