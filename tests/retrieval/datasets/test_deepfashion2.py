"""DeepFashion2's layout: every picture and every annotation ends as a photo or as a failure that says why."""

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from retrieval.datasets import deepfashion2
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
        (NOTES | {"item2": 5}, "annotation: item2: want an object"),
        (NOTES | {"item1": without("category_id")}, "annotation: item1: no 'category_id'"),
        (NOTES | {"item1": without("style")}, "annotation: item1: no 'style'"),
        (NOTES | {"item1": without("bounding_box")}, "annotation: item1: no 'bounding_box'"),
        (NOTES | {"item1": ITEM | {"bounding_box": [1, 2, 3]}}, "annotation: item1: bounding_box has 3"),
        (NOTES | {"item1": ITEM | {"bounding_box": "1 2 3 4"}}, "annotation: item1: bounding_box is not"),
        (NOTES | {"item1": ITEM | {"segmentation": [[1, None]]}}, "annotation: item1: segmentation is not"),
        (NOTES | {"item1": ITEM | {"segmentation": 3}}, "annotation: item1: segmentation is not"),
        (NOTES | {"item1": ITEM | {"occlusion": None}}, "annotation: item1: occlusion is None"),
    ],
)
def test_annotations_that_are_none(tmp_path, notes, reason):
    rows = list(deepfashion2.read(split(tmp_path, {"000001": notes, "000002": NOTES})))
    assert isinstance(rows[0], Failure) and rows[0].image_id == 1 and rows[0].file_name == "000001.jpg"
    assert rows[0].reason.startswith(reason)
    assert isinstance(rows[1], Photo), "the next photo is taken"


def test_photos_without_garments_are_photos(tmp_path):
    [row] = deepfashion2.read(split(tmp_path, {"1": {"source": "shop", "pair_id": 0}}))
    assert row.items == () and row.source == "shop"


def test_pictures_that_are_none(tmp_path):
    folder = split(tmp_path, {"1": NOTES, "2": NOTES})
    (folder / "image" / "1.jpg").write_text("moved to another server")
    (folder / "image" / "cover.jpg").write_bytes(picture())
    (folder / "image" / "Thumbs.db").write_bytes(b"")
    (folder / "image" / ".2.jpg").write_bytes(b"")
    (folder / "annos" / "3.json").write_text(json.dumps(NOTES))
    rows = list(deepfashion2.read(folder))
    assert [(row.image_id, getattr(row, "reason", "taken")) for row in rows] == [
        (-1, "the file name is not a number"),
        (1, "not a JPEG, PNG or WebP picture"),
        (2, "taken"),
        (3, "an annotation without a picture"),
    ]


def test_a_folder_of_another_kind(tmp_path):
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
