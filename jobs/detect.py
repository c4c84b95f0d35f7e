"""Detect: every photo through every detector, on Ray actors.

In: an image set. Out: OUTPUT/detections/DETECTOR/SHARD.parquet. What an actor does is in `jobs.detect_shard`.

    python jobs/detect.py --imageset runs/demo/imageset --output runs/demo
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__" and (Path(__file__).resolve().parents[1] / "jobs" / "cli.py").is_file():
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from jobs import cli, config, work
from jobs.config import Settings
from jobs.ledger import Run, Unit
from jobs.models import Catalogue, Model
from jobs.selection import ShardTaken
from jobs.trial import Job
from store.objects import ObjectStore

CODE = 1  # raise it when the same settings would give other boxes


def unit(run: Run, model: Model, shard: ShardTaken) -> Unit:
    """One detector on one shard."""
    kept = config.record(run.settings.detect)
    del kept["actors"]
    basis = {
        "code": CODE,
        "settings": {"detect": kept, "max_pixels": run.settings.max_pixels},
        "model": model.basis,
        "inputs": shard.basis(),
    }
    return Unit(
        f"detect/{model.name}/{shard.name}", (f"detections/{model.name}/{shard.name}.parquet",), basis, shard.images
    )


def units(run: Run) -> list[Unit]:
    return [unit(run, model, shard) for model in run.detectors for shard in run.selected.shards]


def carry_out(run: Run) -> None:
    """Do what is unfinished: all detectors of a shard in one call, or one detector after the other (`models_per_actor: 1`)."""
    for group in [run.detectors] if run.settings.models_per_actor == "all" else [(model,) for model in run.detectors]:
        mine = {shard.name: {model.name: unit(run, model, shard) for model in group} for shard in run.selected.shards}
        todo = {shard: tuple(name for name, one in row.items() if run.why(one)) for shard, row in mine.items()}
        jobs = [Job(shard, work.rows_of(run, shard), names) for shard, names in todo.items() if names]
        wanted = tuple(model for model in group if any(model.name in job.work for job in jobs))
        make = MakeDetectShard(run.settings, run.catalogue, wanted, run.images, run.store)
        work.on_actors(run, work.Shards("detect", jobs, len(mine), mine), make, run.settings.detect.actors)


@dataclass(frozen=True)
class MakeDetectShard:
    """Makes the worker where it is to live: only there torch is imported."""

    settings: Settings
    catalogue: Catalogue
    detectors: tuple[Model, ...]
    images: Any
    output: ObjectStore

    def __call__(self, device: str) -> Any:
        from jobs.detect_shard import DetectShard

        return DetectShard(self.settings, self.catalogue, self.detectors, self.images, self.output, device)


def main(argv: list[str] | None = None) -> int:
    from jobs import stages

    return stages.main(["detect"], argv, __doc__)


if __name__ == "__main__":
    cli.run(main)
