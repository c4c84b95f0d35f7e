"""What judging a large run costs: evaluate and report over made-up tables, each in a process of its own.

    OMP_NUM_THREADS=1 python benchmarks/evaluation.py --photos 100000

A tenth of the photos are consumers'. A photo shows two garments with polygons, a product has one consumer photo and
nine of shops. Every detector finds each garment, shifted and scored at random, and fills up to `--boxes` with noise;
`fused` likewise. Rankings of every embedder and of all together hold 20 results for each garment of a consumer, a right
one among the first for most. Photos are one small JPEG, as nothing here looks at them but the report's pictures. With
`--keep FOLDER` the made-up run stays, so that another checkout can judge the same: figures of both must be equal.
"""

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path[0] = str(Path(__file__).resolve().parents[1])

from detection.models import ATSS_TINY
from jobs.reports import site
from jobs.runs import marks, tables
from jobs.runs.catalogue import SHIPPED
from jobs.runs.marks import Outcome
from jobs.runs.models import Model
from jobs.runs.planning import plan
from jobs.runs.run import open_run
from jobs.runs.settings import Settings
from jobs.stages import evaluate, order
from retrieval.models import LITE0_SG
from store.imageset import Item, Photo, open_imageset
from store.imageset_write import write_imageset
from store.objects import open_store

SIDE, GARMENTS, LENGTH, SHARD = 640, 2, 20, 256
PHOTOS_OF_A_PRODUCT = 10  # the first is a consumer's


def make(folder: Path, n: int, n_boxes: int, detectors: list[str], embedders: list[str]) -> None:
    from PIL import Image

    encoded = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 200, 200)).resize((SIDE, SIDE)).save(encoded, "JPEG", quality=30)
    rng = np.random.default_rng(0)
    true = boxes_of(rng, n * GARMENTS).reshape(n, GARMENTS, 4)
    category = rng.integers(1, 14, (n, GARMENTS))

    def photos() -> Iterator[Photo]:
        for i in range(n):
            of = zip(true[i].tolist(), category[i].tolist(), strict=True)
            items = tuple(
                Item(c, 1 + place, tuple(box), ((box[0], box[1], box[2], box[1], box[2], box[3], box[0], box[3]),))
                for place, (box, c) in enumerate(of)
            )
            side = "shop" if i % PHOTOS_OF_A_PRODUCT else "user"
            pair = 1 + i // PHOTOS_OF_A_PRODUCT
            yield Photo(i, encoded.getvalue(), SIDE, SIDE, side, pair, file_name=f"{i}.jpg", items=items)

    write_imageset(photos(), folder / "set", source={"adapter": "made up", "arguments": {}}, max_images=SHARD)
    store, items = open_store(folder / "run"), list[dict[str, Any]]()
    for name in (*(f"detections/{detector}" for detector in detectors), "fused"):
        for number, start in enumerate(range(0, n, SHARD)):
            rows = np.arange(start, min(n, start + SHARD))
            columns = found(rng, rows, true, category, n_boxes)
            schema = tables.FUSED if name == "fused" else tables.DETECTIONS
            write(store, f"{name}/shard-{number:05d}.parquet", schema, columns)
            if name == "fused":
                items.append(items_of(columns))
                write(store, f"items/detected/shard-{number:05d}.parquet", tables.ITEMS, items[-1])
    found_items = {name: np.concatenate([part[name] for part in items]) for name in items[0]}
    of_shops = found_items["image_id"] % PHOTOS_OF_A_PRODUCT > 0
    ids = {name: column[of_shops] for name, column in found_items.items()}
    write(store, "index/detected/ids.parquet", tables.INDEX_IDS, ids)
    for name in ("detected", *(f"detected/{embedder}" for embedder in embedders)):
        write(store, f"rankings/{name}.parquet", tables.RANKINGS, rankings(rng, n, true, category))


