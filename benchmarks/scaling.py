"""How much faster n nodes are than one: shards that only wait, on 1, 2 and 4 fake nodes; real work on 1 and 2 cores.

    OMP_NUM_THREADS=1 python benchmarks/scaling.py

The first table is what the pool and Ray cost: a shard sleeps, so a machine of two cores can play four nodes (processes
of `ray.cluster_utils.Cluster`, one core declared each). The second decodes and resizes JPEGs of an image set, which
needs real cores; bare processes that share the same shards out beforehand, in turn with the actors, show what the
machine itself gives for a second core. Time runs from the first shard begun, every actor ready, to the last one ended,
by the pool's own events; efficiency is T1 / (n Tn). The longest gap is an actor's, between a shard ended and the next
begun.
"""

import argparse
import io
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0")
os.environ.setdefault("RAY_agent_register_timeout_ms", "120000")  # a busy machine starts nodes slowly

from jobs.runs import cluster as ray_cluster
from jobs.runs.pool import Pool, Share, keep_freed_memory
from jobs.runs.retries import Job
from jobs.runs.settings import Settings

PHOTO_PX = (750, 1000)


class Sleeper:
    """A shard takes `job.work` seconds and no core."""

    def load(self, device: str) -> dict[str, Any]:
        return {}

    def run(self, job: Job, skip: dict[int, str], single: bool) -> None:
        time.sleep(job.work)

    def probe(self, job: Job, row: int) -> None: ...


@dataclass
class Resizer:
    """A shard's photos are read, decoded and resized, as every stage's are."""

    imageset: str

    def load(self, device: str) -> dict[str, Any]:
        import cv2

        from store import imageset

        cv2.setNumThreads(1)
        self.images = imageset.open_imageset(self.imageset)
        return {}

    def run(self, job: Job, skip: dict[int, str], single: bool) -> None:
        import cv2

        from store import decode

        for data in self.images.read(job.name).column("image"):
            cv2.resize(decode.decode(data.as_py()), (224, 224), interpolation=cv2.INTER_AREA)

    def probe(self, job: Job, row: int) -> None: ...


