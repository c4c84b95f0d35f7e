"""A finished run written by hand, for what is exported of detections: masks, ties, loose boxes, ids of 63 bits."""

from pathlib import Path

import numpy as np
from pictures import png
from pycocotools import mask as coco_mask

from jobs.runs import tables
from jobs.runs.finished import FinishedRun
from jobs.runs.selection import select
from store.imageset import ImageSet, Item, Photo, open_imageset
from store.imageset_write import write_imageset
from store.objects import open_store

SIDE = 200  # of every photo, pixels
FIRST_ID = 2**62 + 1  # ids follow each other, so that in float64 they would be one


def photos(n: int, rng: np.random.Generator) -> list[Photo]:
    """Every fifth has loose boxes, every seventh no garment; every third garment has a polygon."""
    found = []
    for number in range(n):
        items = []
        for i in range(0 if number % 7 == 3 else int(rng.integers(1, 4))):
            x, y, side = (float(value) for value in rng.uniform((0, 0, 8), (90, 90, 110)))
            triangle = ((x, y, x + side, y, x, y + side),) if (number + i) % 3 == 0 else ()
            items.append(Item(int(rng.choice([1, 2, 8])), 1, (x, y, x + side, y + side), triangle))
        weak, source = number % 5 == 2, "user" if number % 2 else "shop"
        picture, name = png(number, SIDE, SIDE), f"{number}.png"
        found.append(
            Photo(
                FIRST_ID + number,
                picture,
                SIDE,
                SIDE,
                source,
                file_name=name,
                weak_box=weak,
                items=tuple(items),
            )
        )
    return found


def write_run(folder: Path, n_photos: int = 30) -> FinishedRun:
    """A run of one detector, `seen`, whose boxes are the true ones moved a little; some have a mask."""
    rng = np.random.default_rng(8)
    write_imageset(photos(n_photos, rng), folder / "imageset", source={"adapter": "test"}, max_images=8)
    images, output = open_imageset(folder / "imageset"), open_store(folder / "run")
    for shard in images.shards:
        table = tables.table(tables.DETECTIONS, _detections(images, shard.name, rng))
        tables.write(output, f"detections/seen/{shard.name}.parquet", table)
        votes = np.ones(len(table), np.int8)
        tables.write(output, f"fused/{shard.name}.parquet", table.append_column(tables.FUSED.field("votes"), [votes]))
    selected = select(images, None).as_json()
    record = {"settings": {"limit": None}, "detectors": [{"name": "seen"}], "imageset": {"selected": selected}}
    return FinishedRun(output, images, record)


def _detections(images: ImageSet, shard: str, rng: np.random.Generator) -> dict:
    rows = []
    for photo in images.read(shard, ["image_id", "items"]).to_pylist():
        for item in photo["items"]:
            for shift in (3, 3, 12):  # two as good as each other
                box = np.clip(np.array(item["bbox"]) + rng.normal(0, shift, 4), 0, SIDE)
                box[2:] = np.maximum(box[2:], box[:2] + 1)
                mask = np.zeros((SIDE, SIDE), np.uint8, order="F")
                mask[int(box[1]) : int(box[3]), int(box[0]) : int(box[2])] = 1
                encoded = coco_mask.encode(mask) if rng.random() < 0.7 else None
                rows.append((photo["image_id"], box, rng.choice([0.3, 0.6, 0.9]), item["category_id"], encoded))
    names = ("image_id", "bbox", "score", "category_id", "mask")
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    return {name: column if name == "mask" else np.array(column) for name, column in columns.items()}