def write(store: Any, key: str, schema: Any, columns: dict[str, Any]) -> None:
    """As a run writes them, but without waiting for the disk."""
    import pyarrow.parquet as pq

    path = Path(store.uri, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(tables.table(schema, columns), path, compression="zstd", row_group_size=65_536)


def boxes_of(rng: np.random.Generator, n: int) -> np.ndarray:
    corner = rng.uniform(0, 400, (n, 2))
    return np.concatenate([corner, corner + rng.uniform(20, 240, (n, 2))], axis=1).astype(np.float32).round(1)


def found(
    rng: np.random.Generator, rows: np.ndarray, true: np.ndarray, category: np.ndarray, n_boxes: int
) -> dict[str, Any]:
    """Boxes of one detector on some photos, by falling score within a photo."""
    n = len(rows)
    box = boxes_of(rng, n * n_boxes).reshape(n, n_boxes, 4)
    kind, score = rng.integers(1, 14, (n, n_boxes)), rng.uniform(0.01, 0.6, (n, n_boxes))
    seen = min(GARMENTS, n_boxes)
    box[:, :seen] = true[rows][:, :seen] + rng.normal(0, 8, (n, seen, 4))
    kind[:, :seen] = category[rows][:, :seen]
    score[:, :seen] = rng.uniform(0.3, 1, (n, seen))
    best = np.argsort(-score, axis=1)
    box, kind, score = (
        np.take_along_axis(of, best[..., None] if of.ndim == 3 else best, 1) for of in (box, kind, score)
    )
    columns = {"image_id": np.repeat(rows, n_boxes), "bbox": box.reshape(-1, 4).astype(np.float32)}
    return columns | {
        "score": score.ravel().astype(np.float32), "category_id": kind.ravel().astype(np.int16),
        "votes": np.ones(n * n_boxes, np.int8),
    }  # fmt: skip


def items_of(boxes: dict[str, Any]) -> dict[str, Any]:
    """The boxes worth embedding, numbered within their photo by falling score."""
    strong = {key: column[boxes["score"] > 0.6] for key, column in boxes.items()}
    image_id = strong["image_id"]
    return strong | {"item": (np.arange(len(image_id)) - np.searchsorted(image_id, image_id)).astype(np.int32)}


def rankings(rng: np.random.Generator, n: int, true: np.ndarray, category: np.ndarray) -> dict[str, Any]:
    import pyarrow as pa

    users = np.arange(0, n, PHOTOS_OF_A_PRODUCT)
    photo, item = np.repeat(users, GARMENTS), np.tile(np.arange(GARMENTS), len(users))
    shop = rng.integers(0, n, (len(photo), LENGTH))
    shop += (shop % PHOTOS_OF_A_PRODUCT == 0) * (shop + 1 < n)
    right = rng.random(len(photo)) < 0.8
    shop[right, rng.integers(0, 5, right.sum())] = np.minimum(photo[right] + 1, n - 1)
    flat = np.arange(0, shop.size + 1, LENGTH, dtype=np.int32)
    of_item = np.repeat(item, LENGTH)

    def lists(values: pa.Array) -> pa.Array:
        return pa.ListArray.from_arrays(pa.array(flat), values)

    boxes = pa.FixedSizeListArray.from_arrays(pa.array(true[shop.ravel(), of_item].ravel()), 4)
    similarity = np.sort(rng.random(shop.shape), axis=1)[:, ::-1].astype(np.float32)
    return {
        "query_image_id": photo, "query_item": item.astype(np.int32), "query_bbox": true[photo, item],
        "query_score": rng.random(len(photo)).astype(np.float32),
        "query_category_id": category[photo, item].astype(np.int16), "gallery_image_id": lists(pa.array(shop.ravel())),
        "gallery_item": lists(pa.array(of_item.astype(np.int32))), "gallery_bbox": lists(boxes),
        "similarity": lists(pa.array(similarity.ravel())),
    }  # fmt: skip


def judge(folder: Path, detectors: list[str], embedders: list[str], queries: int, part: str) -> None:
    """One part of the work, in this process; prints a row."""
    models = (
        tuple(Model(name, ATSS_TINY, name, "") for name in detectors),
        tuple(Model(name, LITE0_SG, name, "") for name in embedders),
    )
    settings = Settings(
        imageset=(str(folder / "set"),),
        output=str(folder / "run"),
        detectors=tuple(detectors),
        embedders=tuple(embedders),
        boxes=("detected",),
    )
    if part == "report":
        output, images = open_store(folder / "run"), open_imageset(folder / "set")
        wall, cpu = time.perf_counter(), time.process_time()
        site.build(output, images, queries=queries)
    else:
        with open_run(settings, SHIPPED, models) as run:
            for stage in marks.STAGES[:4]:
                for unit in plan(run, order.IN_ORDER, stage):
                    outcome = Outcome(dict.fromkeys(unit.outputs, unit.path))
                    run.marks[unit.path] = marks.mark_of(unit, outcome, {})
                    run.present |= dict.fromkeys(unit.outputs, "")
            plan(run, order.IN_ORDER, "evaluate")
            wall, cpu = time.perf_counter(), time.process_time()
            evaluate.run_unfinished(run)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    written = sum(file.stat().st_size for file in (folder / "run/report").rglob("*") if file.is_file()) / 1e6
    print(f"| {part} | {wall:.1f} | {cpu:.1f} | {peak:.0f} | {written:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=100_000)
    parser.add_argument("--boxes", type=int, default=40, help="of each detector on a photo (40)")
    parser.add_argument("--detectors", type=int, default=5)
    parser.add_argument("--embedders", type=int, default=3)
    parser.add_argument("--queries", type=int, default=500, help="with pictures (500)")
    parser.add_argument("--keep", type=Path, help="folder of the made-up run, made where it does not exist")
    parser.add_argument("--part", choices=("evaluate", "report"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    detectors = [f"detector{i}" for i in range(args.detectors)]
    embedders = [f"embedder{i}" for i in range(args.embedders)]
    if args.part:
        judge(args.keep, detectors, embedders, args.queries, args.part)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.keep or Path(scratch)
        if not (folder / "set" / "manifest.json").exists():
            make(folder, args.photos, args.boxes, detectors, embedders)
        print(
            f"{args.photos:,} photos, {args.boxes} boxes of {args.detectors} detectors and the fusion on each, "
            f"{args.embedders} embedders, load {os.getloadavg()[0]:.1f}\n\n"
            "| | wall s | CPU s | most memory, MB | report, MB |\n|---|--:|--:|--:|--:|",
            flush=True,
        )
        for part in ("evaluate", "report"):
            subprocess.run([sys.executable, __file__, *sys.argv[1:], "--keep", str(folder), "--part", part], check=True)
        metrics = json.loads((folder / "run/metrics.json").read_text())
        print(f"\nAP {metrics['summary']['fused_AP']}, Acc@1 {metrics['summary']['acc@1_detected']}")


if __name__ == "__main__":
    main()
