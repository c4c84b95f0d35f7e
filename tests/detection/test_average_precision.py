"""The figures are pycocotools' own, bit by bit, for items of every size and however the photos come in blocks."""

import contextlib
import io
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as rle

from detection import metrics
from detection.average_precision import AP10_IDS, JudgedBoxes
from detection.matching import TrueBoxes
from detection.metrics import evaluate_boxes, evaluate_masks
from store.categories import DEEPFASHION2
from tests.detection.coco_oracle import judge, records, sides

N, IDS = len(DEEPFASHION2), range(1, 14)


def published(true: dict, found: dict, image_ids: np.ndarray, kind: str = "bbox") -> dict[str, Any]:
    """What COCOeval's evaluate and accumulate say of all photos at once, read as `metrics.evaluate_boxes` says."""
    parts = []
    for columns in (true, found):
        rows = np.flatnonzero(np.isin(columns["image_id"], image_ids))
        boxes = sides(columns["bbox"])[rows]
        area = columns["area"][rows] if "area" in columns else boxes[:, 2:].prod(1)
        fields = {"bbox": boxes.tolist(), "area": area.tolist()}
        if kind == "segm":
            masks = [columns["mask"][row] for row in rows]
            of_masks = area.tolist() if "area" in columns else [float(rle.area(mask)) for mask in masks]
            fields = {"segmentation": masks, "area": of_masks}
        parts.append(records(columns, rows, **fields))
    images = [{"id": int(i), "height": 130, "width": 130} for i in np.unique(image_ids)]
    precision = np.full((10, 101, N, 4, 1), -1.0)
    if images and parts[0]:
        judged = judge(*parts, images, IDS, kind)
        with contextlib.redirect_stdout(io.StringIO()):
            judged.accumulate()
        precision = judged.eval["precision"]

    def mean(values: np.ndarray) -> float | None:
        return float(values[values > -1].mean()) if (values > -1).any() else None

    items = Counter(record["category_id"] for record in parts[0])
    each = {i: (mean(precision[:, :, i - 1, 0]), mean(precision[:1, :, i - 1, 0]), items[i]) for i in IDS}
    ten = [each[i][:2] for i in AP10_IDS if each[i][0] is not None]
    return {
        "AP": mean(precision[:, :, :, 0]), "AP50": mean(precision[:1, :, :, 0]), "AP75": mean(precision[5:6, :, :, 0]),
        "APs": mean(precision[:, :, :, 1]), "APm": mean(precision[:, :, :, 2]), "APl": mean(precision[:, :, :, 3]),
        "AP10": sum(ap for ap, _ in ten) / len(ten) if ten else None,
        "AP10_50": sum(ap for _, ap in ten) / len(ten) if ten else None,
        "images": len(images),
        "per_category": {DEEPFASHION2[i - 1]: dict(zip(("AP", "AP50", "items"), each[i], strict=True)) for i in IDS},
    }  # fmt: skip


def scene(seed: int, n_items: int, n_found: int, grid: float, score: type = np.float32) -> tuple[dict, dict]:
    """True boxes of 10 to 130 px on nine photos, some crowded, and boxes near them; on a grid, full of ties."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 60, (n_items, 2))
    true = {
        "image_id": 7 * rng.integers(0, 9, n_items), "category_id": rng.choice([1, 2, 13], n_items),
        "bbox": np.concatenate([corner, corner + rng.choice([12.0, 32, 60, 96, 130], (n_items, 2))], 1),
    }  # fmt: skip
    some = rng.integers(0, max(n_items, 1), n_found if n_items else 0)
    found = {
        "image_id": true["image_id"][some], "category_id": true["category_id"][some],
        "bbox": true["bbox"][some] + rng.normal(0, 4, (len(some), 4)),
        "score": rng.random(len(some)).astype(score),
    }  # fmt: skip
    if grid:
        for columns in (true, found):
            columns["bbox"] = (columns["bbox"] / grid).round() * grid
        found["score"] = ((found["score"] * 3).round() / 3).astype(score)
    sides = true["bbox"][:, 2:] - true["bbox"][:, :2]
    true["area"] = sides.prod(1) * rng.choice([0.5, 1.0], n_items)  # of its polygons, as of a dress with a belt
    return true, found


SCENES = (st.integers(0, 10_000), st.integers(0, 40), st.integers(0, 120), st.sampled_from([0, 5, 20]))


@settings(max_examples=60)
@given(*SCENES)
def test_boxes_are_judged_as_published(seed: int, n_items: int, n_found: int, grid: float) -> None:
    true, found = scene(seed, n_items, n_found, grid)
    photos = 7 * np.array([0, 1, 2, 3, 4, 5, 6, 30])  # two do not judge, one has nothing
    assert evaluate_boxes(true, found, photos) == published(true, found, photos)


@settings(max_examples=40)
@given(*SCENES)
def test_blocks_in_any_order_give_the_same_figures(seed: int, n_items: int, n_found: int, grid: float) -> None:
    true, found = scene(seed, n_items, n_found, grid)
    judged = JudgedBoxes()
    photos = 7 * np.arange(9)
    for block in np.array_split(np.random.default_rng(seed).permutation(photos), 3):
        of_block = [
            {name: column[np.isin(columns["image_id"], block)] for name, column in columns.items()}
            for columns in (true, found)
        ]
        judged.add_boxes(TrueBoxes(of_block[0], block, N), *of_block)
    for chosen in (photos, photos[::2], photos[:0]):
        assert judged.figures(chosen, DEEPFASHION2) == published(true, found, chosen)


def test_more_boxes_than_count() -> None:
    true, found = scene(3, 3, 900, 0)
    photos = np.unique(true["image_id"])
    assert evaluate_boxes(true, found, photos) == published(true, found, photos)


@pytest.mark.parametrize("seed", range(6))
def test_masks_are_judged_as_published(seed: int) -> None:
    """Each mask is that of a box; a true item without polygons is its box."""
    true, found = scene(seed, 30, 60, 20 if seed % 2 else 0)
    photos = 7 * np.arange(9)
    for columns in (true, found):
        columns["bbox"] = columns["bbox"].clip(0, 129)
        columns["bbox"][:, 2:] = np.maximum(columns["bbox"][:, 2:], columns["bbox"][:, :2] + 1)
        polygons = [metrics._box_polygon(box) for box in columns["bbox"]]
        columns["mask"] = [rle.merge(rle.frPyObjects([polygon], 130, 130)) for polygon in polygons]
    truth = {name: true[name] for name in ("image_id", "category_id", "area", "bbox")} | {"segmentation": [[]] * 30}
    columns = {name: found[name] for name in ("image_id", "category_id", "score", "mask")}
    got = evaluate_masks(truth, columns, photos, dict.fromkeys(photos.tolist(), (130, 130)))
    assert got == published(true, found, photos, "segm")
