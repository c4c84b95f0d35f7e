"""DeepFashion2's layout: every picture and every annotation ends as a photo or as a failure that says why."""

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from sources import deepfashion2
from sources.files import PICTURES
from store.formats import NO_PICTURE
from store.imageset import Failure, Item, Photo

ITEM = {
    "category_name": "skirt",
    "category_id": 9,
    "style": 2,
    "bounding_box": [1, 2, 6, 7],
    "landmarks": [],
    "segmentation": [[1.0, 2.0, 6.0, 2.0, 6.0, 7.0]],
    "scale": 2,
    "occlusion": 1,
    "zoom_in": 3,
    "viewpoint": 2,
}
NOTES = {"source": "user", "pair_id": 34, "item1": ITEM}


def picture(width: int = 8, height: int = 9) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "JPEG")
    return file.getvalue()


def split(folder: Path, photos: dict[str, object], names: str = "{}.jpg") -> Path:
    """`photos`: number as text -> its annotation (None: none), with an 8 x 9 picture each."""
    for part in ("image", "annos"):
        (folder / part).mkdir()
    for number, notes in photos.items():
        (folder / "image" / names.format(number)).write_bytes(picture())
        if notes is not None:
            (folder / "annos" / f"{number}.json").write_text(notes if isinstance(notes, str) else json.dumps(notes))
    return folder


def test_a_photo_with_everything(tmp_path):
    [row] = deepfashion2.read(split(tmp_path, {"000007": NOTES | {"weak_box": True}}))
    item = Item(9, 2, (1.0, 2.0, 6.0, 7.0), ((1.0, 2.0, 6.0, 2.0, 6.0, 7.0),), 2, 1, 3, 2)
    assert row == Photo(7, picture(), 8, 9, "user", 34, "", "000007.jpg", True, (item,))


@pytest.mark.parametrize("value, weak", [(True, True), (False, False), (..., False)])
def test_a_weak_box_is_true_or_false(tmp_path, value, weak):
    [row] = deepfashion2.read(split(tmp_path, {"1": NOTES if value is ... else NOTES | {"weak_box": value}}))
    assert row.weak_box is weak


@pytest.mark.parametrize(
    "pictures, notes, missing",
    [
        (["1.jpg", "2.jpg"], ["1", "2"], []),
        (
            ["1.jpg", "000001.jpg"],
            ["1", "000001"],
            ["image/1.jpg: image/000001.jpg has the image_id 1 too; rename one"],
        ),
        (["1.jpg", "1.png"], ["1"], ["image/1.png: image/1.jpg has the image_id 1 too; rename one"]),
        (["1.jpg", "000001.jpg"], ["1"], ["image/000001.jpg: no annos/000001.json"]),  # a failure takes no id
        ([f"{2**63 - 1}.jpg"], [f"{2**63 - 1}"], []),
        ([f"{2**63}.jpg"], [f"{2**63}"], [f"image/{2**63}.jpg: the file name is not a number below 2^63"]),
        ([], [], [f"image/: no file that ends in {', '.join(PICTURES)}"]),
    ],
)
def test_check_finds_what_a_set_refuses(tmp_path, pictures, notes, missing):
    folder = split(tmp_path, {})
    for name in pictures:
        (folder / "image" / name).write_bytes(b"never opened")
    for name in notes:
        (folder / "annos" / f"{name}.json").write_text("{}")
    assert deepfashion2.check(folder) == missing


def test_order_and_limit(tmp_path):
    folder = split(tmp_path, {number: NOTES for number in ("10", "9", "000100", "1")})
    assert [row.image_id for row in deepfashion2.read(folder)] == [1, 9, 10, 100]
    assert [row.image_id for row in deepfashion2.read(folder, limit=2)] == [1, 9]


def test_items_in_the_order_of_their_numbers(tmp_path):
    notes = NOTES | {f"item{n}": ITEM | {"style": n} for n in (10, 2, 1)}
    [row] = deepfashion2.read(split(tmp_path, {"1": notes}))
    assert [item.style for item in row.items] == [1, 2, 10]


def without(key: str) -> dict:
    return {k: v for k, v in ITEM.items() if k != key}


