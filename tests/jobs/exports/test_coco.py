"""COCO files: pycocotools loads them and gives the project's own AP, to the last digit."""

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detection.metrics import evaluate_boxes, evaluate_masks, truth_arrays
from jobs.exports import coco
from jobs.exports.files import publish_text
from jobs.runs.finished import FinishedRun
from jobs.runs.reader import read_boxes, read_table
from store.errors import UserError
from store.imageset import Item, Photo
from store.objects import open_store
from tests.jobs.exports.handmade_run import FIRST_ID, SIDE, write_run

AP = ("AP", "AP50", "AP75", "APs", "APm", "APl")  # the order of COCOeval's first figures


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    return write_run(tmp_path_factory.mktemp("handmade"))


@pytest.fixture(scope="module")
def folder(run: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(run, tmp_path_factory.mktemp("coco"))


def write(run: FinishedRun, folder: Path, **how: Any) -> Path:
    for name, writer in coco.files(run, **how).items():
        with publish_text(open_store(folder), name) as file:
            writer(file)
    return folder


def figures(truth: Path, results: Any, kind: str = "bbox") -> list[float | None]:
    """COCO's AP in the order of `AP`; None where pycocotools gives its -1."""
    with contextlib.redirect_stdout(io.StringIO()):
        true = COCO(str(truth))
        judge = COCOeval(true, true.loadRes(results), kind)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return [None if value == -1 else float(value) for value in judge.stats[:6]]


@pytest.mark.parametrize("name, place", [("detections-seen", "detections/seen"), ("fused", "fused")])
def test_pycocotools_gives_our_box_ap(run: FinishedRun, folder: Path, name: str, place: str) -> None:
    truth = truth_arrays(run.truth())
    judged = truth.pop("judged")
    ours = evaluate_boxes(truth, read_boxes(run.store, place, run.selected.names), judged)
    assert 0.1 < ours["AP"] < 0.9 and len(judged) == 24  # 30 photos, every fifth with loose boxes
    assert figures(folder / "truth.json", str(folder / f"{name}.json")) == [ours[name] for name in AP]


def test_pycocotools_gives_our_mask_ap_without_the_boxes(run: FinishedRun, folder: Path) -> None:
    """With `bbox` in the records pycocotools takes areas of boxes, and boxes for the masks that are missing."""
    table = run.truth()
    truth, loose = truth_arrays(table), table.column("weak_box").to_pylist()
    judged = truth.pop("judged")
    nested = [items for items, weak in zip(table.column("items").to_pylist(), loose, strict=True) if not weak]
    outlines = [item["segmentation"] for items in nested for item in items]
    found = read_table(run.store, "detections/seen", run.selected.names).to_pylist()
    masked = [row for row in found if row["mask"]]
    columns = {name: np.array([row[name] for row in masked]) for name in ("image_id", "score", "category_id")}
    sizes = dict.fromkeys(judged.tolist(), (SIDE, SIDE))
    masks = {"mask": [row["mask"] for row in masked]}
    ours = evaluate_masks(truth | {"segmentation": outlines}, columns | masks, judged, sizes)

    results = json.loads((folder / "detections-seen.json").read_text())
    shapes = [
        {name: value for name, value in row.items() if name != "bbox"} for row in results if "segmentation" in row
    ]
    assert 0 < len(shapes) < len(results) and 0.05 < ours["AP"] < 0.9
    assert figures(folder / "truth.json", shapes, "segm") == [ours[name] for name in AP]


def test_the_true_boxes_judged_by_themselves_are_perfect(folder: Path) -> None:
    truth = json.loads((folder / "truth.json").read_text())
    names = ("image_id", "category_id", "bbox")
    perfect = [{name: row[name] for name in names} | {"score": 1.0} for row in truth["annotations"]]
    assert figures(folder / "truth.json", perfect)[:3] == [1, 1, 1]


def test_ids_of_63_bits_stay_apart(run: FinishedRun, folder: Path) -> None:
    truth, results = (json.loads((folder / f"{name}.json").read_text()) for name in ("truth", "detections-seen"))
    assert [image["id"] for image in truth["images"]] == list(range(FIRST_ID, FIRST_ID + 30))
    assert {row["image_id"] for row in results} <= {image["id"] for image in truth["images"]}
    table = read_table(run.store, "detections/seen", run.selected.names)
    assert [row["image_id"] for row in results] == table.column("image_id").to_pylist()


def test_what_the_records_say(run: FinishedRun, folder: Path) -> None:
    truth, results = (json.loads((folder / f"{name}.json").read_text()) for name in ("truth", "fused"))
    assert truth["images"][2] == {
        "id": FIRST_ID + 2, "width": SIDE, "height": SIDE, "source": "shop", "file_name": "2.png",
    }  # fmt: skip
    assert [category["id"] for category in truth["categories"]] == list(range(1, 14))
    assert truth["categories"][7]["name"] == "trousers"
    crowds = [row for row in truth["annotations"] if row["iscrowd"]]
    assert len(crowds) == 6 * 13 and {tuple(row["bbox"]) for row in crowds} == {(0, 0, SIDE, SIDE)}
    assert {row["image_id"] - FIRST_ID for row in crowds} == {2, 7, 12, 17, 22, 27}
    assert {len(row["segmentation"][0]) for row in truth["annotations"] if not row["iscrowd"]} == {6, 8}

    (first, *_) = read_table(run.store, "fused", run.selected.names).to_pylist()
    x1, y1, x2, y2 = first["bbox"]
    assert results[0]["bbox"] == [x1, y1, x2 - x1, y2 - y1] and results[0]["score"] == first["score"]


def test_one_detector_alone(run: FinishedRun, tmp_path: Path) -> None:
    write(run, tmp_path, model="fused")
    assert {path.name for path in tmp_path.iterdir()} == {"fused.json", "truth.json"}
    with pytest.raises(UserError, match="--model wants one of seen, fused; got lite0"):
        coco.files(run, "lite0")


@pytest.mark.parametrize("items, weak", [((), False), ((Item(1, 1, (0.0, 0.0, 4.0, 4.0)),), True)])
def test_without_a_true_box_to_judge_by_there_are_images_alone(
    items: tuple[Item, ...], weak: bool, tmp_path: Path, make_run: Callable[[Path, list[Photo]], FinishedRun]
) -> None:
    run = make_run(tmp_path, [Photo(7, b"", 8, 6, "shop", file_name="a.png", items=items, weak_box=weak)])
    folder = write(run, tmp_path / "coco")
    assert sorted(path.name for path in folder.iterdir()) == ["images.json"]
    found = json.loads((folder / "images.json").read_text())
    assert found["annotations"] == [] and [image["file_name"] for image in found["images"]] == ["a.png"]
