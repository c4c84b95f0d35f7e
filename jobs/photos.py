"""The photos of one shard for a worker: read, decoded a little ahead of the model, in groups that depend on nothing but the shard."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from store.decode import DecodeError, decode
from store.imageset import ImageSet

GROUP_PIXELS = 64_000_000  # a group closes here at the latest: bounds the memory of large photos


@dataclass
class Clock:
    """Seconds a worker spent waiting for photos, in the models, and writing."""

    seconds: dict[str, float] = field(default_factory=lambda: {"read": 0.0, "infer": 0.0, "write": 0.0})

    def spent(self, name: str, since: float) -> None:
        self.seconds[name] += time.perf_counter() - since


@dataclass(frozen=True)
class Decoded:
    """One photo: its row in the shard, its id, and its pixels (H, W, 3) uint8, or why there are none."""

    row: int
    image_id: int
    pixels: np.ndarray | None
    reason: str = ""


def groups(
    images: ImageSet, shard: str, rows: Sequence[int], skip: dict[int, str], *, size: int, max_pixels: int, clock: Clock
) -> Iterator[list[Decoded]]:
    """Groups of at most `size` photos in row order, the next one decoded while the caller is busy with the last.

    Args:
        rows: row numbers to read, rising.
        skip: row -> reason; these come back undecoded with that reason.
        max_pixels: larger photos come back undecoded.
    """
    start = time.perf_counter()
    table = images.read(shard)  # the whole file, its digest compared
    ids, encoded = table.column("image_id"), table.column("image")

    def one(row: int) -> Decoded:
        image_id = ids[row].as_py()
        if row in skip:
            return Decoded(row, image_id, None, skip[row])
        try:
            return Decoded(row, image_id, decode(encoded[row].as_buffer(), max_pixels=max_pixels))
        except DecodeError as error:
            return Decoded(row, image_id, None, str(error))

    with ThreadPoolExecutor(1) as thread:
        pending = [thread.submit(one, row) for row in rows[: 2 * size]]
        fed, group, pixels = len(pending), [], 0
        for _ in rows:
            photo = pending.pop(0).result()
            group.append(photo)
            pixels += 0 if photo.pixels is None else photo.pixels.shape[0] * photo.pixels.shape[1]
            if len(group) == size or pixels >= GROUP_PIXELS:
                clock.spent("read", start)
                yield group
                start, group, pixels = time.perf_counter(), [], 0
            if fed < len(rows) and len(pending) < 2 * size:
                pending.append(thread.submit(one, rows[fed]))
                fed += 1
        clock.spent("read", start)
        if group:
            yield group


def limit_threads(n: int) -> None:
    """Hold OpenCV, and torch if the process has it, to `n` threads: sums then do not depend on how many workers run."""
    import sys

    import cv2

    cv2.setNumThreads(n)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(n)
