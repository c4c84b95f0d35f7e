"""Results from night to night: of a photo that was looked at again the newest count, and a garment has one id."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from galleries import content
from part_results import in_one, photos_of, published, record_of, results_in, wanted

from jobs.gallery import built_parts
from jobs.gallery import results as gallery_results
from jobs.gallery.build import Wanted, build
from jobs.gallery.results import PhotoResults
from jobs.runs import tables
from retrieval.gallery import Gallery
from store.objects import ObjectStore, open_store


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


def test_a_photo_is_dated_by_the_last_part_that_lists_it(nights: PhotoResults) -> None:
    photos = pa.table({"digest": digests(7, 8, 9), "items": [2, 1, 0], "reason": ["", "a crop failed", "no image"]})
    nights.add(photos, nights.schema.empty_table())
    dated = nights.dated(photos_of(np.array([9, 8, 7, 256, 1, 500])))
    assert dated["items"].to_pylist() == [0, 1, 2, 1, 1, 0]
    assert dated["part"].to_pylist() == [3, 3, 3, 1, 0, -1] and nights.next_part == 4


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("again", ["one more", "another", "none"])
def test_what_a_second_attempt_finds_is_what_counts(tmp_path: Path, parts: int, again: str) -> None:
    """Something about photo 5 had failed. Its bytes and name stay, and tonight its garments are others."""
    store, ids, wish = open_store(tmp_path), np.arange(1, 31), wanted(parts)
    results = results_in(store, ids)
    photos = tables.read(results.store, "part-00000.photos.parquet")
    reasons = ["a crop failed" if number == 5 else "" for number in numbers(photos["digest"])]
    tables.write(results.store, "part-00000.photos.parquet", photos.set_column(2, "reason", pa.array(reasons)))
    publish_night(wish, results, ids, store, "000001-x")
    (one,) = results.items(digests(5))
    other = one.set_column(1, "bbox", pa.FixedSizeListArray.from_arrays(pa.array([9, 9, 20, 20], pa.float32()), 4))
    found = pa.concat_tables({"one more": [one, other], "another": [other], "none": [one[:0]]}[again])
    results.add(pa.table({"digest": digests(5), "items": [len(found)], "reason": [""]}), found)
    built = publish_night(wish, results, ids, store, "000002-x")
    added, removed = {"one more": (1, 0), "another": (1, 1), "none": (0, 1)}[again]
    assert (built.rebuilt, built.added, built.removed) == ("", added, removed)
    anew = in_one(wanted(1), results, ids, store, "000003-x")
    assert content(Gallery(store, "000002-x")) == content(anew)


def publish_night(wish: Wanted, results: PhotoResults, ids: np.ndarray, store: ObjectStore, name: str) -> Any:
    """A version that extends the one before, if there is one."""
    before = built_parts.published(store, "000001-x") if name > "000001-x" else None
    if wish.settings.gallery.parts > 1:
        return published(wish, results, ids, before, store, name)[1]
    with tempfile.TemporaryDirectory() as passing:
        built = build(wish, results, photos_of(ids), before, Path(passing))
        built.write(store, record_of(wish, results, built, name))
    return built
