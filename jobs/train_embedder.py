"""Train one embedder on image sets with boxes and known pairs; stop it anywhere, the same line goes on.

    python jobs/train_embedder.py --model lite0-sg --imageset runs/ccp-train --output runs/train/lite0-sg --steps 600
    python jobs/train_embedder.py --model lite0-sg --imageset runs/ccp-train --imageset runs/drawn \\
        --init-from runs/train/lite0-sg/lite0-sg.safetensors --output runs/train/lite0-sg-2 --steps 300 --minutes 10

OUTPUT holds checkpoint.pt (newest, replaced atomically), best.safetensors (the averaged weights that did best on what is held
out), log.jsonl (a line an interval), MODEL.safetensors (float16, what `weights/` ships) and summary.json. One garment in ten, by
pair_id, is held out. Losses as in CGD (arXiv:1903.10663). Each step's batch depends on the seed and its number alone.
"""

import argparse
import hashlib
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__" and (Path(__file__).resolve().parents[1] / "jobs" / "cli.py").is_file():
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from jobs import cli, training_run

if TYPE_CHECKING:
    from retrieval.models import EmbedderSpec
    from retrieval.training import Garments

SAME_TRAINING = (
    "model", "imageset", "steps", "batch_size", "per_identity", "seed", "lr", "backbone_share", "weight_decay", "warm_up",
    "freeze_stages", "init_from", "eval_every",
)  # fmt: skip


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="name of an embedder in retrieval.models")
    parser.add_argument("--imageset", action="append", required=True, metavar="URI", help="repeatable")
    parser.add_argument("--output", required=True, type=Path, help="folder for checkpoint, log and weights")
    # what is learnt from
    parser.add_argument(
        "--init-from",
        default="",
        metavar="FILE",
        help="safetensors of the same model to start from (ImageNet backbone)",
    )
    parser.add_argument(
        "--freeze-stages", type=int, default=2, help="stages that do not learn, the stem with them; 0: all learn (2)"
    )
    # how long, how fast
    parser.add_argument("--steps", type=int, default=600, help="optimiser steps in all (600)")
    parser.add_argument(
        "--minutes",
        type=float,
        default=math.inf,
        help="stop with a checkpoint after so many minutes of this start (never)",
    )
    parser.add_argument("--batch-size", type=int, default=32, help="crops a step (32)")
    parser.add_argument(
        "--per-identity", type=int, default=2, help="crops of each garment in a batch, consumer and shop in turn (2)"
    )
    parser.add_argument("--lr", type=float, default=1e-3, help="highest rate of the head (0.001)")
    parser.add_argument("--backbone-share", type=float, default=0.3, help="the backbone's rate over the head's (0.3)")
    parser.add_argument("--weight-decay", type=float, default=0.01, help="of AdamW (0.01)")
    parser.add_argument("--warm-up", type=int, default=30, help="steps until the highest rate (30)")
    # the rest
    parser.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads (all)")
    parser.add_argument("--seed", type=int, default=0, help="of batches and augmentation (0)")
    parser.add_argument("--log-every", type=int, default=20, help="steps a line (20)")
    parser.add_argument("--save-every", type=int, default=50, help="steps a checkpoint (50)")
    parser.add_argument(
        "--eval-every", type=int, default=150, help="steps between measurements on what is held out (150)"
    )
    args = parser.parse_args(argv)
    for name in ("steps", "batch_size", "log_every", "save_every", "eval_every", "threads"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} wants 1 or more, got {getattr(args, name)}")
    if args.per_identity < 2 or args.batch_size % args.per_identity or args.batch_size < 2 * args.per_identity:
        parser.error(
            f"--batch-size {args.batch_size} wants to be a multiple of --per-identity {args.per_identity} (2 or more), two garments at least"
        )
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)

    import numpy as np
    import torch

    from retrieval import losses, models, training

    torch.set_num_threads(args.threads)
    try:
        spec = models.named(args.model)
    except ValueError as error:
        raise cli.UserError(str(error)) from None
    garments = read_garments(args.imageset, spec)
    print(
        f"{spec.name}: {len(garments.classes)} garments in several photos to learn from, {len(garments.shop)} crops, {args.steps} steps",
        flush=True,
    )

    # ---------------------------------------------------------------- model, optimiser, where we were
    model = start_model(args, spec, len(garments.classes)).to(args.device, memory_format=torch.channels_last)
    training.freeze(model.backbone, args.freeze_stages)
    learns = [p for p in model.backbone.parameters() if p.requires_grad]
    head = [p for name, p in model.named_parameters() if not name.startswith("backbone.")]
    groups = [{"params": learns, "lr": args.lr * args.backbone_share}, {"params": head, "lr": args.lr}]
    optimiser = torch.optim.AdamW(groups, weight_decay=args.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: training_run.rate_share(step, args.steps, args.warm_up)
    )
    average = training.Average(model)
    args.output.mkdir(parents=True, exist_ok=True)
    checkpoint = args.output / "checkpoint.pt"
    state = resume(checkpoint, args, model, average, optimiser, schedule)

    # ---------------------------------------------------------------- steps
    started = interval = time.monotonic()
    sums, best, done = [0.0, 0.0], state["best"], state["step"]
    for step in range(state["step"], args.steps):
        rng = np.random.default_rng((args.seed, step))
        rows, classes = garments.batch(args.batch_size // args.per_identity, args.per_identity, rng)
        images, labels = garments.images(rows, rng).to(args.device), torch.from_numpy(classes).to(args.device)
        model.train()
        model.backbone.eval()  # published batch-norm statistics stay: batches are small
        found, logits = model(images)
        ranking = losses.batch_hard_triplet(found, labels)
        naming = losses.tempered_cross_entropy(logits, labels)
        loss = ranking + naming
        if not torch.isfinite(loss):
            raise RuntimeError(f"{spec.name}: loss is {loss.item()} at step {step}; try a lower --lr than {args.lr}")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimiser.step()
        schedule.step()
        average.update(model)
        sums = [sums[0] + ranking.item(), sums[1] + naming.item()]
        done = step + 1
        over = time.monotonic() - started > args.minutes * 60
        if done % args.log_every == 0 or done == args.steps or over:
            count = (done - state["step"] - 1) % args.log_every + 1
            rate = count / (time.monotonic() - interval)
            line = {"step": done, "triplet": round(sums[0] / count, 4), "cross_entropy": round(sums[1] / count, 4)}
            training_run.log(args.output, line)
            left_min = (args.steps - done) / rate / 60
            print(
                f"{spec.name} {done}/{args.steps} triplet {line['triplet']} cross entropy {line['cross_entropy']} {rate:.2f} steps/s, {left_min:.0f} min to go",
                flush=True,
            )
            interval, sums = time.monotonic(), [0.0, 0.0]
        if done % args.eval_every == 0 or done == args.steps:
            figures = measure(args, spec, average, garments)
            training_run.log(args.output, {"step": done, "held_out": figures})
            print(f"{spec.name} {done}/{args.steps} held out: {figures}", flush=True)
            worth = (
                figures["acc@1"] + figures["acc@10"] if figures["queries"] else 0.0
            )  # nothing held out: the last is the best
            if best is None or worth >= best["worth"]:
                best = {"worth": worth, "step": done, "held_out": figures}
                training_run.export(without_classifier(average.tensors), args.output / "best.safetensors")
            interval = time.monotonic()
        if done % args.save_every == 0 or done % args.eval_every == 0 or done == args.steps or over:
            seconds = state["seconds"] + time.monotonic() - started
            tensors = {
                "model": model.state_dict(),
                "average": average.tensors,
                "optimiser": optimiser.state_dict(),
                "schedule": schedule.state_dict(),
            }
            training_run.save_checkpoint(
                checkpoint, same_training(args), {"step": done, "seconds": seconds, "best": best, **tensors}
            )
        if over and done < args.steps:
            print(
                f"{spec.name}: {args.minutes:g} minutes are over at step {done}; the same line goes on from here",
                flush=True,
            )
            break

    seconds = state["seconds"] + time.monotonic() - started
    if best is None:  # stopped before the first measurement
        best = {"step": done, "held_out": measure(args, spec, average, garments)}
        return finish(args, spec, garments, best, training_run.to_bytes(without_classifier(average.tensors)), seconds)
    return finish(args, spec, garments, best, (args.output / "best.safetensors").read_bytes(), seconds)


def finish(
    args: argparse.Namespace,
    spec: "EmbedderSpec",
    garments: "Garments",
    best: dict[str, Any],
    data: bytes,
    seconds: float,
) -> int:
    """The best weights under the model's name, and a line on what they are worth."""
    training_run.replace(args.output / f"{spec.name}.safetensors", data)
    summary = {
        "model": spec.name, "steps": best["step"], "batch_size": args.batch_size, "seconds": round(seconds), "imagesets": args.imageset,
        "crops": len(garments.shop), "identities": len(garments.classes), "held_out": best["held_out"],
        "weights": f"{spec.name}.safetensors", "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(),
    }  # fmt: skip
    training_run.replace(args.output / "summary.json", (json.dumps(summary, indent=1) + "\n").encode())
    print(json.dumps(summary), flush=True)
    return 0


def read_garments(uris: list[str], spec: "EmbedderSpec") -> "Garments":
    """Every garment of the image sets with a usable box, cut and kept in memory (about 110 kB each at 160 px)."""
    import numpy as np

    from retrieval import training
    from store import decode, imageset

    items, bad = [], 0
    for number, uri in enumerate(uris):
        images = imageset.open_imageset(uri)
        for shard in images.shards:
            columns = ["image", "source", "pair_id", "items"]
            for row in images.read(shard.name).select(columns).to_pylist():
                if not row["items"]:
                    continue
                try:
                    photo = decode.decode(row["image"])
                except decode.DecodeError:
                    bad += 1
                    continue
                for item in row["items"]:
                    known = row["pair_id"] > 0 and item["style"] > 0
                    one = training.cache(
                        photo, np.array(item["bbox"]), spec.input_size,
                        identity=(number, row["pair_id"], item["style"]) if known else None,
                        shop=row["source"] == "shop", held_out=row["pair_id"] % training.HOLD_OUT_EVERY == 0,
                    )  # fmt: skip
                    items.append(one)
    garments = training.Garments(items, spec)
    if bad:
        print(f"{bad} photos could not be decoded and are left out", flush=True)
    if len(garments.classes) < 2:
        raise cli.UserError(
            f"{', '.join(uris)}: want garments of known pair_id and style in several photos, found {len(garments.classes)}"
        )
    return garments


def start_model(args: argparse.Namespace, spec: "EmbedderSpec", classes: int) -> Any:
    """A network with a classifier: the ImageNet backbone where there is one, or what --init-from holds."""
    from retrieval import embedder

    try:
        if not args.init_from:
            return embedder.build(spec, classes=classes, pretrained_backbone=True)
        model = embedder.build(spec, classes=classes)
        own = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("classifier.")}
        tensors = embedder.read(Path(args.init_from), without_digest(spec))
        embedder.fill(model, tensors | own, f"{spec.name}: {args.init_from}")
        return model
    except embedder.WeightsError as error:
        raise cli.UserError(str(error)) from None


