"""Train one embedder on image sets with boxes and known pairs; stop it anywhere, the same line goes on.

    python jobs/train_embedder.py --model lite0-sg --imageset runs/ccp-train --output runs/train/lite0-sg --steps 600
    python jobs/train_embedder.py --model lite0-sg --mixture m3 --data s3://BUCKET/sets --output s3://BUCKET/train/m3 \\
        --loss multi-similarity --workers 4 --device cuda --precision bf16 --batch-size 256 --validation s3://BUCKET/sets/val

OUTPUT is laid out as jobs/training/run.py says; best.safetensors holds the averaged weights that did best on what is held
out, MODEL.safetensors the same in the end. Held-out figures are the benchmark's own accuracy on true boxes. Each step's
batch depends on the seed and its number alone, for any number of workers.
"""

import argparse
import math
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__" and (Path(__file__).resolve().parents[1] / "jobs" / "cli.py").is_file():
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from jobs import cli
from jobs.training import data as training_data
from jobs.training import run as training_run
from jobs.training import workers

if TYPE_CHECKING:
    from jobs.training.workers import World
    from retrieval.models import EmbedderSpec

SAME_TRAINING = (
    "model", "backbone", "descriptors", "dim", "input_size", "stride", "init_from", "freeze_stages", "loss", "loss_arg",
    "miner", "auxiliary", "temperature", "smoothing", "jitter", "turn", "flip", "light", "colour", "erase", "steps",
    "batch_size", "per_identity", "lr", "backbone_share", "layer_decay", "proxy_share", "weight_decay", "warm_up",
    "schedule", "drops", "ema_decay", "precision", "seed", "eval_every", "share",
)  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# The command line.


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="name of an embedder in retrieval.models")
    parser.add_argument("--output", required=True, help="folder or s3:// for checkpoints, log, weights and report")
    training_data.add_arguments(parser)
    parser.add_argument(
        "--share", type=float, default=1.0, help="of the garments are learnt from (1): what more photos would be worth"
    )

    group = parser.add_argument_group("the model, where it differs from the named one")
    group.add_argument("--backbone", metavar="TIMM_ID", help="backbone, as timm spells it")
    group.add_argument(
        "--descriptors", metavar="A,B", help="branches in order, of spoc, mac, gem; the first classifies"
    )
    group.add_argument("--dim", type=int, help="length of a row, a multiple of the number of branches")
    group.add_argument("--input-size", type=int, help="side of the crops in pixels")
    group.add_argument("--stride", type=int, help="pixels a cell of the last map: 16 without the last down-sampling")
    group.add_argument("--init-from", default="", metavar="FILE", help="safetensors of the same model to start from")
    group.add_argument("--freeze-stages", type=int, default=2, help="stages that do not learn, stem with them (2)")

    group = parser.add_argument_group("the loss")
    group.add_argument("--loss", default="batch-hard-triplet", help="preset or loss of retrieval.losses")
    group.add_argument(
        "--loss-arg", action="append", default=[], metavar="NAME=NUMBER", help="its argument; repeatable"
    )
    group.add_argument("--miner", default="", help="instead of the preset's; none for none")
    group.add_argument("--auxiliary", type=float, default=1.0, help="weight of the cross entropy (1); 0: none")
    group.add_argument("--temperature", type=float, default=0.5, help="of the cross entropy (0.5)")
    group.add_argument("--smoothing", type=float, default=0.1, help="of its labels (0.1)")

    group = parser.add_argument_group("how crops are changed; retrieval.training_crops.Augmentation")
    for name, default, what in (
        ("jitter", 0.08, "share of a side by which a box's edges move"),
        ("turn", 0.2, "radians half of the crops are turned by at most"),
        ("flip", 0.5, "share seen in a mirror"),
        ("light", 0.25, "change of brightness and contrast"),
        ("colour", 0.3, "change of saturation"),
        ("erase", 0.3, "share with a rectangle before the garment"),
    ):
        group.add_argument(f"--{name}", type=float, default=default, help=f"{what} ({default:g})")

    group = parser.add_argument_group("how long, how fast")
    group.add_argument("--steps", type=int, default=600, help="optimiser steps in all (600)")
    group.add_argument(
        "--minutes", type=float, default=math.inf, help="stop this start after so many, with a checkpoint"
    )
    group.add_argument("--batch-size", type=int, default=32, help="crops a step, of all workers together (32)")
    group.add_argument(
        "--per-identity", type=int, default=2, help="crops of each garment, consumer and shop in turn (2)"
    )
    group.add_argument("--accumulate", type=int, default=1, help="pieces a worker's share is computed in (1)")
    group.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the backbone's arithmetic")
    group.add_argument("--lr", type=float, default=1e-3, help="highest rate of the head (0.001)")
    group.add_argument("--backbone-share", type=float, default=0.3, help="the backbone's rate over the head's (0.3)")
    group.add_argument("--layer-decay", type=float, default=1.0, help="each stage's rate over the next one's (1)")
    group.add_argument("--proxy-share", type=float, default=10.0, help="rate of a loss's proxies over the head's (10)")
    group.add_argument("--weight-decay", type=float, default=0.01, help="of AdamW (0.01)")
    group.add_argument("--warm-up", type=int, default=30, help="steps until the highest rate (30)")
    group.add_argument("--schedule", choices=("cosine", "steps"), default="cosine", help="of the rate afterwards")
    group.add_argument("--drops", default="0.6,0.85", help="with steps: after which shares it falls to a tenth")
    group.add_argument(
        "--ema-decay", type=float, default=0.998, help="of the averaged weights that are shipped (0.998)"
    )

    group = parser.add_argument_group("the rest")
    group.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    group.add_argument("--workers", type=int, default=1, help="processes, on Ray Train above 1 (1)")
    group.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads of each worker (all)")
    group.add_argument("--seed", type=int, default=0, help="of batches and changes (0)")
    group.add_argument("--cache-gb", type=float, default=4.0, help="crops above so much are kept as JPEG (4)")
    group.add_argument(
        "--crops", default="", metavar="FOLDER", help="keep cut garments there, and share them with other trainings"
    )
    group.add_argument("--log-every", type=int, default=20, help="steps a line (20)")
    group.add_argument("--save-every", type=int, default=50, help="steps a checkpoint (50)")
    group.add_argument("--keep", type=int, default=2, help="newest checkpoints that stay (2)")
    group.add_argument(
        "--eval-every", type=int, default=150, help="steps between measurements on what is held out (150)"
    )
    return parser


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = arguments()
    args = parser.parse_args(argv)
    counts = (
        "steps",
        "batch_size",
        "accumulate",
        "workers",
        "threads",
        "log_every",
        "save_every",
        "keep",
        "eval_every",
    )
    for name in counts:
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} wants 1 or more, got {getattr(args, name)}")
    if args.per_identity < 2 or args.batch_size % args.per_identity or args.batch_size < 2 * args.per_identity:
        parser.error(
            f"--batch-size {args.batch_size} wants to be a multiple of --per-identity {args.per_identity} (2 or more), "
            "two garments at least"
        )
    if args.batch_size % args.workers:
        parser.error(f"--batch-size {args.batch_size} does not divide into {args.workers} workers")
    if not 0 < args.share <= 1:
        parser.error(f"--share wants more than 0 up to 1, got {args.share:g}")
    if not 0 <= args.ema_decay < 1:
        parser.error(f"--ema-decay wants 0 up to below 1, got {args.ema_decay}")
    args.descriptors = tuple(args.descriptors.split(",")) if args.descriptors else None
    args.drops = _shares(parser, args.drops) if args.schedule == "steps" else ()
    args.loss_arg = dict(_assignment(parser, text) for text in args.loss_arg)
    return args


