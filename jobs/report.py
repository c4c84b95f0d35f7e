"""Report: the run as a page to look at: figures, tables, queries with what was found for them.

In: OUTPUT/metrics.json, rankings/, the image set. Out: OUTPUT/report/index.html with its pictures. The page is made by `jobs.report_page`.

    python jobs/report.py --imageset runs/demo/imageset --output runs/demo --set report.queries=100
"""

import sys
import time
from pathlib import Path

if __name__ == "__main__" and (Path(__file__).resolve().parents[1] / "jobs" / "cli.py").is_file():
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from jobs import cli, config, evaluate, rank
from jobs.ledger import WHOLE, Outcome, Run, Unit, digest, digest_of
from jobs.progress import say

CODE = 2  # raise it when the page changes
PAGE = "report/index.html"


def units(run: Run) -> list[Unit]:
    inputs = run.digests([*rank.units(run), *evaluate.units(run)])
    settings = {"report": config.record(run.settings.report)}
    basis = None if inputs is None else {"code": CODE, "settings": settings, "inputs": {"outputs": digest_of(inputs)}}
    return [Unit(f"report/{WHOLE}", (PAGE,), basis, run.selected.images)]


def carry_out(run: Run) -> None:
    (one,) = units(run)
    if run.why(one):
        from jobs import report_page

        start = time.perf_counter()
        report_page.build(run.store, run.images, queries=run.settings.report.queries, top=run.settings.report.top)
        page = digest(run.store.read(PAGE))
        run.finish(one, Outcome({PAGE: page}, run.settings.report.queries, {"write": time.perf_counter() - start}))
        say(f"report: written in {time.perf_counter() - start:.1f} s")


def main(argv: list[str] | None = None) -> int:
    from jobs import stages

    return stages.main(["report"], argv, __doc__)


if __name__ == "__main__":
    cli.run(main)
