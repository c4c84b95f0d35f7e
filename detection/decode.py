"""From a head's raw outputs to boxes, for a whole batch at once on its device. Tensors in, tensors out.

Boxes of all photos lie in one table with a column for the photo. Ties keep the order of the table everywhere: of
equal scores the finer level goes first, then the earlier place in rows of the map, then the earlier anchor, then the
lower class. mmdetection leaves the order of ties to `torch.sort` and `torch.topk`, which define none, and so also which
of them stay where only so many do.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from networks.packages import torchvision

MAX_LOG_RATIO = abs(math.log(16 / 1000))  # between a box and its anchor: mmdetection's `wh_ratio_clip`


class BatchBoxes(NamedTuple):
    """Boxes of the photos of a batch, in one table."""

    boxes: Tensor  # (N, 4) float32, x1 y1 x2 y2 in pixels
    scores: Tensor  # (N,) float32
    labels: Tensor  # (N,) int64, from 0 up
    photos: Tensor  # (N,) int64, rows of the batch

    def take(self, rows: Tensor) -> "BatchBoxes":
        """Some rows, in the order given; (N,) bool or (K,) int64."""
        return BatchBoxes(*(column[rows] for column in self))


def best_of_groups(scores: Tensor, groups: Tensor, most: int) -> Tensor:
    """The rows of each group's `most` best scores: groups in order, best first, ties in the order given.

    `scores` is (N,) float32 from 0 up, `groups` (N,) int64 from 0 up, small numbers; (K,) int64.

    >>> best_of_groups(torch.tensor([0.1, 0.5, 0.9, 0.5]), torch.tensor([1, 0, 1, 0]), 1)
    tensor([1, 2])
    """
    # bits of floats from 0 up are in the order of the floats: one sort by group and score is a third of two
    order = ((groups << 32) - scores.view(torch.int32)).argsort(stable=True)
    return order[places(groups[order]) < most]


def places(groups: Tensor) -> Tensor:
    """The place of each row within its group, from 0 up; `groups` (N,) int64 are in order.

    >>> places(torch.tensor([0, 0, 2, 2, 2]))
    tensor([0, 1, 0, 1, 2])
    """
    counts = torch.bincount(groups)
    return torch.arange(len(groups), device=groups.device) - (counts.cumsum(0) - counts)[groups]


def as_rows(maps: Sequence[Tensor], width: int) -> Tensor:
    """Maps (B, A * width, h, w) of all levels as one (B, N, width): by level, place and anchor."""
    return torch.cat([one.permute(0, 2, 3, 1).reshape(len(one), -1, width) for one in maps], 1)


def anchors_of(base: Tensor | list[list[float]], stride: Sequence[int], shape: Sequence[int], like: Tensor) -> Tensor:
    """The anchors of a pyramid level, (h * w * A, 4) float32: by place, row by row, and anchor.

    Args:
        base: (A, 4), those of the first place.
        stride: pixels between places, x and y.
        shape: h and w of the level's map.
        like: its device is the answer's.
    """
    y, x = (torch.arange(n, device=like.device, dtype=torch.float32) for n in shape)
    y, x = torch.meshgrid(y * stride[1], x * stride[0], indexing="ij")
    first = torch.as_tensor(base, dtype=torch.float32, device=like.device)
    return (torch.stack([x, y, x, y], -1).view(-1, 1, 4) + first).view(-1, 4)


def levels_of(anchors: Tensor, level_sizes: Sequence[int]) -> Tensor:
    """The level of each anchor, where the levels have so many and follow each other.

    >>> levels_of(torch.tensor([0, 4, 5]), [4, 1, 1])
    tensor([0, 1, 2])
    """
    return torch.bucketize(anchors, torch.tensor(level_sizes, device=anchors.device).cumsum(0), right=True)


def best_anchors(
    scores: Tensor, level_sizes: Sequence[int], threshold: float, most: int, left_out: Sequence[int] = ()
) -> tuple[Tensor, Tensor, Tensor]:
    """The best scores of every photo and level.

    Args:
        scores: (B, N, C) of each photo's anchors and classes.
        level_sizes: how many of the N anchors each pyramid level has, in order.
        threshold: a score has to be above it.
        most: so many of a photo and level at most.
        left_out: classes that are passed over.

    Returns:
        photos, anchors, classes: (K,) int64 each; by photo and level, best first.
    """
    above = scores > threshold
    if left_out:
        above[..., list(left_out)] = False
    if not scores.is_cuda:
        return _best_anchors_on_cpu(scores.numpy(), above.numpy(), level_sizes, most)
    photos, anchors, classes = above.nonzero(as_tuple=True)
    groups = photos * len(level_sizes) + levels_of(anchors, level_sizes)
    rows = best_of_groups(scores[photos, anchors, classes], groups, most)
    return photos[rows], anchors[rows], classes[rows]


def _best_anchors_on_cpu(
    scores: np.ndarray, above: np.ndarray, level_sizes: Sequence[int], most: int
) -> tuple[Tensor, Tensor, Tensor]:
    """As `best_anchors`, of the scores where `above` (B, N, C) is set: a level's few best are chosen before they are
    sorted, which takes a third of the time."""
    n_photos, n, n_classes = scores.shape
    flat = np.flatnonzero(above)
    values = scores.reshape(-1)[flat]
    starts = np.arange(n_photos)[:, None] * n + np.cumsum([0, *level_sizes[:-1]])
    bounds = np.searchsorted(flat, np.append(starts * n_classes, scores.size)).tolist()
    chosen = []
    for begin, end in pairwise(bounds):
        rows = np.arange(begin, end)
        if len(rows) > most:
            rows = rows[values[rows] >= np.partition(values[rows], len(rows) - most)[len(rows) - most]]
        # bits of floats from 0 up are in the order of the floats
        keys = np.sort((values[rows].view(np.int32).astype(np.int64) << 32) - rows)[::-1][:most]
        chosen.append(-keys & 0xFFFFFFFF)
    places, classes = np.divmod(flat[np.concatenate(chosen)], n_classes)
    photos, anchors = np.divmod(places, n)
    return torch.from_numpy(photos), torch.from_numpy(anchors), torch.from_numpy(classes)


def from_deltas(boxes: Tensor, deltas: Tensor, means: Sequence[float], stds: Sequence[float], limits: Tensor) -> Tensor:
    """Boxes moved and stretched by a head's numbers and clipped, R-CNN's encoding (arXiv:1311.2524).

    Args:
        boxes: (N, 4) anchors or proposals, x1 y1 x2 y2.
        deltas: (N, 4): shift of the centre over the size, logarithm of the ratio of sizes.
        means, stds: of the deltas, by which a head's numbers are normalised.
        limits: (N, 2) width and height of each box's photo.
    """
    deltas = deltas * deltas.new_tensor(stds) + deltas.new_tensor(means)
    sizes = boxes[:, 2:] - boxes[:, :2]
    centres = (boxes[:, :2] + boxes[:, 2:]) * 0.5 + sizes * deltas[:, :2]
    halves = sizes * deltas[:, 2:].clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp() * 0.5
    corners = torch.cat([centres - halves, centres + halves], 1)
    return torch.minimum(corners.clamp(min=0), limits.repeat(1, 2))


def suppress(found: BatchBoxes, groups: Tensor, iou_threshold: float, most: int) -> BatchBoxes:
    """Greedy suppression within each photo and group: by photo, best first, at most `most` of each photo.

    `groups` is (N,) int64 from 0 up: boxes of different groups never compete. An overlap above the threshold drops the
    lower score; equal overlap stays. Boxes without an area go. Overlaps are doubles: a GPU moves groups apart, and a
    photo's boxes must not depend on how far.
    """
    solid = (found.boxes[:, 2:] > found.boxes[:, :2]).all(1)
    found, groups = found.take(solid), groups[solid]
    apart = found.photos * (groups.max() + 1) + groups if len(groups) else groups
    if found.boxes.is_cuda:
        doubles = found.boxes.double(), found.scores.double()
        kept = torchvision.ops.batched_nms(*doubles, apart, iou_threshold).sort().values
    else:
        kept = _kept_of_groups(found, apart, iou_threshold)
    found = found.take(kept)
    return found.take(best_of_groups(found.scores, found.photos, most))


def _kept_of_groups(found: BatchBoxes, groups: Tensor, iou_threshold: float) -> Tensor:
    """The rows that stay, group by group: on a CPU a third quicker than `batched_nms`, which searches all rows for each
    group's."""
    rows = best_of_groups(found.scores, groups, len(groups))
    sizes = [size for size in torch.bincount(groups).tolist() if size]
    columns = (column[rows].split(sizes) for column in (found.boxes.double(), found.scores.double()))
    nms, parts = torchvision.ops.nms, zip(rows.split(sizes), *columns, strict=True)
    kept = [part[nms(*of_part, iou_threshold)] for part, *of_part in parts]
    return torch.cat([rows[:0], *kept]).sort().values


