"""What a GPU makes of the detectors, the embedders and their stages, in minutes on a bare machine and without Ray.

    python benchmarks/gpu.py --drawn 256                                      # photos drawn here
    python benchmarks/gpu.py --imageset runs/ccp-val --photos 256 --profile paper
    python benchmarks/gpu.py --drawn 8 --profile tiny --device cpu            # tries the script itself

Printed, for both profiles (paper with random weights): the peak of bfloat16 matrix products (float32 on a CPU); photos
decoded a second by 1, 2, 4 … threads; each detector's photos a second, TFLOP/s and share of that peak, with engine
torch and with cudagraph; the detect and embed stages, whose workers run in this process as an actor would run them;
and how many of the CPU's boxes are found here within 0.5 px and 0.01 of score.

A detector's rate is that of whole calls: resizing, network, boxes, masks. Its operations, two for a multiply-add, are
counted by torch.utils.flop_counter over such a call, deformable convolutions included. Busy is the share of time in
which a kernel ran, and memory the most that was taken, both by nvidia-smi ten times a second. A stage's first pass
meets new shapes of batches and captures graphs; the second is the rate of a long run. Once `--minutes` are over
nothing more is begun, and what is left out is said.

Wheels to bring, some 15 MB in all, beside torch, torchvision, and the NumPy, SciPy, OpenCV, Pillow, pyarrow, PyYAML,
safetensors, huggingface-hub, packaging and tqdm that images for machine learning have: onedl-mmdetection, onedl-mmcv,
onedl-mmengine, timm, pydantic, pydantic-core, annotated-types, typing-inspection, pycocotools, shapely, addict,
termcolor, six.
"""

import argparse
import contextlib
import gc
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from detection.detections import Detections
from jobs import cli
from jobs.runs import gpu, photos
from jobs.runs.catalogue import SHIPPED, choose_models
from jobs.runs.models import Model
from jobs.runs.pool import Host
from jobs.runs.retries import Job
from jobs.runs.run import Run, open_run
from jobs.runs.settings import Settings, add_arguments, load
from jobs.stages.detect import DetectWorker
from jobs.stages.embed import EmbedWorker
from jobs.stages.fuse import FuseWorker
from store.decode import decode

COMPARED = 8  # photos whose boxes are compared with the CPU's
TIMED_S = 2.0  # of a rate, and one call at least


class GpuSamples:
    """nvidia-smi's busy percentage and megabytes while the block runs; none where there is no nvidia-smi."""

    def __enter__(self) -> "GpuSamples":
        self.samples: list[tuple[float, float]] = []
        self._process: subprocess.Popen | None = None
        query = ["--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits", "-lms", "100"]
        with contextlib.suppress(OSError):
            self._process = subprocess.Popen(["nvidia-smi", *query], stdout=subprocess.PIPE, text=True)
            threading.Thread(target=self._read, args=(self._process,), daemon=True).start()
        return self

    def _read(self, process: subprocess.Popen) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            busy, memory = line.split(",")
            self.samples.append((float(busy), float(memory)))

    def __exit__(self, *_: object) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()

    def columns(self) -> str:
        if not self.samples:
            return "– | –"
        busy, memory = zip(*self.samples, strict=True)
        return f"{statistics.mean(busy):.0f} % | {max(memory) / 1e3:.1f}"


class Budget:
    """Time that is left; what is begun is finished."""

    def __init__(self, minutes: float) -> None:
        self.ends = time.monotonic() + 60 * minutes

    def left(self, part: str) -> bool:
        if time.monotonic() < self.ends:
            return True
        print(f"left out for lack of time: {part}", flush=True)
        return False


def per_call(call: Callable[[], Any], at_least_s: float = TIMED_S) -> float:
    """Seconds of a call that ends when its results are on the CPU, after one call to warm up."""
    call()
    n, start = 0, time.perf_counter()
    while not n or time.perf_counter() - start < at_least_s:
        call()
        n += 1
    return (time.perf_counter() - start) / n


def matrix_peak(device: str) -> float:
    """The most operations a second of square matrix products, in bfloat16 on a GPU and float32 on a CPU."""
    import torch

    sizes, dtype = ((4096, 8192, 16384), torch.bfloat16) if device == "cuda" else ((512, 1024), torch.float32)
    best = 0.0
    for n in sizes:
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        repeats = max(1, int(1e14 / n**3)) if device == "cuda" else 1

        def products(a: Any = a, b: Any = b, repeats: int = repeats) -> float:
            for _ in range(repeats):
                product = a @ b
            return product[0, 0].item()  # waits for the GPU

        best = max(best, 2 * n**3 * repeats / per_call(products, 0.5))
    return best


