"""Image sets: what goes in comes out, the same bytes each time, and nothing damaged or half-made is taken for a set."""

import dataclasses
import json
import math
import pickle
import re
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from store.categories import DEEPFASHION2, CategoryList
from store.imageset import SCHEMA, Failure, ImageSetError, Item, Photo, open_imageset
from store.imageset_write import removal_of, update_imageset, write_imageset
from store.photo_checks import checked

SOURCE = {"adapter": "test", "arguments": {"n": 1}}
SKIRT = Item(9, 2, (1.0, 2.0, 30.5, 40.0), ((1.0, 2.0, 3.0, 4.0, 5.0, 6.0),), 1, 2, 3, 1)


def photo(image_id: int, **changes: object) -> Photo:
    plain = Photo(image_id, b"picture %d" % image_id, 100, 200, "user", 7, "sku", f"{image_id}.jpg", False, (SKIRT,))
    return dataclasses.replace(plain, **changes)


def photos(n: int) -> Iterator[Photo]:
    return (photo(number, source=("user", "shop")[number % 2], items=(SKIRT,) * (number % 3)) for number in range(n))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_roundtrip(tmp_path):
    rows = [photo(3), Failure(4, "4.jpg", "no picture"), photo(1, items=(), weak_box=True, source="shop")]
    manifest = write_imageset(rows, tmp_path / "set", source=SOURCE)
    images = open_imageset(tmp_path / "set")
    assert images.manifest == manifest
    assert (manifest.images, manifest.failures, len(manifest.shards), manifest.source) == (2, 1, 1, SOURCE)
    table = images.read("shard-00000")
    assert table.schema == SCHEMA
    first, second = table.to_pylist()
    assert first == dataclasses.asdict(rows[0]) | {
        "digest": blake2b(b"picture 3", digest_size=16).digest(),
        "attributes": [],
        "items": [dataclasses.asdict(SKIRT) | {"bbox": [1.0, 2.0, 30.5, 40.0], "segmentation": [[1, 2, 3, 4, 5, 6]]}],
    }
    assert (second["image_id"], second["items"], second["weak_box"]) == (1, [], True)
    assert images.truth().to_pylist() == [{k: v for k, v in row.items() if k != "image"} for row in (first, second)]
    failures = pq.read_table(tmp_path / "set" / "failures.parquet").to_pylist()
    assert failures == [{"image_id": 4, "file_name": "4.jpg", "reason": "no picture"}]


@pytest.mark.parametrize(
    "n, max_images, want",
    [
        (0, 256, []),
        (1, 256, [1]),
        (256, 256, [256]),
        (257, 256, [256, 1]),
        (300, 100, [100, 100, 100]),
        (3, 1, [1] * 3),
    ],
)
def test_shards_by_images(tmp_path, n, max_images, want):
    manifest = write_imageset(photos(n), tmp_path / "set", source=SOURCE, max_images=max_images)
    assert [shard.rows for shard in manifest.shards] == want
    images = open_imageset(tmp_path / "set")
    assert images.truth()["image_id"].to_pylist() == list(range(n))
    for shard in images.shards:
        with pa.memory_map(str(tmp_path / "set" / f"{shard.name}.arrow")) as file:
            reader = pa.ipc.open_file(file)
            assert [reader.get_batch(i).num_rows <= 64 for i in range(reader.num_record_batches)] == (
                [True] * math.ceil(shard.rows / 64)
            )


def test_shards_by_bytes(tmp_path):
    rows = [photo(number, image=bytes(size)) for number, size in enumerate([40, 60, 1, 500, 100])]
    manifest = write_imageset(rows, tmp_path / "set", source=SOURCE, max_bytes=100)
    assert [shard.rows for shard in manifest.shards] == [2, 1, 1, 1]  # 40 + 60, 1, the large one alone, 100


def test_the_same_rows_give_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        write_imageset(photos(150), tmp_path / name, source=SOURCE, max_images=100)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert sorted(files(tmp_path / "one")) == [
        "failures.parquet",
        "manifest.json",
        "shard-00000.arrow",
        "shard-00001.arrow",
    ]


