"""Detect: every photo through every detector, on Ray actors.

In: an image set. Out: OUTPUT/detections/DETECTOR/SHARD.parquet. The work is in `jobs.stages.detect`.

    python jobs/detect.py --imageset runs/demo/imageset --output runs/demo
"""

import sys
from pathlib import Path

if __name__ == "__main__" and (Path(__file__).resolve().parents[1] / "jobs" / "cli.py").is_file():
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from jobs import cli
from jobs.stages import order


def main(argv: list[str] | None = None) -> int:
    return order.main(["detect"], argv, __doc__)


if __name__ == "__main__":
    cli.run(main)
