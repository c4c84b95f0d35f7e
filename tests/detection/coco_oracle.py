"""pycocotools' own evaluation of boxes given as `detection.metrics` takes them: what the fast one is compared with."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def records(columns: Mapping[str, Any], rows: np.ndarray, **more: list) -> list[dict[str, Any]]:
    """Annotation records of these rows; ids count from 1, because pycocotools takes 0 for "unmatched"."""
    names = ["image_id", "category_id"] + ["score"] * ("score" in columns)
    plain = {name: np.asarray(columns[name])[rows].tolist() for name in names} | more
    each = (dict(zip(plain, values, strict=True)) for values in zip(*plain.values(), strict=True))
    return [{"id": i, "iscrowd": 0, **record} for i, record in enumerate(each, start=1)]


def sides(bbox: np.ndarray) -> np.ndarray:
    """(N, 4) x1 y1 width height of (N, 4) corners."""
    boxes = np.asarray(bbox, np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def judge(true: list, found: list, images: list, ids: Sequence[int], kind: str, **params: Any) -> COCOeval:
    """COCOeval after `evaluate`, at most 100 boxes a photo."""
    parts = []
    with contextlib.redirect_stdout(io.StringIO()):
        for annotations in (true, found):
            coco = COCO()
            categories = [{"id": i} for i in ids]
            coco.dataset = {"images": images, "annotations": annotations, "categories": categories}
            coco.createIndex()
            parts.append(coco)
        judge = COCOeval(*parts, kind)
        judge.params.catIds, judge.params.maxDets = list(ids), [100]
        for name, value in params.items():
            setattr(judge.params, name, value)
        judge.evaluate()
    return judge
