"""mmdetection's own `predict` of the batches that a detector feeds its network: the oracle of our decoding."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from detection.detections import Detections


def both(detector: Any, photos: Sequence[np.ndarray]) -> Iterator[tuple[Detections, Any]]:
    """What the detector and mmdetection find in each photo, those of one padded shape in one batch.

    mmdetection's instances are cut as the detector's: to boxes with an area within the photo, best first.
    """
    from detection.batches import alike

    prepared = [detector._prepare(photo) for photo in photos]
    for shape, members in alike([detector._padded(one) for one in prepared]):
        batch = [prepared[n] for n in members], [photos[n].shape[:2] for n in members], shape
        found = detector._forward(*batch)
        with torch.inference_mode():
            theirs = detector.model(*detector._inputs(*batch), mode="predict")
        for ours, sample, size in zip(found, theirs, batch[1], strict=True):
            yield ours, _cut(sample.pred_instances, size, detector)


def _cut(instances: Any, size: tuple[int, int], detector: Any) -> Any:
    boxes, scores = instances.bboxes, instances.scores
    boxes = boxes.clamp(min=0).minimum(boxes.new_tensor([size[1], size[0], size[1], size[0]]))
    solid = (boxes[:, 2:] > boxes[:, :2]).all(1) & (scores >= detector.score_threshold)
    rows = solid.nonzero()[:, 0]
    rows = rows[scores[rows].argsort(descending=True, stable=True)][: detector.max_per_image]
    instances.bboxes = boxes
    return instances[rows]


def assert_same(found: Detections, instances: Any, *, px: float = 1e-3, score: float = 1e-5) -> None:
    """The same boxes in the same order up to ties, whose order mmdetection does not define, and the same masks.

    A mask may differ by two pixels, where its edge is rounded.
    """
    from pycocotools import mask as coco

    boxes, scores, labels = (instances[name].numpy() for name in ("bboxes", "scores", "labels"))
    assert len(found) == len(scores), f"{len(found)} boxes, mmdetection has {len(scores)}"
    np.testing.assert_allclose(found.scores, scores, rtol=0, atol=score)
    free = np.ones(len(found), bool)
    for row in range(len(scores)):
        near = (np.abs(found.boxes - boxes[row]) <= px).all(1) & (np.abs(found.scores - scores[row]) <= score)
        near &= free & (found.categories == labels[row] + 1)
        assert near.any(), f"no box at {boxes[row]}, {scores[row]}, class {labels[row]}"
        ours = int(near.argmax())
        free[ours] = False
        if found.masks is not None:
            assert (coco.decode(found.masks[ours]) != coco.decode(instances.masks[row])).sum() <= 2
