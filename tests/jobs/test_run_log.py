"""The file a run leaves about itself: whole lines, in parts that stay small, and no storage that fails ends a run for it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import run_log
from jobs.run_log import RunLog
from store.objects import StorageError, open_store


def read(folder: Path) -> list[dict]:
    files = sorted((folder / "logs").iterdir())
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def test_every_event_is_a_line_with_its_time_and_stage(tmp_path: Path) -> None:
    log = RunLog(open_store(tmp_path))
    log.publish()
    assert not (tmp_path / "logs").exists()  # a start that does nothing leaves nothing
    log.tell("shard", "detect", shard="shard-00000", images=3)
    log.publish()
    log.tell("stage", "detect", images=3)
    log.publish()
    assert [(line["event"], line["stage"]) for line in read(tmp_path)] == [("shard", "detect"), ("stage", "detect")]
    assert all(line["time"].endswith("+00:00") for line in read(tmp_path))


def test_a_long_log_goes_on_in_another_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_log, "PART_BYTES", 500)
    log = RunLog(open_store(tmp_path))
    for number in range(40):
        log.tell("shard", "detect", shard=f"shard-{number:05d}")
        log.publish()
    assert len(list((tmp_path / "logs").iterdir())) > 3 and all(
        path.stat().st_size < 700 for path in (tmp_path / "logs").iterdir()
    )
    assert [line["shard"] for line in read(tmp_path)] == [f"shard-{number:05d}" for number in range(40)]


def test_storage_that_fails_costs_no_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = RunLog(open_store(tmp_path))
    log.tell("loaded", "detect", actor=0)
    with monkeypatch.context() as away:
        away.setattr(type(log.store), "write", lambda *_: (_ for _ in ()).throw(StorageError("no space left")))
        log.publish()
    assert "no space left" in capsys.readouterr().err
    log.tell("loaded", "detect", actor=1)
    log.publish()
    assert [line["actor"] for line in read(tmp_path)] == [0, 1]


def test_memory_is_told_in_megabytes() -> None:
    found = run_log.memory()
    assert 10 < found["rss_mb"] < 100_000 and found["peak_mb"] >= 0.5 * found["rss_mb"]


def test_the_peak_is_this_process_s_own_and_not_its_parent_s() -> None:
    big = bytearray(600_000_000)
    big[::4096] = b"x" * len(big[::4096])
    line = "from jobs import run_log; print(run_log.memory()['peak_mb'])"
    peak = float(subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=True).stdout)
    assert run_log.memory()["peak_mb"] > 600 > peak
