"""How far an ingestion is, and what an image set holds, in words."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from store.decode import ignores_profile
from store.imageset import Failure, Photo
from store.manifest import Manifest

Row = TypeVar("Row")
PROGRESS_S = 5.0


def described(manifest: Manifest) -> str:
    size = f"{manifest.images:,} images in {len(manifest.shards):,} shards, {manifest.bytes / 1e6:,.1f} MB"
    return f"{size}, {manifest.failures:,} failures"


def with_progress(
    rows: Iterable[Row], of: Callable[[Row], Any] = lambda row: row, *, judge_profiles: bool = False
) -> Iterator[Row]:
    """The same rows; a line on standard error every few seconds. `of(row)` is the photo or failure.

    Where profiles are judged, a line at the end says how many photos have a colour profile that cannot be used.
    """
    started = reported = time.monotonic()
    failures = ignored = 0
    for n, row in enumerate(rows, 1):
        yield row
        one = of(row)
        failures += isinstance(one, Failure)
        ignored += judge_profiles and isinstance(one, Photo) and ignores_profile(one.image)
        now = time.monotonic()
        if now - reported >= PROGRESS_S:
            reported = now
            line = f"ingest: {n - failures:,} photos, {n / (now - started):,.0f}/s, {failures:,} failures so far"
            print(line, file=sys.stderr, flush=True)
    if ignored:
        print(f"ingest: {ignored:,} photos have a colour profile that cannot be used; it is ignored", file=sys.stderr)