@pytest.mark.parametrize(
    "notes, reason",
    [
        (None, "no annos/000001.json"),
        ("{not json", "annotation: Expecting"),
        ("", "annotation: "),
        ([], "annotation: want an object, got list"),
        ({"pair_id": 1}, "annotation: no 'source'"),
        ({"source": "user"}, "annotation: no 'pair_id'"),
        (NOTES | {"pair_id": "7"}, "annotation: pair_id is '7'"),
        (NOTES | {"weak_box": "false"}, "annotation: weak_box is 'false', want true or false"),
        (NOTES | {"weak_box": "true"}, "annotation: weak_box is 'true'"),
        (NOTES | {"weak_box": 0}, "annotation: weak_box is 0"),
        (NOTES | {"weak_box": 1}, "annotation: weak_box is 1"),
        (NOTES | {"weak_box": None}, "annotation: weak_box is None"),
    ],
)
def test_bad_annotations_are_failures(tmp_path, notes, reason):
    rows = list(deepfashion2.read(split(tmp_path, {"000001": notes, "000002": NOTES})))
    assert isinstance(rows[0], Failure) and rows[0].image_id == 1 and rows[0].file_name == "000001.jpg"
    assert rows[0].reason.startswith(reason)
    assert isinstance(rows[1], Photo), "the next photo is taken"


@pytest.mark.parametrize(
    "notes, reason",
    [
        (NOTES | {"item2": 5}, "annotation: item2 is left out: want an object"),
        (NOTES | {"item1": without("category_id")}, "annotation: item1 is left out: no 'category_id'"),
        (NOTES | {"item1": without("style")}, "annotation: item1 is left out: no 'style'"),
        (NOTES | {"item1": without("bounding_box")}, "annotation: item1 is left out: no 'bounding_box'"),
        (NOTES | {"item1": ITEM | {"bounding_box": [1, 2, 3]}}, "annotation: item1 is left out: bounding_box has 3"),
        (NOTES | {"item1": ITEM | {"bounding_box": "1 2 3 4"}}, "annotation: item1 is left out: bounding_box is not"),
        (NOTES | {"item1": ITEM | {"segmentation": [[1, None]]}}, "annotation: item1 is left out: segmentation is not"),
        (NOTES | {"item1": ITEM | {"segmentation": 3}}, "annotation: item1 is left out: segmentation is not"),
        (NOTES | {"item1": ITEM | {"segmentation": False}}, "annotation: item1 is left out: segmentation is not"),
        (NOTES | {"item1": ITEM | {"segmentation": ""}}, "annotation: item1 is left out: segmentation is not"),
        (NOTES | {"item1": ITEM | {"occlusion": None}}, "annotation: item1 is left out: occlusion is None"),
    ],
)
def test_a_bad_item_is_left_out_of_its_photo(tmp_path, notes, reason):
    whole = sum(key.startswith("item") for key in notes) - 1
    photo, failure = deepfashion2.read(split(tmp_path, {"000001": notes}))
    assert isinstance(photo, Photo) and len(photo.items) == whole
    assert isinstance(failure, Failure) and failure.image_id == 1 and failure.file_name == "000001.jpg"
    assert failure.reason.startswith(reason)


def test_photos_without_garments_are_photos(tmp_path):
    [row] = deepfashion2.read(split(tmp_path, {"1": {"source": "shop", "pair_id": 0}}))
    assert row.items == () and row.source == "shop"


def test_bad_pictures_are_failures(tmp_path):
    folder = split(tmp_path, {"1": NOTES, "2": NOTES})
    (folder / "image" / "1.jpg").write_text("moved to another server")
    (folder / "image" / "cover.jpg").write_bytes(picture())
    (folder / "image" / "Thumbs.db").write_bytes(b"")
    (folder / "image" / ".2.jpg").write_bytes(b"")
    (folder / "annos" / "3.json").write_text(json.dumps(NOTES))
    rows = list(deepfashion2.read(folder))
    assert [(row.image_id, getattr(row, "reason", "taken")) for row in rows] == [
        (-1, "the file name is not a number"),
        (1, NO_PICTURE),
        (2, "taken"),
        (3, "an annotation without a picture"),
    ]


def test_a_folder_with_another_layout_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no image/ folder"):
        deepfashion2.read(tmp_path)
    (tmp_path / "image").mkdir()
    with pytest.raises(ValueError, match=r"no annos/ folder"):
        deepfashion2.read(tmp_path)


def test_real_photos(ccp_df2):
    """The counts of ccp_df2's README: val has 204 consumer and 1692 shop photos, 1200 of them weak."""
    rows = list(deepfashion2.read(ccp_df2 / "val"))
    assert all(isinstance(row, Photo) for row in rows)
    assert [row.image_id for row in rows] == list(range(1, 204 + 1692 + 1))
    assert [row.source for row in rows] == ["user"] * 204 + ["shop"] * 1692
    assert sum(row.weak_box for row in rows) == 1200
    queries = [item for row in rows[:204] for item in row.items if item.style > 0]
    gallery = [item for row in rows[204:] for item in row.items if item.style > 0]
    assert len(queries) == 435
    assert len(gallery) <= 1766
    coco = json.loads((ccp_df2 / "instances_val.json").read_text())
    assert {(i["id"], i["width"], i["height"]) for i in coco["images"]} == {
        (row.image_id, row.width, row.height) for row in rows
    }
