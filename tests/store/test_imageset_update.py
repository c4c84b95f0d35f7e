"""Updates of sets: finished shards are not touched, removed photos are not seen, nobody reads half an update."""

import dataclasses
import json
import re
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.runs.selection import select
from store import imageset
from store.imageset import SOURCES_SCHEMA, Failure, ImageSet, ImageSetError, Photo, Shard, open_imageset
from store.imageset_write import removal_of, update_imageset, write_imageset
from tests.store.test_imageset import SOURCE, files, photo, photos


def ten_in_fives(folder: Path | str) -> ImageSet:
    """Photos 0..4 in shard-00000, 5..9 in shard-00001."""
    write_imageset(photos(10), folder, source=SOURCE, max_images=5)
    return open_imageset(folder)


def update(folder: Path | str, *rows: Photo | Failure, gone: tuple[int, ...] = ()) -> ImageSet:
    images = open_imageset(folder)
    update_imageset(images, rows, removal_of(images, gone), source=SOURCE, max_images=5)
    return open_imageset(folder)


def ids(images: ImageSet) -> dict[str, list[int]]:
    return {shard.name: images.read(shard.name, ["image_id"])["image_id"].to_pylist() for shard in images.shards}


@pytest.mark.parametrize(
    "gone, new, want, why",
    [
        ((), (20,), {"shard-00000": [0, 1, 2, 3, 4], "shard-00001": [5, 6, 7, 8, 9], "shard-00002": [20]}, "added"),
        ((0, 4), (), {"shard-00000": [1, 2, 3], "shard-00001": [5, 6, 7, 8, 9]}, "2 of 5 removed: it stays"),
        ((0, 1, 4), (), {"shard-00001": [5, 6, 7, 8, 9], "shard-00002": [2, 3]}, "3 of 5: the others move"),
        ((0, 1, 2, 3, 4), (), {"shard-00001": [5, 6, 7, 8, 9]}, "all of 5: nothing moves"),
        ((7,), (7,), {"shard-00000": [0, 1, 2, 3, 4], "shard-00001": [5, 6, 8, 9], "shard-00002": [7]}, "replaced"),
        ((0, 1, 2), (20, 21, 22, 23),
         {"shard-00001": [5, 6, 7, 8, 9], "shard-00002": [3, 4, 20, 21, 22], "shard-00003": [23]}, "moved ones first"),
        (tuple(range(10)), (3,), {"shard-00002": [3]}, "all but one"),
        ((99,), (), {"shard-00000": [0, 1, 2, 3, 4], "shard-00001": [5, 6, 7, 8, 9]}, "there is no 99"),
    ],
)  # fmt: skip
def test_where_photos_lie_afterwards(tmp_path, gone, new, want, why):
    before = ten_in_fives(tmp_path / "set")
    bytes_before = files(tmp_path / "set")
    after = update(tmp_path / "set", *map(photo, new), gone=gone)
    assert ids(after) == want, why
    assert {shard.name: shard.rows for shard in after.shards} == {name: len(rows) for name, rows in want.items()}
    assert after.manifest.images == sum(map(len, want.values()))
    assert after.truth()["image_id"].to_pylist() == [number for rows in want.values() for number in rows]
    for shard in before.shards:  # whoever opened the set before still reads all of it
        assert before.read(shard.name).num_rows == 5
        assert files(tmp_path / "set")[f"{shard.name}.arrow"] == bytes_before[f"{shard.name}.arrow"]


def test_moved_rows_are_unchanged(tmp_path):
    before = {row["image_id"]: row for row in ten_in_fives(tmp_path / "set").read("shard-00000").to_pylist()}
    after = update(tmp_path / "set", gone=(0, 1, 3))  # 2 and 4 move
    assert after.read("shard-00002").to_pylist() == [before[2], before[4]]


