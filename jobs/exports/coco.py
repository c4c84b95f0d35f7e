"""Detections and ground truth in COCO's JSON formats, which pycocotools, FiftyOne and training tools read.

In: OUTPUT/detections/ and fused/ of a finished run, its image set. Out: `detections-DETECTOR.json` and `fused.json`
(COCO results) and `truth.json` (images, categories, true boxes); without true boxes to judge by it is called
`images.json` and has no annotations. pycocotools computes the AP of metrics.json from them.

image_id is the run's own, up to 63 bits, because it leads to every table of the run. JSON has no limit for integers and
Python reads them exactly, but JavaScript rounds above 2^53: there, take the photo's `file_name`.
Source: the COCO data format, https://cocodataset.org/#format-data and #format-results.
"""

import functools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from detection.metrics import truth_arrays
from jobs.exports.files import Writer
from jobs.runs import tables
from jobs.runs.finished import FinishedRun
from jobs.runs.reader import read_photos, read_table
from jobs.runs.selection import ShardTaken
from store.errors import UserError

IMAGE = ("image_id", "width", "height", "file_name", "source")
TRUE = ("image_id", "width", "height", "source", "weak_box", "items")
FOUND = ("image_id", "bbox", "score", "category_id", "mask")


def files(run: FinishedRun, model: str | None = None) -> dict[str, Writer]:
    """The files of this export by name. `model`: a detector or `fused`, None for all; UserError where there is none."""
    folders = {name: f"detections/{name}" for name in run.detectors} | ({"fused": "fused"} if run.detectors else {})
    if model is not None and model not in folders:
        raise UserError(f"--model wants one of {', '.join(folders) or 'none, the run has no detector'}; got {model}")
    chosen = {name: folder for name, folder in folders.items() if model in (None, name)}
    judged = any(_has_judged_items(run, shard) for shard in run.selected.shards)
    writers: dict[str, Writer] = {
        "fused.json" if name == "fused" else f"detections-{name}.json": functools.partial(write_results, run, folder)
        for name, folder in chosen.items()
    }
    return writers | {"truth.json" if judged else "images.json": functools.partial(write_truth, run, judged)}


def write_results(run: FinishedRun, folder: str, file: TextIO) -> int:
    """COCO results: a list of {image_id, category_id, bbox, score, segmentation}, a shard in memory at a time.

    bbox is x y width height in pixels of the upright photo. segmentation, run-length encoded, is there where the
    detector gives a mask. Rows are in the order of the run's tables, which decides between equal scores.

    Args:
        folder: below OUTPUT, detections/DETECTOR or fused.
    """
    return _write_list(file, (entry for name in run.selected.names for entry in _results(run, folder, name)))


def write_truth(run: FinishedRun, judged: bool, file: TextIO) -> int:
    """A COCO data set of the run's photos: categories, images and, where `judged`, annotations.

    Photos whose boxes are too loose to judge by (`weak_box`) have no true box here. A crowd region of each category
    covers them, COCO's way to say that no detection there is right or wrong.
    """
    categories = [{"id": i, "name": name} for i, name in enumerate(run.categories, start=1)]
    file.write(f'{{"info": {{"description": {json.dumps(f"photos of {run.store.uri}")}}},\n')
    file.write(f'"categories": {json.dumps(categories)},\n"images": ')
    n_images = _write_list(file, (image for shard in run.selected.shards for image in _images(run, shard)))
    file.write(',\n"annotations": ')
    _write_list(file, _annotations(run) if judged else ())
    file.write("}\n")
    return n_images


def _write_list(file: TextIO, entries: Iterable[Mapping[str, Any]]) -> int:
    """A JSON list, an entry a line; returns their number."""
    n = 0
    file.write("[")
    for n, entry in enumerate(entries, start=1):
        file.write(("," if n > 1 else "") + "\n" + json.dumps(entry, allow_nan=False))
    file.write("\n]")
    return n


def _results(run: FinishedRun, folder: str, shard: str) -> Iterator[dict[str, Any]]:
    table = read_table(run.store, folder, [shard], FOUND)
    plain = [table.column(name).to_pylist() for name in ("image_id", "category_id", "score", "mask")]
    boxes = _xywh(tables.rows_of(table.column("bbox"))).tolist()
    for image_id, category_id, score, mask, bbox in zip(*plain, boxes, strict=True):
        entry = {"image_id": image_id, "category_id": category_id, "bbox": bbox, "score": score}
        if mask is not None:
            entry["segmentation"] = {"size": mask["size"], "counts": mask["counts"].decode("ascii")}
        yield entry


def _images(run: FinishedRun, shard: ShardTaken) -> Iterator[dict[str, Any]]:
    for row in read_photos(run.images, [shard], IMAGE).to_pylist():
        yield {"id": row.pop("image_id"), **row}


def _annotations(run: FinishedRun) -> Iterator[dict[str, Any]]:
    """The true boxes as they are judged, and the crowd regions; ids count from 1, pycocotools takes 0 for unmatched."""
    n = 0
    for shard in run.selected.shards:
        photos = read_photos(run.images, [shard], TRUE)
        for entry in (*_true_items(photos), *_crowds(photos, run.categories)):
            n += 1
            yield {"id": n, **entry}


def _true_items(photos: pa.Table) -> Iterator[dict[str, Any]]:
    true = truth_arrays(photos)
    nested = photos.filter(pc.invert(photos["weak_box"])).column("items").to_pylist()
    polygons = [item["segmentation"] for items in nested for item in items]
    plain = [true[name].tolist() for name in ("image_id", "category_id", "area", "bbox")]
    boxes = _xywh(true["bbox"]).tolist()
    for image_id, category_id, area, (x1, y1, x2, y2), bbox, outline in zip(*plain, boxes, polygons, strict=True):
        yield {
            "image_id": image_id, "category_id": category_id, "bbox": bbox, "area": area, "iscrowd": 0,
            "segmentation": outline or [[x1, y1, x2, y1, x2, y2, x1, y2]],  # as mask AP judges an item without any
        }  # fmt: skip


def _crowds(photos: pa.Table, categories: Sequence[str]) -> Iterator[dict[str, Any]]:
    for photo in photos.filter(photos["weak_box"]).select(["image_id", "width", "height"]).to_pylist():
        width, height = photo["width"], photo["height"]
        for category_id in range(1, len(categories) + 1):
            yield {
                "image_id": photo["image_id"], "category_id": category_id, "bbox": [0, 0, width, height],
                "area": width * height, "iscrowd": 1,
                "segmentation": {"size": [height, width], "counts": [0, width * height]},
            }  # fmt: skip


def _has_judged_items(run: FinishedRun, shard: ShardTaken) -> bool:
    photos = read_photos(run.images, [shard], ("weak_box", "items"))
    counted = pc.list_value_length(photos.filter(pc.invert(photos["weak_box"])).column("items"))
    return bool(pc.any(pc.greater(counted, 0)).as_py())


def _xywh(boxes: np.ndarray) -> np.ndarray:
    """(N, 4) float64 x y width height of (N, 4) x1 y1 x2 y2; computed as for AP, so that both round alike."""
    boxes = boxes.astype(np.float64)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
