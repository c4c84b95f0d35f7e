"""Evaluate: average precision of the boxes and accuracy of the rankings, against the set's ground truth.

In: OUTPUT/detections/, fused/, rankings/, the image set. Out: OUTPUT/metrics.json, OUTPUT/failures.parquet. The work is
in `jobs.stages.evaluate`. Image sets and settings are those of OUTPUT/run.json, unless the line names others.

    python jobs/evaluate.py --output runs/demo
"""

import sys
from pathlib import Path

if __name__ == "__main__" and (Path(__file__).resolve().parents[1] / "jobs" / "cli.py").is_file():
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from jobs import cli
from jobs.stages import order


def main(argv: list[str] | None = None) -> int:
    return order.main(["evaluate"], argv, __doc__)


if __name__ == "__main__":
    cli.run(main)
