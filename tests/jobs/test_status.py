"""What status says of a run's folder; what it says when a file in it was not written by a run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import stand_ins

from jobs import status
from jobs.runs import lock
from store.errors import UserError
from store.imageset import open_imageset
from store.imageset_write import removal_of, update_imageset
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


def test_an_update_of_the_set_leaves_numbers_out(
    tmp_path: Path, calls: list, full: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    stand_ins.imageset(tmp_path / "set", n=8, max_images=2)
    images = open_imageset(tmp_path / "set")
    gone = images.read("shard-00001", ["image_id"])["image_id"].to_pylist()
    update_imageset(images, [], removal_of(images, gone), source=images.manifest.source)
    assert full(tmp_path / "set", tmp_path / "run", "--set", "max_failed_share=1") == 0
    capsys.readouterr()
    assert status.main([str(tmp_path / "run"), "--json"]) == 0
    stages = json.loads(capsys.readouterr().out)["stages"]
    assert len(open_imageset(tmp_path / "set").shards) == 4 and stages["fuse"]["of"] == 4
    assert all(stage["done"] == stage["of"] for stage in stages.values())


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


def test_a_run_as_json(store: ObjectStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert status.main([store.uri, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["kind"], told["at_work"]) == ("run", None)
    assert told["stages"]["detect"] == {
        "done": 1, "of": 2, "failed": 1, "seconds": {"read": 0.25, "infer": 2.0}, "last": "2030-01-02T04:00:00+00:00",
    }  # fmt: skip


@pytest.fixture
def gallery(tmp_path: Path) -> ObjectStore:
    """Two nights, the first of which published."""
    store = open_store(tmp_path / "gallery")
    name = "000001-20300102T000000Z"
    record = {
        "schema": 1, "name": name, "files": {}, "index": {"kind": "flat"}, "rows": 1200, "photos": 1000, "results": "r",
        "created": 1e9, "parameters": {}, "models": [], "detectors": [], "search": {}, "categories": ["skirt"],
    }  # fmt: skip
    put(store, "CURRENT", {"version": name, "history": []})
    put(store, f"versions/{name}/version.json", record)
    put(store, f"nights/{name}.json", {"status": "published", "version": name, "added": 1000, "advice": ""})
    put(store, "nights/000002-20300103T000000Z.json", {"status": "refused", "version": name, "added": 7, "failed": 7})
    return store


def test_a_gallery(gallery: ObjectStore, capsys: pytest.CaptureFixture[str]) -> None:
    first, night, worker = said(gallery, capsys).splitlines()
    assert "version 000001-20300102T000000Z, 1,200 garments of 1,000 photos, index flat, written " in first
    assert night.endswith(": status refused, version 000001-20300102T000000Z, added 7, failed 7")
    assert worker == "  nobody is at work"


def test_a_gallery_whose_night_is_at_work(gallery: ObjectStore, capsys: pytest.CaptureFixture[str]) -> None:
    """The run of its models is in work/."""
    put(gallery, "work/run.json", RUN)
    put(gallery, "work/done/detect/near/shard-00000.json", MARK)
    assert status.main([gallery.uri, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["work"] is None, "left by a killed night"
    put(gallery, lock.KEY, {"token": "a", "host": "elsewhere", "name": "elsewhere", "pid": 7, "beat": 1e9})
    assert status.main([gallery.uri, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["at_work"] == {"who": "run 7 on elsewhere", "alive": None, "beat": 1e9}
    assert (told["items"], told["work"]["stages"]["detect"]["done"]) == (1200, 1)
    assert "    detect        1 of 2 done, 1 failed" in said(gallery, capsys)


def test_a_gallery_before_its_first_version(gallery: ObjectStore, capsys: pytest.CaptureFixture[str]) -> None:
    gallery.delete("CURRENT")
    assert said(gallery, capsys).splitlines()[0].endswith(": no version is published")


def test_a_place_that_holds_neither(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no run \(no run\.json\) and no gallery \(no CURRENT\)"):
        status.main([str(tmp_path)])
