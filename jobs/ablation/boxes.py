"""What each part of fusing boxes is worth: the stored detections of a finished run, fused anew in other ways, and judged.

In: a run's folder, its image set and its run.json. Out: rows of figures with the paired difference to the run's own fused boxes,
95 % interval over photos (`detection.ap_interval`); or weights and thresholds found on half of the photos and judged on the other.
No model runs and no mask is looked at. `jobs/ablate.py` calls these, one process a variant; everything passed pickles.
"""

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from detection.ap_interval import Curves, interval
from detection.categories import AP10_IDS, CATEGORIES
from detection.matching import Truth
from detection.metrics import truth_arrays
from jobs import config, run_log, score
from jobs.cli import UserError
from jobs.config import Fusion
from jobs.fuse_shard import METHODS, Boxes, fuse
from jobs.selection import select
from store.imageset import ImageSet
from store.objects import ObjectStore

ALL_IDS = range(1, len(CATEGORIES) + 1)
CONF_TYPES = ("avg", "max", "box_and_model_avg", "absent_model_aware_avg")
SHARES = (0.0, 0.25, 0.5, 0.75, 1.5, 2.0, 4.0)  # what `tune` tries of each weight, times what it is
THRESHOLDS = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3)
IOU_STEPS = (-0.1, -0.05, 0.05, 0.1)
LEAST_GAIN = 1e-4  # of AP10; less is not worth a number of one's own
ROUNDS = 3


@dataclass(frozen=True)
class BoxVariant:
    """One way to come from detections to boxes.

    Attributes:
        name: for the table.
        detectors: whose boxes, in the order of `fusion.weights` and `fusion.thresholds`.
        fusion: how they are fused; None: the boxes of one detector as they are.
    """

    name: str
    detectors: tuple[str, ...]
    fusion: Fusion | None


def variants(run_record: Mapping[str, Any]) -> list[BoxVariant]:
    """What a run's fusion is compared with: itself first, then each detector alone, the other methods, the other confidences of wbf,
    boxes that two detectors agree on, and all detectors but one.

    Args:
        run_record: the content of OUTPUT/run.json.

    Raises:
        UserError: settings of the fusion that this version does not know.
    """
    names, fusion = _names(run_record), _fusion(run_record)
    found = [BoxVariant(f"{fusion.method} (the run's)", names, fusion)]
    found += [BoxVariant(name, (name,), None) for name in names]
    found += [_changed(names, fusion, method, method=method) for method in METHODS if method != fusion.method]
    if fusion.method == "wbf":
        found += [
            _changed(names, fusion, f"wbf, {one}", conf_type=one) for one in CONF_TYPES if one != fusion.conf_type
        ]
    if len(names) > 1:
        found += [_changed(names, fusion, "2 votes", min_votes=2)] if fusion.min_votes != 2 else []
        found += [_without(names, fusion, place) for place in range(len(names))]
    return found


def judge(
    store: ObjectStore,
    imageset: ImageSet,
    run_record: Mapping[str, Any],
    variant: BoxVariant,
    *,
    n_draws: int = 500,
    seed: int = 0,
) -> dict[str, Any]:
    """One variant's row.

    Args:
        store: OUTPUT of the run, with detections/ and fused/. imageset: the photos it is of, with ground truth.
        run_record: the content of OUTPUT/run.json. variant: from `variants`, or one's own.
        n_draws, seed: how often photos are drawn for the interval, and how.

    Returns:
        name; AP10, AP10_50, AP, in [0, 1]; difference, low, high: AP10 less that of the run's fused boxes and its 95 % interval;
        seconds spent on fusing; peak_mb of this process, megabytes.

    Raises:
        UserError: no ground truth to judge by.
    """
    photos = _photos(imageset, run_record)
    detections = _detections(store, photos, variant.detectors)
    start = time.perf_counter()
    found = detections.as_they_are() if variant.fusion is None else detections.fused(variant.fusion)
    seconds = time.perf_counter() - start
    matched = photos.truth.matches(found)
    ours, theirs = photos.curves(matched), photos.curves(photos.truth.matches(_stored(store, photos)))
    lies = interval(ours, theirs, n_draws=n_draws, seed=seed)
    return {
        "name": variant.name, "AP10": lies.ours, "AP10_50": photos.curves(matched, at_50=True).ap(),
        "AP": photos.curves(matched, categories=ALL_IDS).ap(), "difference": lies.difference, "low": lies.low, "high": lies.high,
        "seconds": round(seconds, 3), "peak_mb": run_log.memory()["peak_mb"],
    }  # fmt: skip


