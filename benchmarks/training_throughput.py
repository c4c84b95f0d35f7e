"""Training steps of the detectors: photos a second and peak memory, by model, batch and precision.

    OMP_NUM_THREADS=1 python benchmarks/training_throughput.py --models atss-tiny centernet-tiny \
        --batch-size 4 --threads 1
    python benchmarks/training_throughput.py --profile paper --device cuda --batch-size 8 --precision bf16

A step of `jobs/train_detector.py` is forward, backward, clipping, AdamW and averaging. Photos are noise at the
detector's own size with three garments each. They are made before the clock starts: in a training, other threads decode
and augment. Each model runs in a process of its own, so that the peaks are separate. On a GPU the peak is the most that
torch allocated; on a CPU it is the most resident memory, including the interpreter and its packages.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np


def samples_of(spec: Any, n: int) -> list[Any]:
    """Portrait photos of the detector's size with three garments each, outlines included."""
    from detection.training_photos import Sample, corners

    height, width = max(spec.scale_px), min(spec.scale_px) if spec.scale_px[0] != spec.scale_px[1] else 240
    rng = np.random.default_rng(0)
    left_top = rng.uniform(0, 0.4, (3, 2)) * (width, height)
    boxes = np.concatenate([left_top, left_top + np.array([0.4, 0.4]) * (width, height)], 1).astype(np.float32)
    outlines = [[corners(box)] for box in boxes]
    return [
        Sample(rng.integers(0, 256, (height, width, 3), np.uint8), boxes, np.array([0, 7, 8]), outlines)
        for _ in range(n)
    ]


def measured(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """Seconds of each step after two to warm up, and the peak."""
    import torch

    from detection import detector, models, training

    torch.set_num_threads(args.threads)
    spec = models.named(name)
    model = detector.build(spec)
    training.freeze(model)
    model = model.to(args.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    learner = training.DetectorLearner(model, spec, rate=1e-5, precision=args.precision)
    samples = samples_of(spec, args.batch_size)
    multiple = spec.pad_multiple_px
    shape = (-(-samples[0].image.shape[0] // multiple) * multiple, -(-samples[0].image.shape[1] // multiple) * multiple)
    seconds = []
    for step in range(2 + args.steps):
        began = time.perf_counter()
        learner.gradients(samples, shape, seed=step, accumulate=args.accumulate)  # ends in figures, so the GPU is done
        learner.update(1.0)
        if args.device.startswith("cuda"):
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    on_gpu = args.device.startswith("cuda")
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {
        "size": f"{shape[1]}x{shape[0]}",
        "learning": learning,
        "seconds": statistics.median(seconds[2:]),
        "peak": peak,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=[], help="names of detectors; or --profile")
    parser.add_argument("--profile", choices=("tiny", "paper"), default="tiny", help="all of a profile (tiny)")
    parser.add_argument("--batch-size", type=int, default=8, help="photos a step (8)")
    parser.add_argument("--accumulate", type=int, default=1, help="parts a step's photos go through the model in (1)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (1)")
    parser.add_argument("--steps", type=int, default=5, help="steps timed, after two to warm up (5)")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        warnings.simplefilter("ignore")
        print(json.dumps(measured(args, args.one)))
        return
    from detection import models

    names = args.models or [spec.name for spec in models.PROFILES[args.profile]]
    print(f"batch {args.batch_size} in {args.accumulate}, {args.precision}, {args.device}, {args.threads} threads\n")
    print("| model | photo, px | learning, M | step, s | photos/s | peak, GB |\n|---|--:|--:|--:|--:|--:|")
    for name in names:
        done = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--one", name], capture_output=True, text=True)
        if done.returncode:
            print(f"| {name} | {done.stderr.strip().splitlines()[-1]} | | | | |", flush=True)
            continue
        row = json.loads(done.stdout.splitlines()[-1])
        rate = args.batch_size / row["seconds"]
        print(
            f"| {name} | {row['size']} | {row['learning'] / 1e6:.1f} | {row['seconds']:.2f} | {rate:.2f} "
            f"| {row['peak'] / 1e9:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
