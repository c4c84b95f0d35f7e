"""Events of a run: as lines of JSON under OUTPUT/logs/, and as figures for Prometheus.

The log is OUTPUT/logs/START-PID-000.jsonl, one file for each start of the job. The driver writes it from what actors
send with their answers, so one file holds the events of all of them, those of killed processes too. Every line has
`time` (UTC), `event` and `stage`, and by event:

    loaded    actor, node, pid, device, wall_s, rss_mb, peak_mb
    shard     actor, node, pid, shard, images, failed, began, wall_s, waited_s (time the actor was idle before it),
              read_s, infer_s, write_s, rss_mb, peak_mb, gpu_mb: the most that torch has held on a GPU;
              gpu_busy: share of the time in which any process ran a kernel on it;
              decoded_elsewhere: photos that decoders on other cores did for it
    died hung actor, node, pid, shard, row (if it was tried alone), deaths, reason
    again     a shard whose storage failed: shard, reason
    stage     images, failed, seconds, rss_mb, peak_mb of the driver, at the end of a stage

Lines gather in memory and are published whole, every half minute and at the end of a stage, because a bucket cannot
append. A file that has grown to a megabyte is closed and START-PID-001.jsonl goes on.

The figures for Prometheus go through Ray's own exporter: every node serves its own on the metrics port of `ray start`
(docs/watching.md), each name prefixed with `ray_`; `deploy/grafana.json` draws them. Where no Ray runs, none are
exported.
"""

import functools
import json
import os
import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from store.objects import ObjectStore

PUBLISH_EVERY_S = 30.0
PART_BYTES = 1_000_000  # a file is rewritten whole each time, so it must stay small in the longest run
PARTS = ("read", "infer", "write", "waited")  # of an actor's time
COUNTERS = {
    "clothes_photos_total": ("photos done", ("stage",)),
    "clothes_photos_failed_total": ("photos without a result", ("stage",)),
    "clothes_shards_total": ("shards done", ("stage",)),
    "clothes_deaths_total": ("actors that died or hung", ("stage",)),
    "clothes_actor_seconds_total": ("seconds of actors, by part: read, infer, write, waited", ("stage", "part")),
}
GAUGES = {
    "clothes_shards_left": ("shards of the stage not done yet", ("stage",)),
    "clothes_actor_rss_bytes": ("resident memory of an actor after its last shard", ("stage", "actor")),
}


@dataclass
class RunLog:
    """The log of one start."""

    store: ObjectStore
    lines: list[str] = field(default_factory=list)
    published: float = field(default_factory=time.monotonic)
    part: int = 0
    start: str = field(default_factory=lambda: f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{os.getpid()}")

    @property
    def key(self) -> str:
        return f"logs/{self.start}-{self.part:03d}.jsonl"

    def add(self, event: str, stage: str, **facts: Any) -> None:
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, "stage": stage} | facts
        self.lines.append(json.dumps(line, ensure_ascii=False, default=str))

    def tick(self) -> None:
        """Publish if the last time was half a minute ago."""
        if time.monotonic() - self.published >= PUBLISH_EVERY_S:
            self.publish()

    def publish(self) -> None:
        """Write all lines so far; if storage is out of reach, the next time writes them."""
        self.published = time.monotonic()
        if not self.lines:
            return
        text = ("\n".join(self.lines) + "\n").encode()
        try:
            self.store.write(self.key, text)
        except OSError as error:
            print(f"{self.key}: not written now ({error})", file=sys.stderr, flush=True)
            return
        if len(text) >= PART_BYTES:
            self.lines, self.part = [], self.part + 1


@dataclass
class Meter:
    """One stage's figures for Prometheus."""

    stage: str

    def count(self, event: str, facts: Mapping[str, Any]) -> None:
        """Add an event to the counters."""
        if event in ("died", "hung"):
            self._export("clothes_deaths_total", 1)
        if event != "shard":
            return
        self._export("clothes_shards_total", 1)
        self._export("clothes_photos_total", facts["images"])
        self._export("clothes_photos_failed_total", facts["failed"])
        for part in PARTS:
            self._export("clothes_actor_seconds_total", facts.get(f"{part}_s", 0.0), part=part)
        if "actor" in facts:
            self._export("clothes_actor_rss_bytes", facts["rss_mb"] * 1e6, actor=str(facts["actor"]))

    def left(self, shards: int) -> None:
        self._export("clothes_shards_left", shards)

    def _export(self, name: str, value: float, **tags: str) -> None:
        """Add to a counter, or set a gauge."""
        ray, tags = sys.modules.get("ray"), {"stage": self.stage} | tags
        if ray is None or not ray.is_initialized():
            return
        if name in GAUGES:
            _metric(name).set(value, tags=tags)
        elif value:
            _metric(name).inc(value, tags=tags)


@functools.cache
def _metric(name: str) -> Any:
    from ray.util import metrics

    kind = metrics.Gauge if name in GAUGES else metrics.Counter
    description, tags = (GAUGES | COUNTERS)[name]
    return kind(name, description=description, tag_keys=tags)


def memory() -> dict[str, float]:
    """This process's memory in MB (10^6 bytes): rss_mb now, peak_mb, and torch's peak on a GPU, where there is one."""
    try:  # after a fork, getrusage's peak includes the parent's
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        resident, peak = (int(status[name].split()[0]) * 1024 / 1e6 for name in ("VmRSS", "VmHWM"))
    except OSError:  # without /proc only the peak is known, in bytes on macOS
        unit = 1 if sys.platform == "darwin" else 1024
        resident = peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
    megabytes = {"rss_mb": round(resident, 1), "peak_mb": round(peak, 1)}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        megabytes["gpu_mb"] = round(torch.cuda.max_memory_allocated() / 1e6, 1)
    return megabytes
