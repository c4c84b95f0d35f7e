"""Fuse: the detectors' boxes to one set, and the items worth embedding; on CPU.

In: OUTPUT/detections/. Out: OUTPUT/fused/SHARD.parquet, OUTPUT/items/BOXES/SHARD.parquet. The work is in
`jobs.stages.fuse`.

    python jobs/fuse.py --imageset runs/demo/imageset --output runs/demo --set fusion.iou_threshold=0.6
"""

import sys
from pathlib import Path

if __name__ == "__main__" and (Path(__file__).resolve().parents[1] / "jobs" / "cli.py").is_file():
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from jobs import cli
from jobs.stages import order


def main(argv: list[str] | None = None) -> int:
    return order.main(["fuse"], argv, __doc__)


if __name__ == "__main__":
    cli.run(main)
