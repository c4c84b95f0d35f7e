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

from store.imageset import (
    SCHEMA,
    Failure,
    ImageSetError,
    Item,
    Photo,
    open_imageset,
    problem,
    write_imageset,
)

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
    assert manifest["schema"] == 1 and manifest["images"] == 150
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
        *[
            ({"items": (SKIRT, dataclasses.replace(SKIRT, **change))}, f"item 2: .*{word}")
            for change, word in [
                ({"category_id": 0}, "category_id 0"),
                ({"category_id": 14}, "category_id 14"),
                ({"style": -1}, "style"),
                ({"bbox": (5, 5, 5, 9)}, "x1 < x2"),
                ({"bbox": (5, 9, 8, 5)}, "x1 < x2"),
                ({"bbox": (math.nan, 0, 1, 1)}, "finite"),
                ({"bbox": (0, 0, math.inf, 1)}, "finite"),
                ({"bbox": (100, 0, 110, 10)}, "outside"),  # the picture is 100 wide
                ({"bbox": (-9, -9, 0, 9)}, "outside"),
                ({"segmentation": ((1.0, 2.0, 3.0),)}, "polygon"),
                ({"segmentation": ((1.0, math.nan),)}, "polygon"),
                ({"scale": 128}, "scale"),
            ]
        ],
        ({"items": (dataclasses.replace(SKIRT, bbox=(-5, -5, 105, 205)),)}, None),  # over the edge, as published ones
    ],
)
def test_a_photo_that_breaks_a_rule_is_a_failure(tmp_path, changes, reason):
    row = photo(**{"image_id": 5} | changes)
    seen = problem(row)
    assert seen is None if reason is None else re.search(reason, seen or "")
    if reason is not None:
        manifest = write_imageset([row, photo(6)], tmp_path / "set", source=SOURCE)
        assert (manifest.images, manifest.failures) == (1, 1)
        assert pq.read_table(tmp_path / "set" / "failures.parquet")["reason"].to_pylist() == [seen]


@pytest.mark.parametrize("apart", [1, 300])
def test_an_id_that_occurs_twice_is_refused_with_both_names(tmp_path, apart):
    rows = [*photos(apart), photo(0, file_name="again.jpg")]
    with pytest.raises(ImageSetError, match=r"image_id 0 .*0\.jpg, again\.jpg"):
        write_imageset(rows, tmp_path / "set", source=SOURCE)
    with pytest.raises(ImageSetError, match="did not finish"):
        open_imageset(tmp_path / "set")


def test_a_finished_set_is_only_replaced_on_demand(tmp_path):
    write_imageset(photos(5), tmp_path / "set", source=SOURCE, max_images=1)
    before = files(tmp_path / "set")
    with pytest.raises(ImageSetError, match="already holds an image set"):
        write_imageset(photos(2), tmp_path / "set", source=SOURCE)
    assert files(tmp_path / "set") == before
    write_imageset(photos(2), tmp_path / "set", source=SOURCE, overwrite=True)
    write_imageset(photos(2), tmp_path / "fresh", source=SOURCE)
    assert files(tmp_path / "set") == files(tmp_path / "fresh")


def test_a_folder_with_something_else_is_left_alone(tmp_path):
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


@pytest.mark.parametrize(
    "edit, want",
    [
        (lambda m: m | {"schema": 3}, "schema 3"),
        (lambda m: m | {"digest": "00"}, "digest 00"),
        (lambda m: m | {"images": 99}, "add up"),
        (lambda m: {k: v for k, v in m.items() if k != "shards"}, "shards"),
        (lambda m: [m], "not an image set's manifest"),
    ],
)
def test_manifests_that_are_none(tmp_path, edit, want):
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
    segmentation=st.lists(st.lists(st.floats(0, 100, width=32), min_size=2, max_size=2).map(tuple), max_size=3).map(
        tuple
    ),
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


@settings(max_examples=40, deadline=None)
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