def test_the_manifest_of_a_set_with_removals(tmp_path):
    old = json.loads((ten_in_fives(tmp_path / "set").store.local_path / "manifest.json").read_text())
    update(tmp_path / "set", gone=(8, 5))
    new = json.loads((tmp_path / "set" / "manifest.json").read_text())
    assert new["schema"] == 3 and new["removed"] == {"shard-00001": [0, 3]} and new["images"] == 8
    assert new["shards"] == old["shards"], "they tell of the files, which are the same"
    first, second = (bytes.fromhex(shard["digest"]) for shard in new["shards"])
    second = blake2b(second + np.array([0, 3], "<i8").tobytes(), digest_size=16).digest()
    assert new["digest"] == blake2b(first + second, digest_size=16).hexdigest()


def test_without_removals_it_is_the_manifest_of_an_ingestion(tmp_path):
    ten_in_fives(tmp_path / "set")
    update(tmp_path / "set", *map(photo, (20, 21)))
    write_imageset([*photos(10), photo(20), photo(21)], tmp_path / "fresh", source=SOURCE, max_images=5)
    assert files(tmp_path / "set") == files(tmp_path / "fresh")
    assert list(json.loads((tmp_path / "set" / "manifest.json").read_text())) == [
        "schema", "shards", "images", "failures", "bytes", "source", "digest", "categories", "skipped", "counts",
    ]  # fmt: skip


def test_a_shards_digest_changes_only_with_its_photos(tmp_path):
    def basis(images: ImageSet) -> dict[str, object]:
        return {shard.name: shard.basis() for shard in select(images, None).shards}

    one = basis(ten_in_fives(tmp_path / "set"))
    two = basis(update(tmp_path / "set", photo(20), gone=(6,)))
    three = basis(update(tmp_path / "set", gone=(7,)))
    assert one["shard-00000"] == two["shard-00000"] == three["shard-00000"]
    assert len({str(each["shard-00001"]) for each in (one, two, three)}) == 3
    assert two["shard-00002"] == three["shard-00002"]


def test_photos_lists_without_bytes(tmp_path):
    ten_in_fives(tmp_path / "set")
    images = update(tmp_path / "set", photo(20), gone=(1,))
    table = images.photos(("product_id", "image_id"))
    assert table.column_names == ["image_id", "product_id", "shard", "row"]
    assert table.slice(0, 4).to_pydict() == {
        "image_id": [0, 2, 3, 4], "product_id": ["sku"] * 4, "shard": ["shard-00000"] * 4, "row": [0, 1, 2, 3],
    }  # fmt: skip
    for place in images.photos().to_pylist():
        assert images.read(place["shard"])["image_id"][place["row"]].as_py() == place["image_id"]
    assert set(images.photos().column_names) == {*imageset.LISTED_COLUMNS, "shard", "row"}
    with pytest.raises(ValueError, match="other than image"):
        images.photos(("image",))


def test_an_empty_set_lists_nothing(tmp_path):
    write_imageset([], tmp_path / "set", source=SOURCE)
    assert open_imageset(tmp_path / "set").photos(["digest"]).num_rows == 0


@pytest.mark.parametrize("twin", [3, 20])
def test_an_id_that_is_there_already_is_refused_and_the_set_stays(tmp_path, twin):
    ten_in_fives(tmp_path / "set")
    with pytest.raises(ImageSetError, match=f"image_id {twin} occurs more than once"):
        update(tmp_path / "set", photo(20), photo(twin, file_name="again.jpg"))
    assert open_imageset(tmp_path / "set").truth()["image_id"].to_pylist() == list(range(10))
    assert update(tmp_path / "set", photo(3, file_name="new.jpg"), gone=(3,)).manifest.images == 10


def test_the_next_update_deletes_shards_that_no_manifest_names(tmp_path):
    ten_in_fives(tmp_path / "set")
    (tmp_path / "set" / "shard-00002.arrow").write_bytes(b"left by a killed update")
    (tmp_path / "set" / "shard-00007.arrow").write_bytes(b"likewise")
    images = update(tmp_path / "set", photo(20), gone=(0, 1, 2))
    assert ids(images)["shard-00002"] == [3, 4, 20]
    assert {name for name in files(tmp_path / "set") if "shard" in name} == {
        "shard-00000.arrow", "shard-00001.arrow", "shard-00002.arrow",  # the first for those who opened the set before
    }  # fmt: skip
    update(tmp_path / "set", photo(21))
    assert "shard-00000.arrow" not in files(tmp_path / "set")


