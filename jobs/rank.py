"""Rank: for every consumer item the most similar shop items; exact search, FAISS here and torch nowhere.

In: OUTPUT/items/, OUTPUT/embeddings/. Out: OUTPUT/index/BOXES/, OUTPUT/rankings/BOXES.parquet (all models concatenated, or the only
one), OUTPUT/rankings/BOXES/MODEL.parquet, OUTPUT/submission.json. The work itself is in `jobs.rank_items`.

    python jobs/rank.py --imageset runs/demo/imageset --output runs/demo --set search.weights='[2, 1]'
"""

import sys
from pathlib import Path

if __name__ == "__main__" and (Path(__file__).resolve().parents[1] / "jobs" / "cli.py").is_file():
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from jobs import cli, config, embed, fuse
from jobs.ledger import WHOLE, Run, Unit
from jobs.progress import say

CODE = 1  # raise it when the same settings would give another ranking


def unit(run: Run, kind: str) -> Unit:
    """All shards of one kind of boxes."""
    shards = run.selected.shards
    rows = run.digests(embed.unit(run, kind, model, shard) for model in run.embedders for shard in shards)
    items = run.digests((fuse.unit(run, shard) for shard in shards), only=f"items/{kind}/")
    settings = {"search": config.record(run.settings.search), "embedders": [model.name for model in run.embedders]}
    taken = {shard.name: shard.basis() for shard in shards}
    basis = None if rows is None or items is None else {
        "code": CODE, "settings": settings, "inputs": {"shards": taken, "items": items, "embeddings": rows},
    }  # fmt: skip
    outputs = [f"index/{kind}/{name}" for name in ("index.faiss", "ids.parquet", "index.json")]
    outputs += [f"rankings/{kind}.parquet", *(f"rankings/{kind}/{model.name}.parquet" for model in run.embedders)]
    outputs += ["submission.json"] if kind == "detected" else []
    return Unit(f"rank/{kind}/{WHOLE}", tuple(outputs), basis, run.selected.images)


def units(run: Run) -> list[Unit]:
    return [unit(run, kind) for kind in run.box_kinds]


def carry_out(run: Run) -> None:
    for kind in run.box_kinds:
        one = unit(run, kind)
        if run.why(one):
            from jobs import rank_items

            outcome = rank_items.rank(run, kind)
            run.finish(one, outcome)
            say(f"rank: {kind} boxes, {outcome.rows} queries in {sum(outcome.seconds.values()):.1f} s")


def main(argv: list[str] | None = None) -> int:
    from jobs import stages

    return stages.main(["rank"], argv, __doc__)


if __name__ == "__main__":
    cli.run(main)
