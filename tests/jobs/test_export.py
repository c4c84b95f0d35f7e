"""The command: a finished run as files for other software, in a folder and in a bucket."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs import export
from jobs.exports import files
from store.errors import UserError
from store.objects import open_store
from tests.jobs.exports.test_coco import AP, figures

KINDS = ("detected", "true")
RANKINGS = ("coarse", "fine", "concat")
NAMES = {
    "coco": {"detections-near.json", "detections-far.json", "fused.json", "truth.json"},
    "trec": {f"{kind}-{name}.run" for kind in KINDS for name in RANKINGS} | {f"{kind}.qrels" for kind in KINDS},
    "csv": {f"rankings-{kind}-{name}.csv" for kind in KINDS for name in RANKINGS},
}


@pytest.fixture
def finished(small_set: Path, tmp_path: Path, full: Callable[..., int], calls: list) -> Path:
    assert full(small_set, tmp_path / "run", "--set", "max_failed_share=1") == 0
    return tmp_path / "run"


def test_every_format_to_a_folder_and_a_bucket(finished: Path, s3_bucket: str, tmp_path: Path) -> None:
    for to, names in NAMES.items():
        for place in (str(tmp_path / to), f"{s3_bucket}/{to}"):
            assert export.main([str(finished), "--to", to, place]) == 0
        folder, bucket = open_store(tmp_path / to), open_store(f"{s3_bucket}/{to}")
        assert {info.key for info in folder.list()} == {info.key for info in bucket.list()} == names
        assert all(folder.read(name) == bucket.read(name) for name in names)


def test_figures_and_rankings_are_those_of_the_run(finished: Path, tmp_path: Path) -> None:
    export.main([str(finished), "--to", "coco", str(tmp_path / "coco")])
    detection = json.loads((finished / "metrics.json").read_text())["detection"]
    for name, file in {"near": "detections-near", "far": "detections-far", "fused": "fused"}.items():
        found = figures(tmp_path / "coco" / "truth.json", str(tmp_path / "coco" / f"{file}.json"))
        assert found == [detection[name][figure] for figure in AP]

    export.main([str(finished), "--to", "csv", str(tmp_path / "csv"), "--boxes", "true", "--model", "concat"])
    (path,) = (tmp_path / "csv").iterdir()
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    first = [row["right"] for row in rows if row["rank"] == "1"]
    accuracy = json.loads((finished / "metrics.json").read_text())["retrieval"]["true"]["concat"]["top"]["1"]
    assert path.name == "rankings-true-concat.csv" and first.count("1") / 12 == accuracy


def test_nothing_is_overwritten_unasked(finished: Path, tmp_path: Path) -> None:
    line = [str(finished), "--to", "coco", str(tmp_path / "coco")]
    fused = tmp_path / "coco" / "fused.json"
    fused.parent.mkdir()
    fused.write_text("mine")
    with pytest.raises(UserError, match=r"coco holds fused.json already; choose another place, or --overwrite"):
        export.main(line)
    assert [path.name for path in fused.parent.iterdir()] == ["fused.json"] and fused.read_text() == "mine"
    assert export.main([*line, "--overwrite"]) == 0
    assert len(json.loads(fused.read_text())) > 0


def test_a_file_that_is_not_finished_does_not_appear(tmp_path: Path) -> None:
    store = open_store(tmp_path / "to")
    with pytest.raises(KeyboardInterrupt), files.publish_text(store, "a.csv") as file:
        file.write("half a line")
        raise KeyboardInterrupt
    assert store.list() == []


def test_what_is_no_finished_run_is_refused_in_a_line(finished: Path, tmp_path: Path) -> None:
    for place, message in ((tmp_path, "no run.json"), (finished, "its true boxes are not ranked yet; finish the run")):
        (finished / "done" / "rank" / "true" / "shard-00000.json").unlink(missing_ok=True)
        with pytest.raises(UserError, match=message):
            export.main([str(place), "--to", "csv", str(tmp_path / "csv")])
    assert not (tmp_path / "csv").exists()


@pytest.mark.parametrize("line, message", [
    (["--to", "coco", "--boxes", "true"], "--boxes chooses rankings, and --to coco writes detections; leave it out"),
    (["--to", "xml"], "invalid choice: 'xml'"),
])  # fmt: skip
def test_a_mistake_in_the_line(line: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        export.main(["run", "to", *line])
    assert ended.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize("key, says", [
    ("run.json", r"holds a run \(run.json\), want an export or an empty place"),
    ("manifest.json", "holds an image set"),
    ("versions/0001/x", "holds a gallery"),
    ("shop/1.jpg", "holds shop/1.jpg, which is no file of an export; choose an empty place"),
    ("notes.csv", "holds notes.csv, which is no file of an export"),
    ("old/fused.json", "holds old/fused.json, which is no file of an export"),
])  # fmt: skip
def test_a_place_with_anything_else_is_refused(tmp_path: Path, key: str, says: str) -> None:
    store = open_store(tmp_path)
    store.write("fused.json", b"")
    files.refuse_foreign(store)
    store.write(key, b"")
    with pytest.raises(UserError, match=says):
        files.refuse_foreign(store)


def test_a_set_that_has_moved_is_named_again(finished: Path, small_set: Path, tmp_path: Path) -> None:
    record = json.loads((finished / "run.json").read_text())
    record["imagesets"][0]["uri"] = str(tmp_path / "before")
    (finished / "run.json").write_text(json.dumps(record))
    line = [str(finished), "--to", "trec", str(tmp_path / "trec")]
    with pytest.raises(UserError, match=r"no image set at .*before .*where it is now \(--imageset, once for each set"):
        export.main(line)
    assert export.main([*line, "--imageset", str(small_set)]) == 0


def test_the_command_refuses_the_runs_own_folder(finished: Path) -> None:
    with pytest.raises(UserError, match="holds a run"):
        export.main([str(finished), "--to", "coco", str(finished), "--overwrite"])
