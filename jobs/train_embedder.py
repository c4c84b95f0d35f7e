"""Train one embedder on image sets with boxes and known pairs. To resume a training, repeat its command.

    python jobs/train_embedder.py --model lite0-sg --imageset runs/ccp-train --output runs/train/lite0-sg --steps 600
    python jobs/train_embedder.py --model lite0-sg --mixture m3 --data s3://BUCKET/sets --output s3://BUCKET/train/m3 \\
        --loss multi-similarity --workers 4 --device cuda --precision bf16 --batch-size 256 \\
        --validation s3://BUCKET/sets/val
    python jobs/train_embedder.py --model timm:vit_small_patch14_dinov2.lvd142m --input-size 224 --layer-decay 0.8 \\
        --descriptors spoc,gem --dim 512 --imageset runs/own --output runs/train/dino

OUTPUT is described in `jobs.training.run`. best.safetensors holds the moving average of the weights that was best on
held-out garments, MODEL.safetensors the same at the end. Held-out figures are the benchmark's Acc@k on true boxes. A
step's batch depends on the seed and the step's number alone, for any number of workers.
"""

import argparse
import math
import re
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__" and (Path(__file__).resolve().parents[1] / "jobs" / "cli.py").is_file():
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from jobs import cli
from jobs.runs.gpu import found_device
from jobs.runs.yaml_text import parse_yaml
from jobs.training import flags, launch, loop
from jobs.training.flags import EVERY_STAGE
from retrieval import models, timm_models
from retrieval.models import EmbedderSpec
from retrieval.timm_models import TimmSpec
from sources.arguments import above_zero, amount, minutes, natural, number, positive, share, whole
from store.errors import UserError


def parser() -> cli.Parser:
    parser = cli.Parser(description=__doc__)
    text = "an embedder of retrieval.models by name, timm:ID, or an entry of a run file, {name: …, timm: ID, pool: cls}"
    parser.add_argument("--model", required=True, help=text)
    parser.add_argument("--output", required=True, help="folder or s3:// for checkpoints, log, weights and report")
    add = flags.add_imagesets(parser).add_argument
    add("--share", type=number(0, 1, above=True), default=1.0, help="share of the garments to learn from (1)")
    add("--crops", default="", metavar="FOLDER", help="keep cropped garments there, to share them with other trainings")
    add_model(parser)
    add_loss(parser)
    add_augmentation(parser)

    add = flags.add_schedule(parser, unit="crops").add_argument
    add("--minutes", type=minutes, default=math.inf, help="end this start after so many minutes, with a checkpoint")
    text = "crops of each garment in a batch, consumer and shop in turn (2)"
    add("--per-identity", type=whole(2), default=2, help=text)
    add("--layer-decay", type=share, default=1.0, help="each stage's rate over the next one's (1)")
    add("--proxy-share", type=amount, default=10.0, help="rate of a loss's proxies over the heads' (10)")
    flags.add_process(parser).add_argument(
        "--eval-every", type=positive, default=150, help="steps between measurements on held-out garments (150)"
    )
    parser.set_defaults(
        steps=600, batch_size=32, lr=1e-3, weight_decay=0.01, warm_up=30, drops="0.6,0.85", save_every=50
    )
    return parser


def parse(argv: list[str] | None) -> argparse.Namespace:
    line = parser()
    return finish(line, line.parse_args(argv))