def test_digests_are_those_of_the_bytes(tmp_path):
    write_imageset(photos(150), tmp_path / "set", source=SOURCE, max_images=100)
    manifest = json.loads((tmp_path / "set" / "manifest.json").read_text())
    digests = [
        blake2b((tmp_path / "set" / f"{s['name']}.arrow").read_bytes(), digest_size=16) for s in manifest["shards"]
    ]
    assert [s["digest"] for s in manifest["shards"]] == [d.hexdigest() for d in digests]
    assert manifest["digest"] == blake2b(b"".join(d.digest() for d in digests), digest_size=16).hexdigest()
    assert manifest["schema"] == 3 and manifest["images"] == 150
    assert manifest["bytes"] == sum(s["bytes"] for s in manifest["shards"])


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({}, None),
        ({"items": ()}, None),
        ({"image_id": -1}, "image_id"),
        ({"image_id": 2**63}, "image_id"),
        ({"source": "street"}, "street"),
        ({"width": 0}, "size"),
        ({"pair_id": -3}, "pair_id"),
        ({"items": (dataclasses.replace(SKIRT, bbox=(-5, -5, 105, 205)),)}, None),  # over the edge, as published ones
    ],
)
def test_a_photo_that_breaks_a_rule_is_a_failure(tmp_path, changes, reason):
    row = photo(**{"image_id": 5} | changes)
    seen = [one.reason for one in checked(row, 13) if isinstance(one, Failure)]
    if reason is None:
        assert [*checked(row, 13)] == [row]
        return
    assert len(seen) == 1 and re.search(reason, seen[0])
    manifest = write_imageset([row, photo(6)], tmp_path / "set", source=SOURCE)
    assert (manifest.images, manifest.failures) == (1, 1)
    assert pq.read_table(tmp_path / "set" / "failures.parquet")["reason"].to_pylist() == seen


@pytest.mark.parametrize("change, reason", [
    ({"category_id": 0}, "category_id 0"),
    ({"category_id": 14}, "category_id 14"),
    ({"style": -1}, "style"),
    ({"bbox": (5, 5, 5, 9)}, "x1 < x2"),
    ({"bbox": (5, 9, 8, 5)}, "x1 < x2"),
    ({"bbox": (math.nan, 0, 1, 1)}, "finite"),
    ({"bbox": (0, 0, math.inf, 1)}, "finite"),
    ({"bbox": (100, 0, 110, 10)}, "outside"),  # the picture is 100 wide
    ({"bbox": (-9, -9, 0, 9)}, "outside"),
    ({"scale": 128}, "scale"),
])  # fmt: skip
def test_an_item_that_breaks_a_rule_is_left_out_of_its_photo(change: dict, reason: str) -> None:
    stays, failure = checked(photo(5, items=(SKIRT, dataclasses.replace(SKIRT, **change), SKIRT)), 13)
    assert stays == photo(5, items=(SKIRT, SKIRT))
    assert isinstance(failure, Failure) and failure.image_id == 5
    assert re.search(f"item 2 is left out: .*{reason}", failure.reason)


INSIDE = (1.0, 2.0, 30.0, 2.0, 30.0, 40.0)


@pytest.mark.parametrize("polygon, left, reason", [  # on 100 x 200 pixels
    (INSIDE, INSIDE, None),
    ((0.0, 0.0, 100.0, 0.0, 100.0, 200.0), (0.0, 0.0, 100.0, 0.0, 100.0, 200.0), None),  # along the edges
    ((-10.0, 0.0, 20.0, 0.0, 20.0, 10.0, -10.0, 10.0), (0.0, 0.0, 20.0, 0.0, 20.0, 10.0, 0.0, 10.0), None),
    ((90.0, 190.0, 110.0, 190.0, 90.0, 210.0), (90.0, 190.0, 100.0, 190.0, 100.0, 200.0, 90.0, 200.0), None),
    ((-1e9, -1e9, 1e9, -1e9, 1e9, 1e9, -1e9, 1e9), (0.0, 0.0, 100.0, 0.0, 100.0, 200.0, 0.0, 200.0), None),
    ((), None, "it has 0 corners"),
    ((1.0, 2.0, 3.0), None, "it is not pairs"),
    ((1.0, math.nan, 1.0, 2.0, 3.0, 4.0), None, "it is not pairs of finite numbers"),
    ((1.0, 1.0, 5.0, 5.0), None, "it has 2 corners"),
    ((1.0, 1.0, 1.0, 5.0, 1.0, 9.0), None, "it has no area"),
    ((-9.0, 1.0, -1.0, 1.0, -1.0, 9.0), None, "it lies outside the 100 x 200 picture"),
])  # fmt: skip
def test_polygons_are_cut_at_the_picture_or_left_out(polygon: tuple, left: tuple | None, reason: str | None) -> None:
    row = photo(5, items=(dataclasses.replace(SKIRT, segmentation=(INSIDE, polygon)),))
    stays, *failures = checked(row, 13)
    assert isinstance(stays, Photo)
    corners = [{*zip(part[::2], part[1::2], strict=True)} for part in stays.items[0].segmentation[1:]]
    assert corners == ([] if left is None else [{*zip(left[::2], left[1::2], strict=True)}])
    assert [failure.reason[: len(f"item 1: polygon 2 is left out: {reason}")] for failure in failures] == (
        [f"item 1: polygon 2 is left out: {reason}"] if reason else []
    )


