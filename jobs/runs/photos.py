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
HELPED_UNIT = 8  # photos that a helper gets at once: sending them one by one takes longer than decoding

Pixels = np.ndarray | str  # (H, W, 3) uint8, or the reason why there are none

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

    @classmethod
    def of(cls, row: int, image_id: int, found: Pixels) -> "Decoded":
        return cls(row, image_id, None, found) if isinstance(found, str) else cls(row, image_id, found)

    @property
    def n_pixels(self) -> int:
        return 0 if self.pixels is None else self.pixels.shape[0] * self.pixels.shape[1]


class Ahead:
    """Photos decoded by `threads` threads while the caller is busy: at most `n`, and no more than GROUP_PIXELS, and
    `unit` photos beyond.

    A thread takes `unit` rows at a time. `pixels_of` says how many pixels a row's photo has before it is decoded. A
    context manager: whatever ends the block ends the threads.
    """

    def __init__(
        self,
        rows: Sequence[int],
        decode_rows: Callable[[Sequence[int]], list[Decoded]],
        pixels_of: Callable[[int], int],
        n: int,
        threads: int = 1,
        unit: int = 1,
    ) -> None:
        self._units = deque(rows[start : start + unit] for start in range(0, len(rows), unit))
        self._decode_rows, self._pixels_of, self._n = decode_rows, pixels_of, n
        self._waiting: deque[tuple[int, int, Future[list[Decoded]]]] = deque()  # photos, their pixels, the unit
        self._taken: deque[Decoded] = deque()  # from the unit that the caller is at
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    def __enter__(self) -> "Ahead":
        self._decode_more()
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def next(self) -> Decoded:
        """The next photo, in the order of the rows; raises what its decoding raised."""
        if not self._taken:
            *_, unit = self._waiting.popleft()
            self._decode_more()
            self._taken.extend(unit.result())
        return self._taken.popleft()

    def _decode_more(self) -> None:
        while self._units and self._has_room():
            rows = self._units.popleft()
            n_pixels = sum(map(self._pixels_of, rows))
            self._waiting.append((len(rows), n_pixels, self._pool.submit(self._decode_rows, rows)))

    def _has_room(self) -> bool:
        n, n_pixels = sum(n for n, *_ in self._waiting), sum(n_pixels for _, n_pixels, _ in self._waiting)
        return n < self._n and n_pixels < GROUP_PIXELS


class Helper(Protocol):
    """Whoever else decodes photos (`jobs.runs.decoding.Decoders`)."""

    def begin(self) -> int:
        """A shard begins: how many threads may ask it at once."""

    def learn(self, decoding_s: float, busy_s: float, waited_s: float) -> None:
        """A shard is done: its photos take `decoding_s` of a core, kept the models busy and made them wait so long."""

    def decode(self, photos: Sequence[bytes], max_pixels: int) -> "list[Pixels] | None":
        """Each photo's pixels or the reason why there are none; None where it cannot do them."""


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
    unit = HELPED_UNIT if more else 1

    def some(chosen: Sequence[int]) -> list[Decoded]:
        tried = [row for row in chosen if row not in skip]
        found: dict[int, Pixels] = dict(
            zip(tried, decoding.pixels([encoded[row].as_buffer() for row in tried]), strict=True)
        )
        found |= {row: skip[row] for row in chosen if row in skip}
        return [Decoded.of(row, ids[row].as_py(), found[row]) for row in chosen]

    busy_s = waited_s = 0.0
    with Ahead(rows, some, lambda row: int(n_pixels[row]), size + unit * more, threads + more, unit) as ahead:
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

    def pixels(self, photos: Sequence[pa.Buffer]) -> list[Pixels]:
        if not self._ours.acquire(blocking=False):
            sent = [photo.to_pybytes() for photo in photos]
            answers = self._helper.decode(sent, self._max_pixels) if self._helper else None
            if answers is not None:
                return answers
            self._ours.acquire()
        try:
            return [self._one(photo) for photo in photos]
        finally:
            self._ours.release()

    def _one(self, photo: pa.Buffer) -> Pixels:
        start = time.perf_counter()
        answer = decoded(photo, self._max_pixels)
        self.took.append(time.perf_counter() - start)
        return answer


def decoded(photo: pa.Buffer | bytes, max_pixels: int) -> Pixels:
    """A photo's pixels, or the reason why there are none."""
    try:
        return decode(photo, max_pixels=max_pixels)
    except DecodeError as error:
        return str(error)


def limit_threads(n: int) -> None:
    """Hold OpenCV, and torch if the process has it, to `n` threads: sums then do not depend on how many workers run."""
    import cv2

    cv2.setNumThreads(n)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(n)
