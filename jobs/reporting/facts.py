"""What a run took and what it ran on: time per stage, what its logs tell of actors, images without a result, versions.

In: metrics.json, run.json, failures.parquet, logs/ of a run. Out: rows to print.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow.parquet as pq

from store.objects import ObjectStore

STAGES = ("detect", "fuse", "embed", "rank", "evaluate", "report")
MAX_FAILURES = 50


@dataclass(frozen=True)
class StageTime:
    """A stage's worker seconds, images per such second (None: not known), and its share of all stages in [0, 1]."""

    stage: str
    seconds: float
    rate: float | None
    share: float


@dataclass
class StageLog:
    """What the logs tell of a stage, all starts of the job together.

    Attributes:
        busy: share of the actors' time not spent waiting for a shard, in [0, 1]; None without any.
        peak_mb: most that one process held, in 10^6 bytes.
    """

    stage: str
    shards: int = 0
    images: int = 0
    wall_s: float = 0.0
    waited_s: float = 0.0
    peak_mb: float = 0.0
    gpu_mb: float = 0.0
    gpu_wall_s: float = 0.0  # of shards that tell how busy their GPU was
    gpu_busy_s: float = 0.0
    deaths: int = 0
    again: int = 0
    actors: set[str] = field(default_factory=set)

    @property
    def busy(self) -> float | None:
        whole = self.wall_s + self.waited_s
        return self.wall_s / whole if whole else None

    @property
    def gpu_busy(self) -> float | None:
        """Share of the shards' time in which a kernel ran on their GPU, in [0, 1]; None where none told."""
        return self.gpu_busy_s / self.gpu_wall_s if self.gpu_wall_s else None


def stage_times(metrics: dict[str, Any]) -> list[StageTime]:
    seconds = {stage: s for stage, s in (metrics.get("seconds") or {}).items() if s is not None}
    done, whole = (metrics.get("images") or {}).get("done"), sum(seconds.values())
    ordered = sorted(seconds, key=lambda stage: STAGES.index(stage) if stage in STAGES else len(STAGES))
    return [
        StageTime(
            s, seconds[s], done / seconds[s] if done and seconds[s] > 0 else None, seconds[s] / whole if whole else 0.0
        )
        for s in ordered
    ]


def log_keys(output: ObjectStore) -> list[str]:
    return sorted(entry.key for entry in output.list("logs/") if entry.key.endswith(".jsonl"))


def stage_logs(output: ObjectStore, keys: list[str]) -> list[StageLog]:
    """Add the logs up, one file in memory at a time; lines that are cut off are passed over."""
    found: dict[str, StageLog] = {}
    for key in keys:
        for line in _lines(output.read(key)):
            stage = str(line.get("stage"))
            _add(found.setdefault(stage, StageLog(stage)), line)
    order = [*STAGES, *sorted(set(found) - set(STAGES))]
    return [found[stage] for stage in order if stage in found]


def failures(output: ObjectStore) -> dict[str, Any] | None:
    """The first rows of failures.parquet and how many there are; None without the file."""
    if not output.exists("failures.parquet"):
        return None
    with output.open("failures.parquet") as file:
        table = pq.ParquetFile(file)
        batches = table.iter_batches(batch_size=MAX_FAILURES, columns=["image_id", "shard", "stage", "reason"])
        return {"total": table.metadata.num_rows, "rows": next((batch.to_pylist() for batch in batches), [])}


def versions(run: dict[str, Any]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Names of the nodes, and per package its version on each, from run.json's node -> package -> version."""
    nodes = {str(name): found for name, found in (run.get("versions") or {}).items() if isinstance(found, dict)}
    packages = sorted({package for found in nodes.values() for package in found})
    return list(nodes), [(p, [str(found.get(p, "–")) for found in nodes.values()]) for p in packages]


def _lines(data: bytes) -> Iterator[dict[str, Any]]:
    for text in data.decode("utf-8", "replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            yield line


def _add(stage: StageLog, line: dict[str, Any]) -> None:
    event = line.get("event")
    if event == "shard":
        stage.shards += 1
        stage.images += int(line.get("images") or 0)
        stage.wall_s += float(line.get("wall_s") or 0)
        stage.waited_s += float(line.get("waited_s") or 0)
        stage.actors.add(str(line.get("actor")))
        if "gpu_busy" in line:
            stage.gpu_wall_s += float(line.get("wall_s") or 0)
            stage.gpu_busy_s += float(line.get("gpu_busy") or 0) * float(line.get("wall_s") or 0)
    stage.deaths += event in ("died", "hung")
    stage.again += event == "again"
    stage.peak_mb = max(stage.peak_mb, float(line.get("peak_mb") or 0))
    stage.gpu_mb = max(stage.gpu_mb, float(line.get("gpu_mb") or 0))