def peaks(heat: Tensor, threshold: float, most: int, kernel: int, left_out: Sequence[int] = ()) -> tuple[Tensor, ...]:
    """The places of a photo's best local maxima: photos, classes, y, x (K,) int64; by photo, best first.

    `heat` is (B, C, h, w) float32. A maximum is the greatest of the `kernel` x `kernel` places around it and reaches
    `threshold`.
    """
    highest = functional.max_pool2d(heat, kernel, stride=1, padding=(kernel - 1) // 2)
    standing = (heat == highest) & (heat >= threshold)
    if left_out:
        standing[:, list(left_out)] = False
    places_of = standing.nonzero(as_tuple=True)
    rows = best_of_groups(heat[places_of], places_of[0], most)
    return tuple(column[rows] for column in places_of)


def padded(found: BatchBoxes, n_photos: int, n: int) -> tuple[Tensor, Tensor]:
    """The boxes of each photo as (B, n, 4), empty boxes at the end, and (B, n) bool: which are real.

    `found` is in the order of photos, and none has more than `n`.
    """
    boxes = found.boxes.new_zeros(n_photos, n, 4)
    real = torch.zeros(n_photos, n, dtype=torch.bool, device=boxes.device)
    at = found.photos, places(found.photos)
    boxes[at], real[at] = found.boxes, True
    return boxes, real


def visible(found: BatchBoxes, sizes: Tensor, threshold: float, most: int) -> tuple[BatchBoxes, Tensor]:
    """The candidates clipped to their photos, without those of no area, of a low score, or beyond the best `most`.

    `found` is by photo and best first, and stays so; `sizes` (B, 2) is each photo's width and height. Also returns the
    (K,) int64 rows of `found` that stayed.
    """
    boxes = torch.minimum(found.boxes.clamp(min=0), sizes[found.photos].repeat(1, 2))
    solid = (boxes[:, 2:] > boxes[:, :2]).all(1) & (found.scores >= threshold) & found.scores.isfinite()
    rows = solid.nonzero()[:, 0]
    rows = rows[places(found.photos[rows]) < most]
    return found._replace(boxes=boxes).take(rows), rows
