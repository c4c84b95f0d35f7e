"""Training of an embedder: garments of image sets in, weights, figures and a page with the surest mistakes out.

OUTPUT/best.safetensors   the averaged weights that did best on held-out garments
OUTPUT/ranks.json         {"photo": [...], "rank": [...]}: of each query judged last, where its first right garment came
                          (0: not among the first 20); `jobs/compare.py` takes its intervals from it
"""

import argparse
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from safetensors.torch import load
from torch import Tensor

from jobs.reports import training as training_report
from jobs.training import crops_cache, flags
from jobs.training.data import LearningPhoto, LearningSet
from jobs.training.launch import World
from jobs.training.run import TrainingRun, shipped, to_bytes
from networks import checkpoints, weight_files
from retrieval import cgd_networks, held_out, timm_networks, training, training_crops
from retrieval.cgd import CGD
from retrieval.held_out import HeldOutLists
from retrieval.losses import RankingLoss
from retrieval.models import EmbedderSpec
from retrieval.timm_models import TimmSpec
from retrieval.training_crops import CHANCES, Augmentation, CachedGarment, Garments
from store.categories import category_name
from store.errors import UserError

SAME_TRAINING = (
    "model", "backbone", "descriptors", "dim", "input_size", "stride", "init_from", "freeze_stages", "loss", "loss_arg",
    "miner", "auxiliary", "temperature", "smoothing", "jitter", "turn", "flip", "light", "colour", "erase", "steps",
    "batch_size", "per_identity", "lr", "backbone_share", "layer_decay", "proxy_share", "weight_decay", "warm_up",
    "schedule", "drops", "ema_decay", "precision", "seed", "eval_every", "share",
)  # fmt: skip


Spec = EmbedderSpec | TimmSpec


class Batch(NamedTuple):
    """A worker's part of a step's batch."""

    rows: np.ndarray  # (n,) int64 of its garments
    chances: np.ndarray  # (n, CHANCES) float64 in [0, 1), what augments them
    classes: np.ndarray  # (B,) int64 of the whole batch, B = n * workers


