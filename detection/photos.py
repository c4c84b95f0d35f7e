"""Detection and fusion without a job, for a notebook or a service: photos in, garments out, in one process.

    detectors = [load_detector(name) for name in ("atss-tiny", "cascade-mask-rcnn-tiny")]
    found = [detector.detect(photos) for detector in detectors]         # photos: list of (H, W, 3) uint8, upright RGB
    fused = fuse(found, weights=[detector.spec.fusion_weight for detector in detectors])
    garments = worth_embedding(fused)                                   # one `Detections` a photo

The defaults are the settings of the profile `tiny`, so boxes are those of a run. Masks are not fused here.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from detection import models
from detection.detections import Detections
from detection.detector import Detector, load
from networks import engines
from networks.shipped import shipped_file
from postproc import fusion
from postproc.fusion import Boxes, FusionRule

RULE = FusionRule(
    method="wbf", iou_threshold=0.65, conf_type="box_and_model_avg", weights=None, thresholds=None,
    skip_box_threshold=0.01, score_threshold=0.01, sigma=0.5, min_votes=1, max_per_image=100,
)  # fmt: skip


def load_detector(
    name: str,
    device: str = "cpu",
    *,
    weights_dir: str | Path | None = None,
    engine: str = "auto",
    threads: int = 1,
    score_threshold: float = 0.01,
    max_per_image: int = 100,
) -> Detector:
    """A shipped detector, ready for photos: `detect(images)`.

    Args:
        name: of `detection.models`, or a view: atss-tiny, atss-tiny@flip.
        device: cpu, cuda or cuda:0.
        weights_dir: folder of the weight files; None: where those of the model's profile ship.
        engine: auto, torch, openvino or cudagraph, as the setting.
        threads: of the CPU, for OpenVINO.
        score_threshold: boxes below this score are not returned, in [0, 1].
        max_per_image: boxes a photo at most, the best ones.

    Raises:
        ValueError: no such detector. UserError: no weights there, or an engine that is not here.
    """
    spec = models.named(name)
    weights = shipped_file(spec, models.PROFILES, weights_dir)
    return load(
        spec, device, weights=weights, engine=engines.choose(engine, device, threads),
        score_threshold=score_threshold, max_per_image=max_per_image,
    )  # fmt: skip


def fuse(
    found: Sequence[Sequence[Detections]], *, weights: Sequence[float] | None = None, rule: FusionRule = RULE
) -> list[Detections]:
    """One set of boxes for each photo, from those of several detectors; best score first, without masks.

    Args:
        found: what each detector found in the same photos, in the same order.
        weights: of each detector, not all 0; None: all 1. The models' own are their `spec.fusion_weight`.
        rule: how boxes are fused, see `postproc.fusion`; `weights` replaces its own.

    Raises:
        ValueError: no detector, other numbers of photos, or of weights.
    """
    counts = {len(photos) for photos in found}
    if len(counts) != 1:
        raise ValueError(f"fuse: want a list of as many photos of each detector, got {[len(one) for one in found]}")
    if weights is not None and (len(weights) != len(found) or not sum(weights) > 0):
        raise ValueError(f"fuse: want {len(found)} weights, one for each detector and not all 0, got {list(weights)}")
    (n_photos,) = counts
    detected = _as_boxes([one for photos in found for one in photos], n_photos)
    model = np.repeat(np.arange(len(found)), [sum(map(len, photos)) for photos in found])
    rule = rule if weights is None else replace(rule, weights=weights)
    return _by_photo(fusion.fuse_members(detected, model, len(found), rule).boxes, n_photos)


def worth_embedding(
    fused: Sequence[Detections], *, score_threshold: float = 0.1, iou_threshold: float = 0.7, max_per_image: int = 12
) -> list[Detections]:
    """The garments of each photo: boxes of this score or more, of overlapping ones of any category the best, at most so
    many a photo."""
    rule = fusion.ItemRule(
        score_threshold, iou_threshold, max_per_image, hypotheses=1, hypothesis_iou=1.0, hypothesis_score=1.0
    )
    items, _ = fusion.worth_embedding(_as_boxes(fused, len(fused)), rule)
    return _by_photo(items, len(fused))


def _as_boxes(found: Sequence[Detections], n_photos: int) -> Boxes:
    """Those of one detector after the other, each with `n_photos` photos."""
    image = np.repeat(np.arange(len(found)) % max(n_photos, 1), [len(one) for one in found])
    boxes = np.concatenate([np.zeros((0, 4)), *(one.boxes for one in found)]).astype(np.float64)
    scores = np.concatenate([np.zeros(0), *(one.scores for one in found)]).astype(np.float64)
    labels = np.concatenate([np.zeros(0, np.int64), *(one.categories for one in found)]).astype(np.int64)
    return Boxes(boxes, scores, labels, image, np.zeros(len(scores), np.int64))


def _by_photo(boxes: Boxes, n_photos: int) -> list[Detections]:
    rows = [boxes.where(np.flatnonzero(boxes.image == photo)) for photo in range(n_photos)]
    return [
        Detections(one.boxes.astype(np.float32), one.scores.astype(np.float32), one.labels.astype(np.int16))
        for one in rows
    ]
