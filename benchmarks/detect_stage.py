"""The detect stage on Ray beside the same models in a bare loop: same photos, batch, threads, dtype; start-up left out.

    python benchmarks/detect_stage.py --imageset runs/ccp-val --shards 3 --rounds 3

One actor, one thread, against one process, one thread. The loop reads shards, decodes, and runs all five detectors:
what somebody would write in an afternoon. The stage also writes its tables. The two take turns shard by shard, so that
other work on the machine slows both; the ratio is the median of the shards' ratios of photos a second. What is measured
is the overhead of Ray, of tables and of marks: 1 would be none.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

from jobs import cli
from jobs.runs import cluster
from jobs.runs.catalogue import SHIPPED, choose_models, engine_of
from jobs.runs.photos import DETECT_BATCHES
from jobs.runs.pool import Pool, Share
from jobs.runs.retries import Job
from jobs.runs.run import open_run
from jobs.runs.settings import add_arguments, load
from jobs.runs.versions import ROOT
from jobs.stages.detect import DetectWorker


def bare_loop(imageset_uri: str, shards: list[str], loaded: dict, batch_size: int) -> int:
    """Read, decode, detect; the number of boxes, so that nothing is optimised away."""
    from store import decode, imageset

    images, n_boxes = imageset.open_imageset(imageset_uri), 0
    for shard in shards:
        column = images.read(shard).column("image")
        for start in range(0, len(column), DETECT_BATCHES * batch_size):
            photos = [decode.decode(data.as_py()) for data in column[start : start + DETECT_BATCHES * batch_size]]
            for detector in loaded.values():
                n_boxes += sum(len(found) for found in detector.detect(photos, batch_size=batch_size))
    return n_boxes


def main() -> None:
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--imageset", required=True)
    parser.add_argument("--shards", type=int, default=3, help="shards a round, after one to warm up (3)")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    warnings.simplefilter("ignore")

    import ray
    import torch

    from detection import detector

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        line = ["--imageset", args.imageset, "--output", scratch, "--set", "device=cpu", "--set", "actors=1"]
        of_a_run = argparse.ArgumentParser()
        add_arguments(of_a_run)
        settings = load(of_a_run.parse_args(line))
        with open_run(settings, SHIPPED, choose_models(settings, SHIPPED)) as run:
            names = tuple(model.name for model in run.detectors)
            jobs = [
                Job(taken.name, tuple(range(taken.images)), names) for taken in run.selected.shards[: args.shards + 1]
            ]
            photos = sum(len(job.rows) for job in jobs[1:])
            worker = DetectWorker(run.settings, run.catalogue, run.detectors, run.images, run.store)
            batch, engine = settings.detect.batch_size, engine_of(settings, "cpu")
            loaded = {
                model.name: detector.load(
                    model.spec, "cpu", weights=Path(ROOT / "weights/tiny" / model.spec.weights), engine=engine
                )
                for model in run.detectors
            }
            bare_loop(args.imageset, [jobs[0].name], loaded, batch)  # both warm
            cluster.start_ray(settings)
            pairs = []
            with Pool(worker, Share(1, "cpu", 0.0, 1), settings.shard_deadline_s) as actors:
                list(actors.run(jobs[:1]))
                for _ in range(args.rounds):
                    for job in jobs[1:]:
                        start = time.perf_counter()
                        list(actors.run([job]))
                        between = time.perf_counter()
                        bare_loop(args.imageset, [job.name], loaded, batch)
                        pairs.append((between - start, time.perf_counter() - between, len(job.rows)))
            ray.shutdown()
    print(f"{photos} photos a round, {len(names)} detectors, batches of {batch}, one thread, {args.rounds} rounds\n")
    print("| | photos/s (median of shards) |\n|---|--:|")
    print(f"| detect stage, one Ray actor | {statistics.median(n / stage for stage, _, n in pairs):.2f} |")
    print(f"| bare loop | {statistics.median(n / loop for _, loop, n in pairs):.2f} |")
    ratios = sorted(loop / stage for stage, loop, _ in pairs)
    print(
        f"\nratio stage / loop: median {statistics.median(ratios):.3f} of {len(ratios)} "
        f"({ratios[0]:.3f} to {ratios[-1]:.3f})"
    )


if __name__ == "__main__":
    main()
