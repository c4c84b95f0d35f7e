"""Embed: every item through every embedding model, on Ray actors.

In: an image set, OUTPUT/items/. Out: OUTPUT/embeddings/BOXES/MODEL/SHARD.parquet. What an actor does is in `jobs.embed_shard`.

    python jobs/embed.py --imageset runs/demo/imageset --output runs/demo
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__" and (Path(__file__).resolve().parents[1] / "jobs" / "cli.py").is_file():
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from jobs import cli, config, fuse, work
from jobs.config import Settings
from jobs.ledger import Run, Unit
from jobs.models import Catalogue, Model
from jobs.selection import ShardTaken
from jobs.trial import Job
from store.objects import ObjectStore

CODE = 1  # raise it when the same settings would give other rows


def unit(run: Run, kind: str, model: Model, shard: ShardTaken) -> Unit:
    """One model on one kind of boxes of one shard."""
    items = run.digests([fuse.unit(run, shard)], only=f"items/{kind}/")
    kept = config.record(run.settings.embed)
    del kept["actors"]
    basis = None if items is None else {
        "code": CODE,
        "settings": {"embed": kept, "max_pixels": run.settings.max_pixels},
        "model": model.basis,
        "inputs": shard.basis() | {"items": items},
    }  # fmt: skip
    path = f"{kind}/{model.name}/{shard.name}"
    return Unit(f"embed/{path}", (f"embeddings/{path}.parquet",), basis, shard.images)


def units(run: Run) -> list[Unit]:
    return [
        unit(run, kind, model, shard)
        for kind in run.box_kinds
        for model in run.embedders
        for shard in run.selected.shards
    ]


def carry_out(run: Run) -> None:
    """Do what is unfinished: a photo is decoded once for all kinds of boxes and all models of an actor."""
    for group in [run.embedders] if run.settings.models_per_actor == "all" else [(model,) for model in run.embedders]:
        mine = {
            shard.name: {(kind, model.name): unit(run, kind, model, shard) for kind in run.box_kinds for model in group}
            for shard in run.selected.shards
        }
        todo = {shard: tuple(key for key, one in row.items() if run.why(one)) for shard, row in mine.items()}
        jobs = [Job(shard, work.rows_of(run, shard), keys) for shard, keys in todo.items() if keys]
        wanted = tuple(model for model in group if any(model.name == name for job in jobs for _, name in job.work))
        make = MakeEmbedShard(run.settings, run.catalogue, wanted, run.images, run.store)
        work.on_actors(run, work.Shards("embed", jobs, len(mine), mine), make, run.settings.embed.actors)


@dataclass(frozen=True)
class MakeEmbedShard:
    """Makes the worker where it is to live: only there torch is imported."""

    settings: Settings
    catalogue: Catalogue
    embedders: tuple[Model, ...]
    images: Any
    output: ObjectStore

    def __call__(self, device: str) -> Any:
        from jobs.embed_shard import EmbedShard

        return EmbedShard(self.settings, self.catalogue, self.embedders, self.images, self.output, device)


def main(argv: list[str] | None = None) -> int:
    from jobs import stages

    return stages.main(["embed"], argv, __doc__)


if __name__ == "__main__":
    cli.run(main)
