"""An inverted index filled part by part on Ray, and merged on this machine's disk.

In: vectors.npy of a folder and a plan. Out: index.faiss beside it. What is small, or a graph, is built in this process: a task would
cost more than it saves, and a graph grows row by row.
"""

from collections.abc import Iterator
from functools import partial
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
    ann_build.build(made, folder, seed=SEED, filled=partial(_parts, settings))


def _parts(settings: Settings, made: Plan, trained: bytes, vectors: np.ndarray) -> Iterator[bytes]:
    """Each part as it is filled, the first rows first; only so many are on their way that memory stays bounded."""
    if len(vectors) <= HERE:
        yield from ann_build.filled_here(made, trained, vectors)
        return
    import ray

    from jobs import ray_cluster

    ray_cluster.start_ray(settings)
    task: Any = ray.remote(num_cpus=made.threads, max_retries=3, runtime_env=ray_cluster.our_code())(ann_build.fill)
    at_once = max(1, int(ray.cluster_resources().get("CPU", 1)) // made.threads)
    shared, running = ray.put(trained), {}
    starts = list(range(0, len(vectors), ann_build.PART_ROWS))
    for place, start in enumerate(starts):
        for ahead in starts[place : place + at_once]:
            if ahead not in running:
                block = np.asarray(vectors[ahead : ahead + ann_build.PART_ROWS])
                running[ahead] = task.remote(shared, block, np.arange(ahead, ahead + len(block)), threads=made.threads)
        yield ray.get(running.pop(start))
        say(f"index: {min(start + ann_build.PART_ROWS, len(vectors)):,} of {len(vectors):,} rows put in")
