"""`jobs/reindex_gallery.py` with stand-in models: `python tests/jobs/reindex_with_stand_ins.py` and its arguments."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[:1] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

import stand_ins

from jobs import cli, reindex_gallery


def main(argv: list[str] | None = None) -> int:
    return reindex_gallery.main([*stand_ins.SETTINGS, *(sys.argv[1:] if argv is None else argv)], stand_ins.CATALOGUE)


if __name__ == "__main__":
    cli.run(main)
