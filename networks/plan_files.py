"""Compiled networks on this machine's disk, so that a second start compiles nothing: bytes under a digest of their key.

A file is the BLAKE2b-128 of a plan, then the plan. It appears whole or not at all; one that is damaged, or that another
user owns, counts as absent. A folder that cannot be written costs time and nothing else.
"""

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from store.files import cache_folder, digest, hasher, publish_file

LARGEST = 4_000_000_000  # bytes of all plans together; those that were read least recently go first
DIGEST = hasher().digest_size
END = ".plan"


def path_of(key: Mapping[str, Any]) -> Path:
    """Where the plan of a key lies; the key is plain JSON and says all that decides the plan."""
    return cache_folder() / "plans" / (digest(json.dumps(key, sort_keys=True).encode()) + END)


def read(path: Path) -> bytes | None:
    """The plan; None where there is none, or none to be trusted. Reading makes it the most recent."""
    try:
        if path.stat().st_uid != os.getuid():
            return None
        data = path.read_bytes()
        os.utime(path)
    except OSError:
        return None
    return data[DIGEST:] if hasher(memoryview(data)[DIGEST:]).digest() == data[:DIGEST] else None


def write(path: Path, plan: bytes) -> None:
    """Keep a plan, and remove the oldest ones while all together are larger than `LARGEST`."""
    if len(plan) > LARGEST:
        return
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with publish_file(path) as part:
            part.write_bytes(hasher(plan).digest() + plan)
        _remove_oldest(path.parent)


def _remove_oldest(folder: Path) -> None:
    found = sorted(((file.stat(), file) for file in folder.glob("*" + END)), key=lambda each: -each[0].st_mtime_ns)
    total = 0
    for facts, file in found:
        total += facts.st_size
        if total > LARGEST:
            file.unlink(missing_ok=True)
