"""Malformed DeepFashion2 annotations: those that keep the rules are taken, the rest are failures with a reason."""

import json
import math
import os
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs import ingest
from store.imageset import open_imageset
from tests.fuzz import guard
from tests.jobs.pictures import png

PER_SPLIT = 20
ITEM = {
    "category_id": 3, "style": 1, "bounding_box": [1, 1, 5, 5], "segmentation": [[1, 1, 5, 1, 5, 5]],
    "scale": 2, "occlusion": 1, "zoom_in": 1, "viewpoint": 2, "landmarks": [1, 2, 0], "category_name": "shorts",
}  # fmt: skip
ITEM_2 = ITEM | {"category_id": 9, "bounding_box": [0.5, 0.5, 7.5, 5.25]}
NOTES = {"source": "user", "pair_id": 7, "item1": ITEM, "item2": ITEM_2}


def item(**changes: object) -> bytes:
    return json.dumps(NOTES | {"item1": ITEM | changes}).encode()


def notes(**changes: object) -> bytes:
    return json.dumps(NOTES | changes).encode()


def raw(old: str, new: str) -> bytes:
    """The notes with a text of theirs replaced, for what json.dumps would not write."""
    text = json.dumps(NOTES)
    assert old in text
    return text.replace(old, new, 1).encode()


NAN, INF = float("nan"), float("inf")
REFUSED = [
    ("nothing", b"", "annotation: Expecting value"),
    ("no JSON", b"{", "annotation: Expecting"),
    ("no UTF-8", b"\xff\xfe\x00", "annotation: "),
    ("a list", b"[]", "want an object, got list"),
    ("null", b"null", "want an object, got NoneType"),
    ("a hundred thousand lists in each other", b"[" * 100_000, "nested too deeply"),
    ("a hundred thousand objects in each other", b'{"a":' * 100_000, "nested too deeply"),
    ("an item of deep nesting", raw('"style": 1', '"style": ' + "[" * 50_000 + "]" * 50_000), "nested too deeply"),
    ("no source", b'{"pair_id": 1}', "no 'source'"),
    ("a source of its own", notes(source="<b>thief</b>"), "source '<b>thief</b>' is neither user nor shop"),
    ("a source that is no text", notes(source=["user"]), "neither user nor shop"),
    ("a source of half a letter", b'{"source": "\\ud800", "pair_id": 1}', "neither user nor shop"),
    ("pair_id as text", notes(pair_id="7"), "pair_id is '7', want a whole number"),
    ("pair_id true", notes(pair_id=True), "pair_id is True"),
    ("pair_id below 0", notes(pair_id=-1), "pair_id -1 is not within"),
    ("pair_id 2^63", notes(pair_id=2**63), "pair_id 9223372036854775808 is not within"),
    ("pair_id of 5000 digits", raw('"pair_id": 7', '"pair_id": ' + "9" * 5000), "annotation: Exceeds the limit"),
    ("an item of 5000 digits", raw('"item1"', '"item' + "9" * 5000 + '"'), "annotation: Exceeds the limit"),
]  # fmt: skip


