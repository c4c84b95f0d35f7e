"""Rank: for every consumer item the most similar shop items; exact search, FAISS here and torch nowhere.

In: OUTPUT/items/, OUTPUT/embeddings/. Out: OUTPUT/index/BOXES/, OUTPUT/rankings/BOXES.parquet (after all `search.steps`), beside it
BOXES/MODEL.parquet (each model alone) and, where the steps go beyond it, BOXES/concat.parquet (plain concatenation);
OUTPUT/submission.json. The work itself is in `jobs.rank_items`, the steps are in `retrieval.steps`.

    python jobs/rank.py --imageset runs/demo/imageset --output runs/demo --set search.weights='[2, 1]'
    python jobs/rank.py … --set search.steps='[{step: concat}, {step: whiten, dim: 256}, {step: alpha_qe, k: 3}]'
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__" and (Path(__file__).resolve().parents[1] / "jobs" / "cli.py").is_file():
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from jobs import cli, config, embed, fuse
from jobs.ledger import WHOLE, Run, Unit
from jobs.progress import say
from retrieval import steps

CODE = 2  # raise it when the same settings would give another ranking


@dataclass(frozen=True)
class Search:
    """What a run's search is made of.

    Attributes:
        steps: parsed. models: the embedders' names.
        joined: what the steps join, in order: the models, or those whose views are averaged.
    """

    steps: tuple[steps.Step, ...]
    models: tuple[str, ...]
    joined: tuple[str, ...]

    @classmethod
    def of(cls, run: Run) -> "Search":
        return cls.from_record(config.record(run.settings.search)["steps"], [model.name for model in run.embedders])

    @classmethod
    def from_record(cls, entries: Sequence[Mapping], models: Sequence[str]) -> "Search":
        """From `settings.search.steps` and the embedders' names as run.json has them."""
        parsed = steps.parse(entries, models)
        averaged = any(step.name == "views" for step in parsed)
        return cls(parsed, tuple(models), tuple(steps.bases(models) if averaged else models))

    @property
    def plainly(self) -> tuple[str, ...]:
        """The models that plain concatenation joins: no views of others."""
        return tuple(name for name in self.models if "@" not in name) or self.models

    @property
    def beside(self) -> tuple[str, ...]:
        """Names of the rankings besides the final one."""
        concat = ("concat",) if len(self.plainly) > 1 and not steps.plain(self.steps) else ()
        return (*self.models, *concat)

    @property
    def judged(self) -> dict[str, str]:
        """Name in metrics.json -> ranking, BOXES for its kind of boxes."""
        places = {name: f"BOXES/{name}" for name in self.beside}
        if not steps.plain(self.steps):
            return places | {"steps": "BOXES"}
        return places | ({"concat": "BOXES"} if len(self.models) > 1 else {})

    @property
    def index_files(self) -> tuple[str, ...]:
        """The FAISS files, one a model where lists are fused instead of rows, and what the steps learned."""
        fused = any(step.name == "rank_fusion" for step in self.steps) and len(self.joined) > 1
        learns = any(step.name in ("pca", "whiten") for step in self.steps)
        return (
            *((f"{name}.faiss" for name in self.joined) if fused else ("index.faiss",)),
            *(("steps.safetensors",) if learns else ()),
        )


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
    plan = Search.of(run)
    outputs = [f"index/{kind}/{name}" for name in (*plan.index_files, "ids.parquet", "index.json")]
    outputs += [f"rankings/{kind}.parquet", *(f"rankings/{kind}/{name}.parquet" for name in plan.beside)]
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
