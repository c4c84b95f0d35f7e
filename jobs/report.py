"""Report: the run as a page to look at: figures, tables, queries with their results.

In: OUTPUT/metrics.json, rankings/ and the rest of the run, the image set; OUTPUT/ablation.parquet where there is one.
Out: OUTPUT/report/index.html with pages, data and pictures beside it. They are made by `jobs.reports.site`. Image sets
and settings are those of OUTPUT/run.json, and --set changes one of them; with --profile or --config they are not read.

    python jobs/report.py --output runs/demo --set report.queries=100
    python jobs/report.py --output runs/demo --compare runs/yesterday
"""

import sys
from pathlib import Path

if __name__ == "__main__" and (Path(__file__).resolve().parents[1] / "jobs" / "cli.py").is_file():
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from jobs import cli
from jobs.stages import order


def main(argv: list[str] | None = None) -> int:
    return order.main(["report"], argv, __doc__)


if __name__ == "__main__":
    cli.run(main)