def add_model(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("the model, where it differs from the named one").add_argument
    add("--backbone", metavar="TIMM_ID", help="backbone, as timm spells it")
    add("--descriptors", metavar="A,B", help="branches in order, of spoc, mac, gem; the first feeds the classifier")
    add("--dim", type=whole(1, 65_536), help="length of an embedding, a multiple of the number of branches")
    add("--input-size", type=whole(1, 4096), help="side of the crops in pixels")
    add("--stride", type=positive, help="pixels a cell of the last map: 16 without the last down-sampling")
    add("--init-from", default="", metavar="FILE", help="weights of the same model to start from")
    add("--freeze-stages", type=natural, default=2, help="first stages that do not learn, with the stem (2)")
    text = "the whole backbone does not learn, the head alone"
    add("--freeze", dest="freeze_stages", action="store_const", const=EVERY_STAGE, help=text)


def add_loss(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("the loss").add_argument
    add("--loss", default="batch-hard-triplet", help="preset or loss of retrieval.losses (batch-hard-triplet)")
    add("--loss-arg", action="append", default=[], metavar="NAME=NUMBER", help="argument of the loss; repeatable")
    add("--miner", default="", help="miner instead of the preset's; none for none")
    add("--auxiliary", type=amount, default=1.0, help="weight of the cross entropy (1); 0: no cross entropy")
    add("--temperature", type=above_zero, default=0.5, help="of the cross entropy (0.5)")
    add("--smoothing", type=number(0, 1, below=True), default=0.1, help="of the cross entropy's labels (0.1)")


def add_augmentation(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("augmentation of the crops; retrieval.training_crops.Augmentation").add_argument
    add("--jitter", type=share, default=0.08, help="share of a side by which a box's edges move at most (0.08)")
    add("--turn", type=amount, default=0.2, help="radians by which half of the crops are turned at most (0.2)")
    add("--flip", type=share, default=0.5, help="share of crops that are mirrored (0.5)")
    add("--light", type=share, default=0.25, help="largest change of brightness and contrast (0.25)")
    add("--colour", type=share, default=0.3, help="largest change of saturation (0.3)")
    add("--erase", type=share, default=0.3, help="share of crops with a rectangle in front of the garment (0.3)")


def finish(parser: argparse.ArgumentParser, args: argparse.Namespace) -> argparse.Namespace:
    """Check flags against each other and convert them."""
    if args.batch_size % args.per_identity or args.batch_size < 2 * args.per_identity:
        want = f"at least two garments and a multiple of --per-identity {args.per_identity}"
        parser.error(f"--batch-size {args.batch_size}: want {want}")
    if args.batch_size % args.workers:
        parser.error(f"--batch-size {args.batch_size} does not divide into {args.workers} workers")
    args.descriptors = tuple(args.descriptors.split(",")) if args.descriptors else None
    args.drops = args.drops if args.schedule == "steps" else ()
    args.loss_arg = dict(assignment(parser, text) for text in args.loss_arg)
    return args


def assignment(parser: argparse.ArgumentParser, text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, int(value) if value.lstrip("-").isdigit() else number(-math.inf)(value)
    except (ValueError, argparse.ArgumentTypeError):
        parser.error(f"--loss-arg: want NAME=NUMBER, got {text!r}")


def spec_of(args: argparse.Namespace) -> EmbedderSpec | TimmSpec:
    """The model to train: what --model names, an own one, `timm:ID` or an entry, with the flags' changes.

    Its weights will be new ones, so it has no published digest.
    """
    values = vars(args) | {"timm_id": args.backbone, "branches": args.descriptors}
    fields = ("timm_id", "branches", "dim", "input_size", "stride")
    changes = {name: values[name] for name in fields if values[name] is not None}
    entry = entry_of(args.model)
    try:
        if "timm" not in entry:
            return models.from_fields({**entry, "sha256": "", **changes})
        if given := [flag for field, flag in (("timm_id", "--backbone"), ("stride", "--stride")) if field in changes]:
            raise ValueError(f"a model of timm brings its own backbone and stride; leave out {given[0]}")
        if "weights" in entry or "view" in entry:
            raise ValueError("an entry to train has neither `weights` nor `view`; start from a file with --init-from")
        # training does not cut the middle out of its crops, so neither may what is trained
        spec = timm_models.from_fields({**entry, **changes, "crop": 1.0})
        if args.freeze_stages == EVERY_STAGE and not (spec.branches or spec.linear):
            raise ValueError("nothing would learn: with --freeze, add a head (--descriptors A,B or --dim N)")
        return spec
    except ValueError as error:
        raise UserError(str(error)) from None


def entry_of(model: str) -> dict[str, Any]:
    """What --model names, as an entry of a run file."""
    if model.startswith("timm:"):
        timm_id = model.removeprefix("timm:")
        return {"name": re.sub(r"[^A-Za-z0-9._-]+", "-", timm_id), "timm": timm_id}
    if not model.startswith("{"):
        return {"base": model, "name": model}
    entry: dict[str, Any] = parse_yaml(model, "--model")
    return entry


def train(argv: list[str], world: launch.World) -> int:
    """One worker's training, from photos to weights."""
    from jobs.training.embedder import EmbedderTraining  # brings torch and timm

    args = parse(argv)
    args.device = found_device(args.device)
    return loop.train(EmbedderTraining(args, spec_of(args), world), args, world)


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = parse(argv)
    return launch.launch("jobs.train_embedder", argv, workers=args.workers, device=args.device, threads=args.threads)


if __name__ == "__main__":
    cli.run(main)
