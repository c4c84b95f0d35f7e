"""`Detector.detect`, which decodes a batch at once, beside mmdetection's `predict` in its place: CPU seconds a photo.

    OMP_NUM_THREADS=1 python benchmarks/batched_decoding.py --imageset runs/ccp-val --photos 64 --rounds 5

Both see the same photos, batches, weights and preparation, on torch with one thread. What mmdetection runs still has
its batch norms. The two take turns, round by round; the ratio is the median of the rounds' ratios. The shares of the
network, of decoding and of masks (their heads and drawing) are those of our path. Image sets come from jobs/ingest.py.
"""

import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from benchmarks.batched_detection import photos_of
from jobs import cli

SHARES = ("network", "decode", "masks")


def measured(detector: Any, seconds: dict[str, float]) -> Any:
    """The detector, whose parts add the CPU seconds they take."""

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            start = time.process_time()
            try:
                return function(*args)
            finally:
                seconds[part] += time.process_time() - start

        return run

    family = detector._family
    detector._family.dense = timed("network", detector._family.dense)
    family.decode = timed("decode", family.decode)
    family.masks = timed("masks", family.masks)
    detector._as_records = timed("masks", detector._as_records)
    return detector


def left_to_mmdetection(spec: Any, weights: Path) -> Any:
    """A detector as it was before: its model, unfolded, predicts by itself."""
    from detection import detector
    from networks import weight_files

    model = detector.build(spec)
    tensors = weight_files.read(weights, model=spec.name, sha256=spec.sha256, trainer=detector.TRAINER)
    weight_files.fill(model, tensors, f"{spec.name}: {weights}")
    theirs = detector.Detector(spec, model, "cpu", 0.01, 100)
    theirs._family = None
    return theirs


def seconds_of(detector: Any, photos: list[np.ndarray], batch_size: int) -> float:
    start = time.process_time()
    detector.detect(photos, batch_size=batch_size)
    return time.process_time() - start


def main() -> None:
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--imageset", required=True)
    parser.add_argument("--photos", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--weights", type=Path, default=Path("weights/tiny"))
    args = parser.parse_args()
    warnings.simplefilter("ignore")

    import torch

    from detection import detector, models

    torch.set_num_threads(1)
    photos = photos_of(args.imageset, args.photos)
    print(f"{len(photos)} photos, batches of {args.batch_size}, {args.rounds} rounds, CPU ms a photo, medians\n")
    print("| detector | mmdetection's predict | ours | theirs / ours | network | decode | masks |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for spec in models.PROFILES["tiny"]:
        weights = args.weights / spec.weights
        shares = dict.fromkeys(SHARES, 0.0)
        ours = measured(detector.load(spec, "cpu", weights=weights), shares)
        theirs = left_to_mmdetection(spec, weights)
        for one in (ours, theirs):
            one.detect(photos[: args.batch_size])  # warm
        shares.update(dict.fromkeys(SHARES, 0.0))
        times = []
        for _ in range(args.rounds):
            times.append([seconds_of(one, photos, args.batch_size) * 1e3 / len(photos) for one in (theirs, ours)])
        before, after = (statistics.median(column) for column in zip(*times, strict=True))
        ratio = statistics.median(a / b for a, b in times)
        parts = " | ".join(f"{shares[part] * 1e3 / len(photos) / args.rounds:.1f}" for part in SHARES)
        print(f"| {spec.name} | {before:.1f} | {after:.1f} | {ratio:.2f} | {parts} |", flush=True)


if __name__ == "__main__":
    main()
