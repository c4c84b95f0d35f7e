"""Copies of small JSON objects, a thousand in a file, so that who needs them all reads dozens of objects of a bucket.

    PREFIX-DIGEST.jsonl.gz   a line an object: {"key": …, "stamp": size and ETag, "content": {…}}

The objects remain the truth. A copy counts only where the listing tells the stamp of the object that was copied: what
was replaced or deleted since is read as it is now, and so is what has no copy. Files that are lost or damaged cost time
alone, and no two writers write the same file with other bytes. In a folder, which tells no stamps of what is read and
written, there are no copies: reading the objects themselves takes as little.
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

PER_FILE = 1000


class Copies:
    """Writes the copies below one prefix. Threads may share it."""

    def __init__(self, store: ObjectStore, prefix: str) -> None:
        self.store, self.prefix, self._lock = store, prefix, threading.Lock()
        self._waiting: dict[str, tuple[str, dict[str, Any]]] = {}  # key -> stamp, content; not in a file yet

    def add(self, key: str, stamp: str, content: dict[str, Any]) -> None:
        """Copy an object of a stamp, "" where the store told none; every PER_FILE of them are written to a file."""
        if not stamp:
            return
        with self._lock:
            self._waiting[key] = stamp, content
            if len(self._waiting) < PER_FILE:
                return
            full, self._waiting = self._waiting, {}
        copies = ({"key": key, "stamp": stamp, "content": content} for key, (stamp, content) in full.items())
        data = gzip.compress("\n".join(map(json.dumps, copies)).encode(), compresslevel=1, mtime=0)
        with contextlib.suppress(StorageError):  # the objects are safe without it
            self.store.write(f"{self.prefix}{digest(data)}.jsonl.gz", data)


def read_copies(store: ObjectStore, file: str, listed: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Key -> content of the copies in a file that are as `listed`, key -> stamp, tells; {} where it cannot be read."""
    try:
        lines = gzip.decompress(store.read(file)).splitlines()
        return dict(_current(map(json.loads, lines), listed))
    except (OSError, EOFError, zlib.error, ValueError, RecursionError):
        return {}


def _current(copies: Iterator[Any], listed: Mapping[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for copy in copies:
        match copy:
            case {"key": str(key), "stamp": str(stamp), "content": dict(content)} if listed.get(key) == stamp:
                yield key, content
