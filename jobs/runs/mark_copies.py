"""Copies of marks, a thousand in a file, so that a start reads dozens of objects of a bucket and not every mark.

    done/copies-DIGEST.jsonl.gz   a line a mark: {"key": "done/….json", "stamp": size and ETag, "mark": {…}}

The marks remain the truth. A copy counts only where the listing tells the stamp of the mark that was copied: what was
replaced or deleted since is read as it is now, and so is what has no copy. Files that are lost or damaged cost time
alone, and no two runs write the same file with other bytes. In a folder, which tells no stamps of what is read and
written, there are no copies: reading the marks themselves takes as little.
"""

import contextlib
import gzip
import json
import threading
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from store.files import digest
from store.objects import ObjectStore, StorageError

PREFIX = "done/copies-"
PER_FILE = 1000


class MarkCopies:
    """Writes the copies of one run's marks. Threads may share it."""

    def __init__(self, store: ObjectStore) -> None:
        self.store, self._lock = store, threading.Lock()
        self._waiting: dict[str, tuple[str, dict[str, Any]]] = {}  # key -> stamp, mark; not in a file yet

    def add(self, key: str, stamp: str, mark: dict[str, Any]) -> None:
        """Copy a mark of a stamp, "" where the store told none; every PER_FILE of them are written to a file."""
        if not stamp:
            return
        with self._lock:
            self._waiting[key] = stamp, mark
            if len(self._waiting) < PER_FILE:
                return
            full, self._waiting = self._waiting, {}
        lines = (json.dumps({"key": key, "stamp": stamp, "mark": mark}) for key, (stamp, mark) in full.items())
        data = gzip.compress("\n".join(lines).encode(), compresslevel=1, mtime=0)
        with contextlib.suppress(StorageError):  # the marks are safe without it
            self.store.write(f"{PREFIX}{digest(data)}.jsonl.gz", data)


def read(store: ObjectStore, file: str, listed: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The marks in a file of copies that are as `listed`, key -> stamp, tells; none where the file cannot be read."""
    try:
        lines = gzip.decompress(store.read(file)).splitlines()
        return dict(_current(map(json.loads, lines), listed))
    except (OSError, EOFError, zlib.error, ValueError, RecursionError):
        return {}


def _current(copies: Iterator[Any], listed: Mapping[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for copy in copies:
        match copy:
            case {"key": str(key), "stamp": str(stamp), "mark": dict(mark)} if stamp and listed.get(key) == stamp:
                yield key, mark
