"""Results from night to night: of a photo that was looked at again the newest count, and a garment has one id."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from part_results import photos_of, results_in

from jobs.gallery import results as gallery_results
from jobs.gallery.results import PhotoResults
from store.objects import open_store


@pytest.fixture
def nights(tmp_path: Path) -> PhotoResults:
    """Three parts, with scores from 0.3 to 0.9 each; the digests of 256 and 65,536 end with zero bytes."""
    for image_ids in ([1, 256, 3, 65_536], [3, 256, 7], [5]):
        found = results_in(open_store(tmp_path), np.array(image_ids))
    return found


def digests(*image_ids: int) -> pa.Array:
    return pa.array([i.to_bytes(16, "big") for i in image_ids], pa.binary(16))


def numbers(column: Any) -> list[int]:
    return [int.from_bytes(digest, "big") for digest in column.to_pylist()]


def test_a_photo_is_listed_once_where_it_came_last(nights: PhotoResults) -> None:
    assert numbers(nights.photos()["digest"]) == [1, 65_536, 3, 256, 7, 5]


def test_items_are_of_the_newest_part_and_come_newest_first(nights: PhotoResults) -> None:
    found = [(numbers(table["digest"]), table["score"].to_pylist()) for table in nights.items(digests(256, 1, 9, 3))]
    assert [ids for ids, _ in found] == [[3, 256], [1]]
    assert [pytest.approx(scores) for _, scores in found] == [[0.3, 0.6], [0.3]]


def test_a_part_without_a_wanted_photo_is_not_read(nights: PhotoResults) -> None:
    nights.store.delete("part-00002.items.parquet")
    assert sum(map(len, nights.items(digests(1, 3, 7, 256, 65_536)))) == 5


def test_without_results_there_are_neither_photos_nor_garments(tmp_path: Path) -> None:
    empty = PhotoResults(open_store(tmp_path), {"m": 8})
    assert len(empty.photos()) == 0
    assert list(empty.items(digests(1))) == [] and list(empty.garments(photos_of(np.array([1])))) == []


def test_photos_of_the_same_bytes_have_garments_of_their_own(nights: PhotoResults) -> None:
    photos = photos_of(np.array([1, 3, 7]))
    twice = photos.set_column(photos.column_names.index("digest"), "digest", digests(256, 3, 256))
    found = [(items.to_pylist(), rows["m"]) for items, rows in nights.garments(twice)]
    ((items, rows),) = found
    assert [item["image_id"] for item in items] == [3, 1, 7]  # as the items lie, then as the photos do
    assert len({item["id"] for item in items}) == 3
    np.testing.assert_array_equal(rows[1], rows[2])
    assert not np.array_equal(rows[0], rows[1])


def test_two_garments_of_one_id_are_refused(nights: PhotoResults, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery_results, "ids_of", lambda images, boxes: images // 1_000)
    with pytest.raises(ValueError, match="two garments have id 0; 63 bits met by chance"):
        list(nights.garments(photos_of(np.array([1, 5]))))  # of two parts, so that neither part alone shows it
