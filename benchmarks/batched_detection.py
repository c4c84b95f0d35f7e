"""Our batched detection beside mmdetection's `DetInferencer`: same models, weights, photos, batch, threads, dtype.

    OMP_NUM_THREADS=1 python benchmarks/batched_detection.py --imageset runs/ccp-val --photos 64 --rounds 3

Both start from decoded photos in memory and end with boxes in Python. The two take turns, round by round; the ratio is
the median of the rounds' ratios, so a machine that slows down slows both. Image sets come from jobs/ingest.py.
"""

import logging
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from jobs import cli


def photos_of(uri: str, n: int) -> list[np.ndarray]:
    """`n` photos spread evenly over an image set, so consumer and shop shapes are mixed as they come."""
    from store import decode, imageset

    images = imageset.open_imageset(uri)
    every = max(1, images.manifest.images // n)
    photos: list[np.ndarray] = []
    row = 0
    for shard in images.shards:
        column = images.read(shard.name).column("image")
        while row < len(column) and len(photos) < n:
            photos.append(decode.decode(column[row].as_py()))
            row += every
        row -= len(column)
    return photos


def their_inferencer(spec: Any, ours: Any, device: str, weights: Path) -> Any:
    """mmdetection's inferencer around a model of its own with the same weights."""
    from mmdet.apis import DetInferencer
    from mmengine.config import Config

    from detection import detector
    from networks import weight_files

    pipeline = [
        dict(type="LoadImageFromFile"),
        dict(type="Resize", scale=spec.scale_px, keep_ratio=True),
        dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
    ]
    model = dict(detector.build_config(spec))
    preprocess = dict(mean=list(spec.mean), std=list(spec.std), bgr_to_rgb=True, pad_size_divisor=spec.pad_multiple_px)
    model["data_preprocessor"] = dict(type="DetDataPreprocessor", **preprocess)
    dataset = dict(type="CocoDataset", metainfo=dict(classes=spec.categories), pipeline=pipeline)
    drawer = dict(type="DetLocalVisualizer", name=spec.name)  # required, though it draws nothing here
    config = Config(dict(model=model, default_scope="mmdet", test_dataloader=dict(dataset=dataset), visualizer=drawer))
    inferencer = DetInferencer(config, device=device, palette="none", show_progress=False)
    tensors = weight_files.read(weights, model=spec.name, sha256=spec.sha256, trainer=detector.TRAINER)
    weight_files.fill(inferencer.model, tensors, f"{spec.name}: {weights}")
    inferencer.model.test_cfg = ours.model.test_cfg
    for name in ("bbox_head", "roi_head"):
        if hasattr(ours.model, name):
            getattr(inferencer.model, name).test_cfg = getattr(ours.model, name).test_cfg
    return inferencer


def main() -> None:
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--imageset", required=True)
    parser.add_argument("--photos", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help='"cpu" or "cuda", where ours runs at its usual precision (cpu)')
    parser.add_argument("--engine", default="auto", help="what runs our networks, as the setting `engine` (auto)")
    parser.add_argument("--weights", type=Path, default=Path("weights/tiny"))
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)

    import torch

    from detection import detector, models
    from networks import engines

    torch.set_num_threads(args.threads)
    engine = engines.choose(args.engine, args.device.partition(":")[0], args.threads)
    photos = photos_of(args.imageset, args.photos)
    bgr = [np.ascontiguousarray(photo[..., ::-1]) for photo in photos]
    print(
        f"{len(photos)} photos, batches of {args.batch_size}, {args.threads} thread(s), {args.device}, {engine.name}, "
        f"{args.rounds} rounds, seconds\n"
    )
    print("| detector | ours | DetInferencer | theirs / ours |\n|---|--:|--:|--:|")
    ratios = []
    for spec in models.PROFILES["tiny"]:
        if spec.model["type"] == "CenterNet":
            continue  # its own pipeline pads otherwise (see detection/detector.py), so the work would not be the same
        ours = detector.load(spec, args.device, weights=args.weights / spec.weights, engine=engine)
        theirs = their_inferencer(spec, ours, args.device, args.weights / spec.weights)
        ours.detect(photos[:8])  # both warm
        theirs(bgr[:8], batch_size=8, return_datasamples=True)
        times: list[tuple[float, float]] = []
        for _ in range(args.rounds):
            start = time.perf_counter()
            ours.detect(photos, batch_size=args.batch_size)
            between = time.perf_counter()
            theirs(bgr, batch_size=args.batch_size, return_datasamples=True)
            times.append((between - start, time.perf_counter() - between))
        a, b = (statistics.median(side) for side in zip(*times, strict=True))
        ratio = statistics.median(b / a for a, b in times)
        ratios.append(ratio)
        print(f"| {spec.name} | {a:.2f} | {b:.2f} | {ratio:.2f} |", flush=True)
    print(f"\nmedian ratio {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
