"""The photos of one shard for a worker, decoded a little ahead of the model, in groups that follow from the shard."""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from store.decode import DecodeError, decode
from store.imageset import ImageSet

# Photos are decoded ahead and processed in groups. Detection takes so many batches together, enough that photos of
# like shape fill batches; embedding takes so many photos. The pixels of a group bound the memory of large photos.
DETECT_BATCHES = 16
EMBED_GROUP = 16
GROUP_PIXELS = 64_000_000

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
) -> Iterator[list[Decoded]]:
    """Groups of at most `size` photos in the order of `rows`, the next decoded while the caller is busy with the last.

    Decoding takes `threads` threads; groups do not depend on them. A group ends before its size where its photos come
    to GROUP_PIXELS; what is decoded ahead is bounded likewise. Rows of `skip` come back undecoded with its reason, and
    so do photos of more than `max_pixels`.
    """
    start = time.perf_counter()
    table = images.read(shard)  # the whole file, its digest compared
    ids, encoded = table.column("image_id"), table.column("image")
    n_pixels = table.column("width").to_numpy().astype(np.int64) * table.column("height").to_numpy()

    def one(row: int) -> Decoded:
        image_id = ids[row].as_py()
        if row in skip:
            return Decoded(row, image_id, None, skip[row])
        try:
            return Decoded(row, image_id, decode(encoded[row].as_buffer(), max_pixels=max_pixels))
        except DecodeError as error:
            return Decoded(row, image_id, None, str(error))

    with Ahead(rows, one, lambda row: int(n_pixels[row]), size, threads) as ahead:
        group: list[Decoded] = []
        for _ in rows:
            group.append(ahead.next())
            if len(group) == size or sum(photo.n_pixels for photo in group) >= GROUP_PIXELS:
                clock.spent("read", start)
                yield group
                start, group = time.perf_counter(), []
        clock.spent("read", start)
        if group:
            yield group


def limit_threads(n: int) -> None:
    """Hold OpenCV, and torch if the process has it, to `n` threads: sums then do not depend on how many workers run."""
    import cv2

    cv2.setNumThreads(n)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(n)
