"""Train one detector on image sets with boxes; stop it anywhere, the same line goes on.

    # laptop
    python jobs/train_detector.py --model atss-tiny --imageset runs/ccp-train --output runs/train/atss --steps 1000
    python jobs/train_detector.py --model centernet-tiny --imageset runs/ccp-train --imageset runs/drawn:0.5 \\
        --init-from weights/tiny/atss-tiny.safetensors --output runs/train/centernet --steps 600

    # the paper's size on eight GPUs: Ray Train, from COCO weights, checkpoints in a bucket
    python jobs/train_detector.py --model cascade-mask-rcnn_r101_fpn --mixture m0 --data s3://BUCKET/sets --workers 8 \\
        --device cuda --threads 8 --precision bf16 --batch-size 32 --lr 1e-4 --steps 90000 --schedule steps --drops 0.67,0.9 \\
        --zoom 0.5,1.25 --copy-paste 0.3 --init-from cascade_mask_rcnn_r101_fpn_coco.pth --output s3://BUCKET/train/cascade

OUTPUT, a folder or s3://BUCKET/PREFIX, is laid out as `jobs.training.run` says; MODEL.safetensors in it holds averaged weights
in float16. One photo in ten, by pair_id, is held out of training and tells how it goes; image sets are mixed by the weight
after the colon, which is that of each of their photos. A step's batch depends on the seed and its number alone.

Several workers share that batch, and the gradient is the mean of theirs. What then differs from one worker: RetinaNet,
CenterNet and Cascade Mask R-CNN normalise by the positives of a worker's part instead of the whole batch's (ATSS asks the
other workers), and BatchNorm that learns, CenterNet's at the paper's size, sees the part alone; the first worker's
statistics are shipped. So do the parts of --accumulate, ATSS's too. Workers on several machines want OUTPUT in a bucket.
"""

import argparse
import math
import os
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__" and (Path(__file__).resolve().parents[1] / "jobs" / "cli.py").is_file():
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from jobs import cli
from jobs.training import data as training_data
from jobs.training import run as training_run
from jobs.training import workers

if TYPE_CHECKING:
    from detection.models import DetectorSpec
    from detection.training import Learner
    from detection.training_photos import Photos
    from jobs.training.detector_photos import Read

MEASURED = 1000  # held-out photos measured at most during training, evenly spread; at the end all are
SAME_TRAINING = (
    "model", "steps", "batch_size", "seed", "lr", "backbone_share", "weight_decay", "warm_up", "schedule",
    "drops", "ema_decay", "user_weight", "zoom", "mosaic", "copy_paste", "init_from",
)  # fmt: skip


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, help="name of a detector in detection.models")
    add("--output", required=True, metavar="URI", help="folder or s3:// for checkpoints, log and weights")
    # what is learnt from
    training_data.add_arguments(parser)
    add("--user-weight", type=float, default=2.0, help="how much more often consumer photos come (2)")
    add(
        "--init-from",
        default="",
        metavar="FILE",
        help="another detector's safetensors, a COCO checkpoint of mmdetection, an ImageNet backbone",
    )
    # how photos are changed
    add(
        "--zoom",
        type=numbers,
        default=(0.8, 1.25),
        metavar="LOW,HIGH",
        help="multi-scale: factor of a photo (0.8,1.25)",
    )
    add("--mosaic", type=float, default=0.0, help="share of photos put together from four (0)")
    add("--copy-paste", type=float, default=0.0, help="share of photos that get garments of another (0)")
    # how long, how fast
    add("--steps", type=int, default=1000, help="optimiser steps in all (1000)")
    add("--batch-size", type=int, default=8, help="photos a step, of all workers (8)")
    add("--accumulate", type=int, default=1, help="parts a worker's photos go through the model in, for memory (1)")
    add("--lr", type=float, default=1.2e-3, help="highest rate of the heads (0.0012)")
    add("--backbone-share", type=float, default=0.3, help="the backbone's rate over the heads' (0.3)")
    add("--weight-decay", type=float, default=0.02, help="of AdamW (0.02)")
    add("--warm-up", type=int, default=60, help="steps until the highest rate (60)")
    add("--schedule", choices=("cosine", "steps"), default="cosine", help="how the rate falls (cosine)")
    add(
        "--drops",
        type=numbers,
        default=(0.7, 0.9),
        help="with steps: shares of all steps after which it is a tenth (0.7,0.9)",
    )
    add("--ema-decay", type=float, default=0.998, help="of the averaged weights; 0: those of the last step (0.998)")
    # the rest
    add(
        "--workers",
        type=int,
        default=1,
        help="processes that train together, by Ray Train; 1: this one, without Ray (1)",
    )
    add("--device", default="cpu", help="cpu or cuda (cpu)")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="of convolutions (fp32)")
    add(
        "--threads",
        type=int,
        default=os.cpu_count() or 1,
        help="CPU threads a worker (all); with other work on the machine, 1 is faster",
    )
    add(
        "--cache-gb",
        type=float,
        default=4.0,
        help="memory a worker keeps decoded photos in; others are decoded each time (4)",
    )
    add("--seed", type=int, default=0, help="of batches and augmentation (0)")
    add("--log-every", type=int, default=20, help="steps a line (20)")
    add("--save-every", type=int, default=100, help="steps a checkpoint (100)")
    add("--keep", type=int, default=2, help="checkpoints kept, the newest (2)")
    add("--eval-every", type=int, default=0, help="steps between measurements on held-out photos (0: at the end)")
    args = parser.parse_args(argv)
    for name in ("steps", "batch_size", "accumulate", "log_every", "save_every", "keep", "threads", "workers"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} wants 1 or more, got {getattr(args, name)}")
    return args


def numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = parse(argv)
    check(args)
    return workers.launch("jobs.train_detector", argv, workers=args.workers, device=args.device, threads=args.threads)


def check(args: argparse.Namespace) -> None:
    """What can be known to be wrong before anything is read."""
    training_data.parts(args)
    parts = args.workers * args.accumulate
    if args.batch_size % parts:
        raise cli.UserError(
            f"--batch-size {args.batch_size} wants to be a multiple of --workers × --accumulate, {parts}"
        )
    if len(args.zoom) != 2 or not 0 < args.zoom[0] <= args.zoom[1]:
        raise cli.UserError(f"--zoom wants LOW,HIGH with 0 < LOW <= HIGH, got {args.zoom}")
    for name, value in (
        ("mosaic", args.mosaic),
        ("copy-paste", args.copy_paste),
        *(("drops", drop) for drop in args.drops),
    ):
        if not 0 <= value <= 1:
            raise cli.UserError(f"--{name} wants a share in [0, 1], got {value:g}")
    if not 0 <= args.ema_decay < 1:
        raise cli.UserError(f"--ema-decay wants to be in [0, 1), got {args.ema_decay:g}")
    if args.init_from and not Path(args.init_from).is_file():
        raise cli.UserError(f"--init-from {args.init_from}: no such file")


