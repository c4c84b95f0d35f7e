"""The log of a run has whole lines in parts that stay small, and failing storage ends no run.

Also the figures that Prometheus scrapes.
"""

import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import own_ray
import pytest

from jobs.runs import events
from jobs.runs.events import COUNTERS, GAUGES, Meter, RunLog
from store.objects import StorageError, open_store

REPO = Path(__file__).resolve().parents[3]
OF_RAY = {"ray_node_mem_used", "ray_node_disk_free"}  # every node's; and these where it has a GPU:
OF_GPUS = {"ray_node_gpus_utilization"}


def read(folder: Path) -> list[dict]:
    files = sorted((folder / "logs").iterdir())
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def test_every_event_is_a_line_with_its_time_and_stage(tmp_path: Path) -> None:
    log = RunLog(open_store(tmp_path))
    log.publish()
    assert not (tmp_path / "logs").exists()  # a start that does nothing leaves nothing
    log.add("shard", "detect", shard="shard-00000", images=3)
    log.publish()
    log.add("stage", "detect", images=3)
    log.publish()
    assert [(line["event"], line["stage"]) for line in read(tmp_path)] == [("shard", "detect"), ("stage", "detect")]
    assert all(line["time"].endswith("+00:00") for line in read(tmp_path))


def test_a_long_log_goes_on_in_another_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "PART_BYTES", 500)
    log = RunLog(open_store(tmp_path))
    for number in range(40):
        log.add("shard", "detect", shard=f"shard-{number:05d}")
        log.publish()
    assert len(list((tmp_path / "logs").iterdir())) > 3 and all(
        path.stat().st_size < 700 for path in (tmp_path / "logs").iterdir()
    )
    assert [line["shard"] for line in read(tmp_path)] == [f"shard-{number:05d}" for number in range(40)]


def test_storage_that_fails_costs_no_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = RunLog(open_store(tmp_path))
    log.add("loaded", "detect", actor=0)
    with monkeypatch.context() as away:
        away.setattr(type(log.store), "write", lambda *_: (_ for _ in ()).throw(StorageError("no space left")))
        log.publish()
    assert "no space left" in capsys.readouterr().err
    log.add("loaded", "detect", actor=1)
    log.publish()
    assert [line["actor"] for line in read(tmp_path)] == [0, 1]


def test_memory_is_told_in_megabytes() -> None:
    found = events.memory()
    assert 10 < found["rss_mb"] < 100_000 and found["peak_mb"] >= 0.5 * found["rss_mb"]


def test_the_peak_is_this_process_s_own_and_not_its_parent_s() -> None:
    big = bytearray(600_000_000)
    big[::4096] = b"x" * len(big[::4096])
    line = "from jobs.runs import events; print(events.memory()['peak_mb'])"
    peak = float(subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=True).stdout)
    assert events.memory()["peak_mb"] > 600 > peak


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a Ray's exporter, one without a dashboard."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    import ray

    port = own_ray.free_port()
    own_ray.init(num_cpus=1, _metrics_export_port=port)
    yield f"http://127.0.0.1:{port}/metrics"
    ray.shutdown()


def scraped(address: str, wanted: set[str]) -> dict[tuple[str, str, str], float]:
    """(name, stage, part) -> value, once all the wanted are there."""
    text, end = "", time.monotonic() + 120
    while time.monotonic() < end and not all(name in text for name in wanted):
        time.sleep(1.0)
        try:
            text = urllib.request.urlopen(address, timeout=10).read().decode()
        except OSError:
            continue
    found = {}
    for name, tags, value in re.findall(r"^(\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
        tag = dict(re.findall(r'(\w+)="([^"]*)"', tags))
        found[name, tag.get("stage", ""), tag.get("part", "")] = float(value)
    return found


@pytest.mark.slow
def test_ray_exports_what_the_dashboard_draws(exporter: str) -> None:
    meter = Meter("detect")
    parts = {"read_s": 0.5, "infer_s": 1.0, "write_s": 0.25, "waited_s": 0.125}
    for _ in range(2):
        meter.count("shard", {"images": 5, "failed": 1, "actor": 0, "rss_mb": 100.0} | parts)
    meter.count("died", {})
    meter.left(4)
    found = scraped(exporter, {f"ray_{name}" for name in COUNTERS | GAUGES} | OF_RAY)
    ours = {
        (name.removeprefix("ray_clothes_"), part): value
        for (name, stage, part), value in found.items()
        if stage == "detect"
    }
    assert ours == {
        ("photos_total", ""): 10, ("photos_failed_total", ""): 2, ("shards_total", ""): 2, ("deaths_total", ""): 1,
        ("shards_left", ""): 4, ("actor_rss_bytes", ""): 1e8, ("actor_seconds_total", "read"): 1.0,
        ("actor_seconds_total", "infer"): 2.0, ("actor_seconds_total", "write"): 0.5,
        ("actor_seconds_total", "waited"): 0.25,
    }  # fmt: skip
    asked = {name for expr in expressions() for name in re.findall(r"ray_\w+", expr)}
    assert asked - OF_GPUS <= {name for name, _, _ in found} and {
        f"ray_{name}" for name in COUNTERS | GAUGES
    } <= asked | {"ray_clothes_shards_total"}


def expressions() -> list[str]:
    board: dict[str, Any] = json.loads((REPO / "deploy" / "grafana.json").read_text())
    return [target["expr"] for panel in board["panels"] for target in panel["targets"]]
