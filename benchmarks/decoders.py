"""A make-believe GPU that waits for photos, alone and with a node without a GPU that decodes for it.

    OMP_NUM_THREADS=1 python benchmarks/decoders.py

Two nodes on this machine: one core and one GPU, where an actor decodes photos and its models wait a few milliseconds a
photo, as a host waits for a GPU; and one core. The same shards with `decoders` 0 and auto, in turns. `auto` learns
from the first shard, which is left out of both. A machine of two cores can show a factor of two at most.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0")
os.environ.setdefault("RAY_agent_register_timeout_ms", "120000")  # a busy machine starts nodes slowly
os.environ.setdefault("RAY_worker_niceness", "0")  # Ray would let all else go first

from benchmarks.scaling import PHOTO_PX, draw
from jobs.runs import cluster as ray_cluster
from jobs.runs import decoding, photos
from jobs.runs.pool import Pool, Share
from jobs.runs.retries import Job
from jobs.runs.settings import Settings


@dataclass
class Waiter:
    """A worker whose models take `model_s` a photo and no core."""

    imageset: str
    settings: Settings
    model_s: float

    def load(self, device: str) -> dict[str, Any]:
        from store.imageset import open_imageset

        self.images, self.helper = open_imageset(self.imageset), decoding.helper(self.settings, device)
        return {}

    def run(self, job: Job, skip: dict[int, str], single: bool) -> float:
        """Seconds spent waiting for photos."""
        clock = photos.Clock()
        how: dict[str, Any] = {"size": 16, "max_pixels": 10**9, "clock": clock, "helper": self.helper}
        for group in photos.groups(self.images, job.name, job.rows, skip, **how):
            time.sleep(self.model_s * len(group))
        return clock.seconds["read"]

    def probe(self, job: Job, row: int) -> None: ...


def measured(worker: Waiter, jobs: list[Job]) -> tuple[float, float, float]:
    """Photos a second, share of the time that the actor waits for them, and share decoded elsewhere."""
    facts: list[dict[str, Any]] = []

    def report(event: str, **of_event: Any) -> None:
        if event == "shard":
            facts.append(of_event)

    with Pool(worker, Share(1, "cuda", 1.0, 1), 600.0, report=report) as actors:
        list(actors.run(jobs))
    facts = sorted(facts, key=lambda shard: shard["began"])[1:]
    seconds = sum(shard["wall_s"] for shard in facts)
    n, elsewhere = sum(shard["images"] for shard in facts), sum(shard.get("decoded_elsewhere", 0) for shard in facts)
    return n / seconds, sum(shard["answer"] for shard in facts) / seconds, elsewhere / n


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=200, help="in each shard (200)")
    parser.add_argument("--shards", type=int, default=7)
    parser.add_argument("--model-ms", type=float, default=3.0, help="that the models take for a photo (3)")
    parser.add_argument("--form", default="JPEG", help="of the photos, as Pillow names it (JPEG)")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()

    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    cluster.add_node(num_cpus=1, num_gpus=1)
    cluster.add_node(num_cpus=1)
    os.environ["RAY_ADDRESS"] = cluster.address
    ray_cluster.join_ray()
    jobs = [Job(f"shard-{i:05d}", tuple(range(args.photos))) for i in range(args.shards)]
    found: dict[str, list[tuple[float, float, float]]] = {"0": [], "auto": []}
    with tempfile.TemporaryDirectory() as folder:
        draw(folder, args.shards, args.photos, args.form)
        for _ in range(args.rounds):
            for n, rounds in found.items():
                settings = Settings(device="cuda", decoders=int(n) if n.isdigit() else "auto")
                rounds.append(measured(Waiter(folder, settings, args.model_ms / 1000), jobs))
    kind, load = f"{args.form}s of {PHOTO_PX[0]} x {PHOTO_PX[1]}", os.getloadavg()[0]
    print(f"{args.shards} shards of {args.photos} {kind}, models {args.model_ms:g} ms a photo, load {load:.1f}\n")
    print(f"| decoders | photos/s, median of {args.rounds} | waiting | decoded elsewhere |\n|---|--:|--:|--:|")
    for n, rounds in found.items():
        rate, waits, elsewhere = map(statistics.median, zip(*rounds, strict=True))
        print(f"| {n} | {rate:.0f} | {waits:.0%} | {elsewhere:.0%} |")
    ratios = [fed[0] / alone[0] for alone, fed in zip(found["0"], found["auto"], strict=True)]
    print(f"\nauto against 0: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
