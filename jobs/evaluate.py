"""Evaluate: average precision of the boxes and accuracy of the rankings, against the set's ground truth.

In: OUTPUT/detections/, fused/, rankings/, the image set. Out: OUTPUT/metrics.json, OUTPUT/failures.parquet. The work is in `jobs.score`.

    python jobs/evaluate.py --imageset runs/demo/imageset --output runs/demo
"""

import sys
from pathlib import Path

if __name__ == "__main__" and (Path(__file__).resolve().parents[1] / "jobs" / "cli.py").is_file():
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from jobs import cli, detect, embed, fuse, rank
from jobs.ledger import WHOLE, Run, Unit, digest_of

CODE = 2  # raise it when the same settings would give other figures


def earlier(run: Run) -> list[Unit]:
    """Everything that comes before."""
    return [*detect.units(run), *fuse.units(run), *embed.units(run), *rank.units(run)]


def units(run: Run) -> list[Unit]:
    before = earlier(run)
    inputs = run.digests(before)
    basis = None
    if inputs is not None:
        names = [[model.name for model in models] for models in (run.detectors, run.embedders)]
        failures = {str(i): str(row) for i, row in enumerate(run.failures(before))}
        seen = {"imageset": run.images.digest, "outputs": digest_of(inputs), "failures": digest_of(failures)}
        taken = {shard.name: shard.basis() for shard in run.selected.shards}
        basis = {
            "code": CODE,
            "settings": {"models": names, "boxes": list(run.box_kinds)},
            "inputs": seen | {"shards": taken},
        }
    return [Unit(f"evaluate/{WHOLE}", ("metrics.json", "failures.parquet"), basis, run.selected.images)]


def carry_out(run: Run) -> None:
    (one,) = units(run)
    if run.why(one):
        from jobs import score

        run.finish(one, score.score(run, earlier(run)))


def main(argv: list[str] | None = None) -> int:
    from jobs import stages

    return stages.main(["evaluate"], argv, __doc__)


if __name__ == "__main__":
    cli.run(main)
