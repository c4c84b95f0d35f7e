"""The flags that both training commands have, and the values they take."""

import argparse
import os

from jobs.cli import Once
from jobs.runs.flags import add_device, add_endpoint_url
from sources import mixtures
from sources.arguments import above_zero, amount, natural, number, positive, share, whole
from sources.mixtures import MixturePart
from store.errors import UserError

EVERY_STAGE = 10_000_000  # more stages than any network has
threads = whole(1, 1024)  # as `threads_per_actor` of the settings


def shares(text: str) -> tuple[float, ...]:
    """Numbers in [0, 1], separated by commas."""
    return tuple(share(part) for part in text.split(","))


def add_imagesets(parser: argparse.ArgumentParser) -> "argparse._ArgumentGroup":
    group = parser.add_argument_group("what to learn from")
    add = group.add_argument
    text = "an image set of jobs/ingest.py and the weight of its photos (1); repeatable"
    add("--imageset", action="append", default=[], metavar="URI[:WEIGHT]", help=text)
    add("--mixture", choices=tuple(mixtures.MIXTURES), help="a mixture of the paper; needs --data")
    add("--data", metavar="ROOT", help="folder or s3:// that has an image set under each data set's name")
    text = "image set that is measured once, at the end; its photos are left out of training"
    add("--validation", action=Once, metavar="URI", help=text)
    return group


def imagesets(args: argparse.Namespace) -> list[MixturePart]:
    """The image sets the flags name. UserError: none, a bad weight, or a mixture without its place."""
    if bool(args.mixture) != bool(args.data):
        raise UserError("--mixture and --data go together: which data sets, and where their image sets are")
    try:
        mixture = mixtures.parts(args.mixture, args.data) if args.mixture else []
        parts = [*mixture, *map(mixtures.parse, args.imageset)]
    except ValueError as error:
        raise UserError(str(error)) from None
    if not parts:
        raise UserError("nothing to learn from: give --imageset URI, or --mixture m0 … m5 with --data ROOT")
    return parts


def add_schedule(parser: argparse.ArgumentParser, unit: str) -> "argparse._ArgumentGroup":
    """How long and how fast a model learns; the command sets the defaults. `unit`: what a batch consists of."""
    group = parser.add_argument_group("how long and how fast")
    add = group.add_argument
    add("--steps", type=positive, help="optimiser steps in all (%(default)s)")
    add("--batch-size", type=positive, help=f"{unit} a step, of all workers together (%(default)s)")
    add("--accumulate", type=positive, default=1, help="parts in which a worker computes its batch, to save memory (1)")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="arithmetic of the forward pass (fp32)")
    add("--lr", type=above_zero, help="highest learning rate of the heads (%(default)s)")
    add("--backbone-share", type=amount, default=0.3, help="the backbone's learning rate over the heads' (0.3)")
    add("--weight-decay", type=amount, help="of AdamW (%(default)s)")
    add("--warm-up", type=natural, help="steps until the highest learning rate (%(default)s)")
    add("--schedule", choices=("cosine", "steps"), default="cosine", help="how the learning rate falls (cosine)")
    add("--drops", type=shares, help="with steps: shares of all steps after which it is a tenth (%(default)s)")
    text = "of the moving average of the weights; 0: no average (0.998)"
    add("--ema-decay", type=number(0, 1, below=True), default=0.998, help=text)
    return group


def add_process(parser: argparse.ArgumentParser) -> "argparse._ArgumentGroup":
    """Where a training runs and what it writes; the command sets the defaults."""
    group = parser.add_argument_group("processes, log and checkpoints")
    add = group.add_argument
    add("--workers", type=positive, default=1, help="processes that train together, on Ray Train above 1 (1)")
    add_device(add, default="cpu", numbered=True)
    add("--threads", type=threads, default=os.cpu_count() or 1, help="CPU threads of each worker (all)")
    add("--seed", type=natural, default=0, help="of batches and augmentation (0)")
    add("--cache-gb", type=number(0, 100_000), default=4.0, help="memory for decoded photos or crops (4)")
    add("--log-every", type=positive, default=20, help="steps between lines of the log (20)")
    add("--save-every", type=positive, help="steps between checkpoints (%(default)s)")
    add("--keep", type=positive, default=2, help="checkpoints kept, the newest (2)")
    add_endpoint_url(add)
    return group