def without_digest(spec: "EmbedderSpec") -> "EmbedderSpec":
    """Training may start from any file of the model, not only the shipped one."""
    import dataclasses

    return dataclasses.replace(spec, sha256="")


def measure(args: argparse.Namespace, spec: "EmbedderSpec", average: Any, garments: "Garments") -> dict[str, float]:
    """The averaged weights on what is held out, as they would be shipped."""
    import torch

    from retrieval import embedder, training

    model = embedder.build(spec)
    embedder.fill(model, training_run.shipped(without_classifier(average.tensors)), spec.name)
    model = model.to(args.device).to(memory_format=torch.channels_last)
    figures = training.held_out_accuracy(model, garments, device=args.device)
    return {name: round(value, 4) for name, value in figures.items()}


def without_classifier(tensors: dict[str, Any]) -> dict[str, Any]:
    """What leaves training: everything but the classifier, which knows the training set's garments only."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("classifier.")}


def resume(
    path: Path, args: argparse.Namespace, model: Any, average: Any, optimiser: Any, schedule: Any
) -> dict[str, Any]:
    """Continue from a checkpoint, if there is one; returns step, seconds spent and the best so far."""
    state = training_run.read_checkpoint(path, same_training(args))
    if state is None:
        return {"step": 0, "seconds": 0.0, "best": None}
    model.load_state_dict(state["model"])
    average.tensors = {name: tensor.to(args.device) for name, tensor in state["average"].items()}
    average.updates = state["step"]
    optimiser.load_state_dict(state["optimiser"])
    schedule.load_state_dict(state["schedule"])
    return {name: state[name] for name in ("step", "seconds", "best")}


def same_training(args: argparse.Namespace) -> dict[str, Any]:
    """What must stay the same for a checkpoint to be continued."""
    return {name: getattr(args, name) for name in SAME_TRAINING}


if __name__ == "__main__":
    cli.run(main)
