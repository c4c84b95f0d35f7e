"""Which photos a run takes: what is read for it, what run.json keeps of it, several sets."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import stand_ins

from jobs.runs.reader import read_photos
from jobs.runs.selection import Selected, choose, remark_on_pixels, select
from retrieval.limit import count, read_facts
from store.imageset import ImageSet, Photo, open_imageset
from store.imageset_write import write_imageset
from store.joined import open_imagesets


def write(folder: Path, photos: list[Photo], max_pixels: int | None = None) -> ImageSet:
    arguments = {} if max_pixels is None else {"max_pixels": max_pixels}
    write_imageset(photos, folder, source={"adapter": "test", "arguments": arguments}, max_images=2)
    return open_imageset(folder)


@pytest.fixture
def images(tmp_path: Path) -> ImageSet:
    """Shops' photos first, then consumers'; of pair 3 there is no shop photo, pair 4 is no consumer's."""
    pairs = {"shop": (4, 2, 1), "user": (3, 1, 2)}
    photos = [stand_ins.photo(10 * pair + (side == "shop"), side, pair) for side in pairs for pair in pairs[side]]
    return write(tmp_path / "set", photos)


def ids(images: ImageSet, limit: int | None) -> list[int]:
    return read_photos(images, select(images, limit).shards)["image_id"].to_pylist()


@pytest.mark.parametrize("limit, want", [
    (None, [41, 21, 11, 30, 10, 20]), (6, [41, 21, 11, 30, 10, 20]),
    (2, [11, 10]),  # the first consumer's photo with an answer, and that
    (4, [21, 11, 10, 20]),  # 30 has no answer, 41 is none
    (5, [21, 11, 30, 10, 20]),  # room for a third consumer's
])  # fmt: skip
def test_consumers_with_an_answer_and_their_answers_come_first(
    images: ImageSet, limit: int | None, want: list[int]
) -> None:
    assert ids(images, limit) == want


def test_the_facts_of_a_set(images: ImageSet) -> None:
    facts = read_facts(images)
    assert facts.shard.tolist() == [0, 0, 1, 1, 2, 2] and facts.row.tolist() == [0, 1] * 3
    assert facts.pair_id.tolist() == [4, 2, 1, 3, 1, 2] and facts.user.tolist() == [False] * 3 + [True] * 3
    assert facts.n_items.tolist() == [1] * 6 and facts.style.tolist() == [1] * 6
    assert set(facts.product.tolist()) == {0}, "no photo has a product"
    assert count(facts) == {"users": 3, "shops": 3, "items": 6, "shop_items": 3}


def test_products_without_a_name_are_unknown(tmp_path: Path) -> None:
    names = ["b", "", "a", "b"]
    photos = [replace(stand_ins.photo(i, "shop", 1), product_id=name) for i, name in enumerate(names)]
    product = read_facts(write(tmp_path / "some", photos)).product.tolist()
    assert product[1] == 0 and product[0] == product[3] > 0 and 0 < product[2] != product[0]
    known = read_facts(write(tmp_path / "all", [photo for photo in photos if photo.product_id])).product
    assert (known > 0).all()


@pytest.mark.parametrize("limit", [None, 3, 4])
def test_run_json_keeps_the_choice(images: ImageSet, limit: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = select(images, limit)
    kept = json.loads(json.dumps(chosen.as_json()))
    if limit == 3:  # two consumers' photos, one shop's
        assert kept["unjudged"] == {"shard-00002": [[1, 1]]} and chosen.n_unjudged == 1
    else:
        assert kept["unjudged"] == {} and chosen.n_unjudged == 0
    monkeypatch.setattr(ImageSet, "read", lambda *_: pytest.fail("read a shard again"))
    assert select(images, limit, kept) == chosen
    older = {name: value for name, value in kept.items() if name != "unjudged"}
    assert [shard.rows for shard in select(images, limit, older).shards] == [shard.rows for shard in chosen.shards]


COUNTS = {"users": 3, "shops": 3, "items": 6, "shop_items": 3}


def counts(selected: Selected) -> dict[str, int]:
    return {name: getattr(selected, name) for name in COUNTS}


def test_a_whole_set_is_counted_without_reading_a_shard(images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = {"shard-00000": [0, 1], "shard-00001": [0, 1], "shard-00002": [0, 1]}
    monkeypatch.setattr(ImageSet, "read", lambda *_: pytest.fail("read a shard"))
    assert counts(select(images, None)) == counts(choose(images, everything)) == COUNTS


def test_shards_that_are_not_counted_or_not_taken_whole_are_read(
    images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = images.manifest.shards
    older = ImageSet(images.store, replace(images.manifest, shards=(replace(first, counts=None), second, third)))
    less = ImageSet(images.store, replace(images.manifest, shards=(first, second.without([0]), third)))
    read, plain = list[str](), ImageSet.read
    monkeypatch.setattr(ImageSet, "read", lambda self, name, columns: read.append(name) or plain(self, name, columns))
    assert counts(select(older, None)) == COUNTS
    assert counts(select(less, None)) == COUNTS | {"shops": 2, "items": 5, "shop_items": 2}  # without 11
    assert counts(choose(images, {"shard-00001": [0, 1], "shard-00002": [1]})) == {
        "users": 2, "shops": 1, "items": 3, "shop_items": 1,
    }  # fmt: skip
    assert read == ["shard-00000", "shard-00001", "shard-00002"]


def test_a_query_that_is_not_judged_has_no_truth(images: ImageSet) -> None:
    photos = read_photos(images, select(images, 3).shards).to_pylist()
    assert {photo["image_id"]: [item["style"] for item in photo["items"]] for photo in photos} == {
        11: [1], 10: [1], 20: [0],
    }  # fmt: skip


def test_shards_of_each_set(images: ImageSet, tmp_path: Path) -> None:
    other = write(tmp_path / "other", [stand_ins.photo(90 + i, "shop", 9) for i in range(3)])
    joined = open_imagesets([images.uri, other.uri])
    names = [[shard.name for shard in part] for part in select(joined, None).by_set(joined)]
    assert names == [["shard-00000", "shard-00001", "shard-00002"], ["set1-shard-00000", "set1-shard-00001"]]
    taken = choose(joined, {"set1-shard-00001": [0]})
    assert [len(part) for part in taken.by_set(joined)] == [0, 1] and (taken.images, taken.shops) == (1, 1)


def test_the_largest_limit_of_several_sets_is_told(images: ImageSet, tmp_path: Path) -> None:
    parts = [write(tmp_path / str(limit), [stand_ins.photo(limit, "shop", 1)], limit) for limit in (2000, 3000)]
    joined = open_imagesets([images.uri, *(part.uri for part in parts)])
    assert "photos of up to 3,000 pixels" in remark_on_pixels(joined, 2999)
    assert remark_on_pixels(joined, 3000) == "" == remark_on_pixels(images, 1)
