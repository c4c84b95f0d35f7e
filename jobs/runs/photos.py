"""The photos of one shard for a worker, decoded a little ahead of the model, in groups that follow from the shard."""

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
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
    """Photos decoded in a thread while the caller is busy: at most `n`, and no more than GROUP_PIXELS and one photo.

    A context manager: whatever ends the block ends the thread.
    """

    def __init__(self, rows: Sequence[int], decode_row: Callable[[int], Decoded], n: int) -> None:
        self._rows, self._decode_row, self._n = rows, decode_row, n
        self._ready: deque[Decoded | BaseException] = deque()
        self._over = False
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="decode", daemon=True)

    def __enter__(self) -> "Ahead":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._change:
            self._over = True
            self._change.notify_all()
        self._thread.join()

    def next(self) -> Decoded:
        """The next photo, in the order of the rows; raises what its decoding raised."""
        with self._change:
            self._change.wait_for(lambda: self._ready)
            photo = self._ready.popleft()
            if isinstance(photo, BaseException):
                raise photo
            self._change.notify_all()
            return photo

    def _has_room(self) -> bool:
        waiting = sum(photo.n_pixels for photo in self._ready if isinstance(photo, Decoded))
        return self._over or (len(self._ready) < self._n and waiting < GROUP_PIXELS)

    def _work(self) -> None:
        for row in self._rows:
            try:
                photo: Decoded | BaseException = self._decode_row(row)
            except BaseException as error:  # the caller's to see
                photo = error
            with self._change:
                self._change.wait_for(self._has_room)
                if self._over:
                    return
                self._ready.append(photo)
                self._change.notify_all()


def groups(
    images: ImageSet, shard: str, rows: Sequence[int], skip: dict[int, str], *, size: int, max_pixels: int, clock: Clock
) -> Iterator[list[Decoded]]:
    """Groups of at most `size` photos in the order of `rows`, the next decoded while the caller is busy with the last.

    A group ends before its size where its photos come to GROUP_PIXELS; what is decoded ahead is bounded likewise.
    Rows of `skip` come back undecoded with its reason, and so do photos of more than `max_pixels`.
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

    with Ahead(rows, one, size) as ahead:
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
