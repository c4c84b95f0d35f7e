"""The true category of each item of a run: that of the true box which it overlaps most, at least by half."""

import numpy as np
import pyarrow as pa

from detection.metrics import truth_arrays
from postproc.belonging import belonging

LEAST_IOU = 0.5


def true_categories(image_id: np.ndarray, bbox: np.ndarray, truth: pa.Table) -> np.ndarray:
    """(N,) int64 category ids, 0 where no true box is near, and on photos with weak boxes.

    Args:
        image_id: (N,) int64; bbox: (N, 4) float, px x1 y1 x2 y2.
        truth: `jobs.runs.reader.read_photos` with weak_box and items.
    """
    true = truth_arrays(truth, areas=False)
    row, overlap = belonging(image_id, bbox.astype(np.float64), true["image_id"], true["bbox"])
    known = (overlap >= LEAST_IOU) & np.isin(image_id, true["judged"])
    label = np.zeros(len(image_id), np.int64)
    label[known] = true["category_id"][row[known]]
    return label
