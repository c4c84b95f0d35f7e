"""Figures of a running stage for Prometheus, through Ray's own exporter: what `deploy/grafana.json` draws.

Ray prefixes each name with `ray_`; every node serves its own on the metrics port of `ray start` (docs/watching.md). Where no Ray runs, as
for stages that this process does alone, nothing is exported.
"""

import functools
import sys
from collections.abc import Mapping
from typing import Any

PARTS = ("read", "infer", "write", "waited")
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


class Meter:
    """One stage's figures."""

    def __init__(self, stage: str) -> None:
        self.stage = stage

    def tell(self, event: str, facts: Mapping[str, Any]) -> None:
        """Count an event of `jobs.run_log`."""
        if event in ("died", "hung"):
            self._count("clothes_deaths_total", 1)
        if event != "shard":
            return
        self._count("clothes_shards_total", 1)
        self._count("clothes_photos_total", facts["images"])
        self._count("clothes_photos_failed_total", facts["failed"])
        for part in PARTS:
            self._count("clothes_actor_seconds_total", facts.get(f"{part}_s", 0.0), part=part)
        if "actor" in facts:
            self._set("clothes_actor_rss_bytes", facts["rss_mb"] * 1e6, actor=str(facts["actor"]))

    def left(self, shards: int) -> None:
        self._set("clothes_shards_left", shards)

    def _count(self, name: str, by: float, **tags: str) -> None:
        if by and _ray_runs():
            _metric("Counter", name).inc(by, tags={"stage": self.stage} | tags)

    def _set(self, name: str, to: float, **tags: str) -> None:
        if _ray_runs():
            _metric("Gauge", name).set(to, tags={"stage": self.stage} | tags)


def _ray_runs() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


@functools.cache
def _metric(kind: str, name: str) -> Any:
    from ray.util import metrics

    about, tags = (COUNTERS if kind == "Counter" else GAUGES)[name]
    return getattr(metrics, kind)(name, description=about, tag_keys=tags)
