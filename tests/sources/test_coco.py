"""COCO annotations: what is taken, what becomes a failure, and what ends an ingestion."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask
from pycocotools.coco import COCO

from jobs.ingest import main
from sources import coco
from sources.folder import image_id
from store.formats import NO_PICTURE
from store.imageset import Failure, Photo, open_imageset
from store.objects import open_store
from tests.sources import four_forms
from tests.sources.four_forms import png

CATEGORIES = [{"id": 7, "name": "cape"}, {"id": 3, "name": "hat"}]


def written(folder: Path, images: list[Any], annotations: list[Any] = (), **more: Any) -> Path:  # type: ignore[assignment]
    content = {"images": images, "annotations": [*annotations], "categories": CATEGORIES} | more
    (folder / "instances.json").write_text(json.dumps(content))
    return folder / "instances.json"


def annotation(image: Any = 1, **more: Any) -> dict[str, Any]:
    return {"id": 1, "image_id": image, "category_id": 3, "bbox": [1, 2, 3, 4], "iscrowd": 0} | more


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for number in (1, 2, 3):
        (tmp_path / "photos").mkdir(exist_ok=True)
        (tmp_path / "photos" / f"{number}.png").write_bytes(png(number))
    return tmp_path / "photos"


def test_it_is_what_pycocotools_reads(tmp_path: Path) -> None:
    """Boxes, categories and their images, as the format's own reader has them."""
    file = four_forms.coco(tmp_path / "instances.json")
    theirs = COCO(str(file))
    want = [
        (theirs.imgs[one["image_id"]]["file_name"], theirs.cats[one["category_id"]]["name"], one["bbox"])
        for one in theirs.anns.values()
    ]
    reading = coco.read(four_forms.pictures(tmp_path / "photos"), file, "user")
    rows = [row for row in reading if isinstance(row, Photo)]
    ours = [
        (row.file_name, reading.categories[item.category_id - 1], [x1, y1, x2 - x1, y2 - y1])
        for row in rows
        for item in row.items
        for x1, y1, x2, y2 in [item.bbox]
    ]
    assert sorted(ours) == sorted(want) and len(ours) == 3


def test_an_item_in_full(tmp_path: Path, pictures: Path) -> None:
    drawn = np.zeros((32, 24), np.uint8, order="F")
    drawn[4:9, 2:8] = 1
    runs = mask.encode(drawn)
    items = [
        annotation(segmentation=[[0, 0, 9, 0, 9, 9]], attributes={"style": 4, "occluded": False}),
        annotation(category_id=7, style=2, segmentation={"size": runs["size"], "counts": runs["counts"].decode()}),
    ]
    reading = coco.read(pictures, written(tmp_path, [{"id": 1, "file_name": "1.png"}], items), "user")
    (photo,) = reading
    assert isinstance(photo, Photo) and not photo.weak_box
    first, second = photo.items
    assert (first.category_id, first.style, first.bbox) == (2, 4, (1, 2, 4, 6))
    assert first.segmentation == ((0, 0, 9, 0, 9, 9),)
    assert (second.category_id, second.style, len(second.segmentation[0])) == (1, 2, 8)
    assert [*reading.categories] == ["cape", "hat"], "in the file's order"
    assert reading.skipped == {"pictures that the annotations do not list": 2}


def test_names_are_matched_as_in_a_csv(tmp_path: Path, pictures: Path) -> None:
    images = [{"id": n, "file_name": f"/data/images/{n}.PNG"} for n in (1, 2)]
    rows = [*coco.read(pictures, written(tmp_path, images, [annotation(2)]), "shop")]
    assert [(row.file_name, row.image_id, len(row.items)) for row in rows] == [  # type: ignore[union-attr]
        ("1.png", image_id("shop/1.png"), 0),
        ("2.png", image_id("shop/2.png"), 1),
    ]


def test_product_pair_and_attributes(tmp_path: Path, pictures: Path) -> None:
    image = {"id": 1, "file_name": "1.png", "sku": "A", "pair_id": 5, "price": 3.5, "license": 2, "tags": ["x"]}
    reading = coco.read(pictures, written(tmp_path, [image]), "shop", product_key="sku")
    (photo,) = reading
    assert isinstance(photo, Photo)
    assert (photo.product_id, photo.pair_id, photo.attributes) == ("A", 5, {"price": "3.5"})
    assert reading.skipped["values of 'tags' that are no single ones"] == 1


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (annotation(category_id=4), "annotation 1 is left out: category_id 4 is none of the file's"),
        (annotation(category_id=None), "annotation 1 is left out: category_id None is none of the file's"),
        (annotation(bbox=[1, 2, 3]), "annotation 1 is left out: box [1, 2, 3] is not a list of four numbers"),
        (annotation(style="x"), "annotation 1 is left out: style x is no whole number"),
        (annotation(iscrowd="0"), "annotation 1 is left out: iscrowd is '0', want 0 or 1"),
        (annotation(iscrowd="false"), "annotation 1 is left out: iscrowd is 'false', want 0 or 1"),
        (annotation(iscrowd=[]), "annotation 1 is left out: iscrowd is '[]', want 0 or 1"),
        (
            annotation(segmentation="x"),
            "annotation 1 is left out: segmentation is neither a list of polygons nor run lengths",
        ),
    ],
)
def test_a_bad_annotation_is_a_failure_and_the_photo_stays(
    tmp_path: Path, pictures: Path, item: dict[str, Any], reason: str
) -> None:
    file = written(tmp_path, [{"id": 1, "file_name": "1.png"}], [item, annotation()])
    photo, failure = coco.read(pictures, file, "user")
    assert isinstance(photo, Photo) and len(photo.items) == 1
    assert failure == Failure(photo.image_id, "1.png", reason)


