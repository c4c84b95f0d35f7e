"""Which true box each box of a photo belongs to: the one that it overlaps most, as the benchmarks have it.

In: boxes and true boxes of many photos. Out: rows of the true boxes, and overlaps. Source: the retrieval evaluator of
DeepFashion2, arXiv:1901.07973, whose overlaps are pycocotools'.
"""

import numpy as np

from postproc.places import spans


def belonging(
    image: np.ndarray, boxes: np.ndarray, true_image: np.ndarray, true_boxes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Row of the true box that each box overlaps most, and that overlap.

    Args:
        image: (N,) int, of the photo; boxes: (N, 4) float, x1 y1 x2 y2. true_image: (M,), true_boxes: (M, 4) likewise.

    Returns:
        (N,) int64, of equal overlaps the first row, -1 on a photo without true boxes; (N,) float64 in [0, 1], 0 there.

    >>> box = np.array([[0, 0, 4, 4]])
    >>> belonging(np.array([7]), box, np.array([7, 7, 8]), np.array([[9, 9, 10, 10], [0, 0, 4, 2], [0, 0, 4, 4]]))
    (array([1]), array([0.5]))
    """
    order = np.argsort(true_image, kind="stable")
    row, position = spans(true_image[order], image)
    true = order[position]
    overlap = coco_iou(boxes[row], true_boxes[true])
    found, most = np.full(len(image), -1, np.int64), np.zeros(len(image))
    if len(row):
        starts = np.flatnonzero(np.r_[True, row[1:] != row[:-1]])
        best = np.repeat(np.maximum.reduceat(overlap, starts), np.diff(np.r_[starts, len(row)]))
        tops = np.flatnonzero(overlap == best)[::-1]  # backwards, so that the first of equal overlaps is written last
        found[row[tops]], most[row[tops]] = true[tops], overlap[tops]
    return found, most


def coco_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N,) float64, overlap of row with row of two (N, 4) float64 lists, x1 y1 x2 y2.

    Through widths and heights, as pycocotools has it, so that ties round alike; else that of `postproc.boxes`.
    """
    a_size, b_size = a[:, 2:] - a[:, :2], b[:, 2:] - b[:, :2]
    sides = np.minimum(a[:, :2] + a_size, b[:, :2] + b_size) - np.maximum(a[:, :2], b[:, :2])
    shared = np.where((sides > 0).all(axis=1), sides[:, 0] * sides[:, 1], 0.0)
    union = a_size[:, 0] * a_size[:, 1] + b_size[:, 0] * b_size[:, 1] - shared
    return np.divide(shared, union, out=np.zeros(len(a)), where=shared > 0)
