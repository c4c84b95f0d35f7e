"""Train one detector on image sets with boxes. To resume a training, repeat its command.

    # laptop
    python jobs/train_detector.py --model atss-tiny --imageset runs/ccp-train --output runs/train/atss --steps 1000
    python jobs/train_detector.py --model centernet-tiny --imageset runs/ccp-train --imageset runs/drawn:0.5 \\
        --init-from weights/tiny/atss-tiny.safetensors --output runs/train/centernet --steps 600

    # the paper's size on eight GPUs: Ray Train, from COCO weights, checkpoints in a bucket
    python jobs/train_detector.py --model cascade-mask-rcnn_r101_fpn --mixture m0 --data s3://BUCKET/sets --workers 8 \\
        --device cuda --threads 8 --precision bf16 --batch-size 32 --lr 1e-4 --steps 90000 --schedule steps \\
        --drops 0.67,0.9 --zoom 0.5,1.25 --copy-paste 0.3 --init-from cascade_mask_rcnn_r101_fpn_coco.pth \\
        --output s3://BUCKET/train/cascade

OUTPUT, a folder or s3://BUCKET/PREFIX, is described in `jobs.training.run`; MODEL.safetensors in it holds the moving
average of the weights in float16. One photo in ten, by pair_id, is held out of training to measure progress. The number
after the colon of an image set is the weight of each of its photos. A step's batch depends on the seed and the step's
number alone.

Several workers share that batch, and the gradient is the mean of theirs. Two things then differ from one worker:
RetinaNet, CenterNet and Cascade Mask R-CNN normalise their losses by the positives of a worker's part instead of the
whole batch (ATSS asks the other workers), and BatchNorm layers that learn, as in CenterNet at the paper's size, see
that part alone; the first worker's statistics are shipped. The same holds for the parts of --accumulate, for ATSS too.
Workers on several machines need OUTPUT in a bucket or a shared folder.
"""

import argparse
import math
import sys
from pathlib import Path

if __name__ == "__main__" and (Path(__file__).resolve().parents[1] / "jobs" / "cli.py").is_file():
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from detection import models
from jobs import cli
from jobs.runs.gpu import found_device
from jobs.training import flags, launch, loop
from sources.arguments import above_zero, natural, number, share
from store.errors import UserError


def parser() -> cli.Parser:
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--model", required=True, help="name of a detector in detection.models")
    parser.add_argument(
        "--output", required=True, metavar="URI", help="folder or s3:// for checkpoints, log and weights"
    )

    add = flags.add_imagesets(parser).add_argument
    add("--user-weight", type=above_zero, default=2.0, help="how much more often consumer photos are drawn (2)")
    add(
        "--init-from", default="", metavar="FILE",
        help="another detector's safetensors, a COCO checkpoint of mmdetection, or an ImageNet backbone to start from",
    )  # fmt: skip

    add = parser.add_argument_group("augmentation of the photos").add_argument
    add("--zoom", type=zoom, default=(0.8, 1.25), metavar="LOW,HIGH", help="range of a photo's scale factor (0.8,1.25)")
    add("--mosaic", type=share, default=0.0, help="share of photos made of four others (0)")
    add("--copy-paste", type=share, default=0.0, help="share of photos that get garments of another photo (0)")

    flags.add_schedule(parser, unit="photos")
    text = "steps between measurements on held-out photos (0: at the end only)"
    flags.add_process(parser).add_argument("--eval-every", type=natural, default=0, help=text)
    parser.set_defaults(
        steps=1000, batch_size=8, lr=1.2e-3, weight_decay=0.02, warm_up=60, drops="0.7,0.9", save_every=100,
        minutes=math.inf,
    )  # fmt: skip
    return parser


def parse(argv: list[str] | None) -> argparse.Namespace:
    return parser().parse_args(argv)


def zoom(text: str) -> tuple[float, float]:
    factors = tuple(number(0, 100, above=True)(part) for part in text.split(","))
    if len(factors) != 2 or factors[0] > factors[1]:
        raise argparse.ArgumentTypeError(f"want LOW,HIGH with 0 < LOW <= HIGH, got {text}")
    return factors


def train(argv: list[str], world: launch.World) -> int:
    """One worker's training, from photos to weights."""
    from jobs.training.detector import DetectorTraining  # brings torch and cv2

    args = parse(argv)
    args.device = found_device(args.device)
    try:
        spec = models.named(args.model)
    except ValueError as error:
        raise UserError(str(error)) from None
    return loop.train(DetectorTraining(args, spec, world), args, world)


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = parse(argv)
    # what can be known to be wrong is refused before anything is read
    flags.imagesets(args)
    parts = args.workers * args.accumulate
    if args.batch_size % parts:
        raise UserError(f"--batch-size {args.batch_size}: want a multiple of --workers × --accumulate, {parts}")
    if args.init_from and not Path(args.init_from).is_file():
        raise UserError(f"--init-from {args.init_from}: no such file")
    return launch.launch("jobs.train_detector", argv, workers=args.workers, device=args.device, threads=args.threads)


if __name__ == "__main__":
    cli.run(main)