class EmbedderTraining:
    """A `jobs.training.loop.ModelTraining` with the flags of jobs/train_embedder.py."""

    def __init__(self, args: argparse.Namespace, spec: Spec, world: World) -> None:
        torch.set_num_threads(args.threads)
        self.args, self.spec, self.world, self.name = args, spec, world, spec.name
        self.set = LearningSet(flags.imagesets(args), args.validation, endpoint_url=args.endpoint_url)
        self.identity = {name: getattr(args, name) for name in SAME_TRAINING} | self.set.identity()
        self.best: dict[str, Any] | None = None  # figures of the best weights so far, {"worth", "step", "held_out"}

    def build(self, *, fresh: bool) -> str:
        args = self.args
        self.garments = read_garments(args, self.spec, self.set)
        classes = len(self.garments.classes)
        objective = make_objective(args, self.spec, classes)
        model = start_model(args, self.spec, classes).to(args.device)
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        objective.ranking.to(args.device)
        training.freeze(model.backbone, args.freeze_stages)
        self.learner = training.EmbedderLearner(
            model, objective, rate=args.lr, backbone_share=args.backbone_share, layer_decay=args.layer_decay,
            proxy_share=args.proxy_share, weight_decay=args.weight_decay, ema_decay=args.ema_decay,
        )  # fmt: skip
        return f"{classes} garments in several photos to learn from, {len(self.garments)} crops, {args.loss}"

    def state(self) -> dict[str, Any]:
        return self.learner.state() | {"best": self.best}

    def load(self, state: Mapping[str, Any]) -> None:
        self.learner.load(state)
        self.best = state["best"]

    def batches(self, steps: range) -> Iterator[tuple[int, Batch]]:
        for step in steps:
            rng = np.random.default_rng((self.args.seed, step))
            per_identity = self.args.per_identity
            rows, classes = self.garments.batch(self.args.batch_size // per_identity, per_identity, rng)
            chances, part = rng.random((len(rows), CHANCES)), self.world.part(len(rows))
            yield step, Batch(rows[part], chances[part], classes)

    def gradients(self, step: int, batch: Batch) -> dict[str, float]:
        args = self.args
        images = self.garments.images(batch.rows, batch.chances, args.device)
        losses = self.learner.gradients(
            images, torch.from_numpy(batch.classes).to(args.device), seed=args.seed * 1_000_003 + step,
            gather=self.world.gather, micro=args.accumulate, half=args.precision == "bf16",
        )  # fmt: skip
        self.world.sum_gradients(training.shared_parameters(self.learner.model))
        return losses

    def update(self, rate_share: float) -> None:
        self.learner.update(rate_share)

    def measure(self, run: TrainingRun, step: int) -> None:
        figures = self.keep_best(run, step)
        run.log(step, "held_out", figures)
        print(f"{self.name} {step}/{self.args.steps} held out: {training_report.fact_text(figures)}", flush=True)

    def keep_best(self, run: TrainingRun, step: int) -> dict[str, float]:
        """Figures on held-out garments; the weights are published where they are the best so far."""
        tensors = self.learner.average.tensors
        model = shipped_model(self.spec, tensors, self.args.device)
        lists = held_out.rank(model, self.garments, device=self.args.device)
        figures: dict[str, float] = {"queries": 0}
        if len(lists):
            figures = summary_of(held_out.evaluate(self.garments, lists))
        # with nothing held out, the last weights are the best
        worth = figures["acc@1"] + figures["acc@10"] if figures["queries"] else 0.0
        if self.best is None or worth >= self.best["worth"]:
            run.publish_weights("best", to_bytes(tensors))
            self.best = {"worth": worth, "step": step, "held_out": figures}
        return figures

    def finish(self, run: TrainingRun, step: int, seconds: float) -> None:
        """The best weights under the model's name, their figures, and a page; the summary last."""
        args, at_the_end = self.args, step == self.args.steps
        if at_the_end:
            self.measure(run, step)
        elif self.best is None:  # stopped before the first measurement
            self.keep_best(run, step)
        assert self.best is not None
        best = run.store.read("best.safetensors")
        published = run.publish_weights(self.name, best)
        summary = {
            "model": self.name, "loss": args.loss, "steps": self.best["step"], "stopped_at": step,
            "of_steps": args.steps, "batch_size": args.batch_size, "seconds": round(seconds),
            "imagesets": {part.uri: part.weight for part in self.set.sets}, "left_out": dict(self.set.left_out),
            "crops": len(self.garments), "identities": len(self.garments.classes), "held_out": self.best["held_out"],
            **published,
        }  # fmt: skip
        judged, validates = self.garments, self.set.validation is not None and at_the_end
        if validates:
            photos = list(self.set.validation_photos())
            judged = Garments(cut_garments(photos, args, self.spec, as_jpeg=False)[0], self.spec)
        model = shipped_model(self.spec, load(best), args.device)
        lists = held_out.rank(model, judged, device=args.device, every=validates)
        figures = held_out.evaluate(judged, lists, self.set.categories) if len(lists) else None
        if figures and validates:
            summary["validation"] = summary_of(figures)
        ranks = held_out.first_hit_ranks(judged, lists).tolist()
        run.write("ranks.json", json.dumps({"photo": judged.photo[lists.queries].tolist(), "rank": ranks}).encode())
        address = training_report.write(
            run.store, title=f"Training of {self.name}", facts=summary, log=run.lines, tables=by_category(figures),
            mistakes=mistakes_shown(judged, lists, self.set.categories),
        )  # fmt: skip
        print(f"report: {address}", flush=True)
        run.finish(summary)


# ---- garments --------------------------------------------------------------------------------------------------
def read_garments(args: argparse.Namespace, spec: Spec, learning: LearningSet) -> Garments:
    """Every garment with a usable box, cropped and kept in memory (about 110 kB each at 160 px).

    UserError: a bad augmentation, or fewer than two garments that are in several photos.
    """
    try:
        augmentation = Augmentation(args.jitter, args.turn, args.flip, args.light, args.colour, args.erase)
    except ValueError as error:
        raise UserError(str(error)) from None
    # a photo has about two garments; as JPEG above the budget
    photo_bytes = 2 * 3 * training_crops.canvas_side(spec.input_size) ** 2
    as_jpeg = learning.n_photos * photo_bytes > args.cache_gb * 1e9
    items, undecodable = cut_garments(list(learning.photos()), args, spec, as_jpeg)
    garments = Garments(items, spec, augmentation, args.share)
    if undecodable or learning.left_out:
        left_out = learning.left_out_counts() or "none"
        print(f"{undecodable} photos could not be decoded; left out: {left_out}", flush=True)
    if len(garments.classes) < 2:
        wanted = "garments of known pair_id and style in several photos"
        raise UserError(f"{learning.uris()}: want {wanted}, found {len(garments.classes)}")
    return garments


def cut_garments(
    photos: list[LearningPhoto], args: argparse.Namespace, spec: Spec, as_jpeg: bool
) -> tuple[list[CachedGarment], int]:
    """The garments of all photos, and how many photos could not be decoded."""
    garments, undecodable = [], 0
    pieces_of_photos = crops_cache.pieces(photos, spec.input_size, as_jpeg, args.crops)
    for number, (photo, pieces) in enumerate(zip(photos, pieces_of_photos, strict=True)):
        if pieces is None:
            undecodable += 1
            continue
        pair_id, from_shop = photo.facts["pair_id"], photo.facts["source"] == "shop"
        for item, (canvas, box, extent) in zip(photo.items(), pieces, strict=True):
            identity = (photo.part, pair_id, item["style"]) if pair_id > 0 and item["style"] > 0 else None
            garments.append(CachedGarment(
                canvas, box, extent, identity, from_shop, photo.held_out, number, tuple(item["bbox"]),
                item["category_id"], photo.weight,
            ))  # fmt: skip
    return garments, undecodable


# ---- the model -------------------------------------------------------------------------------------------------
def make_objective(args: argparse.Namespace, spec: Spec, classes: int) -> training.Objective:
    torch.manual_seed(args.seed)  # proxies start at random, alike in every worker
    try:
        ranking = RankingLoss(args.loss, args.loss_arg, miner=args.miner, dim=spec.dim, classes=classes)
    except (ValueError, TypeError) as error:
        raise UserError(str(error)) from None
    return training.Objective(ranking, args.auxiliary, args.temperature, args.smoothing)


def start_model(args: argparse.Namespace, spec: Spec, classes: int) -> CGD:
    """A network with a classifier: the published backbone where there is one, or what --init-from holds."""
    try:
        if isinstance(spec, TimmSpec):
            return start_timm_model(args, spec, classes)
        if not args.init_from:
            return cgd_networks.build(spec, classes=classes, pretrained_backbone=True)
        model = cgd_networks.build(spec, classes=classes)
        classifier = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("classifier.")}
        tensors = weight_files.read(
            Path(args.init_from), model=spec.name, sha256=spec.sha256, trainer=cgd_networks.TRAINER
        )
        weight_files.fill(model, tensors | classifier, f"{spec.name}: {args.init_from}")
        return model
    except weight_files.WeightsError as error:
        raise UserError(str(error)) from None


