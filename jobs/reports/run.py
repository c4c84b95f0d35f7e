"""The page run.html: time per stage, what the logs say of the actors, images without a result, versions.

In: metrics.json, run.json, failures.parquet, logs/ of a run. Out: rows to print, and a chart of the stages' speed.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow.parquet as pq

from jobs.reports import charts
from jobs.reports.charts import Chart
from store.objects import ObjectStore

STAGES = ("detect", "fuse", "embed", "rank", "evaluate", "report")
MAX_FAILURES = 50  # rows of failures.parquet on the page


@dataclass(frozen=True)
class StageTime:
    """A stage's worker seconds, images per worker second (None: unknown), and its share of all stages in [0, 1]."""

    stage: str
    seconds: float
    rate: float | None
    share: float


@dataclass
class StageLog:
    """What the logs say of a stage, all starts of the job together."""

    stage: str
    shards: int = 0
    images: int = 0
    wall_s: float = 0.0  # time the actors spent on shards
    waited_s: float = 0.0  # time they waited for one
    peak_mb: float = 0.0  # the most that one process held, in 10^6 bytes
    gpu_mb: float = 0.0  # the same, of GPU memory
    gpu_wall_s: float = 0.0  # time of the shards that report how busy their GPU was
    gpu_busy_s: float = 0.0  # the part of it in which a kernel ran
    deaths: int = 0
    retries: int = 0
    actors: set[str] = field(default_factory=set)

    @property
    def busy(self) -> float | None:
        """Share of the actors' time not spent waiting for a shard, in [0, 1]; None without any time."""
        whole = self.wall_s + self.waited_s
        return self.wall_s / whole if whole else None

    @property
    def gpu_busy(self) -> float | None:
        """Share of the shards' time in which a kernel ran on their GPU, in [0, 1]; None where no shard reports it."""
        return self.gpu_busy_s / self.gpu_wall_s if self.gpu_wall_s else None

    def add(self, event: dict[str, Any]) -> None:
        """Add one line of a log."""

        def number(name: str) -> float:
            return float(event.get(name) or 0)

        kind = event.get("event")
        if kind == "shard":
            self.shards += 1
            self.images += int(number("images"))
            self.wall_s += number("wall_s")
            self.waited_s += number("waited_s")
            self.actors.add(str(event.get("actor")))
            if "gpu_busy" in event:
                self.gpu_wall_s += number("wall_s")
                self.gpu_busy_s += number("gpu_busy") * number("wall_s")
        self.deaths += kind in ("died", "hung")
        self.retries += kind == "again"
        self.peak_mb = max(self.peak_mb, number("peak_mb"))
        self.gpu_mb = max(self.gpu_mb, number("gpu_mb"))


def stage_times(metrics: dict[str, Any]) -> list[StageTime]:
    """The stages that metrics.json has seconds of, in the order of the run."""
    seconds = {stage: s for stage, s in (metrics.get("seconds") or {}).items() if s is not None}
    images, whole = (metrics.get("images") or {}).get("done"), sum(seconds.values())
    return [
        StageTime(stage, s, images / s if images and s > 0 else None, s / whole if whole else 0.0)
        for stage, s in sorted(seconds.items(), key=lambda entry: _order(entry[0]))
    ]


def speed_chart(times: Sequence[StageTime]) -> list[Chart]:
    """One chart of the stages' speed; none where no speed is known."""
    rates = {time.stage: time.rate for time in times if time.rate is not None}
    if not rates:
        return []
    series = charts.series("images per worker second", 1, list(rates.values()), list(rates))
    x, y = charts.axis("images per worker second, logarithmic", log=True), charts.axis("")
    return [charts.chart("throughput", "Speed of each stage", "dots", x, y, {"": [series]})]


def log_keys(output: ObjectStore) -> list[str]:
    return sorted(entry.key for entry in output.list("logs/") if entry.key.endswith(".jsonl"))


def stage_logs(output: ObjectStore, keys: list[str]) -> list[StageLog]:
    """Add the logs up, one file in memory at a time; lines that are cut off are skipped."""
    logs: dict[str, StageLog] = {}
    for key in keys:
        for event in _events(output.read(key)):
            stage = str(event.get("stage"))
            logs.setdefault(stage, StageLog(stage)).add(event)
    return [logs[stage] for stage in sorted(logs, key=lambda stage: (_order(stage), stage))]


def _order(stage: str) -> int:
    return (*STAGES, stage).index(stage)


def _events(data: bytes) -> Iterator[dict[str, Any]]:
    for line in data.decode("utf-8", "replace").splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            yield event


def failures(output: ObjectStore) -> dict[str, Any] | None:
    """The first rows of failures.parquet and how many there are; None without the file."""
    if not output.exists("failures.parquet"):
        return None
    with output.open("failures.parquet") as file:
        table = pq.ParquetFile(file)
        batches = table.iter_batches(batch_size=MAX_FAILURES, columns=["image_id", "shard", "stage", "reason"])
        return {"total": table.metadata.num_rows, "rows": next((batch.to_pylist() for batch in batches), [])}


def versions(run: dict[str, Any]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Names of the nodes, and each package with its version on every node, from `versions` of run.json."""
    recorded = (run.get("versions") or {}).items()
    nodes = {str(name): packages for name, packages in recorded if isinstance(packages, dict)}
    names = sorted({name for packages in nodes.values() for name in packages})
    return list(nodes), [(name, [str(packages.get(name, "–")) for packages in nodes.values()]) for name in names]
