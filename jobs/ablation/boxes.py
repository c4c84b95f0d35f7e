"""What each part of fusing boxes is worth: a finished run's detections, fused in other ways and judged by AP10, or by
AP where the run's categories are not DeepFashion2's.

In: a run with ground truth. Out: rows of ablation.parquet, each with the paired difference to the run's own fused boxes
and its 95 % interval over photos (`detection.ap_interval`). No model runs and no mask is read.
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detection.ap_interval import Curves, interval
from detection.average_precision import AP10_IDS
from detection.matching import TrueBoxes
from detection.metrics import truth_arrays
from jobs.ablation.bench import Bench, matches
from jobs.runs import events
from jobs.runs.finished import FinishedRun
from jobs.runs.reader import consumers, read_boxes
from jobs.runs.settings import FusionSettings, record
from jobs.runs.validation import build
from postproc.fusion import METHODS, Boxes, FusionRule, fuse_members
from postproc.places import places
from store.categories import DEEPFASHION2
from store.errors import UserError

CONF_TYPES = ("avg", "max", "box_and_model_avg", "absent_model_aware_avg")
NEED_MB = 800.0  # of a task that judges boxes
JUDGE_NAME = "__main__.judge_boxes"  # part of stored answers' names: the task once was in the command itself


@dataclass(frozen=True)
class BoxVariant:
    """One way to come from detections to boxes."""

    name: str  # as in the table
    detectors: tuple[str, ...]  # whose boxes, in the order of `fusion.weights` and `fusion.thresholds`
    fusion: FusionSettings | None  # how they are fused; None: the boxes of one detector as they are

    def as_json(self) -> dict[str, Any]:
        fusion = None if self.fusion is None else record(self.fusion)
        return {"name": self.name, "detectors": list(self.detectors), "fusion": fusion}


def judge_fusions(bench: Bench, patterns: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of the table: the run's own fusion, then the other ways whose names fit a pattern."""
    base, *others = variants(bench.run)
    chosen = [base, *(variant for variant in others if matches(variant.name, patterns))]
    arguments = {variant.name: {"variant": variant.as_json()} for variant in chosen}
    answers = bench.judge("boxes", arguments, judge_boxes, bench.run, NEED_MB, JUDGE_NAME)
    measure = measure_of(bench.run)
    return [_row(answer, "base" if name == base.name else "single", measure) for name, answer in answers.items()]


def measure_of(run: FinishedRun) -> str:
    """The figure that boxes are compared by, AP10 or AP."""
    return "AP10" if run.categories == DEEPFASHION2 else "AP"


def judge_boxes(run: FinishedRun, variant: Mapping[str, Any]) -> dict[str, Any]:
    """`judge` as a Ray task: the variant as plain JSON."""
    fusion = variant["fusion"] and FusionSettings(**variant["fusion"])
    return judge(run, BoxVariant(variant["name"], tuple(variant["detectors"]), fusion))


def _row(answer: Mapping[str, Any], group: str, measure: str) -> dict[str, Any]:
    figures = ("name", "seconds", "peak_mb") + (() if group == "base" else ("difference", "low", "high"))
    return {
        "part": "boxes", "boxes": "", "group": group, "steps": "", "metric": measure, "value": answer[measure],
        "helped": [], "hurt": [], **{name: answer[name] for name in figures},
    }  # fmt: skip


def variants(run: FinishedRun) -> list[BoxVariant]:
    """The ways to fuse a run's detections; UserError for settings of the fusion that this version does not know.

    The run's own comes first, then each detector alone, the other methods, wbf's other ways to compute a confidence
    (`conf_type`), boxes that at least two detectors agree on, and all detectors but one.
    """
    names, fusion = run.detectors, fusion_of(run)

    def changed(name: str, **changes: Any) -> BoxVariant:
        return BoxVariant(name, names, fusion.replace(**changes))

    ways = [BoxVariant(f"{fusion.method} (the run's)", names, fusion)]
    ways += [BoxVariant(name, (name,), fusion=None) for name in names]
    ways += [changed(method, method=method) for method in METHODS if method != fusion.method]
    if fusion.method == "wbf":
        ways += [changed(f"wbf, {kind}", conf_type=kind) for kind in CONF_TYPES if kind != fusion.conf_type]
    if len(names) > 1:
        ways += [changed("2 votes", min_votes=2)] if fusion.min_votes != 2 else []
        ways += [_without(names, fusion, place) for place in range(len(names))]
    return ways


def _without(names: tuple[str, ...], fusion: FusionSettings, place: int) -> BoxVariant:
    """All detectors but one, with the settings of the others."""

    def rest(values: tuple | None) -> tuple | None:
        return None if values is None else (*values[:place], *values[place + 1 :])

    left, weights = rest(names) or (), rest(fusion.weights)
    weights = weights if weights is not None and sum(weights) > 0 else None
    votes = min(fusion.min_votes, len(left))
    fewer = fusion.replace(weights=weights, thresholds=rest(fusion.thresholds), min_votes=votes)
    return BoxVariant(f"without {names[place]}", left, fewer)


