"""The embed stage on Ray beside a bare timm loop: ViT-S/16, same photos, boxes, batch and threads; start-up left out.

    python benchmarks/embed_vit.py --crops 5000

One actor, one thread, against one process, one thread. The loop is what somebody would write in an afternoon: Pillow
decodes a photo and cuts its boxes out, timm's transform makes inputs of them, timm's model embeds a batch. The stage
also checks, letterboxes, counts and writes. The two take turns shard by shard, and the ratio is the median of the
shards' ratios: of crops a second by the clock, and by processor seconds, Ray's worker processes included, which other
work on the machine disturbs less. Weights are random: only time is measured.
"""

import argparse
import contextlib
import io
import os
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
os.environ.update({"RAY_worker_niceness": "0"})  # as the loop; Ray's own 15 lets other work of the machine go first

import numpy as np
import pyarrow as pa

from benchmarks.scaling import PHOTO_PX, draw
from jobs import cli
from jobs.runs import cluster, tables
from jobs.runs.catalogue import SHIPPED, choose_models
from jobs.runs.pool import Pool, Share
from jobs.runs.retries import Job
from jobs.runs.settings import Settings, add_arguments, load
from jobs.stages.embed import EmbedWorker
from store.imageset import ImageSet, open_imageset
from store.objects import open_store

TIMM_ID = "vit_small_patch16_224"
BOXES = 10  # a photo
PHOTOS = 25  # a shard


def boxes_of(image_id: int) -> np.ndarray:
    """(BOXES, 4) float32: boxes as tall and wide as garments are, anywhere on the photo."""
    rng, (width, height) = np.random.default_rng(image_id), PHOTO_PX
    size = rng.uniform([0.3, 0.3], [0.6, 0.7], (BOXES, 2)) * (width, height)
    corner = rng.uniform(0, 1, (BOXES, 2)) * ((width, height) - size)
    return np.concatenate([corner, corner + size], axis=1).astype(np.float32)


def bare_loop(images: ImageSet, shard: str, body, transform, batch_size: int) -> int:
    """Read, decode, cut, transform, embed; the number of rows."""
    import torch
    from PIL import Image

    waiting, n_rows = [], 0
    photos = images.read(shard)
    ids, last = photos.column("image_id").to_pylist(), len(photos) - 1
    for row, (image_id, data) in enumerate(zip(ids, photos.column("image"), strict=True)):
        photo = Image.open(io.BytesIO(data.as_py())).convert("RGB")
        waiting += [transform(photo.crop(tuple(box))) for box in boxes_of(image_id).tolist()]
        while len(waiting) >= batch_size or (waiting and row == last):
            with torch.inference_mode():
                rows = body(torch.stack(waiting[:batch_size]))
            waiting, n_rows = waiting[batch_size:], n_rows + len(torch.nn.functional.normalize(rows))
    return n_rows


def worker_seconds() -> float:
    """Processor seconds so far of Ray's worker processes on this machine that this process started."""
    import psutil  # which Ray brings, once it is imported

    seconds = 0.0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if " ".join(process.cmdline()).startswith("ray::"):
                seconds += sum(process.cpu_times()[:2])
    return seconds


def write_items(settings: Settings, images: ImageSet) -> None:
    store = open_store(settings.output)
    for shard in images.shards:
        ids = images.read(shard.name, columns=["image_id"]).column("image_id").to_numpy()
        columns = {
            "image_id": np.repeat(ids, BOXES), "item": np.tile(np.arange(BOXES), len(ids)),
            "bbox": np.concatenate([boxes_of(image_id) for image_id in ids]), "score": np.ones(len(ids) * BOXES),
        }  # fmt: skip
        table: pa.Table = tables.table(tables.ITEMS, columns)
        tables.write(store, f"items/true/{shard.name}.parquet", table)


def main() -> None:
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--crops", type=int, default=5000, help="crops, after a shard of each to warm up (5000)")
    args = parser.parse_args()
    warnings.simplefilter("ignore")

    import ray
    import timm
    import torch
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        draw(f"{scratch}/set", 1 + -(-args.crops // (BOXES * PHOTOS)), PHOTOS)
        body = timm.create_model(TIMM_ID, num_classes=0).eval()
        save_file(body.state_dict(), f"{scratch}/vit.safetensors")
        transform = timm.data.create_transform(**timm.data.resolve_model_data_config(body))
        entry = f"{{name: vit, timm: {TIMM_ID}, weights: {scratch}/vit.safetensors}}"
        of_a_run = argparse.ArgumentParser()
        add_arguments(of_a_run)
        line = ["--imageset", f"{scratch}/set", "--output", f"{scratch}/run", "--set", f"embedders=[{entry}]"]
        settings = load(of_a_run.parse_args([*line, "--set", "device=cpu", "--set", "threads_per_actor=1"]))
        _, embedders = choose_models(settings, SHIPPED)
        images = open_imageset(f"{scratch}/set")
        write_items(settings, images)
        worker = EmbedWorker(settings, SHIPPED, embedders, images, open_store(settings.output))
        jobs = [Job(shard.name, tuple(range(shard.rows)), (("true", "vit"),)) for shard in images.shards]
        batch = settings.embed.batch_size
        bare_loop(images, jobs[0].name, body, transform, batch)  # both warm
        cluster.start_ray(settings)
        pairs: list[tuple[float, float, int]] = []
        cpu_ratios: list[float] = []
        with Pool(worker, Share(1, "cpu", 0.0, 1), settings.shard_deadline_s) as actors:
            list(actors.run(jobs[:1]))
            for job in jobs[1:]:
                start, worker_start = time.perf_counter(), worker_seconds()
                list(actors.run([job]))
                worker_end, between, loop_start = worker_seconds(), time.perf_counter(), time.process_time()
                n_rows = bare_loop(images, job.name, body, transform, batch)
                pairs.append((between - start, time.perf_counter() - between, n_rows))
                cpu_ratios.append((time.process_time() - loop_start) / (worker_end - worker_start))
        ray.shutdown()
    print(f"{sum(n for _, _, n in pairs)} crops of {TIMM_ID}, batches of {batch}, one thread\n")
    print("| | crops/s (median of shards) |\n|---|--:|")
    print(f"| embed stage, one Ray actor | {statistics.median(n / stage for stage, _, n in pairs):.2f} |")
    print(f"| bare timm loop | {statistics.median(n / loop for _, loop, n in pairs):.2f} |")
    ratios = sorted(loop / stage for stage, loop, _ in pairs)
    print(f"\nratio stage / loop: median {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})")
    low, high = min(cpu_ratios), max(cpu_ratios)
    print(f"by processor seconds: median {statistics.median(cpu_ratios):.3f} ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