@pytest.mark.parametrize("apart", [1, 300])
def test_an_id_that_occurs_twice_is_refused_with_both_names(tmp_path, apart):
    rows = [*photos(apart), photo(0, file_name="again.jpg")]
    with pytest.raises(ImageSetError, match=r"image_id 0 .*0\.jpg, again\.jpg"):
        write_imageset(rows, tmp_path / "set", source=SOURCE)
    with pytest.raises(ImageSetError, match="did not finish"):
        open_imageset(tmp_path / "set")


def test_a_finished_set_is_replaced_only_with_overwrite(tmp_path):
    write_imageset(photos(5), tmp_path / "set", source=SOURCE, max_images=1)
    before = files(tmp_path / "set")
    with pytest.raises(ImageSetError, match="already holds an image set"):
        write_imageset(photos(2), tmp_path / "set", source=SOURCE)
    assert files(tmp_path / "set") == before
    write_imageset(photos(2), tmp_path / "set", source=SOURCE, overwrite=True)
    write_imageset(photos(2), tmp_path / "fresh", source=SOURCE)
    assert files(tmp_path / "set") == files(tmp_path / "fresh")


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ImageSetError, match=r"thesis\.txt"):
        write_imageset(photos(2), tmp_path, source=SOURCE, overwrite=True)
    assert list(files(tmp_path)) == ["thesis.txt"]


def test_an_interrupted_ingestion_starts_over(tmp_path):
    def breaks_off() -> Iterator[Photo]:
        yield from photos(7)
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        write_imageset(breaks_off(), tmp_path / "set", source=SOURCE, max_images=2)
    with pytest.raises(ImageSetError, match="did not finish"):
        open_imageset(tmp_path / "set")
    write_imageset(photos(2), tmp_path / "set", source=SOURCE, max_images=2)
    assert sorted(files(tmp_path / "set")) == ["failures.parquet", "manifest.json", "shard-00000.arrow"]


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "cut":
        path.write_bytes(data[:-100])
    elif how == "flipped":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif how == "gone":
        path.unlink()
    elif how == "other":
        path.write_bytes(bytes(len(data)))


@pytest.mark.parametrize(
    "how, whole, part",
    [
        ("cut", "cut short", "cut short"),
        ("flipped", "digest", None),  # only whole reads are compared with the digest
        ("gone", "missing", "missing"),
        ("other", "digest", "no shard"),
    ],
)
def test_damaged_shards(tmp_path, how, whole, part):
    write_imageset(photos(10), tmp_path / "set", source=SOURCE)
    images = open_imageset(tmp_path / "set")
    damage(tmp_path / "set" / "shard-00000.arrow", how)
    with pytest.raises(ImageSetError, match=f"shard-00000.arrow .*{whole}"):
        images.read("shard-00000")
    if part:
        with pytest.raises(ImageSetError, match=f"shard-00000.arrow .*{part}"):
            images.truth()


def counted(**counts):
    """Another count of the first shard."""
    return lambda m: m | {"counts": {"shard-00000": {"users": 1, "items": 2, "shop_items": 1} | counts}}


