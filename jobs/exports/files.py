"""The files of an export: written to a temporary file, then published whole, to a folder or a bucket.

A place that holds anything else than the files of exports is refused.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TextIO

from jobs.runs.places import refuse_other_kinds
from store.errors import UserError
from store.objects import ObjectStore

Writer = Callable[[TextIO], int]
"""Writes the text of one file and returns the number of its rows."""


NAMES = ("detections-*.json", "fused.json", "truth.json", "*.run", "*.qrels", "rankings-*.csv")  # of all formats


def refuse_foreign(store: ObjectStore) -> None:
    """Raise a UserError where the place holds something else than exports: a run, an image set, photos, any file."""
    refuse_other_kinds(store, "an export")
    for info in store.list():
        if not any(fnmatchcase(info.key, name) for name in NAMES) or "/" in info.key:
            raise UserError(f"{store.uri} holds {info.key}, which is no file of an export; choose an empty place")


@contextlib.contextmanager
def publish_text(store: ObjectStore, key: str) -> Iterator[TextIO]:
    """A UTF-8 text file to write to. It appears under `key` when the block ends, and not at all after an error."""
    with tempfile.TemporaryDirectory(prefix="clothes-export-") as folder:
        part = Path(folder) / "part"
        with open(part, "w", encoding="utf-8", newline="") as file:
            yield file
        store.write_file(key, part)


def refuse_existing(store: ObjectStore, names: Iterable[str]) -> None:
    """Raise a UserError where the place holds one of these files already."""
    if held := [name for name in names if store.exists(name)]:
        files = f"{held[0]} and {len(held) - 1} more of these files" if len(held) > 1 else held[0]
        raise UserError(f"{store.uri} holds {files} already; choose another place, or --overwrite")
