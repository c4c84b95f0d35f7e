"""Fuse: the detectors' boxes to one set, and the items worth embedding; on CPU.

In: OUTPUT/detections/. Out: OUTPUT/fused/SHARD.parquet, OUTPUT/items/BOXES/SHARD.parquet. The work itself is in `jobs.fuse_shard`.

    python jobs/fuse.py --imageset runs/demo/imageset --output runs/demo --set fusion.iou_threshold=0.6
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__" and (Path(__file__).resolve().parents[1] / "jobs" / "cli.py").is_file():
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from jobs import cli, config, detect, work
from jobs.config import Settings
from jobs.ledger import Run, Unit
from jobs.selection import ShardTaken
from jobs.trial import Job
from store.objects import ObjectStore

CODE = 2  # raise it when the same settings would give other boxes


def unit(run: Run, shard: ShardTaken) -> Unit:
    """One shard of all detectors."""
    inputs = run.digests(detect.unit(run, model, shard) for model in run.detectors)
    settings = {
        "fusion": config.record(run.settings.fusion),
        "items": config.record(run.settings.items),
        "boxes": list(run.box_kinds),
    }
    basis = (
        None
        if inputs is None
        else {"code": CODE, "settings": settings, "inputs": shard.basis() | {"detections": inputs}}
    )
    outputs = (f"fused/{shard.name}.parquet", *(f"items/{kind}/{shard.name}.parquet" for kind in run.box_kinds))
    return Unit(f"fuse/{shard.name}", outputs, basis, shard.images)


def units(run: Run) -> list[Unit]:
    return [unit(run, shard) for shard in run.selected.shards]


def carry_out(run: Run) -> None:
    todo = {one.shard: {"fuse": one} for one in units(run) if run.why(one)}
    jobs = [Job(shard, work.rows_of(run, shard), run.box_kinds) for shard in todo]
    make = MakeFuseShard(run.settings, tuple(model.name for model in run.detectors), run.images, run.store)
    work.cheaply(run, work.Shards("fuse", jobs, len(run.selected.shards), todo), make)


@dataclass(frozen=True)
class MakeFuseShard:
    """Makes the worker where it is to live."""

    settings: Settings
    detectors: tuple[str, ...]
    images: Any
    output: ObjectStore

    def __call__(self, device: str) -> Any:
        from jobs.fuse_shard import FuseShard

        return FuseShard(self.settings, self.detectors, self.images, self.output)


def main(argv: list[str] | None = None) -> int:
    from jobs import stages

    return stages.main(["fuse"], argv, __doc__)


if __name__ == "__main__":
    cli.run(main)