def start_timm_model(args: argparse.Namespace, spec: TimmSpec, classes: int) -> CGD:
    """timm's published network, or that of --init-from; a head that the file has not starts untrained."""
    file = Path(args.init_from) if args.init_from else timm_networks.published_file(spec.fetched())
    tensors = checkpoints.read(file, model=spec.name)
    bare = dataclasses.replace(spec, weights="")
    return cast(CGD, timm_networks.build(bare, tensors=tensors, source=f"{spec.name}: {file}", classes=classes))


def shipped_model(spec: Spec, tensors: Mapping[str, Tensor], device: str) -> CGD:
    """The weights as they are shipped, float16, in a model of their own."""
    model = cast(CGD, timm_networks.build(spec)) if isinstance(spec, TimmSpec) else cgd_networks.build(spec)
    weight_files.fill(model, shipped(tensors), spec.name)
    return model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


# ---- figures and mistakes --------------------------------------------------------------------------------------
def summary_of(figures: dict[str, Any]) -> dict[str, float]:
    return {f"acc@{k}": round(v, 4) for k, v in figures["top"].items()} | {"queries": figures["queries"]}


def by_category(figures: dict[str, Any] | None) -> dict[str, list[dict[str, Any]]]:
    if figures is None:
        return {}
    parts = {"all": figures} | {name: part for name, part in figures["per_category"].items() if part["queries"]}
    tops = {name: {f"top-{k}": v for k, v in part["top"].items()} for name, part in parts.items()}
    rows = [{"category": name, "queries": part["queries"], **tops[name]} for name, part in parts.items()]
    return {"Accuracy by category": rows}


def mistakes_shown(judged: Garments, lists: HeldOutLists, categories: Sequence[str]) -> list[training_report.Mistake]:
    """Of the surest mistakes the query, the garment found first, and the right one."""

    def picture(row: int) -> np.ndarray:
        width, height = judged.extent[row].int().tolist()
        canvas: np.ndarray = judged.canvas(row)
        return canvas[:height, :width]

    mistakes = []
    for query, first, right, similarity in held_out.surest_mistakes(judged, lists):
        pictures = [("query", picture(query)), ("found first", picture(first))]
        category = category_name(categories, int(judged.category_id[query]))
        caption = f"{category}: another garment at similarity {similarity:.3f}"
        if right >= 0:
            pictures.append(("right one", picture(right)))
        else:
            caption += ", right one not found"
        mistakes.append(training_report.Mistake(caption, tuple(pictures)))
    return mistakes