def judge(run: FinishedRun, variant: BoxVariant, *, n_draws: int = 500, seed: int = 0) -> dict[str, Any]:
    """Judge one variant. UserError: no ground truth to judge by.

    Returns name; AP10, AP10_50, AP, in [0, 1], the first two None unless the categories are DeepFashion2's; difference,
    low, high: AP10, or else AP, less that of the run's fused boxes, with its 95 % interval over `n_draws` draws of the
    photos by `seed`; seconds spent on fusing; peak_mb of this process.
    """
    photos = JudgedPhotos.of(run)
    detections = StoredDetections.of(run, photos, variant.detectors)
    start = time.perf_counter()
    boxes = detections.fused(variant.fusion)
    seconds = time.perf_counter() - start
    matched = photos.truth.matches(boxes)
    own = read_boxes(run.store, "fused", run.selected.names)
    compared = interval(photos.curves(matched), photos.curves(photos.truth.matches(own)), n_draws=n_draws, seed=seed)
    ten: dict[str, float | None] = {"AP10": None, "AP10_50": None}
    if measure_of(run) == "AP10":
        ten = {"AP10": compared.ours, "AP10_50": photos.curves(matched, at_50=True).ap()}
    every = range(1, len(run.categories) + 1)
    return {
        "name": variant.name, **ten, "AP": photos.curves(matched, categories=every).ap(),
        "difference": compared.difference, "low": compared.low, "high": compared.high,
        "seconds": round(seconds, 3), "peak_mb": events.memory()["peak_mb"],
    }  # fmt: skip


def fusion_of(run: FinishedRun) -> FusionSettings:
    return build(FusionSettings, run.record["settings"]["fusion"], "fusion")


# --- what is read -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class JudgedPhotos:
    """The photos of a run, with the true boxes of those that AP is judged on."""

    image_id: np.ndarray  # (I,) int64, of all photos in the run's order
    consumers: np.ndarray  # (C,) int64, ids of the consumers' photos
    columns: dict[str, np.ndarray]  # as `detection.metrics.truth_arrays` gives them, without `judged`
    truth: TrueBoxes  # the same, ready to be matched; `truth.photos` are the judged ones
    compared: tuple[int, ...]  # category ids whose mean AP boxes are compared by

    @classmethod
    def of(cls, run: FinishedRun) -> "JudgedPhotos":
        """UserError: no photo with a true box of the categories that are compared."""
        table = run.truth()
        columns = truth_arrays(table)
        judged = columns.pop("judged")
        n = len(run.categories)
        compared = AP10_IDS if measure_of(run) == "AP10" else tuple(range(1, n + 1))
        if not np.isin(columns["category_id"], compared).any():
            reason = f"no true boxes of {measure_of(run)}'s categories; want an image set with ground truth"
            raise UserError(f"{run.images.uri}: {reason}")
        truth = TrueBoxes(columns, judged, n)
        return cls(table.column("image_id").to_numpy(), consumers(table), columns, truth, compared)

    def only(self, image_ids: np.ndarray) -> "JudgedPhotos":
        """The same, judged on these photos alone; UserError: none of them has a true box."""
        if not np.isin(self.columns["image_id"], image_ids).any():
            raise UserError("tuning: no true item in half of the photos; want a larger image set")
        return dataclasses.replace(self, truth=TrueBoxes(self.columns, image_ids, self.truth.n_categories))

    def curves(self, matched: dict, *, at_50: bool = False, categories: Sequence[int] = ()) -> Curves:
        """`categories` are the ids to average over; (): those that are compared."""
        return Curves(matched, self.truth.photos, at_50=at_50, categories=categories or self.compared)


@dataclass(frozen=True)
class StoredDetections:
    """Some detectors' boxes of the judged photos."""

    boxes: Boxes  # each detector's in the run's order of photos; `boxes.image` indexes `image_id`
    model: np.ndarray  # (N,) int in [0, n_models), the detector of each
    n_models: int
    image_id: np.ndarray  # (I,) int64

    @classmethod
    def of(cls, run: FinishedRun, photos: JudgedPhotos, names: Sequence[str]) -> "StoredDetections":
        stored = []
        for name in names:
            columns = read_boxes(run.store, f"detections/{name}", run.selected.names)
            rows = np.isin(columns["image_id"], photos.truth.photos)
            stored.append({key: column[rows] for key, column in columns.items()})
        model = np.repeat(np.arange(len(names)), [len(columns["score"]) for columns in stored])
        columns = {key: np.concatenate([part[key] for part in stored]) for key in stored[0]}
        image = places(photos.image_id, columns["image_id"])
        labels, scores = columns["category_id"].astype(np.int64), columns["score"].astype(np.float64)
        boxes = Boxes(columns["bbox"], scores, labels, image, np.zeros(len(scores), np.int64))
        return cls(boxes, model, len(names), photos.image_id)

    def fused(self, fusion: FusionSettings | None) -> dict[str, np.ndarray]:
        """Fused boxes (None: these as they are) for `TrueBoxes.matches`, rounded as the file of fused boxes is."""
        boxes = self.boxes
        if fusion is not None:
            boxes = fuse_members(boxes, self.model, self.n_models, FusionRule.of(fusion)).boxes
        return {
            "image_id": self.image_id[boxes.image], "bbox": boxes.boxes.astype(np.float32).astype(np.float64),
            "score": boxes.scores.astype(np.float32), "category_id": boxes.labels,
        }  # fmt: skip
