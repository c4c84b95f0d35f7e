"""The fast matching says what pycocotools' says, box by box, and its APs are the metric's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import detection.matching
from detection.ap_interval import Curves
from detection.matching import TrueBoxes
from detection.metrics import evaluate_boxes
from store.categories import DEEPFASHION2
from tests.detection.coco_oracle import judge, records, sides


def matches(truth: dict, detections: dict, image_ids: np.ndarray) -> dict[int, dict[str, np.ndarray]]:
    """pycocotools' own matching, what `TrueBoxes.matches` gives."""
    parts = []
    for columns in (truth, detections):
        rows = detection.matching.judged_rows(columns, image_ids, len(DEEPFASHION2), "boxes")
        boxes = sides(columns["bbox"])[rows]
        parts.append(records(columns, rows, bbox=boxes.tolist(), area=boxes[:, 2:].prod(1).tolist()))
    true_items, detected = parts
    images = [{"id": int(i)} for i in np.unique(image_ids)]
    place = {image["id"]: i for i, image in enumerate(images)}
    ids = range(1, len(DEEPFASHION2) + 1)
    gathered: dict[int, dict[str, list[np.ndarray]]] = {
        i: {"score": [np.zeros(0)], "image_id": [np.zeros(0, np.int64)], "right": [np.zeros((10, 0), bool)]}
        for i in ids
    }
    items = {i: np.zeros(len(images)) for i in ids}
    for item in true_items:
        items[item["category_id"]][place[item["image_id"]]] += 1
    judged = judge(true_items, detected, images, ids, "bbox", areaRng=[[0, 1e10]], areaRngLbl=["all"])
    for entry in filter(None, judged.evalImgs):
        parts = gathered[entry["category_id"]]
        parts["score"].append(np.asarray(entry["dtScores"], np.float64))
        parts["image_id"].append(np.full(len(entry["dtScores"]), entry["image_id"], np.int64))
        parts["right"].append(np.asarray(entry["dtMatches"]).reshape(10, -1) > 0)
    return {
        i: {name: np.concatenate(arrays, axis=-1) for name, arrays in parts.items()} | {"items": items[i]}
        for i, parts in gathered.items()
    }


def scene(seed: int, n_items: int, n_found: int, grid: int = 0) -> tuple[dict, dict]:
    """True boxes of three categories on nine photos, some crowded, and boxes near them; on a grid, full of ties."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 60, (n_items, 2))
    true = {
        "image_id": 7 * rng.integers(0, 9, n_items), "category_id": rng.choice([1, 2, 13], n_items),
        "bbox": np.concatenate([corner, corner + rng.uniform(20, 60, (n_items, 2))], 1),
        "area": np.full(n_items, 3000.0),
    }  # fmt: skip
    some = rng.integers(0, max(n_items, 1), n_found if n_items else 0)
    found = {
        "image_id": true["image_id"][some], "category_id": true["category_id"][some],
        "bbox": true["bbox"][some] + rng.normal(0, 4, (len(some), 4)), "score": rng.random(len(some)),
    }  # fmt: skip
    if grid:
        for columns in (true, found):
            columns["bbox"] = (columns["bbox"] / grid).round() * grid
        found["score"] = (found["score"] * 3).round() / 3
    return true, found


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(0, 40), st.integers(0, 120), st.sampled_from([0, 5, 20]))
def test_it_is_the_matching_of_pycocotools(seed: int, n_items: int, n_found: int, grid: int) -> None:
    true, found = scene(seed, n_items, n_found, grid)
    photos = 7 * np.array([0, 1, 2, 3, 4, 5, 6, 30])  # two do not judge, one has nothing
    want, got = matches(true, found, photos), TrueBoxes(true, photos, len(DEEPFASHION2)).matches(found)
    assert list(got) == list(want) == list(range(1, len(DEEPFASHION2) + 1))
    for category, columns in want.items():
        for name, column in columns.items():
            np.testing.assert_array_equal(got[category][name], column, err_msg=f"{category} {name}")


def test_more_boxes_than_count() -> None:
    true, found = scene(3, 3, 900)
    photos = np.unique(true["image_id"])
    want, got = matches(true, found, photos), TrueBoxes(true, photos, len(DEEPFASHION2)).matches(found)
    assert max(len(columns["score"]) for columns in got.values()) >= detection.matching.MOST_PER_PHOTO
    for category, columns in want.items():
        np.testing.assert_array_equal(got[category]["right"], columns["right"])


@pytest.mark.parametrize("box", [[np.nan] * 4, [0, 0, 10, np.nan], [np.nan, 0, 10, 10]])
def test_a_box_of_nan_is_wrong_and_takes_no_item(box: list[float]) -> None:
    """pycocotools takes a box of NaN for right at every IoU."""
    true = {"image_id": np.array([7]), "category_id": np.array([1]), "bbox": np.array([[0.0, 0, 10, 10]])}
    found = {
        "image_id": np.array([7, 7]), "category_id": np.array([1, 1]), "score": np.array([0.9, 0.8]),
        "bbox": np.array([box, [0.0, 0, 10, 10]]),
    }  # fmt: skip
    right = TrueBoxes(true, np.array([7]), 1).matches(found)[1]["right"]
    assert right.tolist() == 10 * [[False, True]]


@pytest.mark.parametrize("seed", range(3))
def test_its_aps_are_the_metrics(seed: int) -> None:
    true, found = scene(seed, 40, 90)
    photos = 7 * np.arange(9)
    matched, want = TrueBoxes(true, photos, len(DEEPFASHION2)).matches(found), evaluate_boxes(true, found, photos)
    assert Curves(matched, photos).ap() == pytest.approx(want["AP10"], abs=1e-9)
    assert Curves(matched, photos, at_50=True).ap() == pytest.approx(want["AP10_50"], abs=1e-9)
    assert Curves(matched, photos, categories=range(1, 14)).ap() == pytest.approx(want["AP"], abs=1e-9)
