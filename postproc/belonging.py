"""Which true box each box of a photo belongs to: the one that it overlaps most, as the benchmarks have it.

In: boxes and true boxes of many photos. Out: rows of the true boxes, and overlaps. Source: the retrieval evaluator of
DeepFashion2, arXiv:1901.07973.
"""

import numpy as np

from postproc.boxes import pairwise_iou
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
    overlap = pairwise_iou(boxes[row], true_boxes[true])
    ranked = np.lexsort((true, -overlap, row))
    first = ranked[np.unique(row[ranked], return_index=True)[1]]  # of each box its best
    found, most = np.full(len(image), -1, np.int64), np.zeros(len(image))
    found[row[first]], most[row[first]] = true[first], overlap[first]
    return found, most
