"""What status says of a run's folder; what it says when a file in it was not written by a run."""

import json
from pathlib import Path
from typing import Any

import pytest

from jobs import status
from jobs.runs import lock
from store.errors import UserError
from store.objects import ObjectStore, open_store

RUN: dict[str, Any] = {
    "imagesets": [{"uri": "runs/set", "digest": "ab", "images": 3, "shards": 2}], "selected": {"rows": None},
    "settings": {}, "detectors": [{"name": "near"}], "embedders": [], "boxes": ["true"], "versions": {},
    "recorded": "2030-01-02T03:04:05+00:00",
}  # fmt: skip
MARK: dict[str, Any] = {
    "fingerprint": "x", "basis": {}, "outputs": {}, "seconds": {"read": 0.25, "infer": 2.0},
    "failures": [{"image_id": 7, "reason": "no photo"}], "finished": "2030-01-02T04:00:00+00:00",
}  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    store = open_store(tmp_path)
    put(store, "run.json", RUN)
    put(store, "done/detect/near/shard-00000.json", MARK)
    return store


def put(store: ObjectStore, key: str, content: Any) -> None:
    store.write(key, json.dumps(content).encode())


def said(store: ObjectStore, capsys: pytest.CaptureFixture[str]) -> str:
    assert status.main([store.uri]) == 0
    return capsys.readouterr().out


def test_a_run_half_done(store: ObjectStore, capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(store, capsys).splitlines()
    assert lines[0].endswith("3 images of runs/set in 2 shards, settings of 2030-01-02T03:04:05+00:00")
    assert lines[1] == "  nobody is at work"
    assert lines[2] == "  detect        1 of 2 done, 1 failed, infer 2 s, last 2030-01-02T04:00:00+00:00"


def test_a_lock_of_another_shape_counts_as_none(store: ObjectStore, capsys: pytest.CaptureFixture[str]) -> None:
    held = {"token": "a", "host": "elsewhere", "name": "elsewhere", "pid": 7, "beat": 1e9}
    put(store, lock.KEY, held)
    assert "run 7 on elsewhere last gave a sign of life at 1000000000 (seconds" in said(store, capsys)
    put(store, lock.KEY, held | {"beat": "now"})
    assert "nobody is at work" in said(store, capsys)


def test_a_mark_of_another_shape_counts_as_none(store: ObjectStore, capsys: pytest.CaptureFixture[str]) -> None:
    put(store, "done/detect/near/shard-00000.json", {name: MARK[name] for name in MARK if name != "seconds"})
    assert "  detect        0 of 2 done\n" in said(store, capsys)


@pytest.mark.parametrize("lacking", ["imagesets", "recorded", "images"])
def test_a_run_json_of_another_shape_is_refused(store: ObjectStore, lacking: str) -> None:
    whole = RUN | {"imagesets": [{name: value for name, value in RUN["imagesets"][0].items() if name != lacking}]}
    put(store, "run.json", {name: value for name, value in whole.items() if name != lacking})
    with pytest.raises(UserError, match=r"run\.json is no record of a run"):
        status.main([store.uri])


@pytest.mark.parametrize("metrics", [{"summary": [1]}, {"summary": None}, {"summary": {"AP50": "x", "Acc@1": 0.5}}])
def test_figures_of_another_shape_are_left_out(
    store: ObjectStore, metrics: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    put(store, "metrics.json", metrics)
    lines = said(store, capsys).splitlines()
    assert lines[8:] == (["  Acc@1: 0.500"] if isinstance(metrics["summary"], dict) else [])
