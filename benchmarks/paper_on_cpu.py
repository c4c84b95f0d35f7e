"""The paper profile's detectors on a CPU: seconds a photo and memory, this checkout beside another one.

    git worktree add ../before COMMIT && (cd ../before && make install)
    python benchmarks/paper_on_cpu.py --other ../before
    python benchmarks/paper_on_cpu.py --other ../before --models cascade-mask-rcnn_r101_fpn --photos 2

One noise photo of 1088x800 px at a time, random weights (the same for both), one thread, a process of its own for each
checkout, which loads with the engine that `engine: auto` takes there. CPU seconds a photo are the median of `--photos`
after one to warm up. "without boxes" is the same with a score threshold that no box reaches: the difference is what
boxes and, for Cascade Mask R-CNN, masks take. Peak memory is the largest resident set of the process, loading and
compiling included.
"""

import argparse
import inspect
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HEIGHT_PX, WIDTH_PX = 800, 1088
NO_BOX = 0.999  # a score that no detector with random weights gives
ROWS = ("s a photo", "without boxes, s", "loading, s", "peak memory, GB")


def measure(name: str, weights: Path, threshold: float, n_photos: int) -> dict[str, float]:
    """Seconds a photo, seconds of loading and peak memory in GB, of the checkout in the current folder."""
    sys.path[0] = os.getcwd()
    warnings.simplefilter("ignore")
    import numpy as np
    import torch

    from detection import detector, models

    torch.set_num_threads(1)
    how: dict[str, Any] = {}
    if "engine" in inspect.signature(detector.load).parameters:
        from networks.engines import Engine

        how["engine"] = Engine("openvino")
    start = time.process_time()
    ours = detector.load(models.named(name), "cpu", weights=weights, score_threshold=threshold, **how)
    photos = np.random.default_rng(0).integers(0, 256, (n_photos + 1, HEIGHT_PX, WIDTH_PX, 3), np.uint8)
    ours.detect([photos[0]])  # what is compiled on the first photo counts as loading
    loading, taken = time.process_time() - start, []
    for photo in photos[1:]:
        start = time.process_time()
        ours.detect([photo])
        taken.append(time.process_time() - start)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {"seconds": statistics.median(taken), "loading": loading, "memory": memory}


def measured(checkout: Path, name: str, weights: Path, threshold: float, n_photos: int) -> dict[str, float]:
    """The same in a process of its own."""
    words = [name, str(weights), str(threshold)]
    command = [str(checkout / ".venv/bin/python"), __file__, "--photos", str(n_photos), "--child", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=checkout, env=environment, stdout=subprocess.PIPE, check=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def write_weights(name: str, path: Path) -> None:
    """Random ones, of a process of its own, so that this one stays small."""
    code = (
        "import sys; from safetensors.torch import save_model; from detection import detector, models; "
        "save_model(detector.build(models.named(sys.argv[1]), initialise=True), sys.argv[2])"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, name, str(path)], cwd=ROOT, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--other", type=Path, help="a checkout with an environment of its own in .venv")
    parser.add_argument("--models", help="names, separated by commas (the paper profile's)")
    parser.add_argument("--photos", type=int, default=3, help="photos measured (3)")
    parser.add_argument("--child", nargs=3, metavar=("MODEL", "WEIGHTS", "THRESHOLD"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        name, weights, threshold = args.child
        print(json.dumps(measure(name, Path(weights), float(threshold), args.photos)))
        return
    if args.other is None:
        parser.error("want --other CHECKOUT")
    sys.path[0] = str(ROOT)
    from detection import models

    names = args.models.split(",") if args.models else [spec.name for spec in models.PROFILES["paper"]]
    print("| detector | | this checkout | the other | ratio |\n|---|---|--:|--:|--:|", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            weights, columns = Path(scratch, f"{name}.safetensors"), []
            write_weights(name, weights)
            for checkout in (ROOT, args.other.resolve()):
                whole, empty = (measured(checkout, name, weights, score, args.photos) for score in (0.01, NO_BOX))
                columns.append((whole["seconds"], empty["seconds"], whole["loading"], whole["memory"]))
            for row, mine, theirs in zip(ROWS, *columns, strict=True):
                print(f"| {name} | {row} | {mine:.2f} | {theirs:.2f} | {theirs / mine:.2f} |", flush=True)


if __name__ == "__main__":
    main()