def tune(
    store: ObjectStore, imageset: ImageSet, run_record: Mapping[str, Any], seed: int, *, n_draws: int = 500
) -> dict[str, Any]:
    """Weights and thresholds of the detectors and the IoU threshold, by coordinate ascent on AP10 over half of the photos.

    One number is changed at a time, in an order drawn anew each round; the best of the values tried stays when it gains more than
    1e-4. It ends after a round without a gain, or three. Photos are halved by a hash of the seed and their id, consumers' and
    shops' each; half B is looked at once, at the end.

    Args:
        store, imageset, run_record, n_draws: as in `judge`.
        seed: of the halves, the order and the draws.

    Returns:
        AP10: {"default": {"A", "B"}, "tuned": {"A", "B"}}; difference, low, high: tuned less default on half B, 95 % interval;
        photos: {"A", "B"}, how many judge; settings: what `fusion` becomes; yaml: the same as text for a run file; tried: fusions
        judged; rounds; seconds; peak_mb.

    Raises:
        UserError: no ground truth to judge by, or none in one of the halves.
    """
    start, names = time.perf_counter(), _names(run_record)
    whole = _photos(imageset, run_record)
    halves = [whole.only(ids) for ids in _halves(whole, seed)]
    detections = [_detections(store, half, names) for half in halves]
    default = _spelt_out(_fusion(run_record), len(names))
    search = _Search(lambda fusion: halves[0].curves(halves[0].truth.matches(detections[0].fused(fusion))).ap())
    tuned, rounds = _ascend(search, default, np.random.default_rng(seed))
    before, after = (
        [half.curves(half.truth.matches(found.fused(one))) for half, found in zip(halves, detections, strict=True)]
        for one in (default, tuned)
    )
    lies = interval(after[1], before[1], n_draws=n_draws, seed=seed)
    settings = {"iou_threshold": tuned.iou_threshold, "weights": list(tuned.weights or ()), "thresholds": list(tuned.thresholds or ())}  # fmt: skip
    return {
        "AP10": {
            which: dict(zip("AB", (curves.ap() for curves in side), strict=True))
            for which, side in (("default", before), ("tuned", after))
        },
        "difference": lies.difference, "low": lies.low, "high": lies.high,
        "photos": dict(zip("AB", (len(half.truth.photos) for half in halves), strict=True)),
        "settings": settings, "yaml": _as_yaml(settings), "tried": len(search.known), "rounds": rounds,
        "seconds": round(time.perf_counter() - start, 3), "peak_mb": run_log.memory()["peak_mb"],
    }  # fmt: skip


# --- what is read -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Photos:
    """The photos of a run: all ids by shard, which of them judge, and their true boxes.

    Attributes:
        shards: shard -> (n,) int64 image ids, in the run's order.
        consumers: (C,) int64 ids of consumers' photos.
        columns: what `truth_arrays` has. truth: the same, ready to be matched.
    """

    shards: dict[str, np.ndarray]
    consumers: np.ndarray
    columns: dict[str, np.ndarray]
    truth: Truth

    def only(self, ids: np.ndarray) -> "_Photos":
        """The same, judged by these photos alone."""
        truth = Truth(self.columns, ids)
        if not np.isin(self.columns["image_id"], ids).any():
            raise UserError("tuning: no true item in half of the photos; want a larger image set")
        return dataclasses.replace(self, truth=truth)

    def curves(self, matched: dict, *, at_50: bool = False, categories: Sequence[int] = AP10_IDS) -> Curves:
        return Curves(matched, self.truth.photos, at_50=at_50, categories=categories)


