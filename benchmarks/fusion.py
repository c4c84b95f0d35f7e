"""How fast boxes and masks fuse: `postproc.wbf` and its siblings beside ensemble-boxes, in the same run, on one core.

    python benchmarks/fusion.py                      # 5 models x 20 boxes, 10,000 images: some three minutes
    python benchmarks/fusion.py --table methods      # suppression, soft suppression, NMW, voting: a minute
    python benchmarks/fusion.py --table masks        # seconds
    python benchmarks/fusion.py --images 1000 --package-images 50

Random boxes go in, a table comes out. Each image holds a few objects that every model sees, a little displaced, and
enough false boxes to make 20 a model. The package has no batch: it is timed on some of the images, one by one, and
compared by milliseconds an image. The results of both are compared before anything is timed.
"""

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import argparse
import functools
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ensemble_boxes import nms, non_maximum_weighted, soft_nms
from ensemble_boxes import weighted_boxes_fusion as package
from pycocotools import mask as coco

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from detection.rle import from_lengths, lengths
from postproc.masks import vote
from postproc.nms import nms_batch
from postproc.nmw import nmw_batch
from postproc.soft_nms import soft_nms_batch
from postproc.voting import box_voting_batch
from postproc.wbf import fuse_batch, weighted_boxes_fusion

MODELS, PER_MODEL = 5, 20


