"""Report: the run as a page to look at: figures, tables, queries with what was found for them.

In: OUTPUT/metrics.json, rankings/ and the rest of the run, the image set; OUTPUT/ablation.parquet where there is one. Out:
OUTPUT/report/index.html with pages, data and pictures beside it. They are made by `jobs.reporting.site`.

    python jobs/report.py --imageset runs/demo/imageset --output runs/demo --set report.queries=100
    python jobs/report.py --imageset runs/demo/imageset --output runs/demo --compare runs/yesterday
"""

import sys
import time
from pathlib import Path

if __name__ == "__main__" and (Path(__file__).resolve().parents[1] / "jobs" / "cli.py").is_file():
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from jobs import cli, config, evaluate, rank
from jobs.ledger import WHOLE, Outcome, Run, Unit, digest, digest_of
from jobs.progress import say
from store.objects import open_store

CODE = 3  # raise it when the page changes
PAGE = "report/index.html"
ABLATION = "ablation.parquet"


def units(run: Run) -> list[Unit]:
    inputs = run.digests([*rank.units(run), *evaluate.units(run)])
    settings = {"report": config.record(run.settings.report)}
    basis = None
    if inputs is not None:
        basis = {"code": CODE, "settings": settings, "inputs": {"outputs": digest_of(inputs)} | _beside(run)}
    return [Unit(f"report/{WHOLE}", (PAGE,), basis, run.selected.images)]


def _beside(run: Run) -> dict[str, str]:
    """Digests of what the report shows and no stage before it has written: an ablation, and an earlier run's figures."""
    found = {}
    if run.store.exists(ABLATION):
        found["ablation"] = digest(run.store.read(ABLATION))
    if run.settings.report.compare:
        earlier = open_store(run.settings.report.compare, endpoint_url=run.settings.storage.endpoint_url)
        found["compare"] = digest(earlier.read("metrics.json")) if earlier.exists("metrics.json") else ""
    return found


def carry_out(run: Run) -> None:
    (one,) = units(run)
    if run.why(one):
        from jobs.reporting import site

        start, asked = time.perf_counter(), run.settings.report
        site.build(run.store, run.images, queries=asked.queries, top=asked.top, compare=asked.compare)
        page = digest(run.store.read(PAGE))
        run.finish(one, Outcome({PAGE: page}, asked.queries, {"write": time.perf_counter() - start}))
        say(f"report: written in {time.perf_counter() - start:.1f} s")


def main(argv: list[str] | None = None) -> int:
    from jobs import stages

    return stages.main(["report"], argv, __doc__)


if __name__ == "__main__":
    cli.run(main)
