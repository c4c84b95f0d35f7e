"""A small run written by hand: one detector is exact, one is off, one sees nothing but noise. For tests only."""

import json
from pathlib import Path

import numpy as np

from jobs.runs import tables
from jobs.runs.finished import FinishedRun
from jobs.runs.retries import Job
from jobs.runs.selection import select
from jobs.runs.settings import FusionSettings, Settings, record
from jobs.stages.fuse import FuseWorker
from store.imageset import ImageSet
from store.objects import ObjectStore, open_store

NAMES = ("exact", "off", "noise")
SHIFT_PX = {"exact": 0.5, "off": 9, "noise": 60}


def described(output: ObjectStore, images: ImageSet, fusion: FusionSettings, limit: int | None = None) -> FinishedRun:
    """A run whose run.json has what an ablation reads of it."""
    settings = Settings(imageset=(images.uri,), detectors=NAMES, fusion=fusion, limit=limit)
    content = {
        "settings": record(settings),
        "detectors": [{"name": name} for name in NAMES],
        "selected": select(images, limit).as_json(),
    }
    return FinishedRun(output, images, json.loads(json.dumps(content)))


def write_detections(output: ObjectStore, images: ImageSet) -> None:
    """Each detector's boxes: the true ones, moved by so many pixels, and a stray one a photo."""
    rng = np.random.default_rng(5)
    for shard in images.shards:
        photos = images.read(shard.name, columns=["image_id", "items"]).to_pylist()
        for name in NAMES:
            rows = [(p["image_id"], item["bbox"], item["category_id"]) for p in photos for item in p["items"]]
            near = np.array([row[1] for row in rows]) + rng.normal(0, SHIFT_PX[name], (len(rows), 4))
            corner = rng.uniform(0, 100, (len(photos), 2))
            ids = [*(row[0] for row in rows), *(p["image_id"] for p in photos)]
            columns = {
                "image_id": np.array(ids),
                "bbox": np.concatenate([near, np.concatenate([corner, corner + 70], axis=1)]),
                "score": rng.uniform(0.2, 1, len(ids)),
                "category_id": np.array([*(row[2] for row in rows), *[1] * len(photos)]),
            }
            columns["bbox"][:, 2:] = np.maximum(columns["bbox"][:, 2:], columns["bbox"][:, :2] + 1)
            key = f"detections/{name}/{shard.name}.parquet"
            tables.write(output, key, tables.table(tables.DETECTIONS, columns))


def fused_run(folder: Path, images: ImageSet, fusion: FusionSettings) -> FinishedRun:
    """A run up to its fused boxes."""
    output = open_store(folder)
    write_detections(output, images)
    worker = FuseWorker(Settings(fusion=fusion), NAMES, ("detected",), images, output)
    for shard in images.shards:
        worker.run(Job(shard.name, tuple(range(shard.rows))), {}, False)
    return described(output, images, fusion)