def test_two_updates_at_once_are_refused(tmp_path):
    images = ten_in_fives(tmp_path / "set")

    def late() -> None:
        update(tmp_path / "set", gone=(0,))

    with pytest.raises(ImageSetError, match="another update finished meanwhile"):
        update_imageset(images, [], removal_of(images, [1]), source=SOURCE, check_lock=late)
    assert ids(open_imageset(tmp_path / "set"))["shard-00000"] == [1, 2, 3, 4]

    def rows():
        update(tmp_path / "set", photo(30))
        yield photo(31)

    images = open_imageset(tmp_path / "set")
    with pytest.raises(ImageSetError, match=r"shard-00002.arrow appeared meanwhile"):
        update_imageset(images, rows(), removal_of(images, []), source=SOURCE)
    assert ids(open_imageset(tmp_path / "set"))["shard-00002"] == [30]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("place", ["folder", pytest.param("bucket", marks=pytest.mark.slow)])
def test_after_a_kill_at_any_step_the_old_set_is_whole_and_the_next_update_right(
    tmp_path, place, s3_bucket, monkeypatch
):
    """Every write, create and delete in turn is the last thing done."""
    want = {1, 3, 4, *range(5, 10), 20, 21, 22, 23}
    for step in range(50):
        uri = str(tmp_path / str(step)) if place == "folder" else f"{s3_bucket}/{step}"
        ten_in_fives(uri)
        open_imageset(uri).store.write("shard-00009.arrow", b"left behind")
        images, left = open_imageset(uri), [step]

        def dying(do: Callable, left: list[int] = left) -> Callable:
            def one(*arguments: object) -> object:
                left[0] -= 1
                if left[0] < 0:
                    raise Killed
                return do(*arguments)

            return one

        with monkeypatch.context() as patch:
            for name in ("write", "create", "delete"):
                patch.setattr(images.store, name, dying(getattr(images.store, name)))
            try:
                update_imageset(
                    images, map(photo, (0, 2, 20, 21, 22, 23)), removal_of(images, (0, 2)), source=SOURCE, max_images=2
                )
            except Killed:
                pass
            else:
                break
        assert open_imageset(uri).manifest == images.manifest
        assert open_imageset(uri).photos(["image_id"])["image_id"].to_pylist() == list(range(10))
        after = update(uri, *map(photo, (20, 21, 22, 23)), gone=(0, 2))
        assert set(after.truth()["image_id"].to_pylist()) == want
        assert all(after.read(shard.name).num_rows == shard.rows for shard in after.shards)
    assert 5 < step < 49  # a deletion, three shards, failures, the manifest


def test_sources_parquet_of_another_manifest_is_ignored(tmp_path):
    table = SOURCES_SCHEMA.empty_table()
    write_imageset(photos(2), tmp_path / "set", source=SOURCE, sources=lambda: table)
    images = open_imageset(tmp_path / "set")
    assert images.sources() == table and images.manifest.schema == 3
    (tmp_path / "set" / "sources.parquet").write_bytes(b"of an update that was killed")
    assert images.sources() is None
    (tmp_path / "set" / "sources.parquet").unlink()
    assert images.sources() is None
    write_imageset(photos(2), tmp_path / "set", source=SOURCE, overwrite=True)
    assert open_imageset(tmp_path / "set").sources() is None


