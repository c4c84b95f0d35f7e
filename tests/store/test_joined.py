"""Image sets read as one: names of shards, categories translated by name, what is refused."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from store.categories import DEEPFASHION2
from store.imageset import ImageSet, Item, Photo, open_imageset
from store.imageset_write import write_imageset
from store.joined import joined_name, open_imagesets
from store.manifest import ImageSetError

PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c6360000002000001e221bc330000000049454e44ae426082"
)


def photo(number: int, source: str = "shop", *categories: int) -> Photo:
    items = tuple(Item(category, 1 + i, (0, 0, 1, 1)) for i, category in enumerate(categories))
    return Photo(number, PIXEL, 1, 1, source, 1, f"sku-{number}", f"{number}.png", items=items)


def write(folder: Path | str, rows: list[Photo], names: tuple[str, ...] = DEEPFASHION2) -> ImageSet:
    write_imageset(rows, folder, source={"adapter": "test", "arguments": {}}, categories=names, max_images=2)
    return open_imageset(folder)


def ids_of(images: ImageSet) -> list[list[int]]:
    """Category ids of each photo, from `truth`."""
    return [[item["category_id"] for item in items] for items in images.truth()["items"].to_pylist()]


@pytest.fixture
def three(tmp_path: Path) -> list[ImageSet]:
    """Names that overlap: cape is 1 in the first set, 2 in the second; the third has them in the joined order."""
    return [
        write(tmp_path / "a", [photo(1, "user", 1), photo(2, "user", 2, 1), photo(3, "user")], ("cape", "skirt")),
        write(tmp_path / "b", [photo(11, "shop", 1, 2), photo(12, "shop", 3)], ("kilt", "cape", "skirt")),
        write(tmp_path / "c", [photo(21, "shop", 2)], ("cape", "skirt")),
    ]


def uris(sets: list[ImageSet]) -> list[str]:
    return [images.uri for images in sets]


def test_one_address_is_that_set(three: list[ImageSet]) -> None:
    alone = open_imagesets([three[1].uri])
    assert (alone.digest, alone.shards, alone.sets) == (three[1].digest, three[1].shards, (alone,))


def test_shards_of_later_sets_carry_the_sets_number(three: list[ImageSet]) -> None:
    joined = open_imagesets(uris(three))
    names = [shard.name for shard in joined.shards]
    assert names == ["shard-00000", "shard-00001", "set1-shard-00000", "set2-shard-00000"]
    assert joined.photos(["image_id"])["shard"].to_pylist() == [names[i] for i in (0, 0, 1, 2, 2, 3)]
    assert joined.read("set1-shard-00000", ["image_id"])["image_id"].to_pylist() == [11, 12]
    assert (joined.manifest.images, joined.manifest.bytes) == (6, sum(images.manifest.bytes for images in three))
    assert joined_name(0, "shard-00003") == "shard-00003"


def test_categories_are_joined_by_name_and_ids_follow(three: list[ImageSet]) -> None:
    joined = open_imagesets(uris(three))
    assert joined.categories == ("cape", "skirt", "kilt")
    want = [[["cape"], ["skirt", "cape"], []], [["kilt", "cape"], ["skirt"]], [["skirt"]]]
    assert [[joined.categories[i - 1] for i in ids] for ids in ids_of(joined)] == [row for part in want for row in part]
    whole = joined.read("set1-shard-00000")  # every column, the pictures' too
    assert whole.schema == three[1].read("shard-00000").schema and whole["image"].to_pylist() == [PIXEL, PIXEL]
    others = [name for name in whole.column_names if name != "items"]
    assert whole.select(others) == three[1].read("shard-00000").select(others)


def test_other_fields_of_translated_items_stay(three: list[ImageSet]) -> None:
    mine, theirs = (images.truth()["items"].to_pylist() for images in (open_imagesets(uris(three)), three[1]))
    for ours, own in zip(mine[3:5], theirs, strict=True):
        assert [item | {"category_id": 0} for item in ours] == [item | {"category_id": 0} for item in own]


def test_a_set_without_categories_adds_none(tmp_path: Path) -> None:
    first = write(tmp_path / "a", [photo(1)], ())
    second = write(tmp_path / "b", [photo(2, "shop", 1)], ("cape",))
    assert open_imagesets(uris([first, second])).categories == ("cape",)
    assert ids_of(open_imagesets(uris([second, first]))) == [[1], []]


def test_an_added_set_changes_no_shard_of_those_before_it(three: list[ImageSet]) -> None:
    two, all_three = open_imagesets(uris(three[:2])), open_imagesets(uris(three))
    assert all_three.shards[: len(two.shards)] == two.shards
    assert all_three.categories[: len(two.categories)] == two.categories
    assert two.shards[:2] == three[0].shards
    assert len({images.digest for images in (two, all_three, *three)}) == 5


def test_a_shard_whose_ids_are_translated_otherwise_is_another(tmp_path: Path, three: list[ImageSet]) -> None:
    others = write(tmp_path / "d", [photo(31)], ("skirt", "cape"))
    digests = {open_imagesets(uris([first, three[1]])).shards[-1].digest for first in (three[0], others)}
    assert len(digests) == 2


def test_a_joined_set_is_pickled_whole(three: list[ImageSet]) -> None:
    joined = open_imagesets(uris(three))
    copy = pickle.loads(pickle.dumps(joined))
    assert copy.truth() == joined.truth() and copy.digest == joined.digest


def test_failures_are_those_of_all_sets(tmp_path: Path) -> None:
    broken = replace(photo(9), width=0)
    parts = [write(tmp_path / "a", [photo(1), broken]), write(tmp_path / "b", [photo(2)])]
    joined = open_imagesets(uris(parts))
    assert joined.failures()["image_id"].to_pylist() == [9] and joined.manifest.failures == 1


def test_an_id_in_two_sets_names_both_photos_and_sets(tmp_path: Path) -> None:
    parts = [
        write(tmp_path / "street", [photo(5), photo(7), replace(photo(8), file_name="a/0001.jpg")]),
        write(tmp_path / "shop", [photo(6), replace(photo(8), file_name="b/0001.jpg"), photo(7)]),
    ]
    joined = open_imagesets(uris(parts))
    with pytest.raises(ImageSetError) as refused:
        joined.check_ids()
    said = str(refused.value)
    assert said.startswith("image_id 7 is in two image sets (2 such ids): '7.png' of ") and "\n" not in said
    assert f"'7.png' of {parts[0].uri} and '7.png' of {parts[1].uri}" in said
    open_imagesets(uris([parts[0], write(tmp_path / "third", [photo(100)])])).check_ids()
    parts[0].check_ids()


def test_what_cannot_be_joined_is_refused(tmp_path: Path, three: list[ImageSet]) -> None:
    with pytest.raises(ImageSetError, match="/a is given twice"):
        open_imagesets([*uris(three), f"{three[0].uri}/"])
    with pytest.raises(ImageSetError, match="no image set at"):
        open_imagesets([three[0].uri, tmp_path / "absent"])
    with pytest.raises(ImageSetError, match="no image set: want one address or more"):
        open_imagesets([])
    with pytest.raises(ImageSetError, match="no shard 'set3-shard-00000'; there are 4"):
        open_imagesets(uris(three)).read("set3-shard-00000")
    with pytest.raises(ImageSetError, match="no column"):
        open_imagesets(uris(three)).read("set1-shard-00000", ["colour"])


def test_a_folder_and_a_bucket_are_joined(three: list[ImageSet], s3_bucket: str) -> None:
    write(f"{s3_bucket}/set", [photo(41, "shop", 1)], ("kilt",))
    joined = open_imagesets([three[0].uri, f"{s3_bucket}/set"])
    assert joined.categories == ("cape", "skirt", "kilt") and ids_of(joined)[-1] == [3]
    assert joined.is_remote and not three[0].is_remote
    np.testing.assert_array_equal(joined.photos(["image_id"])["image_id"], [1, 2, 3, 41])
