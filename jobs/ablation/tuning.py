"""Weights and thresholds of a run's detectors, found on one half of its photos and judged on the other.

In: a finished run with ground truth. Out: the `fusion` settings found, as a row of ablation.parquet and as text
for a run file, OUTPUT/ablation/tuned-fusion.yaml. No model runs.
"""

import functools
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import yaml

from detection.ap_interval import interval
from jobs.ablation.bench import ANSWERS, Bench
from jobs.ablation.boxes import NEED_MB, JudgedPhotos, StoredDetections, fusion_of, measure_of
from jobs.runs import events
from jobs.runs.finished import FinishedRun
from jobs.runs.progress import say
from jobs.runs.settings import FusionSettings

YAML = f"{ANSWERS}tuned-fusion.yaml"
SEED = 0  # of the halves and the order in which numbers are tried
TASK_NAME = "__main__.tune_boxes"  # part of the stored answer's name: the task once was in the command itself
SHARES = (0.0, 0.25, 0.5, 0.75, 1.5, 2.0, 4.0)  # tried of each weight, times its present value
THRESHOLDS = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3)
IOU_STEPS = (-0.1, -0.05, 0.05, 0.1)
LEAST_GAIN = 1e-4  # of AP, for which a number is changed
ROUNDS = 3


def tune_fusion(bench: Bench) -> list[dict[str, Any]]:
    """The tuned fusion's row of the table; the settings are printed and written to ablation/tuned-fusion.yaml."""
    answers = bench.judge("boxes", {"tuned": {"seed": SEED}}, tune, bench.run, NEED_MB, TASK_NAME)
    for answer in answers.values():
        bench.run.store.write(YAML, answer["yaml"].encode())
        place = f"{bench.run.store.uri}/{YAML}"
        say(f"ablation: the tuned settings are in {place}; jobs/full_eval.py --config takes them:\n{answer['yaml']}")
    return [_row(answer, measure_of(bench.run)) for answer in answers.values()]


def _row(answer: Mapping[str, Any], measure: str) -> dict[str, Any]:
    """`value` is of half A, which the settings were chosen on; the figures of half B are the ones that count."""
    return {
        "part": "boxes", "boxes": "", "name": "weights and thresholds", "group": "tuned",
        "steps": json.dumps(answer["settings"]), "metric": measure, "value": answer[measure]["tuned"]["A"],
        "half_value": answer[measure]["tuned"]["B"], "half_difference": answer["difference"],
        "half_low": answer["low"], "half_high": answer["high"],
        "seconds": answer["seconds"], "peak_mb": answer["peak_mb"], "helped": [], "hurt": [],
    }  # fmt: skip