def draw(images: int, labels: int, objects: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes (images, models, 20, 4) as fractions, scores and labels (images, models, 20)."""
    rng = np.random.default_rng(seed)
    noise = PER_MODEL - objects
    centre = np.concatenate(
        [
            rng.uniform(0.2, 0.8, (images, 1, objects, 2)) + rng.normal(0, 0.01, (images, MODELS, objects, 2)),
            rng.uniform(0.2, 0.8, (images, MODELS, noise, 2)),
        ],
        axis=2,
    )
    half = np.concatenate(
        [
            rng.uniform(0.04, 0.2, (images, 1, objects, 2)) * rng.uniform(0.9, 1.1, (images, MODELS, objects, 2)),
            rng.uniform(0.04, 0.2, (images, MODELS, noise, 2)),
        ],
        axis=2,
    )
    of_object = np.broadcast_to(rng.integers(1, labels + 1, (images, 1, objects)), (images, MODELS, objects))
    label = np.concatenate([of_object, rng.integers(1, labels + 1, (images, MODELS, noise))], axis=2)
    boxes = np.concatenate([centre - half, centre + half], axis=3).clip(0, 1)
    return boxes, rng.uniform(0.01, 1, label.shape), label


def seconds(work: Callable[[], object], repeats: int) -> list[float]:
    """CPU seconds of each repeat: one thread, so wall seconds on an idle machine."""
    taken = []
    for _ in range(repeats):
        begin = time.process_time()
        work()
        taken.append(time.process_time() - begin)
    return taken


def measure(images: int, package_images: int, labels: int, objects: int, repeats: int, seed: int) -> str:
    """One row of the table: milliseconds an image, medians, and how many times faster the batch is."""
    boxes, scores, label = draw(images, labels, objects, seed)
    image = np.repeat(np.arange(images), MODELS * PER_MODEL)
    model = np.tile(np.repeat(np.arange(MODELS), PER_MODEL), images)
    batch = (boxes.reshape(-1, 4), scores.ravel(), label.ravel(), image, model, MODELS)

    begin = time.process_time()
    weighted_boxes_fusion(boxes[0], scores[0], label[0])
    first = time.process_time() - begin
    fused = fuse_batch(*batch)
    some = range(min(package_images, images))
    for k in some:
        for mine, theirs in zip(fused, package(boxes[k], scores[k], label[k]), strict=False):
            np.testing.assert_allclose(mine[fused[3] == k], theirs, atol=1e-5, rtol=0)

    ours, single, theirs = [], [], []
    for _ in range(repeats):  # in turn, so that whatever else the machine does falls on all of them
        ours += seconds(lambda: fuse_batch(*batch), 1)
        single += seconds(lambda: [weighted_boxes_fusion(boxes[k], scores[k], label[k]) for k in some], 1)
        theirs += seconds(lambda: [package(boxes[k], scores[k], label[k]) for k in some], 1)
    batch_ms = statistics.median(ours) / images * 1e3
    single_ms, package_ms = (statistics.median(taken) / len(some) * 1e3 for taken in (single, theirs))
    return (
        f"| {labels} | {objects} | {len(fused[0]) / images:.1f} | {batch_ms * images / 1e3:.2f} | {batch_ms:.3f} | "
        f"{single_ms:.2f} | {package_ms:.2f} | {package_ms / batch_ms:.0f}x | {first * 1e3:.0f} |"
    )


def each_alone(fuse: Callable | None, boxes: np.ndarray, scores: np.ndarray, label: np.ndarray, some: range) -> None:
    """The package's own function on some images, if it has one."""
    for k in some if fuse else ():
        fuse(boxes[k], scores[k], label[k])  # type: ignore[misc]


def measure_methods(images: int, package_images: int, labels: int, objects: int, repeats: int, seed: int) -> list[str]:
    """A row a method: milliseconds an image, ours and the package's; the boxes of both are compared first."""
    boxes, scores, label = draw(images, labels, objects, seed)
    image = np.repeat(np.arange(images), MODELS * PER_MODEL)
    model = np.tile(np.repeat(np.arange(MODELS), PER_MODEL), images)
    flat, flat_scores, groups = boxes.reshape(-1, 4), scores.ravel(), 1000 * image + label.ravel()
    soft: dict[str, dict] = {
        kind: {"kind": kind, "iou_threshold": 0.5, "sigma": 0.5} for kind in ("linear", "gaussian")
    }

    def rows_of(kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return flat[kept], image[kept]

    def nmw() -> tuple[np.ndarray, np.ndarray]:
        fused = nmw_batch(flat, flat_scores, label.ravel(), image, model, MODELS)
        return fused[0], fused[3]

    def voted() -> tuple[np.ndarray, np.ndarray]:
        kept, moved = box_voting_batch(flat, flat_scores, groups)
        return moved, image[kept]

    ways: dict[str, tuple[Callable, Callable | None]] = {
        "nms": (lambda: rows_of(nms_batch(flat, flat_scores, groups)), nms),
        "soft nms, linear": (
            lambda: rows_of(soft_nms_batch(flat, flat_scores, groups, **soft["linear"])[0]),
            lambda *one: soft_nms(*one, method=1),
        ),
        "soft nms, gaussian": (
            lambda: rows_of(soft_nms_batch(flat, flat_scores, groups, **soft["gaussian"])[0]),
            lambda *one: soft_nms(*one, method=2),
        ),
        "nmw": (nmw, non_maximum_weighted),
        "voting": (voted, None),
    }
    some, lines = range(min(package_images, images)), []
    for name, (ours, theirs) in ways.items():
        fused, of_image = ours()
        for k in some if theirs else ():
            want = theirs(boxes[k], scores[k], label[k])[0]  # type: ignore[misc]
            got = fused[of_image == k]
            np.testing.assert_allclose(
                got[np.lexsort(got.round(4).T)], want[np.lexsort(want.round(4).T)], atol=1e-5, rtol=0
            )
        one_by_one = functools.partial(each_alone, theirs, boxes, scores, label, some)
        taken, package_taken = [], []
        for _ in range(repeats):
            taken += seconds(ours, 1)
            package_taken += seconds(one_by_one, 1)
        batch_ms = statistics.median(taken) / images * 1e3
        package_ms = statistics.median(package_taken) / len(some) * 1e3 if theirs else None
        beside = f"{package_ms:.2f} | {package_ms / batch_ms:.0f}x" if package_ms else "– | –"
        lines.append(f"| {name} | {labels} | {objects} | {len(fused) / images:.1f} | {batch_ms:.3f} | {beside} |")
    return lines


def measure_masks(side_px: int, members: int, repeats: int, seed: int) -> str:
    """One row: milliseconds for a fused mask of several photo-sized ones, on run lengths and on pixels."""
    rng = np.random.default_rng(seed)
    down, right = np.mgrid[:side_px, :side_px] / side_px
    masks, weights = [], rng.uniform(0.1, 1, members)
    for _ in range(members):  # a garment: a wavy blob somewhat displaced
        x, y = 0.5 + rng.normal(0, 0.02, 2)
        blob = np.hypot(down - y, right - x) < 0.25 + 0.02 * np.sin(20 * np.arctan2(down - y, right - x))
        masks.append(coco.encode(np.asfortranarray(blob.astype(np.uint8))))

    def on_runs() -> dict:
        return dict(from_lengths(vote([lengths(mask) for mask in masks], weights.tolist()), (side_px, side_px)))

    def on_pixels() -> dict:
        drawn = sum(weight * coco.decode(mask) for weight, mask in zip(weights, masks, strict=True))
        return dict(coco.encode(np.asfortranarray((drawn > weights.sum() / 2).astype(np.uint8))))

    assert on_runs() == on_pixels()
    ours, theirs = [], []
    for _ in range(repeats):
        ours += seconds(lambda: [on_runs() for _ in range(50)], 1)
        theirs += seconds(lambda: [on_pixels() for _ in range(5)], 1)
    ms, pixel_ms = statistics.median(ours) / 50 * 1e3, statistics.median(theirs) / 5 * 1e3
    return f"| {side_px} x {side_px} | {members} | {ms:.2f} | {pixel_ms:.2f} | {pixel_ms / ms:.0f}x |"


def commit() -> str:
    asked = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return asked.stdout.strip() or "no commit"


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000, help="images in the batch (default 10000)")
    parser.add_argument("--package-images", type=int, default=100, help="of these, fused one by one too (default 100)")
    parser.add_argument("--repeats", type=int, default=5, help="the median of so many is shown (default 5)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", choices=("wbf", "methods", "masks"), help="this one alone (default: all)")
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "?"
    versions = f"Python {platform.python_version()}, NumPy {np.__version__}"
    print(f"{processor()}, one used, load {load} at the start; {versions}; commit {commit()}")
    print(f"{MODELS} models x {PER_MODEL} boxes x {args.images:,} images; single ones: the first {args.package_images}")
    print(f"CPU milliseconds an image, median of {args.repeats}; batch: CPU seconds; first call: milliseconds\n")
    if args.table in (None, "wbf"):
        print("| labels | objects | fused | batch | fuse_batch | one by one | ensemble-boxes | ratio | first call |")
        print("|---|---|---|---|---|---|---|---|---|")
        for labels, objects in ((13, 6), (13, 20), (4, 6), (1, 20), (1, 6)):
            print(measure(args.images, args.package_images, labels, objects, args.repeats, args.seed), flush=True)
    if args.table in (None, "methods"):
        print("\n| method | labels | objects | left | batch, ms an image | ensemble-boxes | ratio |")
        print("|---|---|---|---|---|---|---|")
        for labels, objects in ((13, 6), (1, 20)):
            for line in measure_methods(args.images, args.package_images, labels, objects, args.repeats, args.seed):
                print(line, flush=True)
    if args.table in (None, "masks"):
        print("\n| photo | members | run lengths, ms a mask | pixels, ms | ratio |\n|---|---|---|---|---|")
        for side_px, members in ((640, 2), (640, 5), (1600, 5)):
            print(measure_masks(side_px, members, args.repeats, args.seed), flush=True)


if __name__ == "__main__":
    main()
