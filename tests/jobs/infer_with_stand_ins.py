"""`jobs/gallery/infer.py` with stand-in models: what `jobs/search.py` starts in tests."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[:1] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

import stand_ins

from jobs import cli
from jobs.gallery import infer

SCRIPT = Path(__file__).resolve()


def main(argv: list[str] | None = None) -> int:
    status = infer.main(argv, stand_ins.CATALOGUE)
    assert "faiss" not in sys.modules, "the real ones bring torch"
    return status


if __name__ == "__main__":
    cli.run(main)