LEFT_OUT = [  # one of two items
    ("a box of NaN", item(bounding_box=[NAN, 1, 5, 5]), "item 1 is left out: box .* is not four finite numbers"),
    ("an endless box", item(bounding_box=[1, 1, INF, 5]), "is not four finite numbers"),
    ("1e999 is endless too", raw("[1, 1, 5, 5]", "[1, 1, 1e999, 5]"), "is not four finite numbers"),
    ("endless once it is float32", item(bounding_box=[1, 1, 1e300, 5]), "is not four finite numbers"),
    ("a whole number of 401 digits", item(bounding_box=[1, 1, 10**400, 5]), "too large to convert to float"),
    ("turned round", item(bounding_box=[5, 5, 1, 1]), "is not x1 < x2 and y1 < y2"),
    ("of no width", item(bounding_box=[5, 1, 5, 5]), "is not x1 < x2 and y1 < y2"),
    ("of no width once it is float32", item(bounding_box=[1, 1, 1.00000001, 5]), "is not x1 < x2 and y1 < y2"),
    ("beside the picture", item(bounding_box=[100, 1, 105, 5]), "lies outside the 8 x 6 picture"),
    ("three numbers", item(bounding_box=[1, 1, 5]), "bounding_box has 3 numbers"),
    ("texts", item(bounding_box=["1", "1", "5", "5"]), "bounding_box is not a list of numbers"),
    ("an object", item(bounding_box={"x": 1}), "bounding_box is not a list of numbers"),
    ("category 0", item(category_id=0), r"item 1 is left out: category_id 0 is not within 1\.\.13"),
    ("category 14", item(category_id=14), "category_id 14 is not within"),
    ("category 269, 13 in a byte", item(category_id=269), "category_id 269 is not within"),
    ("half a category", item(category_id=3.5), "category_id is 3.5, want a whole number"),
    ("a style of 2^31", item(style=2**31), "style 2147483648 is not within"),
    ("a style of 2^80", item(style=2**80), "style 1208925819614629174706176 is not within"),
    ("a scale of 128", item(scale=128), "scale 128 is not within"),
    ("a text for polygons", item(segmentation="x"), "segmentation is not a list of polygons"),
    ("a value of 100,000 letters", item(style="x" * 100_000), "style is 'xxx"),
    ("an item that is none", notes(item1=None), "item1 is left out: want an object"),
]  # fmt: skip

NO_MASK = [  # both items stay, one without this polygon
    ("no corner", item(segmentation=[[]]), "it has 0 corners, want three or more"),
    ("a corner", item(segmentation=[[10, 10]]), "it has 1 corners, want three or more"),
    ("a line", item(segmentation=[[1, 1, 5, 5]]), "it has 2 corners, want three or more"),
    ("three corners in a row", item(segmentation=[[1, 1, 3, 1, 5, 1]]), "it has no area"),
    ("beside the picture", item(segmentation=[[100, 1, 105, 1, 105, 5]]), "it lies outside the 8 x 6 picture"),
    ("a hundred million pixels away", item(segmentation=[[1e8, 1, 2e8, 1, 1e8, 5]]), "it lies outside the 8 x 6"),
    ("half a point", item(segmentation=[[1, 2, 3]]), "it is not pairs"),
    ("a polygon of NaN", item(segmentation=[[1, NAN]]), "it is not pairs of finite numbers"),
]  # fmt: skip


def split_of(folder: Path, files: list[bytes]) -> Path:
    for part in ("image", "annos"):
        (folder / "split" / part).mkdir(parents=True)
    for number, data in enumerate(files, 1):
        (folder / "split" / "image" / f"{number:06}.png").write_bytes(png(number))
        (folder / "split" / "annos" / f"{number:06}.json").write_bytes(data)
    return folder / "split"


def ingested(box: Path, files: list[bytes]) -> tuple[guard.Said, list[dict], list[dict]]:
    """What the command says of a split, the rows it took and the failures."""
    argv = ["deepfashion2", str(split_of(box, files)), str(box / "set")]
    with guard.untouched(box, but="set"):
        said = guard.run(ingest.main, argv, box / "set")
    failures = pq.read_table(box / "set" / "failures.parquet").to_pylist()
    rows = [] if said.status else open_imageset(box / "set").truth().to_pylist()
    assert {row["image_id"] for row in rows} | {failure["image_id"] for failure in failures} == {
        *range(1, len(files) + 1)
    }
    assert all(len(failure["reason"]) <= 300 for failure in failures)
    return said, rows, failures


@pytest.mark.parametrize("why, data, reason", REFUSED, ids=[row[0] for row in REFUSED])
def test_a_wrong_annotation_fails_only_its_photo(why, data, reason, tmp_path):
    said, rows, failures = ingested(tmp_path, [data, notes()])
    assert said.status == 0 and [row["image_id"] for row in rows] == [2]
    [failure] = failures
    assert failure["image_id"] == 1 and re.search(reason, failure["reason"])