@pytest.mark.parametrize(
    "edit, want",
    [
        ({"schema": 1}, "rows are removed, which schema 1 does not allow; want schema 2"),
        ({"schema": True}, "schema True"),
        ({"schema": 4}, "schema 4"),
        ({"removed": None}, "NoneType"),
        ({"removed": {"shard-00000": []}}, "removed of shard-00000"),
        ({"removed": {"shard-00000": [0, 1, 2, 3, 4]}}, "removed of shard-00000"),
        ({"removed": {"shard-00000": [1, 0]}}, "removed of shard-00000"),
        ({"removed": {"shard-00000": [1, 1]}}, "removed of shard-00000"),
        ({"removed": {"shard-00000": [5]}}, "removed of shard-00000"),
        ({"removed": {"shard-00000": [-1]}}, "removed of shard-00000"),
        ({"removed": {"shard-00000": [True]}}, "removed of shard-00000"),
        ({"removed": {"shard-00000": ["0"]}}, "removed of shard-00000"),
        ({"removed": {"shard-00009": [0]}}, "no shard of it"),
        ({"removed": {"shard-00000": [1]}}, "is not that of the shards' digests"),
        ({"removed": {}}, "is not that of the shards' digests"),
        ({"images": 10}, "add up"),
        ({"sources": {"digest": 5}}, "digest of sources.parquet is 5"),
        ({"sources": []}, "not an image set's manifest"),
    ],
)
def test_invalid_manifests_with_removals_are_refused(tmp_path, edit, want):
    ten_in_fives(tmp_path / "set")
    update(tmp_path / "set", gone=(0,))
    path = tmp_path / "set" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | edit))
    with pytest.raises(ImageSetError, match=want):
        open_imageset(tmp_path / "set")


def test_shards_out_of_order_or_twice_are_refused(tmp_path):
    ten_in_fives(tmp_path / "set")
    update(tmp_path / "set", gone=(0,))
    path = tmp_path / "set" / "manifest.json"
    manifest = json.loads(path.read_text())
    one, two = manifest["shards"]
    for shards in ([two, one], [one, one], [one | {"name": "shard-0"}], [one | {"name": "shard-000001"}]):
        path.write_text(json.dumps(manifest | {"shards": shards}))
        with pytest.raises(ImageSetError, match="not an image set's manifest"):
            open_imageset(tmp_path / "set")


def test_a_damaged_shard_with_removals_is_refused(tmp_path):
    ten_in_fives(tmp_path / "set")
    images = update(tmp_path / "set", gone=(0,))
    data = bytearray((tmp_path / "set" / "shard-00000.arrow").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "set" / "shard-00000.arrow").write_bytes(data)
    with pytest.raises(ImageSetError, match="damaged or replaced"):
        images.read("shard-00000")


@settings(max_examples=30)
@given(st.lists(st.tuples(st.sets(st.integers(0, 15)), st.sets(st.integers(0, 15))), max_size=5), st.integers(1, 4))
def test_any_sequence_of_updates_agrees_with_a_dictionary(tmp_path_factory, nights, max_images):
    """The plain oracle: a dict of image_id -> row, from which some are taken and to which some are added."""
    folder = tmp_path_factory.mktemp("nights")
    write_imageset(photos(6), folder, source=SOURCE, max_images=max_images)
    want = {number: (row.image, row.source) for number, row in enumerate(photos(6))}
    for night, (gone, new) in enumerate(nights):
        images = open_imageset(folder)
        rows = [photo(number, image=b"%d of night %d" % (number, night)) for number in sorted(new)]
        update_imageset(images, rows, removal_of(images, gone | new), source=SOURCE, max_images=max_images)
        want = {number: row for number, row in want.items() if number not in gone}
        want |= {row.image_id: (row.image, row.source) for row in rows}
        images = open_imageset(folder)
        tables = [images.read(shard.name).to_pylist() for shard in images.shards]
        assert {row["image_id"]: (row["image"], row["source"]) for rows in tables for row in rows} == want
        assert [len(rows) for rows in tables] == [shard.rows for shard in images.shards]
        assert images.manifest.images == len(want) == images.photos().num_rows
        assert all(2 * len(shard.removed) <= shard.rows_written for shard in images.shards)
        assert re.fullmatch("[0-9a-f]{32}", images.digest)


def test_a_shard_without_rows_knows_its_file():
    shard = Shard("shard-00003", 4, 700, "ab" * 16)
    some = shard.without({2, 0})
    assert dataclasses.astuple(some)[:3] == ("shard-00003", 2, 700) and some.removed == (0, 2)
    assert some.rows_written == 4 and some.file_digest == shard.digest != some.digest
    assert some.without({0, 2, 3}).without({2, 0}) == some and some.without(()) == shard
