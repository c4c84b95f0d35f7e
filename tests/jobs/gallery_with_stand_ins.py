"""`jobs/reindex_gallery.py` with stand-in models and without Ray; it takes the same arguments.

FILE_PAUSE_S: seconds before each file of a version is written, so that there is a publication to disturb.
"""

import functools
import os
import sys
import time
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:1] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

import stand_ins

from jobs import cli, reindex_gallery
from jobs.runs import shards
from store import objects


def slowly(write_file: Any, pause_s: float) -> Any:
    def write(store: Any, key: str, path: Any) -> None:
        time.sleep(pause_s)
        write_file(store, key, path)

    return write


def main(argv: list[str] | None = None) -> int:
    shards.run_on_actors = functools.partial(stand_ins.here, [])
    if pause_s := float(os.environ.get("FILE_PAUSE_S", "0")):
        for kind in (objects.LocalStore, objects.S3Store):
            kind.write_file = slowly(kind.write_file, pause_s)  # type: ignore[method-assign]
    return reindex_gallery.main(sys.argv[1:] if argv is None else argv, stand_ins.CATALOGUE)


if __name__ == "__main__":
    cli.run(main)