def operations(call: Callable[[], Any]) -> int:
    """Floating-point operations of the convolutions and matrix products of a call in torch."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    def deformable(given: Any, weight: Any, offset: Any, *rest: Any, **more: Any) -> int:
        return 2 * int(np.prod(weight)) * offset[0] * offset[2] * offset[3]  # for each place of each photo

    with FlopCounterMode(display=False, custom_mapping={torch.ops.torchvision.deform_conv2d: deformable}) as counter:
        call()
    return counter.get_total_flops()


def settings_of(args: argparse.Namespace, profile: str, imageset: str, output: str) -> Settings:
    line = ["--imageset", imageset, "--output", output, "--profile", profile, "--limit", str(args.photos)]
    line += [
        "--set",
        f"device={args.device}",
        "--set",
        "boxes=[detected]",
        "--set",
        f"threads_per_actor={args.threads}",
    ]
    if profile == "paper":
        line += ["--set", "allow_random_weights=true"]
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return load(parser.parse_args(line))


def encoded_photos(run: Run) -> list[Any]:
    return [
        row
        for shard in run.selected.shards
        for row in run.images.read(shard.name, columns=["image"]).column("image").take(list(shard.row_numbers))
    ]


def decoding(encoded: Sequence[Any], max_threads: int) -> None:
    """A table of threads and photos a second."""

    def some(rows: Sequence[int]) -> list[photos.Decoded]:
        return [photos.Decoded(row, row, decode(encoded[row].as_buffer())) for row in rows]

    print("| threads | photos decoded/s |\n|--:|--:|")
    for threads in (1 << i for i in range(max_threads.bit_length())):
        start = time.perf_counter()
        with photos.Ahead(range(len(encoded)), some, lambda row: 0, 4 * threads, threads) as ahead:
            for _ in encoded:
                ahead.next()
        print(f"| {threads} | {len(encoded) / (time.perf_counter() - start):.0f} |", flush=True)


def host_of(kind: Any, run: Run, models: tuple[Model, ...], device: str, engine: str) -> Host:
    """A worker of a stage, as an actor holds it."""
    settings = run.settings.model_copy(update={"engine": engine})
    return Host(kind(settings, run.catalogue, models, run.images, run.store), device)


def detector_of(run: Run, model: Model, device: str, engine: str) -> Any:
    host = host_of(DetectWorker, run, (model,), device, engine)
    host.load()
    return host.worker.detectors[model.name]  # type: ignore[attr-defined]  # a DetectWorker has them


def detectors(run: Run, decoded: list[np.ndarray], peak: float, device: str, budget: Budget) -> None:
    """A table of detectors and engines, and the notes of detectors that an engine did not take."""
    print("\n| detector | engine | photos/s | GFLOP a photo | TFLOP/s | share of the peak | the CPU's boxes found |")
    print("|---|---|--:|--:|--:|--:|--:|")
    batch_size, notes = run.settings.detect.batch_size, []
    for model in run.detectors:
        want: list[Detections] | None = None
        for engine in engines(device):
            if not budget.left(f"{model.name}, {engine}"):
                continue
            detector = detector_of(run, model, device, engine)

            def call(detector: Any = detector) -> list[Detections]:
                return detector.detect(decoded, batch_size=batch_size)

            if engine == "torch":
                flops = operations(call) / len(decoded)
            rate = len(decoded) / per_call(call)
            if want is None and budget.left(f"{model.name}: the CPU's boxes"):
                on_cpu = detector_of(run, model, "cpu", "torch")
                want = on_cpu.detect(decoded[:COMPARED], batch_size=batch_size)
            found = "–" if want is None else matched(call()[: len(want)], want)
            speed = f"{flops / 1e9:.1f} | {rate * flops / 1e12:.2f} | {rate * flops / peak:.1%}"
            print(f"| {model.name} | {detector.engine} | {rate:.1f} | {speed} | {found} |", flush=True)
            notes += detector.notes
            del detector, call
            free_memory()
    for note in notes:
        print(note)


def engines(device: str) -> tuple[str, ...]:
    return ("torch", "cudagraph") if device == "cuda" else ("torch",)


def matched(found: Sequence[Detections], want: Sequence[Detections]) -> str:
    """Of the boxes wanted the share that was found, within 0.5 px and 0.01 of score and in the same category."""
    n_matched = 0
    for ours, theirs in zip(found, want, strict=True):
        apart = np.abs(ours.boxes[:, None] - theirs.boxes).max(axis=2, initial=0)
        near = (apart <= 0.5) & (np.abs(ours.scores[:, None] - theirs.scores) <= 0.01)
        n_matched += int((near & (ours.categories[:, None] == theirs.categories)).any(axis=0).sum())
    n = sum(len(theirs) for theirs in want)
    return f"{n_matched / n:.1%} of {n}" if n else "none to find"


def free_memory() -> None:
    import torch

    gc.collect()
    torch.cuda.empty_cache()


def stages(run: Run, device: str, budget: Budget) -> None:
    """A table of the detect and embed stages, fusing in between."""
    print("\n| stage | engine | load, s | photos/s, first pass | photos/s, second pass | busy | GPU memory, GB |")
    print("|---|---|--:|--:|--:|--:|--:|")
    names = tuple(model.name for model in run.detectors)
    pairs = tuple((kind, model.name) for kind in run.box_kinds for model in run.embedders)
    fused = False
    for engine in engines(device):
        if budget.left(f"detect, {engine}"):
            host = host_of(DetectWorker, run, run.detectors, device, engine)
            stage_row(f"detect | {engine}", host, jobs_of(run, names))
            fused = True
    if not fused:
        return print("left out without detections: embed")
    fuse = FuseWorker(run.settings, names, run.box_kinds, run.images, run.store)
    for job in jobs_of(run, names):
        fuse.run(job, {}, False)
    for engine in engines(device):
        if budget.left(f"embed, {engine}"):
            host = host_of(EmbedWorker, run, run.embedders, device, engine)
            stage_row(f"embed | {engine}", host, jobs_of(run, pairs))
    return None


def jobs_of(run: Run, work: Any) -> list[Job]:
    return [Job(shard.name, shard.row_numbers, work) for shard in run.selected.shards]


def stage_row(title: str, host: Host, jobs: list[Job]) -> None:
    """Both passes of a stage, and how many photos failed."""
    free_memory()  # of the host before
    _, loaded = host.load()
    rates, failed = [], 0
    for _ in range(2):
        with GpuSamples() as samples:
            start = time.perf_counter()
            answers = [host.run(job, {}, False)[0] for job in jobs]
            rates.append(sum(len(job.rows) for job in jobs) / (time.perf_counter() - start))
        failed += sum(len(outcome.failures) for answer in answers for outcome in answer.values())
    speed = " | ".join(f"{rate:.1f}" for rate in rates)
    print(f"| {title} | {loaded['wall_s']:.0f} | {speed} | {samples.columns()} |", flush=True)
    if failed:
        print(f"{failed} failures of a photo and a model in both passes")


@contextlib.contextmanager
def imageset_of(args: argparse.Namespace, scratch: str) -> Iterator[str]:
    """The image set asked for, or one of drawn photos."""
    if args.imageset:
        yield args.imageset
        return
    from sources.drawn import source
    from store.imageset_write import write_imageset

    rows = source.read(users=args.drawn // 2, shops=args.drawn - args.drawn // 2, seed=0)
    write_imageset(rows, f"{scratch}/drawn", source={"adapter": "drawn", "arguments": {}}, max_images=64)
    yield f"{scratch}/drawn"


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = cli.Parser(description=__doc__)
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--imageset", help="photos, from jobs/ingest.py")
    given.add_argument("--drawn", type=int, metavar="N", help="N photos drawn here, 384 px")
    parser.add_argument("--photos", type=int, default=256, help="photos at most (256)")
    parser.add_argument("--profile", choices=("tiny", "paper"), help="one of the profiles (both)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="where networks run (cuda)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads (as many as cores)")
    parser.add_argument("--minutes", type=float, default=8.0, help="after which nothing more is begun (8)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    budget = Budget(args.minutes)
    warnings.simplefilter("ignore")
    gpu.found_device(args.device)

    import torch

    where = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {args.threads} threads"
    peak = matrix_peak(args.device)
    print(f"{where}, torch {torch.__version__}: {peak / 1e12:.2f} TFLOP/s of matrix products at most\n", flush=True)
    with tempfile.TemporaryDirectory() as scratch, imageset_of(args, scratch) as imageset:
        for number, profile in enumerate([args.profile] if args.profile else ["tiny", "paper"]):
            settings = settings_of(args, profile, imageset, f"{scratch}/{profile}")
            with open_run(settings, SHIPPED, choose_models(settings, SHIPPED)) as run:
                encoded = encoded_photos(run)
                if not number:
                    decoding(encoded, args.threads)
                n = min(len(encoded), 8 * settings.detect.batch_size)
                decoded = [decode(row.as_buffer()) for row in encoded[:n]]
                print(f"\n## {profile}: {len(encoded)} photos, batches of {settings.detect.batch_size}")
                detectors(run, decoded, peak, args.device, budget)
                stages(run, args.device, budget)


if __name__ == "__main__":
    cli.run(main)
