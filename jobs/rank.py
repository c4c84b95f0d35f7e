"""Rank: for every consumer item the most similar shop items; exact search, with FAISS and without torch.

In: OUTPUT/items/, OUTPUT/embeddings/. Out: OUTPUT/index/BOXES/, OUTPUT/rankings/BOXES.parquet (after all
`search.steps`), beside it BOXES/MODEL.parquet (each model alone) and, where the steps go beyond it,
BOXES/concat.parquet (plain concatenation); OUTPUT/submission.json. The work is in `jobs.stages.rank`, the steps are in
`retrieval.steps`.

    python jobs/rank.py --imageset runs/demo/imageset --output runs/demo --set search.weights='[2, 1]'
    python jobs/rank.py … --set search.steps='[{step: concat}, {step: whiten, dim: 256}, {step: alpha_qe, k: 3}]'
"""

import sys
from pathlib import Path

if __name__ == "__main__" and (Path(__file__).resolve().parents[1] / "jobs" / "cli.py").is_file():
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from jobs import cli
from jobs.stages import order


def main(argv: list[str] | None = None) -> int:
    return order.main(["rank"], argv, __doc__)


if __name__ == "__main__":
    cli.run(main)