def train(argv: list[str], world: workers.World) -> int:
    """One worker's training, from photos to weights."""
    args = parse(argv)

    import cv2
    import torch

    from detection import models, training_photos
    from jobs.training import detector_photos

    torch.set_num_threads(args.threads)
    cv2.setNumThreads(1)  # photos are spread over threads already
    warnings.filterwarnings("ignore", "To copy construct from a tensor", UserWarning)  # mmdetection's, once a mask
    try:
        spec = models.named(args.model)
    except ValueError as error:
        raise cli.UserError(str(error)) from None
    photos = detector_photos.read(args, spec)
    first = world.rank == 0
    if first:
        print(f"{spec.name}: {photos.told}, {args.steps} steps of {args.batch_size}", flush=True)

    # ---------------------------------------------------------------- model, where we were, what comes
    with training_run.TrainingRun(args.output, same_training(args, photos), keep=args.keep, writes=first) as run:
        state = run.resume() or {"step": 0, "seconds": 0.0}
        learner = start(args, spec, fresh=state["step"] == 0, tell=first)
        if state["step"]:
            with run.restoring():
                learner.load(state)
        if world.mean({"step": state["step"]})["step"] != state["step"]:
            raise cli.UserError(
                f"{args.output}: workers do not see the same checkpoints; want a bucket or a shared folder"
            )
        changes = training_photos.Changes(args.zoom, args.mosaic, args.copy_paste)
        batches = training_photos.Batches(photos.learn, spec, args.batch_size, args.seed, changes)
        ahead = batches.ahead(range(state["step"], args.steps), world.part(args.batch_size), args.threads)
        drops = args.drops if args.schedule == "steps" else ()

        # ------------------------------------------------------------ steps
        interval = training_run.Interval(spec.name, args.steps, state["step"])
        started = time.monotonic() - state["seconds"]
        for step, samples, shape in ahead:
            seed = (args.seed * 1_000_003 + step) * 4096 + world.rank * args.accumulate  # + 1 for each further part
            figures = world.mean(learner.gradients(samples, shape, seed=seed, accumulate=args.accumulate))
            if not math.isfinite(figures["loss"]):
                raise cli.UserError(
                    f"{spec.name}: loss is {figures['loss']} at step {step}; try a lower --lr than {args.lr}"
                )
            world.sum_gradients(learner.model.parameters(), mean=True)
            share = training_run.rate_share(step, args.steps, args.warm_up, drops)
            learner.update(share)
            interval.add(figures)
            done = step + 1
            if done % args.log_every == 0 or done == args.steps:
                means, line = interval.close(done, args.lr * share)
                run.log(done, "train", means)
                if first:
                    print(line, flush=True)
            if args.eval_every and done % args.eval_every == 0 and done < args.steps:
                began = time.monotonic()
                if first:
                    every = -(-len(photos.held_out) // MEASURED) or 1
                    tell(run, done, "held_out", measure(args, spec, learner, photos.held_out, every))
                world.wait()
                interval.began += time.monotonic() - began
            if done % args.save_every == 0 or done == args.steps:
                run.save(done, {**learner.state(), "seconds": time.monotonic() - started})

        # ------------------------------------------------------------ weights and what they are worth
        if first:
            finish(args, spec, run, learner, photos, time.monotonic() - started)
        world.wait()
    return 0


def start(args: argparse.Namespace, spec: "DetectorSpec", *, fresh: bool, tell: bool) -> "Learner":
    """The model before its first step: ImageNet backbone where there is one, then what --init-from holds."""
    import torch

    from detection import detector, training

    model = detector.build(spec, pretrained_backbone=fresh)
    training.freeze(model)
    if args.init_from and fresh:
        try:
            taken, whole = training.take_matching(model, training.read_tensors(Path(args.init_from)))
        except training.InitError as error:
            raise cli.UserError(f"--init-from {args.init_from}: {error}") from None
        if tell:
            print(f"{taken} of {whole} tensors from {args.init_from}", flush=True)
    model = model.to(args.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return training.Learner(
        model, spec, rate=args.lr, backbone_share=args.backbone_share, weight_decay=args.weight_decay,
        ema_decay=args.ema_decay, precision=args.precision,
    )  # fmt: skip


def measure(
    args: argparse.Namespace, spec: "DetectorSpec", learner: "Learner", photos: "Photos", every: int = 1
) -> dict[str, Any]:
    """The averaged weights on photos not learnt from, as they would be shipped."""
    from detection import held_out

    tensors = training_run.shipped(learner.average.tensors)
    figures = held_out.measure(tensors, spec, photos, device=args.device, every=every)
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in figures.items()}


def tell(run: training_run.TrainingRun, step: int, part: str, figures: dict[str, Any]) -> None:
    run.log(step, part, figures)
    print(f"step {step} {part.replace('_', ' ')}: {figures}", flush=True)


def finish(
    args: argparse.Namespace, spec: "DetectorSpec", run: training_run.TrainingRun, learner: "Learner", photos: "Read", seconds: float
) -> None:  # fmt: skip
    """The weights under the model's name, what they are worth on all photos held out and on the validation set, a page."""
    from jobs.training import detector_worth

    data = training_run.to_bytes(learner.average.tensors)
    run.write(f"{spec.name}.safetensors", data)
    worth = detector_worth.judge(
        run, args.steps, spec, training_run.shipped(learner.average.tensors), photos, args.device
    )
    summary = {
        "model": spec.name, "steps": args.steps, "batch_size": args.batch_size, "seconds": round(seconds),
        "photos": len(photos.learn), "imagesets": [part.uri for part in training_data.parts(args)], **worth.figures,
        "left_out": photos.left_out, "undecodable": len(photos.learn.broken), "weights": f"{spec.name}.safetensors",
        "bytes": len(data), "sha256": training_run.sha256(data),
    }  # fmt: skip
    detector_worth.report(run, summary, worth)
    run.finish(summary)


def same_training(args: argparse.Namespace, photos: "Read") -> dict[str, Any]:
    """What must stay the same for a checkpoint to be continued; workers, threads and precision need not."""
    return {name: getattr(args, name) for name in SAME_TRAINING} | photos.identity


if __name__ == "__main__":
    cli.run(main)
