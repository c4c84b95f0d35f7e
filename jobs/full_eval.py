"""Full evaluation, start to end: detect, fuse, embed, rank, evaluate, report.

    # laptop, no GPU: the five small detectors on synthetic images
    python jobs/ingest.py drawn runs/demo/imageset --users 40 --shops 80 --seed 0
    python jobs/full_eval.py --imageset runs/demo/imageset --output runs/demo/run --profile tiny

    # cluster
    ray job submit --working-dir . -- python jobs/full_eval.py \\
        --imageset s3://BUCKET/looks --output s3://BUCKET/runs/0142 --profile paper

Stop it anywhere and start the same command again: a shard with a mark under OUTPUT/done is not repeated, and the plan
says what is. Exit status: 0 done; 2 a mistake in the command or its input; 3 done, but more images failed than
max_failed_share; 1 anything else.
"""

import sys
from pathlib import Path

if __name__ == "__main__" and (Path(__file__).resolve().parents[1] / "jobs" / "cli.py").is_file():
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from jobs import cli
from jobs.runs.catalogue import SHIPPED
from jobs.runs.models import Catalogue
from jobs.stages import order


def main(argv: list[str] | None = None, catalogue: Catalogue = SHIPPED) -> int:
    return order.main(list(order.IN_ORDER), argv, __doc__, catalogue)


if __name__ == "__main__":
    cli.run(main)