def tune(run: FinishedRun, seed: int, *, n_draws: int = 500) -> dict[str, Any]:
    """Tune the detectors' weights and thresholds and the IoU threshold by coordinate ascent on AP10 or AP.

    The figure, which `measure_of` names, is of half of the photos. One number is changed at a time, in an order drawn
    anew each round; the best of the values tried is kept when it gains more than 1e-4. Tuning ends after a round
    without a gain, or after three. Photos are halved by a hash of the seed and their id, consumers' and shops' each;
    half B is judged once, at the end, with an interval over `n_draws` draws of its photos. The halves, the order and
    the draws follow from `seed`.

    Returns AP10 (or AP): {"default": {"A", "B"}, "tuned": {"A", "B"}}; difference, low, high: tuned less default on
    half B, and its 95 % interval; photos: {"A", "B"}, how many are judged; settings: what `fusion` becomes; yaml: the
    same as text for a run file; tried: fusions judged; rounds; seconds; peak_mb. UserError: no ground truth, or none in
    a half.
    """
    start, photos = time.perf_counter(), JudgedPhotos.of(run)
    halves = [photos.only(image_ids) for image_ids in _halves(photos, seed)]
    detections = [StoredDetections.of(run, half, run.detectors) for half in halves]

    @functools.cache
    def ap_of(fusion: FusionSettings) -> float:
        return halves[0].curves(halves[0].truth.matches(detections[0].fused(fusion))).ap()

    own, n = fusion_of(run), len(run.detectors)
    weights, thresholds = own.weights or (1.0,) * n, own.thresholds or (own.skip_box_threshold,) * n
    default = own.replace(weights=weights, thresholds=thresholds)  # one of each for every detector
    tuned, rounds = _ascend(ap_of, default, np.random.default_rng(seed))
    sides = list(zip(halves, detections, strict=True))
    before, after = (
        [half.curves(half.truth.matches(boxes.fused(fusion))) for half, boxes in sides] for fusion in (default, tuned)
    )
    compared = interval(after[1], before[1], n_draws=n_draws, seed=seed)
    lists = {"weights": list(tuned.weights or ()), "thresholds": list(tuned.thresholds or ())}
    settings = {"iou_threshold": tuned.iou_threshold, **lists}
    ap = {name: {"A": a.ap(), "B": b.ap()} for name, (a, b) in (("default", before), ("tuned", after))}
    return {
        measure_of(run): ap,
        "difference": compared.difference, "low": compared.low, "high": compared.high,
        "photos": {"A": len(halves[0].truth.photos), "B": len(halves[1].truth.photos)},
        "settings": settings,
        "yaml": yaml.safe_dump({"fusion": settings}, sort_keys=False, default_flow_style=None),
        "tried": ap_of.cache_info().currsize, "rounds": rounds,
        "seconds": round(time.perf_counter() - start, 3), "peak_mb": events.memory()["peak_mb"],
    }  # fmt: skip


def _halves(photos: JudgedPhotos, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids of the judged photos in half A and half B: every second of the consumers', and of the shops', by hash."""

    def digest(image_id: int) -> bytes:
        return hashlib.blake2b(f"{seed} {image_id}".encode(), digest_size=8).digest()

    judged = photos.truth.photos
    is_user = np.isin(judged, photos.consumers)
    sides = [np.array(sorted(side.tolist(), key=digest), np.int64) for side in (judged[is_user], judged[~is_user])]
    a, b = (np.sort(np.concatenate([side[first::2] for side in sides])) for first in (0, 1))
    return a, b


def _ascend(
    ap_of: Callable[[FusionSettings], float], start: FusionSettings, rng: np.random.Generator
) -> tuple[FusionSettings, int]:
    """The best fusion met, and after how many rounds."""
    best = start
    for n_rounds in range(1, ROUNDS + 1):
        before = ap_of(best)
        for coordinate in rng.permutation(1 + 2 * len(start.weights or ())).tolist():
            candidate = max(_neighbours(best, coordinate), key=ap_of, default=best)
            if ap_of(candidate) > ap_of(best) + LEAST_GAIN:
                best = candidate
        if ap_of(best) <= before:
            return best, n_rounds
    return best, ROUNDS


def _neighbours(fusion: FusionSettings, coordinate: int) -> Iterator[FusionSettings]:
    """The fusion with one number changed: 0 the IoU threshold, then each detector's weight, then each threshold."""
    weights, thresholds = list(fusion.weights or ()), list(fusion.thresholds or ())
    if coordinate == 0:
        for step in IOU_STEPS:
            if 0.2 <= (iou := round(fusion.iou_threshold + step, 4)) <= 0.95:
                yield fusion.replace(iou_threshold=iou)
    elif coordinate <= len(weights):
        place = coordinate - 1
        for value in [round((weights[place] or 1) * share, 4) for share in (*SHARES, 1.0)]:
            changed = (*weights[:place], value, *weights[place + 1 :])
            if sum(changed) > 0 and value != weights[place]:
                yield fusion.replace(weights=changed)
    else:
        place = coordinate - 1 - len(weights)
        for value in THRESHOLDS:
            if value != thresholds[place]:
                yield fusion.replace(thresholds=(*thresholds[:place], value, *thresholds[place + 1 :]))
