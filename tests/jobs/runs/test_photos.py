"""Photos read ahead of the models come in order, in groups that depend on the shard alone.

Never are more decoded than there is room for.
"""

import threading
from collections.abc import Sequence

import numpy as np
import pytest
import stand_ins

from jobs.runs import photos
from jobs.runs.photos import Ahead, Clock, Decoded
from store.decode import decode
from store.imageset import ImageSet, open_imageset


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    folder = tmp_path_factory.mktemp("photos")
    stand_ins.imageset(folder, 10, max_images=11)  # and an eleventh, cut off in the middle
    return open_imageset(str(folder))


def in_groups(
    images: ImageSet, rows: list[int], size: int, skip: dict[int, str] | None = None, threads: int = 1
) -> list[list[Decoded]]:
    how = {"size": size, "max_pixels": 10**9, "threads": threads}
    return list(photos.groups(images, images.shards[0].name, rows, skip or {}, clock=Clock(), **how))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("size, want", [(1, [1] * 11), (4, [4, 4, 3]), (11, [11]), (100, [11])])
def test_every_photo_once_in_order(images: ImageSet, size: int, want: list[int], threads: int) -> None:
    found = in_groups(images, list(range(11)), size, threads=threads)
    assert [len(group) for group in found] == want
    assert [photo.row for group in found for photo in group] == list(range(11))
    table = images.read(images.shards[0].name)
    for photo in (photo for group in found for photo in group):
        assert photo.image_id == table.column("image_id")[photo.row].as_py()
        if photo.row == 10:
            assert photo.pixels is None and photo.reason
        else:
            assert photo.pixels is not None
            np.testing.assert_array_equal(photo.pixels, decode(table.column("image")[photo.row].as_py()))


def test_some_rows_and_some_skipped(images: ImageSet) -> None:
    found = in_groups(images, [2, 5, 9], 2, {5: "it killed a process"})
    assert [[(photo.row, photo.reason) for photo in group] for group in found] == [
        [(2, ""), (5, "it killed a process")],
        [(9, "")],
    ]
    assert in_groups(images, [], 2) == []


def test_large_photos_close_a_group(images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    each = in_groups(images, [0], 1)[0][0].n_pixels
    monkeypatch.setattr(photos, "GROUP_PIXELS", 3 * each)
    assert [len(group) for group in in_groups(images, [0, 1, 2, 3, 5, 6, 7], 100)] == [3, 3, 1]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("n_pixels, want", [(1, 4), (6, 2), (10, 1), (100, 1)])
def test_no_more_is_decoded_than_there_is_room_for(
    n_pixels: int, want: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four photos, or ten pixels and the photo that goes beyond them; and the one that the caller has."""
    monkeypatch.setattr(photos, "GROUP_PIXELS", 10)
    asked: list[int] = []

    def one(rows: Sequence[int]) -> list[Decoded]:
        asked.extend(rows)
        return [Decoded(row, row, np.zeros((1, n_pixels, 3), np.uint8)) for row in rows]

    with Ahead(range(100), one, lambda row: n_pixels, 4, threads) as ahead:
        for taken in range(5):
            assert ahead.next().row == taken
    assert sorted(asked) == list(range(len(asked))) and 5 <= len(asked) <= 5 + want


@pytest.mark.parametrize("threads", [1, 3])
def test_units_come_in_order_and_within_their_room(threads: int) -> None:
    """Of 18 photos in units of four at most ten wait, and the unit that goes beyond them."""
    asked: list[int] = []

    def some(rows: Sequence[int]) -> list[Decoded]:
        asked.extend(rows)
        return [Decoded(row, 100 + row, None, "none") for row in rows]

    with Ahead(range(18), some, lambda row: 1, 10, threads, unit=4) as ahead:
        assert [ahead.next().image_id for _ in range(2)] == [100, 101]
        assert len(asked) <= 4 + 12
        assert [ahead.next().row for _ in range(16)] == list(range(2, 18))
    assert sorted(asked) == list(range(18))


def test_what_decoding_raises_is_the_callers() -> None:
    def broken(rows: Sequence[int]) -> list[Decoded]:
        if 2 in rows:
            raise MemoryError("no room")
        return [Decoded(row, row, None) for row in rows]

    with Ahead(range(9), broken, lambda row: 1, 4) as ahead:
        assert [ahead.next().row, ahead.next().row] == [0, 1]
        with pytest.raises(MemoryError, match="no room"):
            ahead.next()


def test_the_threads_end_with_whoever_gives_up(images: ImageSet) -> None:
    shard = images.shards[0].name
    running = photos.groups(images, shard, range(11), {}, size=2, max_pixels=10**9, clock=Clock())
    next(running)
    assert [thread for thread in threading.enumerate() if thread.name.startswith("decode")]
    running.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]