@pytest.mark.parametrize(
    "edit, want",
    [
        (lambda m: m | {"schema": 4}, "schema 4, this program reads 1 to 3"),
        (lambda m: m | {"categories": "skirt"}, "categories skirt, want a list of names"),
        (lambda m: m | {"categories": ["skirt", "skirt"]}, "category 'skirt' is named twice"),
        (lambda m: m | {"categories": ["skirt"]}, "is not that of the shards' digests and the categories"),
        (lambda m: m | {"skipped": {".txt": "2"}}, "want a count for each extension"),
        (counted(users=3), "shard-00000: 3 users among 2 photos"),
        (counted(users=-1), "shard-00000: -1 users among 2 photos"),
        (counted(items=True), "shard-00000: .* of True items"),
        (counted(shop_items=3), "shard-00000: .* 3 of 2 items"),
        (counted(shops=1), "unexpected keyword argument 'shops'"),
        (lambda m: m | {"counts": {"shard-00000": {}}}, "missing 3 required"),
        (lambda m: m | {"digest": "00"}, "digest 00"),
        (lambda m: m | {"images": 99}, "add up"),
        (lambda m: {k: v for k, v in m.items() if k != "shards"}, "shards"),
        (lambda m: [m], "not an image set's manifest"),
    ],
)
def test_invalid_manifests_are_refused(tmp_path, edit, want):
    write_imageset(photos(2), tmp_path / "set", source=SOURCE)
    path = tmp_path / "set" / "manifest.json"
    path.write_text(json.dumps(edit(json.loads(path.read_text()))))
    with pytest.raises(ImageSetError, match=want):
        open_imageset(tmp_path / "set")


def test_nothing_there(tmp_path):
    with pytest.raises(ImageSetError, match="no image set at"):
        open_imageset(tmp_path / "nowhere")


def test_unknown_names(tmp_path):
    write_imageset(photos(2), tmp_path / "set", source=SOURCE)
    images = open_imageset(tmp_path / "set")
    with pytest.raises(ImageSetError, match="shard-00007"):
        images.read("shard-00007")
    with pytest.raises(ImageSetError, match="pixels"):
        images.read("shard-00000", ["pixels"])


def test_some_columns(tmp_path):
    write_imageset(photos(100), tmp_path / "set", source=SOURCE)
    images = pickle.loads(pickle.dumps(open_imageset(tmp_path / "set")))
    table = images.read("shard-00000", ["image", "image_id"])
    assert table.column_names == ["image_id", "image"]
    assert table["image"].to_pylist() == [b"picture %d" % number for number in range(100)]


def test_in_a_bucket_as_on_disk(tmp_path, s3_bucket):
    folder = write_imageset(photos(70), tmp_path / "set", source=SOURCE, max_images=50)
    bucket = write_imageset(photos(70), f"{s3_bucket}/deep/set", source=SOURCE, max_images=50)
    assert folder == bucket
    images = open_imageset(f"{s3_bucket}/deep/set")
    assert images.truth() == open_imageset(tmp_path / "set").truth()
    assert images.read("shard-00001") == open_imageset(tmp_path / "set").read("shard-00001")
    with pytest.raises(ImageSetError, match="already holds"):
        write_imageset(photos(1), f"{s3_bucket}/deep/set", source=SOURCE)


items = st.builds(
    Item,
    category_id=st.integers(1, 13),
    style=st.integers(0, 2**31 - 1),
    bbox=st.tuples(*[st.floats(0, 49, width=32)] * 2, *[st.floats(50, 100, width=32)] * 2),
    segmentation=st.lists(
        st.lists(st.floats(0, 100, width=32), min_size=3, max_size=5).map(
            lambda c: (0.0, 0.0, 9.0, 9.0, *c[:1], *c[1:2])
        ),
        max_size=3,
    ).map(tuple),
    scale=st.integers(0, 3),
)
rows = st.lists(
    st.builds(
        Photo,
        image_id=st.integers(0, 2**63 - 1),
        image=st.binary(max_size=40),
        width=st.integers(100, 10**6),
        height=st.integers(100, 10**6),
        source=st.sampled_from(["user", "shop"]),
        pair_id=st.integers(0, 2**63 - 1),
        product_id=st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
        items=st.lists(items, max_size=3).map(tuple),
    ),
    max_size=20,
    unique_by=lambda row: row.image_id,
)


@settings(max_examples=40)
@given(rows, st.integers(1, 8), st.integers(1, 100))
def test_any_rows_come_back_in_order(tmp_path_factory, photos_in, max_images, max_bytes):
    folder = tmp_path_factory.mktemp("set")
    manifest = write_imageset(photos_in, folder, source=SOURCE, max_images=max_images, max_bytes=max_bytes)
    images = open_imageset(folder)
    out = [row for shard in images.shards for row in images.read(shard.name).to_pylist()]
    assert [row["image"] for row in out] == [row.image for row in photos_in]
    assert [row["product_id"] for row in out] == [row.product_id for row in photos_in]
    assert [[tuple(item["bbox"]) for item in row["items"]] for row in out] == [
        [item.bbox for item in row.items] for row in photos_in
    ]
    assert all(shard.rows <= max_images for shard in manifest.shards)


