"""The photos of one shard for a worker, decoded a little ahead of the model, in groups that follow from the shard."""

import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pyarrow as pa

from store.decode import DecodeError, decode
from store.imageset import ImageSet

# Photos are decoded ahead and processed in groups. Detection takes so many batches together, enough that photos of
# like shape fill batches; embedding takes so many photos. The pixels of a group bound the memory of large photos.
DETECT_BATCHES = 16
EMBED_GROUP = 16
GROUP_PIXELS = 64_000_000
HELPER_AHEAD = 8  # so many more photos are decoded ahead for each that a helper has at once: its answers take longer

# Told by a worker how many photos it has done since it last told; a share of a photo where only some of the models are
# done with it. A process with a way to its driver puts its own function here.
tell_done: Callable[[float], None] = lambda n: None  # noqa: E731


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

    @property
    def n_pixels(self) -> int:
        return 0 if self.pixels is None else self.pixels.shape[0] * self.pixels.shape[1]


class Ahead:
    """Photos decoded by `threads` threads while the caller is busy: at most `n`, and no more than GROUP_PIXELS and one
    photo.

    `pixels_of` says how many pixels a row's photo has before it is decoded. A context manager: whatever ends the block
    ends the threads.
    """

    def __init__(
        self,
        rows: Sequence[int],
        decode_row: Callable[[int], Decoded],
        pixels_of: Callable[[int], int],
        n: int,
        threads: int = 1,
    ) -> None:
        self._rows, self._decode_row, self._pixels_of, self._n = deque(rows), decode_row, pixels_of, n
        self._waiting: deque[tuple[int, Future[Decoded]]] = deque()  # pixels of a photo, and the photo, in order
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    def __enter__(self) -> "Ahead":
        self._decode_more()
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def next(self) -> Decoded:
        """The next photo, in the order of the rows; raises what its decoding raised."""
        _, photo = self._waiting.popleft()
        self._decode_more()
        return photo.result()

    def _decode_more(self) -> None:
        while self._rows and len(self._waiting) < self._n and sum(n for n, _ in self._waiting) < GROUP_PIXELS:
            row = self._rows.popleft()
            self._waiting.append((self._pixels_of(row), self._pool.submit(self._decode_row, row)))


class Helper(Protocol):
    """Whoever else decodes photos (`jobs.runs.decoding.Decoders`)."""

    def begin(self) -> int:
        """A shard begins: how many photos it may decode at once."""

    def learn(self, decoding_s: float, busy_s: float, waited_s: float) -> None:
        """A shard is done: its photos take `decoding_s` of a core, kept the models busy and made them wait so long."""

    def decode(self, data: bytes, max_pixels: int) -> np.ndarray | None:
        """As `store.decode.decode`; None where it cannot do it."""


def groups(
    images: ImageSet,
    shard: str,
    rows: Sequence[int],
    skip: dict[int, str],
    *,
    size: int,
    max_pixels: int,
    clock: Clock,
    threads: int = 1,
    helper: Helper | None = None,
) -> Iterator[list[Decoded]]:
    """Groups of at most `size` photos in the order of `rows`, the next decoded while the caller is busy with the last.

    Decoding takes `threads` threads, and a helper's; groups do not depend on them. A group ends before its size where
    its photos come to GROUP_PIXELS; what is decoded ahead is bounded likewise. Rows of `skip` come back undecoded with
    its reason, and so do photos of more than `max_pixels`.
    """
    start = time.perf_counter()
    table = images.read(shard)  # the whole file, its digest compared
    ids, encoded = table.column("image_id"), table.column("image")
    n_pixels = table.column("width").to_numpy().astype(np.int64) * table.column("height").to_numpy()
    helper = helper if len(rows) > 1 else None  # a photo tried alone shows what it does to this process
    decoding = _Decoding(max_pixels, threads, helper)
    more = helper.begin() if helper else 0

    def one(row: int) -> Decoded:
        image_id = ids[row].as_py()
        if row in skip:
            return Decoded(row, image_id, None, skip[row])
        try:
            return Decoded(row, image_id, decoding.pixels(encoded[row].as_buffer()))
        except DecodeError as error:
            return Decoded(row, image_id, None, str(error))

    busy_s = waited_s = 0.0
    with Ahead(rows, one, lambda row: int(n_pixels[row]), size + HELPER_AHEAD * more, threads + more) as ahead:
        group: list[Decoded] = []
        for left in reversed(range(len(rows))):
            group.append(ahead.next())
            if not left or len(group) == size or sum(photo.n_pixels for photo in group) >= GROUP_PIXELS:
                clock.spent("read", start)
                handed = time.perf_counter()
                yield group
                waited_s, start, group = waited_s + handed - start, time.perf_counter(), []
                busy_s += start - handed
    clock.spent("read", start)
    if helper and decoding.took:
        helper.learn(len(rows) * statistics.mean(decoding.took), busy_s, waited_s)


class _Decoding:
    """Decodes in at most `threads` of the threads that ask, and lets a helper do it for the others."""

    def __init__(self, max_pixels: int, threads: int, helper: Helper | None) -> None:
        self._max_pixels, self._helper, self._ours = max_pixels, helper, threading.Semaphore(threads)
        self.took: list[float] = []  # seconds of each photo that was decoded in this process

    def pixels(self, data: pa.Buffer) -> np.ndarray:
        if not self._ours.acquire(blocking=False):
            pixels = self._helper.decode(data.to_pybytes(), self._max_pixels) if self._helper else None
            if pixels is not None:
                return pixels
            self._ours.acquire()
        start = time.perf_counter()
        try:
            return decode(data, max_pixels=self._max_pixels)
        finally:
            self.took.append(time.perf_counter() - start)
            self._ours.release()


def limit_threads(n: int) -> None:
    """Hold OpenCV, and torch if the process has it, to `n` threads: sums then do not depend on how many workers run."""
    import cv2

    cv2.setNumThreads(n)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(n)