@pytest.mark.parametrize("why, data, reason", LEFT_OUT, ids=[row[0] for row in LEFT_OUT])
def test_a_wrong_item_is_left_out_alone(why, data, reason, tmp_path):
    said, rows, failures = ingested(tmp_path, [data, notes()])
    assert said.status == 0 and [(row["image_id"], len(row["items"])) for row in rows] == [(1, 1), (2, 2)]
    [failure] = failures
    assert failure["image_id"] == 1 and re.search(reason, failure["reason"])


@pytest.mark.parametrize("why, data, reason", NO_MASK, ids=[row[0] for row in NO_MASK])
def test_a_wrong_polygon_is_no_mask(why, data, reason, tmp_path):
    said, rows, failures = ingested(tmp_path, [data, notes()])
    assert said.status == 0 and [(row["image_id"], len(row["items"])) for row in rows] == [(1, 2), (2, 2)]
    assert rows[0]["items"][0]["segmentation"] == []
    [failure] = failures
    assert failure["image_id"] == 1 and re.search(reason, failure["reason"])


def test_odd_but_right(tmp_path):
    files = [
        notes(),
        raw('"item1"', '"item٣"'),  # any digits count
        notes(extra={"a": [1, {"b": None}]}, weak_box=True),
        item(segmentation=[], scale=0),
        item(bounding_box=[-3, -3, 100, 100]),  # published boxes reach over the edge
        b'{"source": "shop", "pair_id": 0}',
        raw('"pair_id": 7', '"pair_id": 7, "pair_id": 8'),  # the last of two keys, as everywhere
    ]
    said, rows, failures = ingested(tmp_path, files)
    assert said.status == 0 and not failures
    assert [len(row["items"]) for row in rows] == [2, 2, 2, 2, 2, 0, 2]
    assert [row["pair_id"] for row in rows] == [7, 7, 7, 7, 7, 0, 8]
    assert [row["weak_box"] for row in rows] == [False, False, True, False, False, False, False]


NAMES = [
    "000001.png",
    "9" * 30 + ".png",
    "-1.png",
    "x.png",
    "1e3.png",
    "٣.png",
    "<b>.png",
    b"\xff\xfe.png",
    "5" * 240 + ".png",
]


@pytest.mark.parametrize("name", NAMES)
def test_file_names(name, tmp_path):
    """A number of any length, or none: one row, and a name that is no UTF-8 does not stop the others."""
    folder = split_of(tmp_path, [notes()])
    (folder / "image" / "000001.png").rename(folder / "image" / os.fsdecode(name))
    (folder / "image" / "000002.png").write_bytes(png(2))
    (folder / "annos" / "000002.json").write_bytes(notes())
    said = guard.run(ingest.main, ["deepfashion2", str(folder), str(tmp_path / "set")], tmp_path / "set")
    taken = open_imageset(tmp_path / "set").truth()["image_id"].to_pylist()
    assert said.status == 0 and taken == ([1, 2] if name == "000001.png" else [2])


def sound(row: dict) -> bool:
    """The rules of store/imageset.py, once more and in other words."""
    boxes = [item["bbox"] for item in row["items"]]
    return (
        row["source"] in ("user", "shop")
        and row["pair_id"] >= 0
        and all(math.isfinite(v) for box in boxes for v in box)
        and all(x1 < x2 and y1 < y2 and x2 > 0 and y2 > 0 and x1 < 8 and y1 < 6 for x1, y1, x2, y2 in boxes)
        and all(item["category_id"] in range(1, 14) and item["style"] >= 0 for item in row["items"])
    )


@guard.fuzzed(PER_SPLIT)
@given(data=st.data())
def test_every_broken_annotation_ends_as_a_photo_or_a_failure(data, tmp_path_factory):
    made_up = guard.replaced(NOTES).map(lambda value: json.dumps(value).encode())
    files = data.draw(
        st.lists(st.one_of(made_up, made_up, guard.broken([notes()])), min_size=PER_SPLIT, max_size=PER_SPLIT)
    )
    _, rows, _ = ingested(tmp_path_factory.mktemp("annotations"), files)
    guard.inputs["test_annotations"] += len(files)
    assert all(map(sound, rows))