def test_categories_of_ones_own_and_attributes(tmp_path):
    names = CategoryList()
    facts = {"price": "19.90", "title": "Rock \ud800"}
    rows = [photo(1, items=(dataclasses.replace(SKIRT, category_id=300),), attributes=facts), photo(2, items=())]
    for n in range(300):
        names.id_of(f"kind {n}")
    write_imageset(rows, tmp_path / "set", source=SOURCE, categories=names, skipped={".txt": 2})
    images = open_imageset(tmp_path / "set")
    assert images.categories == tuple(f"kind {n}" for n in range(300)) and images.manifest.skipped == {".txt": 2}
    one, two = images.read("shard-00000").to_pylist()
    assert one["items"][0]["category_id"] == 300 and two["attributes"] == []
    assert dict(one["attributes"]) == {"price": "19.90", "title": "Rock \ufffd"}


def test_the_same_photos_with_other_categories_are_another_set(tmp_path):
    def written(*names: str) -> str:
        return write_imageset([photo(1)], tmp_path / "-".join(names), source=SOURCE, categories=names).digest

    ten = [f"kind {n}" for n in range(10)]
    assert written(*ten) != written(*ten[:-1], "hat")


def test_items_of_a_set_without_categories_are_left_out(tmp_path):
    manifest = write_imageset([photo(1)], tmp_path / "set", source=SOURCE, categories=())
    images = open_imageset(tmp_path / "set")
    assert (manifest.images, manifest.failures, images.categories) == (1, 1, ())
    assert images.failures()["reason"].to_pylist() == ["item 1 is left out: category_id 9: the set has no categories"]


OLD_ITEMS = pa.list_(pa.struct([("category_id", pa.int8()), *list(SCHEMA.field("items").type.value_type)[1:]]))


def old_set(folder: Path, schema: int = 1) -> None:
    """A set as programs wrote it before categories were data: eight bits, no attributes, no names."""
    write_imageset(photos(5), folder, source=SOURCE)
    table = open_imageset(folder).read("shard-00000").drop_columns(["attributes"])
    place = table.column_names.index("items")
    table = table.set_column(place, "items", table["items"].cast(OLD_ITEMS))
    with pa.ipc.new_file(folder / "shard-00000.arrow", table.schema) as file:
        file.write_table(table)
    data = (folder / "shard-00000.arrow").read_bytes()
    manifest = json.loads((folder / "manifest.json").read_text())
    shard = manifest["shards"][0] | {"bytes": len(data), "digest": blake2b(data, digest_size=16).hexdigest()}
    digest = blake2b(bytes.fromhex(shard["digest"]), digest_size=16).hexdigest()
    manifest |= {"schema": schema, "shards": [shard], "bytes": len(data), "digest": digest}
    del manifest["categories"], manifest["skipped"]
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("columns", [None, ["items"], ["attributes"], ["image_id", "attributes", "items"]])
def test_sets_of_older_programs_are_read(tmp_path, columns):
    old_set(tmp_path / "old")
    write_imageset(photos(5), tmp_path / "new", source=SOURCE)
    images = open_imageset(tmp_path / "old")
    assert images.categories == DEEPFASHION2
    assert images.read("shard-00000", columns) == open_imageset(tmp_path / "new").read("shard-00000", columns)


def test_a_set_of_an_older_program_is_brought_up_to_date(tmp_path):
    old_set(tmp_path / "set")
    images = open_imageset(tmp_path / "set")
    update_imageset(images, [photo(9, attributes={"price": "5"})], removal_of(images, [1]), source=SOURCE)
    after = open_imageset(tmp_path / "set")
    assert [dict(row) for row in after.truth()["attributes"].to_pylist()] == [{}] * 4 + [{"price": "5"}]
    assert after.truth()["image_id"].to_pylist() == [0, 2, 3, 4, 9] and after.manifest.schema == 3


def test_an_update_adds_categories_and_never_renames(tmp_path):
    write_imageset([photo(1)], tmp_path / "set", source=SOURCE, categories=DEEPFASHION2)
    images = open_imageset(tmp_path / "set")
    none = removal_of(images, ())
    with pytest.raises(ValueError, match="may only add"):
        update_imageset(images, [], none, source=SOURCE, categories=("cape",))
    update_imageset(images, [], none, source=SOURCE, categories=(*DEEPFASHION2, "cape"))
    assert open_imageset(tmp_path / "set").categories == (*DEEPFASHION2, "cape")
