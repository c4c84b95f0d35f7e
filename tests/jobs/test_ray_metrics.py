"""What a Prometheus would scrape from a running stage, and that the dashboard file asks for nothing else."""

import json
import re
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import own_ray
import pytest

from jobs.ray_metrics import COUNTERS, GAUGES, Meter

REPO = Path(__file__).resolve().parents[2]
OF_RAY = {"ray_node_mem_used", "ray_node_disk_free"}  # every node's; and these where it has a GPU:
OF_GPUS = {"ray_node_gpus_utilization"}

pytestmark = pytest.mark.slow


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a Ray's exporter, one without a dashboard."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    import ray

    port = own_ray.free_port()
    ray.init("local", num_cpus=1, include_dashboard=False, object_store_memory=100_000_000, _metrics_export_port=port)
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


def test_ray_exports_what_the_dashboard_draws(exporter: str) -> None:
    meter = Meter("detect")
    parts = {"read_s": 0.5, "infer_s": 1.0, "write_s": 0.25, "waited_s": 0.125}
    for _ in range(2):
        meter.tell("shard", {"images": 5, "failed": 1, "actor": 0, "rss_mb": 100.0} | parts)
    meter.tell("died", {})
    meter.left(4)
    found = scraped(exporter, {f"ray_{name}" for name in COUNTERS | GAUGES} | OF_RAY)
    ours = {
        (name.removeprefix("ray_clothes_"), part): value
        for (name, stage, part), value in found.items()
        if stage == "detect"
    }
    assert ours == {
        ("photos_total", ""): 10, ("photos_failed_total", ""): 2, ("shards_total", ""): 2, ("deaths_total", ""): 1,
        ("shards_left", ""): 4, ("actor_rss_bytes", ""): 1e8, ("actor_seconds_total", "read"): 1.0, ("actor_seconds_total", "infer"): 2.0,
        ("actor_seconds_total", "write"): 0.5, ("actor_seconds_total", "waited"): 0.25,
    }  # fmt: skip
    asked = {name for expr in expressions() for name in re.findall(r"ray_\w+", expr)}
    assert asked - OF_GPUS <= {name for name, _, _ in found} and {
        f"ray_{name}" for name in COUNTERS | GAUGES
    } <= asked | {"ray_clothes_shards_total"}


def expressions() -> list[str]:
    board: dict[str, Any] = json.loads((REPO / "deploy" / "grafana.json").read_text())
    return [target["expr"] for panel in board["panels"] for target in panel["targets"]]