@dataclass(frozen=True)
class _Detections:
    """Some detectors' boxes of the judged photos; `found.image` are places in `ids` (I,) int64."""

    found: Boxes
    model: np.ndarray
    n_models: int
    ids: np.ndarray

    def fused(self, fusion: Fusion) -> dict[str, np.ndarray]:
        """Fused boxes as `Truth.matches` takes them, rounded as the file of fused boxes rounds them."""
        return self._columns(fuse(self.found, self.model, self.n_models, fusion))

    def as_they_are(self) -> dict[str, np.ndarray]:
        return self._columns(self.found)

    def _columns(self, boxes: Boxes) -> dict[str, np.ndarray]:
        return {
            "image_id": self.ids[boxes.image], "bbox": boxes.boxes.astype(np.float32).astype(np.float64),
            "score": boxes.scores.astype(np.float32), "category_id": boxes.labels,
        }  # fmt: skip


def _photos(imageset: ImageSet, run_record: Mapping[str, Any]) -> _Photos:
    """The photos the run took.

    Raises:
        UserError: none of them can judge.
    """
    known = run_record["imageset"].get("selected")
    chosen = select(imageset, run_record["settings"].get("limit"), known)
    shards, parts = {}, []
    for shard in chosen.shards:
        rows = imageset.read(shard.name, columns=["image_id", "source", "weak_box", "items"])
        rows = rows if shard.rows is None else rows.take(pa.array(shard.rows, pa.int64()))
        shards[shard.name] = rows.column("image_id").to_numpy()
        parts.append(rows)
    table = pa.concat_tables(parts)
    columns = truth_arrays(table)
    judged = columns.pop("judged")
    if not np.isin(columns["category_id"], AP10_IDS).any():
        raise UserError(f"{imageset.uri}: no true boxes of AP10's categories; want an image set with ground truth")
    is_user = np.array(table.column("source").to_pylist()) == "user"
    return _Photos(shards, table.column("image_id").to_numpy()[is_user], columns, Truth(columns, judged))


def _detections(store: ObjectStore, photos: _Photos, names: Sequence[str]) -> _Detections:
    """The stored boxes of these detectors in photos that judge, each detector's in the run's order of photos."""
    ids = np.concatenate([np.zeros(0, np.int64), *photos.shards.values()])
    order = np.argsort(ids, kind="stable")
    model, image, parts = [], [], []
    for number, name in enumerate(names):
        found = score.boxes(store, [f"detections/{name}/{shard}.parquet" for shard in photos.shards])
        rows = np.flatnonzero(np.isin(found["image_id"], photos.truth.photos))
        image.append(order[np.searchsorted(ids, found["image_id"][rows], sorter=order)])
        parts.append({key: column[rows] for key, column in found.items()})
        model.append(np.full(len(rows), number))
    columns = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    labels, scores = columns["category_id"].astype(np.int64), columns["score"].astype(np.float64)
    boxes = Boxes(columns["bbox"], scores, labels, np.concatenate(image), np.zeros(len(scores), np.int64))
    return _Detections(boxes, np.concatenate(model), len(names), ids)


def _stored(store: ObjectStore, photos: _Photos) -> dict[str, np.ndarray]:
    """The run's own fused boxes."""
    return score.boxes(store, [f"fused/{shard}.parquet" for shard in photos.shards])


