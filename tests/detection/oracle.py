"""mmdetection's own `predict`, one photo a batch: the oracle of what we decode for a whole batch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


def predicted(detector: Any, photos: Sequence[np.ndarray]) -> list[Any]:
    """mmdetection's instances of each photo that a detector would return: with an area within the photo, best first.

    The batch is the one that the detector feeds its network.
    """
    answers = []
    for photo in photos:
        prepared = detector._prepare(photo)
        batch, samples = detector._inputs([prepared], [photo.shape[:2]], detector._padded(prepared))
        with torch.inference_mode():
            instances = detector.model(batch, samples, mode="predict")[0].pred_instances
        height, width = photo.shape[:2]
        instances.bboxes = instances.bboxes.clamp(min=0).minimum(torch.tensor([width, height, width, height]))
        solid = (instances.bboxes[:, 2:] > instances.bboxes[:, :2]).all(1) & (
            instances.scores >= detector.score_threshold
        )
        rows = solid.nonzero()[:, 0]
        rows = rows[instances.scores[rows].argsort(descending=True, stable=True)][: detector.max_per_image]
        instances.rows = torch.arange(len(instances))
        answers.append(instances[rows])
    return answers


def assert_same(found: Any, instances: Any, *, px: float = 1e-3, score: float = 1e-5, mask_pixels: int = 2) -> None:
    """The same boxes in the same order, where scores are not equal; a mask may round a pixel or two otherwise."""
    from pycocotools import mask as coco

    ours = _in_order(found.boxes, found.scores, found.categories)
    theirs = _in_order(instances.bboxes.numpy(), instances.scores.numpy(), instances.labels.numpy() + 1)
    assert len(ours) == len(theirs), f"{len(ours)} boxes, mmdetection has {len(theirs)}"
    np.testing.assert_array_equal(found.categories[ours], instances.labels.numpy()[theirs] + 1)
    np.testing.assert_allclose(found.scores[ours], instances.scores.numpy()[theirs], rtol=0, atol=score)
    np.testing.assert_allclose(found.boxes[ours], instances.bboxes.numpy()[theirs], rtol=0, atol=px)
    if found.masks is not None:
        for row, their_row in zip(ours, theirs, strict=True):
            ours_on, theirs_on = coco.decode(found.masks[row]), coco.decode(instances.masks[their_row])
            assert (ours_on != theirs_on).sum() <= mask_pixels


def _in_order(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Rows by falling score; equal scores, whose order mmdetection does not define, by class and place."""
    return np.lexsort((boxes[:, 1].round(2), boxes[:, 0].round(2), labels, -scores))
