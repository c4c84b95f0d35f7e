"""Networks through OpenVINO beside torch: the shipped embedders, their start, and the dense part of a detector.

    python benchmarks/engines.py

One thread, CPU seconds, the two in turns; rows and maps are compared first. A start is a process of its own that loads
an embedder and embeds four crops: with torch, with OpenVINO and no plan on disk, and with one.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

import numpy as np

from jobs import cli
from networks.engines import CompiledNetwork, Engine, noise
from retrieval import models

CROPS = 64
PHOTOS = (8, 3, 320, 256)
WEIGHTS = ROOT / "weights" / "tiny"
OPENVINO = Engine("openvino")


def cpu_seconds(calls: tuple[Callable[[], object], ...], rounds: int) -> list[float]:
    """The median of each call, after one to warm up; they take turns."""
    taken: list[list[float]] = [[] for _ in calls]
    for _ in range(1 + rounds):
        for call, seconds in zip(calls, taken, strict=True):
            start = time.process_time()
            call()
            seconds.append(time.process_time() - start)
    return [statistics.median(seconds[1:]) for seconds in taken]


def start(name: str, engine: str) -> None:
    """What a process of its own does in `seconds_to_start`."""
    from retrieval import embedder

    spec = models.named(name)
    ours = embedder.load(spec, "cpu", weights=WEIGHTS / spec.weights, engine=Engine(engine))
    ours.embed(np.zeros((4, spec.input_size, spec.input_size, 3), np.uint8))


def seconds_to_start(name: str, engine: str) -> float:
    code = f"import benchmarks.engines as b, time; b.start({name!r}, {engine!r}); print(time.process_time())"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, check=True)
    return float(done.stdout.split()[-1])


def embedder_line(name: str, rounds: int) -> str:
    import torch

    from retrieval import embedder

    torch.set_num_threads(1)
    spec = models.named(name)
    crops = np.random.default_rng(0).integers(0, 256, (CROPS, spec.input_size, spec.input_size, 3), dtype=np.uint8)
    engines = (Engine("torch"), OPENVINO)
    eager, ours = (embedder.load(spec, "cpu", weights=WEIGHTS / spec.weights, engine=engine) for engine in engines)
    apart = np.abs(eager.embed(crops) - ours.embed(crops)).max()
    if apart > 1e-5:
        raise SystemExit(f"{name}: rows are {apart:.1e} apart")
    seconds = cpu_seconds((lambda: eager.embed(crops), lambda: ours.embed(crops)), rounds)
    return line(name, [s / CROPS for s in seconds], float(apart))


def detector_line(name: str, rounds: int) -> str:
    import torch
    from torch import nn

    from detection import detector
    from detection import models as detectors

    class Dense(nn.Module):
        """Trunk, neck and head; stands for what `Detector` runs."""

        def __init__(self, model) -> None:
            super().__init__()
            self.model = model

        def forward(self, batch):
            return tuple(maps for kind in self.model.bbox_head(self.model.extract_feat(batch)) for maps in kind)

    spec = detectors.named(name)
    dense = Dense(detector.load(spec, "cpu", weights=WEIGHTS / spec.weights).model).eval()
    ours = CompiledNetwork(name, lambda: dense, None, noise(PHOTOS, (1, 3, 192, 320)), OPENVINO)
    batch = torch.from_numpy(np.random.default_rng(0).standard_normal(PHOTOS).astype(np.float32))
    channels_last = batch.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        apart = max(float((a - b).abs().max()) for a, b in zip(dense(channels_last), ours(batch), strict=True))
        seconds = cpu_seconds((lambda: dense(channels_last), lambda: ours(batch)), rounds)
    if ours.notes:
        raise SystemExit(ours.notes[0])
    return line(f"{name}, dense part", [s / PHOTOS[0] for s in seconds], apart)


def line(name: str, seconds: list[float], apart: float) -> str:
    torchs, ours = seconds
    return f"| {name} | {1000 * torchs:.1f} | {1000 * ours:.1f} | {torchs / ours:.2f}x | {apart:.0e} |"


def main() -> None:
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="times that each is measured (default: 7)")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    names = [spec.name for spec in models.PROFILES["tiny"]]
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        print("| a crop, a photo | torch, CPU ms | OpenVINO, CPU ms | faster by | largest difference |")
        print("|---|--:|--:|--:|--:|")
        for name in names:
            print(embedder_line(name, args.rounds), flush=True)
        for name in ("retinanet-lite0-tiny",):
            print(detector_line(name, args.rounds), flush=True)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        print("\n| start | torch, CPU s | OpenVINO without a plan, CPU s | with one, CPU s |\n|---|--:|--:|--:|")
        for name in names:
            seconds = [seconds_to_start(name, engine) for engine in ("torch", "openvino", "openvino")]
            print(f"| {name} | " + " | ".join(f"{s:.2f}" for s in seconds) + " |", flush=True)


if __name__ == "__main__":
    main()