def _names(run_record: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(detector["name"] for detector in run_record["detectors"])


def _fusion(run_record: Mapping[str, Any]) -> Fusion:
    fusion: Fusion = config.build(Fusion, run_record["settings"]["fusion"], "fusion")
    return fusion


# --- variants ---------------------------------------------------------------------------------------------------------


def _changed(names: tuple[str, ...], fusion: Fusion, name: str, **changes: Any) -> BoxVariant:
    return BoxVariant(name, names, dataclasses.replace(fusion, **changes))


def _without(names: tuple[str, ...], fusion: Fusion, place: int) -> BoxVariant:
    """All detectors but one, with what the settings say of the others."""

    def rest(values: tuple | None) -> tuple | None:
        return None if values is None else (*values[:place], *values[place + 1 :])

    left, weights = rest(names) or (), rest(fusion.weights)
    changes = {
        "weights": weights if weights is not None and sum(weights) > 0 else None,
        "thresholds": rest(fusion.thresholds),
        "min_votes": min(fusion.min_votes, len(left)),
    }
    return _changed(left, fusion, f"without {names[place]}", **changes)


# --- tuning -----------------------------------------------------------------------------------------------------------


@dataclass
class _Search:
    """AP10 on half A, each fusion judged once."""

    value: Callable[[Fusion], float]
    known: dict[Fusion, float] = dataclasses.field(default_factory=dict)

    def __call__(self, fusion: Fusion) -> float:
        if fusion not in self.known:
            self.known[fusion] = self.value(fusion)
        return self.known[fusion]


def _ascend(search: _Search, start: Fusion, rng: np.random.Generator) -> tuple[Fusion, int]:
    """The best fusion found, and after how many rounds."""
    best = start
    for number in range(1, ROUNDS + 1):
        before = search(best)
        for coordinate in rng.permutation(1 + 2 * len(start.weights or ())).tolist():
            tried = max(_neighbours(best, coordinate), key=search, default=best)
            if search(tried) > search(best) + LEAST_GAIN:
                best = tried
        if search(best) <= before:
            return best, number
    return best, ROUNDS


def _neighbours(fusion: Fusion, coordinate: int) -> Iterator[Fusion]:
    """The fusion with one number changed: 0 the IoU threshold, then a weight of each detector, then a threshold of each."""
    weights, thresholds = list(fusion.weights or ()), list(fusion.thresholds or ())
    if coordinate == 0:
        for step in IOU_STEPS:
            if 0.2 <= (iou := round(fusion.iou_threshold + step, 4)) <= 0.95:
                yield dataclasses.replace(fusion, iou_threshold=iou)
    elif coordinate <= len(weights):
        place = coordinate - 1
        for value in [round((weights[place] or 1) * share, 4) for share in (*SHARES, 1.0)]:
            other = (*weights[:place], value, *weights[place + 1 :])
            if sum(other) > 0 and value != weights[place]:
                yield dataclasses.replace(fusion, weights=other)
    else:
        place = coordinate - 1 - len(weights)
        for value in THRESHOLDS:
            if value != thresholds[place]:
                other = (*thresholds[:place], value, *thresholds[place + 1 :])
                yield dataclasses.replace(fusion, thresholds=other)


def _spelt_out(fusion: Fusion, n: int) -> Fusion:
    """The same fusion with a weight and a threshold written down for each of `n` detectors."""
    return dataclasses.replace(
        fusion,
        weights=fusion.weights or (1.0,) * n,
        thresholds=fusion.thresholds or (fusion.skip_box_threshold,) * n,
    )


def _halves(photos: _Photos, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids of the judged photos in half A and half B: every second of the consumers', and of the shops', by hash."""
    halves: tuple[list[np.ndarray], list[np.ndarray]] = [], []
    is_user = np.isin(photos.truth.photos, photos.consumers)
    for ids in (photos.truth.photos[is_user], photos.truth.photos[~is_user]):
        mixed = np.array(sorted(ids.tolist(), key=lambda image_id: _hash(seed, image_id)), np.int64)
        for half, part in zip(halves, (mixed[::2], mixed[1::2]), strict=True):
            half.append(part)
    return np.sort(np.concatenate(halves[0])), np.sort(np.concatenate(halves[1]))


def _hash(seed: int, image_id: int) -> bytes:
    return hashlib.blake2b(f"{seed} {image_id}".encode(), digest_size=8).digest()


def _as_yaml(settings: Mapping[str, Any]) -> str:
    import yaml

    return str(yaml.safe_dump({"fusion": dict(settings)}, sort_keys=False, default_flow_style=None))
