"""An inverted index filled part by part on Ray, and merged on this machine's disk.

In: vectors.npy of a folder and a plan. Out: index.faiss beside it. What is small, or a graph, is built in this process: a task would
cost more than it saves, and a graph grows row by row.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jobs.config import Settings
from jobs.gallery.build import SEED
from jobs.progress import say
from retrieval import ann_build
from retrieval.ann_plan import Plan

HERE = 200_000  # rows that this process puts in itself


def fill(made: Plan, folder: Path, settings: Settings) -> None:
    """Write index.faiss of the folder's vectors."""
    vectors = np.load(folder / "vectors.npy", mmap_mode="r")
    if not made.kind.startswith("ivf") or len(vectors) <= HERE:
        ann_build.build(made, folder, seed=SEED)
        return
    import ray

    from jobs import ray_cluster

    trained = ann_build.train_on(made, vectors, SEED)
    ray_cluster.start_ray(settings)
    task = ray.remote(num_cpus=made.threads, max_retries=3, runtime_env=ray_cluster.our_code())(ann_build.fill)
    at_once = max(1, int(ray.cluster_resources().get("CPU", 1)) // made.threads)
    shared = ray.put(trained)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".parts-") as passing:
        parts: list[Path] = []
        for start, data in _in_order(task, shared, vectors, at_once, made.threads):
            parts.append(Path(passing, str(start)))
            parts[-1].write_bytes(data)
            say(f"index: {min(start + ann_build.PART_ROWS, len(vectors)):,} of {len(vectors):,} rows put in")
        ann_build.merge(trained, parts, folder / "index.faiss")


def _in_order(task: Any, trained: Any, vectors: np.ndarray, at_once: int, threads: int) -> Iterator[tuple[int, bytes]]:
    """Each part as it is filled, first row first; only so many are on their way that memory stays bounded."""
    import ray

    starts, running = list(range(0, len(vectors), ann_build.PART_ROWS)), {}
    for place, start in enumerate(starts):
        for ahead in starts[place : place + at_once]:
            if ahead not in running:
                block = np.asarray(vectors[ahead : ahead + ann_build.PART_ROWS])
                rows = np.arange(ahead, ahead + len(block))
                running[ahead] = task.remote(trained, block, rows, threads=threads)
        yield start, ray.get(running[start])
        del running[start]