def _shares(parser: argparse.ArgumentParser, text: str) -> tuple[float, ...]:
    try:
        shares = tuple(float(word) for word in text.split(","))
    except ValueError:
        shares = (math.nan,)
    if not all(0 < share < 1 for share in shares):
        parser.error(f"--drops wants shares of all steps between 0 and 1, as 0.6,0.85, got {text!r}")
    return shares


def _assignment(parser: argparse.ArgumentParser, text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, int(value) if value.lstrip("-").isdigit() else float(value)
    except ValueError:
        parser.error(f"--loss-arg wants NAME=NUMBER, got {text!r}")


def spec_of(args: argparse.Namespace) -> "EmbedderSpec":
    """The named embedder with the changes asked for; a changed one has no published digest."""
    from retrieval import models

    wanted = {
        "timm_id": args.backbone,
        "branches": args.descriptors,
        "dim": args.dim,
        "input_size": args.input_size,
        "stride": args.stride,
    }
    changes = {name: value for name, value in wanted.items() if value is not None}
    try:
        return models.from_fields({"base": args.model, "name": args.model, "sha256": "", **changes})
    except ValueError as error:
        raise cli.UserError(str(error)) from None


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = parse(argv)
    return workers.launch("jobs.train_embedder", argv, workers=args.workers, device=args.device, threads=args.threads)


# ---------------------------------------------------------------------------------------------------------------------
# The training, in each worker.


def train(argv: list[str], world: "World") -> int:
    args = parse(argv)

    import numpy as np
    import torch

    from jobs.training import embedder_crops, embedder_worth
    from retrieval import training
    from retrieval.training_crops import CHANCES

    torch.set_num_threads(args.threads)
    spec = spec_of(args)
    learning = training_data.LearningSet(training_data.parts(args), args.validation)
    same = {name: getattr(args, name) for name in SAME_TRAINING} | learning.identity()
    with training_run.TrainingRun(args.output, same, keep=args.keep, writes=world.rank == 0) as run:
        # ------------------------------------------------------------ crops, model, optimiser, where we were
        state = run.resume() or {"step": 0, "seconds": 0.0, "best": None}
        garments = embedder_crops.read(args, spec, learning)
        objective = make_objective(args, spec, len(garments.classes))
        model = start_model(args, spec, len(garments.classes)).to(args.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        objective.ranking.to(args.device)
        training.freeze(model.backbone, args.freeze_stages)
        groups = training.parameter_groups(
            model, objective.ranking, rate=args.lr, backbone_share=args.backbone_share, layer_decay=args.layer_decay,
            proxy_share=args.proxy_share, weight_decay=args.weight_decay,
        )  # fmt: skip
        optimiser = torch.optim.AdamW(groups)
        average = training.Average(without_classifier(model.state_dict()), args.ema_decay)
        with run.restoring():
            restore(state, model, objective, average, optimiser)
        if world.rank == 0:
            print(
                f"{spec.name}: {len(garments.classes)} garments in several photos to learn from, {len(garments)} crops, "
                f"{args.steps} steps of {args.batch_size}, {args.loss}, {world.size} worker(s)",
                flush=True,
            )

        # ------------------------------------------------------------ steps
        started = time.monotonic()
        interval = training_run.Interval(spec.name, args.steps, state["step"])
        best, done = state["best"], state["step"]
        while done < args.steps:
            rng = np.random.default_rng((args.seed, done))
            rows, classes = garments.batch(args.batch_size // args.per_identity, args.per_identity, rng)
            chance, part = rng.random((len(rows), CHANCES)), world.part(len(rows))
            images = garments.images(rows[part], chance[part], args.device)
            share = training_run.rate_share(done, args.steps, args.warm_up, args.drops)
            training.set_rates(optimiser, share)
            optimiser.zero_grad(set_to_none=True)
            model.train()
            model.backbone.eval()  # published batch-norm statistics stay: batches are small
            torch.manual_seed(args.seed * 1_000_003 + done)  # some miners draw
            try:
                parts = training.backward(
                    model, objective, images, torch.from_numpy(classes).to(args.device),
                    gather=world.gather, micro=args.accumulate, half=args.precision == "bf16",
                )  # fmt: skip
            except FloatingPointError as error:
                raise cli.UserError(f"{spec.name}, step {done}: {error}; try a lower --lr than {args.lr}") from None
            world.sum_gradients(training.shared_parameters(model))
            torch.nn.utils.clip_grad_norm_([p for g in optimiser.param_groups for p in g["params"]], 10.0)
            optimiser.step()
            average.update(without_classifier(model.state_dict()))
            interval.add({**parts, "loss": sum(parts.values())})
            done += 1
            over = world.agrees(time.monotonic() - started > args.minutes * 60)
            last = done == args.steps or over
            if done % args.log_every == 0 or last:
                figures, line = interval.close(done, args.lr * share)
                run.log(done, "train", figures)
                if world.rank == 0:
                    print(line, flush=True)
            if (done % args.eval_every == 0 or done == args.steps) and world.rank == 0:
                figures = embedder_worth.measure(spec, average.tensors, garments, args.device)
                run.log(done, "held_out", figures)
                print(f"{spec.name} {done}/{args.steps} held out: {figures}", flush=True)
                best = embedder_worth.keep_best(run, best, done, figures, average.tensors)
                interval = training_run.Interval(spec.name, args.steps, done)
            if done % args.save_every == 0 or done % args.eval_every == 0 or last:
                seconds = state["seconds"] + time.monotonic() - started
                parts_of_state = {
                    "model": model.state_dict(), "ranking": objective.ranking.state_dict(), "average": average.tensors,
                    "optimiser": optimiser.state_dict(), "seconds": seconds, "best": best,
                }  # fmt: skip
                run.save(done, parts_of_state)
            world.wait()
            if over and done < args.steps:
                print(
                    f"{spec.name}: {args.minutes:g} minutes are over at step {done}; the same line goes on", flush=True
                )
                break

        if world.rank == 0:
            if best is None:  # stopped before the first measurement
                figures = embedder_worth.measure(spec, average.tensors, garments, args.device)
                best = embedder_worth.keep_best(run, None, done, figures, average.tensors)
            facts = {
                "model": spec.name, "loss": args.loss, "steps": best["step"], "stopped_at": done, "of_steps": args.steps,
                "batch_size": args.batch_size, "seconds": round(state["seconds"] + time.monotonic() - started),
                "imagesets": {part.uri: part.weight for part in learning.sets}, "left_out": dict(learning.left_out),
            }  # fmt: skip
            at_the_end = learning.validation is not None and done == args.steps  # read once
            validation = embedder_crops.read_validation(args, spec, learning) if at_the_end else None
            embedder_worth.finish(run, spec, facts, best, garments, validation, args.device)
    return 0


def make_objective(args: argparse.Namespace, spec: "EmbedderSpec", classes: int) -> Any:
    import torch

    from retrieval.losses import RankingLoss
    from retrieval.training import Objective

    torch.manual_seed(args.seed)  # proxies start at random, alike in every worker
    try:
        ranking = RankingLoss(args.loss, args.loss_arg, miner=args.miner, dim=spec.dim, classes=classes)
    except (ValueError, TypeError) as error:
        raise cli.UserError(str(error)) from None
    return Objective(ranking, args.auxiliary, args.temperature, args.smoothing)


def start_model(args: argparse.Namespace, spec: "EmbedderSpec", classes: int) -> Any:
    """A network with a classifier: the published backbone where there is one, or what --init-from holds."""
    from retrieval import embedder

    try:
        if not args.init_from:
            return embedder.build(spec, classes=classes, pretrained_backbone=True)
        model = embedder.build(spec, classes=classes)
        own = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("classifier.")}
        tensors = embedder.read(Path(args.init_from), spec)
        embedder.fill(model, tensors | own, f"{spec.name}: {args.init_from}")
        return model
    except embedder.WeightsError as error:
        raise cli.UserError(str(error)) from None


def restore(state: dict[str, Any], model: Any, objective: Any, average: Any, optimiser: Any) -> None:
    """Put a checkpoint's parts where they were; nothing at step 0."""
    if state["step"] == 0:
        return
    model.load_state_dict(state["model"])
    objective.ranking.load_state_dict(state["ranking"])
    average.load(state["average"], state["step"])
    optimiser.load_state_dict(state["optimiser"])


def without_classifier(tensors: dict[str, Any]) -> dict[str, Any]:
    """What leaves training: everything but the classifier, which knows the training set's garments only."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("classifier.")}


if __name__ == "__main__":
    cli.run(main)