@pytest.mark.parametrize(
    ("crowd", "items", "skipped"), [(0, 1, 0), (False, 1, 0), (None, 1, 0), (1, 0, 1), (True, 0, 1)]
)
def test_crowds_are_counted_and_left_out(tmp_path: Path, pictures: Path, crowd: Any, items: int, skipped: int) -> None:
    file = written(tmp_path, [{"id": 1, "file_name": "1.png"}], [annotation(iscrowd=crowd)])
    reading = coco.read(pictures, file, "user")
    (photo,) = reading
    assert isinstance(photo, Photo) and len(photo.items) == items
    assert reading.skipped["annotations of crowds"] == skipped


def test_bad_boxes_are_refused_by_the_set(tmp_path: Path, pictures: Path) -> None:
    items = [annotation(bbox=[1, 2, 0, 4]), annotation(bbox=[100, 2, 3, 4]), annotation()]
    file = written(tmp_path, [{"id": 1, "file_name": "1.png"}], items)
    assert main(["coco", str(pictures), str(file), str(tmp_path / "set"), "--source", "user"]) == 0
    images = open_imageset(tmp_path / "set")
    assert images.categories == ("cape", "hat")
    assert len(images.truth()["items"].to_pylist()[0]) == 1 and images.manifest.failures == 2


def test_items_drawn_on_another_size_are_left_out(tmp_path: Path, pictures: Path) -> None:
    images = [{"id": 1, "file_name": "1.png", "width": 32, "height": 24}, {"id": 2, "file_name": "2.png", "width": 0}]
    rows = [*coco.read(pictures, written(tmp_path, images, [annotation(1), annotation(2)]), "user")]
    assert [len(row.items) for row in rows if isinstance(row, Photo)] == [0, 1]
    assert [row.reason for row in rows if isinstance(row, Failure)] == [
        "its 1 items are left out: they were drawn on 32 x 24, the upright picture has 24 x 32"
    ]


def test_what_the_lists_get_wrong_is_told(tmp_path: Path, pictures: Path) -> None:
    (pictures / "3.png").write_bytes(b"no")
    images = [
        {"id": 1, "file_name": "1.png", "pair_id": "x"},
        {"id": 2, "file_name": "2.png"},
        {"id": 3, "file_name": "3.png"},
        {"id": 4, "file_name": "2.png"},
        {"id": 5},
        {"id": 6, "file_name": "gone.png"},
    ]
    items = [annotation(2), annotation(2, iscrowd=1), annotation(4), annotation(99), "x"]
    reading = coco.read(pictures, written(tmp_path, images, items), "user", allow_missing=True)
    rows = [*reading]
    assert [(row.file_name, len(row.items)) for row in rows if isinstance(row, Photo)] == [("2.png", 1)]
    assert [(row.file_name, row.reason) for row in rows if isinstance(row, Failure)] == [
        ("2.png", "listed again as image 4; the first entry is taken"),
        ("instances.json", "image 5 has no id or no file_name"),
        ("instances.json", "annotation 3 is of image 4, which is not taken from the list"),
        ("instances.json", "annotation 4 is of image 99, which is not taken from the list"),
        ("instances.json", "annotation 5 is of image None, which is not taken from the list"),
        ("1.png", "instances.json: pair_id 'x' is not a whole number below 2^63"),
        ("3.png", NO_PICTURE),
        ("gone.png", "in instances.json, but there is no such picture in the folder"),
    ]
    assert reading.skipped == {"annotations of crowds": 1}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[]", "holds a list, as results of a detector are; want an object with the lists images"),
        ("{}", "holds something else"),
        ('{"images": {}}', "holds something else"),
        ("{", "is no JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"images": []}', "lists no image"),
        (
            '{"images": [{"id": 1, "file_name": "1.png"}, {"id": 1, "file_name": "2.png"}]}',
            "'1.png' and '2.png' both have id 1",
        ),
        ('{"images": [{"id": 1, "file_name": "1.png"}], "categories": [{"id": 1}]}', "has no id or no name"),
        ('{"images": [{"id": 1, "file_name": "1.png"}], "categories": [{"id": 1, "name": ""}]}', "category ''"),
        (
            '{"images": [{"id": 1, "file_name": "x"}], "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}',
            "categories 'a' and 'b' both have id 1",
        ),
        (
            '{"images": [{"id": 1, "file_name": "9.png"}]}',
            "1 of 1 images of .* are not there: '9.png', while the folder has '1.png'",
        ),
    ],
)
def test_a_file_that_is_no_instances_json(tmp_path: Path, pictures: Path, content: str, reason: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match=reason):
        coco.read(pictures, tmp_path / "x.json", "user")


def test_bad_arguments_end_in_one_line(tmp_path: Path, pictures: Path) -> None:
    file = written(tmp_path, [{"id": 1, "file_name": "1.png", "price": 2}])
    with pytest.raises(ValueError, match="no image has the key 'sku'; they have file_name, id, price"):
        coco.read(pictures, file, "user", product_key="sku")
    with pytest.raises(ValueError, match="cannot read"):
        coco.read(pictures, tmp_path / "gone.json", "user")
    with pytest.raises(ValueError, match="no folder"):
        coco.read(tmp_path / "gone", file, "user")


def test_pictures_in_a_bucket(tmp_path: Path, s3_bucket: str) -> None:
    open_store(f"{s3_bucket}/in").write("a/1.png", png(1))
    file = written(tmp_path, [{"id": 1, "file_name": "a/1.png"}], [annotation()])
    (photo,) = coco.read(f"{s3_bucket}/in", file, "user")
    assert isinstance(photo, Photo) and len(photo.items) == 1