def draw(folder: str, n_shards: int, photos_a_shard: int, form: str = "JPEG") -> None:
    """An image set of soft noise, in files of about the size of a shop photo's; `form` as Pillow names it."""
    import numpy as np
    from PIL import Image

    from store.imageset import Photo
    from store.imageset_write import write_imageset

    def photo(number: int) -> Photo:
        small = np.random.default_rng(number).integers(0, 255, (PHOTO_PX[1] // 8, PHOTO_PX[0] // 8, 3), np.uint8)
        encoded = io.BytesIO()
        Image.fromarray(small).resize(PHOTO_PX, Image.Resampling.BICUBIC).save(encoded, form, quality=90)
        return Photo(number, encoded.getvalue(), *PHOTO_PX, "shop", 0, file_name=f"{number}.jpg")

    photos = map(photo, range(n_shards * photos_a_shard))
    write_imageset(photos, folder, source={"adapter": "noise", "arguments": {}}, max_images=photos_a_shard)


Trace = list[dict[str, Any]]  # a shard each: actor, began (s since 1970), wall_s, as `jobs.runs.events` has them


def trace_of(worker: Any, jobs: Sequence[Job], n: int) -> Trace:
    """Do the jobs on n actors that are all ready."""
    import ray

    trace: Trace = []

    def report(event: str, **facts: Any) -> None:
        if event == "shard":
            trace.append(facts)

    with Pool(worker, Share(n, "cpu", 0.0, 1), 600.0, report=report) as actors:
        ray.get([slot.actor.load.remote() for slot in actors.slots])
        list(actors.run(jobs))
    return trace


def bare(folder: str, jobs: Sequence[Job], n: int) -> float:
    """Seconds of the same work in n processes of nothing else, from the moment all are ready."""
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(n + 1, timeout=120)
    workers = [context.Process(target=_bare, args=(folder, jobs[part::n], ready)) for part in range(n)]
    for worker in workers:
        worker.start()
    ready.wait()
    began = time.perf_counter()
    for worker in workers:
        worker.join()
    took = time.perf_counter() - began
    if any(worker.exitcode for worker in workers):
        raise SystemExit("a bare process failed; its traceback is above")
    return took


def _bare(folder: str, jobs: Sequence[Job], ready: Any) -> None:
    keep_freed_memory()
    worker = Resizer(folder)
    worker.load("cpu")
    ready.wait()
    for job in jobs:
        worker.run(job, {}, False)


def seconds(trace: Trace) -> float:
    return max(turn["began"] + turn["wall_s"] for turn in trace) - min(turn["began"] for turn in trace)


def longest_gap(trace: Trace) -> float:
    turns = pairwise(sorted(trace, key=lambda turn: (turn["actor"], turn["began"])))
    same = [(before, after) for before, after in turns if before["actor"] == after["actor"]]
    return max(after["began"] - before["began"] - before["wall_s"] for before, after in same)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=64, help="that sleep (64)")
    parser.add_argument("--shard-s", type=float, default=0.5, help="seconds each sleeps (0.5)")
    parser.add_argument("--photos", type=int, default=40, help="in each shard of real work (40)")
    parser.add_argument("--real-shards", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only-real", action="store_true", help="the second table alone")
    args = parser.parse_args()

    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    os.environ["RAY_ADDRESS"] = cluster.address
    ray_cluster.join_ray()
    jobs = [Job(f"shard-{i:05d}", (0,), args.shard_s) for i in range(args.shards)]
    alone = 0.0
    print(
        f"{args.shards} shards of {args.shard_s:g} s, one actor a node, {args.rounds} rounds, "
        f"load {os.getloadavg()[0]:.1f}\n"
    )
    print("| nodes | s (median) | efficiency | longest gap, s |\n|--:|--:|--:|--:|")
    for n in () if args.only_real else (1, 2, 4):
        for _ in range(n - len(cluster.list_all_nodes())):
            cluster.add_node(num_cpus=1)
        n_actors = ray_cluster.share_out(Settings(device="cpu"), None, len(jobs)).n
        assert n_actors == n, n_actors
        traces = [trace_of(Sleeper(), jobs, n) for _ in range(args.rounds)]
        took = statistics.median(map(seconds, traces))
        alone = alone or took
        print(f"| {n} | {took:.2f} | {alone / (n * took):.3f} | {max(map(longest_gap, traces)):.3f} |", flush=True)

    ray.shutdown()
    cluster.shutdown()  # four nodes' own processes would take their share of the two cores
    del os.environ["RAY_ADDRESS"]
    ray_cluster.join_ray()
    with tempfile.TemporaryDirectory() as folder:
        draw(folder, args.real_shards, args.photos)
        jobs = [Job(f"shard-{i:05d}", tuple(range(args.photos))) for i in range(args.real_shards)]
        ways: dict[str, Callable[[int], float]] = {
            "actors": lambda n: seconds(trace_of(Resizer(folder), jobs, n)),
            "bare processes": lambda n: bare(folder, jobs, n),
        }
        found = [{name: (way(1), way(2)) for name, way in ways.items()} for _ in range(args.rounds)]
    print(
        f"\n{args.real_shards} shards of {args.photos} JPEGs of {PHOTO_PX[0]} x {PHOTO_PX[1]}, decoded and resized, "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n"
    )
    print(f"| | 1, s | 2, s | speed-up, median of {args.rounds} |\n|---|--:|--:|--:|")
    for name in ways:
        one, two = (statistics.median(pair[name][n] for pair in found) for n in (0, 1))
        ratios = sorted(pair[name][0] / pair[name][1] for pair in found)
        print(
            f"| {name} | {one:.2f} | {two:.2f} | {statistics.median(ratios):.2f} "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f}) |"
        )
    ray.shutdown()


if __name__ == "__main__":
    main()
