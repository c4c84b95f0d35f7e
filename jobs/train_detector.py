"""Train one detector on image sets with boxes; stop it anywhere, the same line goes on.

    python jobs/train_detector.py --model atss-tiny --imageset runs/ccp-train --output runs/train/atss --steps 1000
    python jobs/train_detector.py --model centernet-tiny --imageset runs/ccp-train --imageset runs/drawn:0.5 \\
        --init-from weights/tiny/atss-tiny.safetensors --output runs/train/centernet --steps 600

OUTPUT holds checkpoint.pt (newest, replaced atomically), log.jsonl (a line an interval), MODEL.safetensors (float16, what
`weights/` ships) and summary.json. One photo in ten, by pair_id, is held out of training and tells how it goes; several
image sets are mixed by the weight after the colon. Each step's batch depends on the seed and its number alone.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

if __name__ == "__main__" and (Path(__file__).resolve().parents[1] / "jobs" / "cli.py").is_file():
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from jobs import cli, training_run

HOLD_OUT_EVERY = 10  # pair_ids divisible by this are never trained on


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="name of a detector in detection.models")
    parser.add_argument(
        "--imageset", action="append", required=True, metavar="URI[:WEIGHT]", help="repeatable; weight 1"
    )
    parser.add_argument("--output", required=True, type=Path, help="folder for checkpoint, log and weights")
    # what is learnt from
    parser.add_argument("--user-weight", type=float, default=2.0, help="how much more often consumer photos come (2)")
    parser.add_argument(
        "--init-from", type=Path, help="safetensors of another detector: tensors of like name and shape"
    )
    # how long, how fast
    parser.add_argument("--steps", type=int, default=1000, help="optimiser steps in all (1000)")
    parser.add_argument("--batch-size", type=int, default=8, help="photos a step (8)")
    parser.add_argument("--lr", type=float, default=1.2e-3, help="highest rate of the heads (0.0012)")
    parser.add_argument("--backbone-share", type=float, default=0.3, help="the backbone's rate over the heads' (0.3)")
    parser.add_argument("--weight-decay", type=float, default=0.02, help="of AdamW (0.02)")
    parser.add_argument("--warm-up", type=int, default=60, help="steps until the highest rate (60)")
    # the rest
    parser.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    parser.add_argument(
        "--threads",
        type=int,
        default=os.cpu_count() or 1,
        help="CPU threads (all); with other work on the machine, 1 is faster",
    )
    parser.add_argument("--seed", type=int, default=0, help="of batches and augmentation (0)")
    parser.add_argument("--log-every", type=int, default=20, help="steps a line (20)")
    parser.add_argument("--save-every", type=int, default=100, help="steps a checkpoint (100)")
    parser.add_argument(
        "--eval-every", type=int, default=0, help="steps between measurements on held-out photos (0: at the end)"
    )
    args = parser.parse_args(argv)
    for name in ("steps", "batch_size", "log_every", "save_every", "threads"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} wants 1 or more, got {getattr(args, name)}")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)

    import torch

    from detection import detector, models, training

    torch.set_num_threads(args.threads)
    try:
        spec = models.named(args.model)
    except ValueError as error:
        raise cli.UserError(str(error)) from None
    learn, held_out = read_samples(args, spec)
    device = torch.device(args.device)
    batches = training.Batches(learn, spec, args.batch_size, args.seed)
    print(
        f"{spec.name}: {len(learn)} photos to learn from, {len(held_out)} held out, {args.steps} steps of {args.batch_size}",
        flush=True,
    )

    # ---------------------------------------------------------------- model, optimiser, where we were
    model = detector.build(spec, pretrained_backbone=True).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    training.freeze(model)
    if args.init_from:
        print(
            f"{training.take_matching(model, read_tensors(args.init_from))} tensors from {args.init_from}", flush=True
        )
    optimiser = torch.optim.AdamW(training.parameter_groups(model, args.lr, args.backbone_share, args.weight_decay))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: training_run.rate_share(step, args.steps, args.warm_up)
    )
    args.output.mkdir(parents=True, exist_ok=True)
    checkpoint = args.output / "checkpoint.pt"
    parts_of_state: dict[str, Any] = {"model": model, "optimiser": optimiser, "schedule": schedule}
    state = training_run.read_checkpoint(checkpoint, training_identity(args)) or {"step": 0, "seconds": 0.0}
    for name, part in parts_of_state.items():
        if name in state:
            part.load_state_dict(state[name])

    # ---------------------------------------------------------------- steps
    model.train()
    started = interval = time.monotonic()
    sums: dict[str, float] = {}
    for step in range(state["step"], args.steps):
        photos, shape = batches[step]
        torch.manual_seed(args.seed * 1_000_003 + step)  # R-CNN samples its boxes at random
        parts = training.losses(model, *training.to_model(photos, shape, spec, device))
        loss = torch.stack(list(parts.values())).sum()
        if not torch.isfinite(loss):
            raise RuntimeError(f"{spec.name}: loss is {loss.item()} at step {step}; try a lower --lr than {args.lr}")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 20.0)
        optimiser.step()
        schedule.step()
        for name, value in (*parts.items(), ("loss", loss)):
            sums[name] = sums.get(name, 0.0) + float(value.detach())
        done = step + 1
        if done % args.log_every == 0 or done == args.steps:
            count = (done - 1) % args.log_every + 1
            rate = count / (time.monotonic() - interval)
            line = {"step": done, **{name: round(total / count, 4) for name, total in sums.items()}}
            training_run.log(args.output, line)
            losses = " ".join(
                f"{name.removeprefix('loss_')} {value}" for name, value in line.items() if name not in ("step", "loss")
            )
            left_s = (args.steps - done) / rate
            print(
                f"{spec.name} {done}/{args.steps} loss {line['loss']:.3f} ({losses}) {rate:.2f} steps/s, {left_s / 60:.0f} min to go",
                flush=True,
            )
            interval, sums = time.monotonic(), {}
        if done % args.save_every == 0 or done == args.steps:
            seconds = state["seconds"] + time.monotonic() - started
            tensors = {name: part.state_dict() for name, part in parts_of_state.items()}
            training_run.save_checkpoint(
                checkpoint, training_identity(args), {"step": done, "seconds": seconds, **tensors}
            )
        if args.eval_every and done % args.eval_every == 0 and done < args.steps:
            training_run.log(args.output, {"step": done, "held_out": measure(spec, model, held_out, args.device)})
            model.train()
            interval = time.monotonic()

    # ---------------------------------------------------------------- weights and what they are worth
    path = args.output / f"{spec.name}.safetensors"
    digest = training_run.export(model.state_dict(), path)
    figures = measure(spec, model, held_out, args.device)
    summary = {
        "model": spec.name, "steps": args.steps, "batch_size": args.batch_size, "seconds": round(state["seconds"] + time.monotonic() - started),
        "photos": len(learn), "imagesets": args.imageset, "held_out": figures, "weights": path.name, "sha256": digest,
    }  # fmt: skip
    training_run.replace(args.output / "summary.json", (json.dumps(summary, indent=1) + "\n").encode())
    print(json.dumps(summary), flush=True)
    return 0


def read_samples(args: argparse.Namespace, spec: Any) -> tuple[list[Any], list[Any]]:
    """Every usable photo of the image sets, decoded and fitted: those to learn from, those held out."""
    from detection import training
    from store import decode, imageset

    learn: list[Any] = []
    held_out: list[Any] = []
    bad = 0
    for uri in args.imageset:
        name, _, weight = (
            uri.rpartition(":") if uri.rpartition(":")[2].replace(".", "", 1).isdigit() else (uri, "", "1")
        )
        images = imageset.open_imageset(name)
        for shard in images.shards:
            for row in images.read(shard.name).to_pylist():
                if row["weak_box"] or not row["items"]:
                    continue  # a box that is only the photo's frame teaches the wrong thing
                try:
                    photo = decode.decode(row["image"])
                except decode.DecodeError:
                    bad += 1
                    continue
                share = float(weight) * (args.user_weight if row["source"] == "user" else 1.0)
                one = training.sample(photo, row["items"], spec, share)
                (held_out if row["pair_id"] % HOLD_OUT_EVERY == 0 else learn).append(one)
    if not learn:
        raise cli.UserError(
            f"no photos with boxes in {', '.join(args.imageset)}; ingest them with jobs/ingest.py deepfashion2"
        )
    if bad:
        print(f"{bad} photos could not be decoded and are left out", flush=True)
    return learn, held_out


def training_identity(args: argparse.Namespace) -> dict[str, Any]:
    """What must stay the same for a checkpoint to be continued."""
    names = (
        "model",
        "imageset",
        "steps",
        "batch_size",
        "seed",
        "lr",
        "backbone_share",
        "weight_decay",
        "warm_up",
        "user_weight",
    )
    return {name: getattr(args, name) for name in names}


def measure(spec: Any, model: Any, held_out: list[Any], device: str) -> dict[str, Any]:
    """Average precision on photos held out, of the model as it stands, at the detector's own size."""
    import numpy as np

    from detection import detector, metrics, training

    if not held_out:
        return {}
    found = detector.Detector(spec, model, device, 0.01, 100).detect([one.image for one in held_out])
    truth = list(training.truth_rows(held_out))
    boxes = np.concatenate([b for _, b, _ in truth])
    figures = metrics.evaluate_boxes(
        {
            "image_id": np.concatenate([np.full(len(b), i) for i, b, _ in truth]),
            "bbox": boxes,
            "category_id": np.concatenate([c for _, _, c in truth]),
            "area": np.prod(boxes[:, 2:] - boxes[:, :2], 1),
        },
        {
            "image_id": np.concatenate([np.full(len(d), i) for i, d in enumerate(found)]),
            "bbox": np.concatenate([d.boxes for d in found]),
            "score": np.concatenate([d.scores for d in found]),
            "category_id": np.concatenate([d.categories for d in found]),
        },
        np.arange(len(held_out)),
    )
    figures = {name: figures[name] for name in ("AP", "AP50", "AP10", "AP10_50", "images")}
    print(f"{spec.name}: held out {figures}", flush=True)
    return figures


def read_tensors(path: Path) -> dict[str, Any]:
    from safetensors.torch import load

    try:
        return load(path.read_bytes())
    except Exception as error:
        raise cli.UserError(f"--init-from {path}: {error}") from None


if __name__ == "__main__":
    cli.run(main)
