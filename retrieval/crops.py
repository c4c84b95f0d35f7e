"""Boxes on a photo to square crops, for the embedders: NumPy and OpenCV, no torch.

The rule, the same in training and in use:

1. The box is widened by `margin` of its own width on the left and on the right and of its own height above and below,
   then cut to the photo and rounded to whole pixels (half up), at least one. A margin below 0 makes what the photo
   shows of the box narrower instead.
2. What is inside keeps its proportions: its longer side becomes `size` pixels (by area where it shrinks, bilinearly
   where it grows), it stands in the middle, and the rest of the square is white.

Why white, and no margin: shop photos have white backdrops, so a narrow garment ends in white on both sides of a pair.
What surrounds a consumer's garment, the street and the other garments, tells pairs apart that belong together.
Published EfficientNet-Lite0 features (160 px, stride 32) on ccp_df2 val, true boxes, Acc@1 / Acc@10: this rule 0.545 /
0.717; stretched to the square 0.437 / 0.685, with a margin of 0.05 0.260 / 0.494; a square of the photo about the box
0.260 / 0.460, with a margin of 0.05 0.138 / 0.287.
"""

import cv2
import numpy as np

MARGIN = 0.0  # of the box's own width and height, on each side
FILL = 255  # white


def crop(image: np.ndarray, boxes: np.ndarray, size: int, margin: float = MARGIN) -> np.ndarray:
    """Cut every box out of one photo as a square picture: (N, size, size, 3) uint8, RGB, rows as in `boxes`.

    Raises ValueError for another shape or type, and with its row for a box that is not finite, is empty or lies outside
    the photo.

    Args:
        image: (H, W, 3) uint8, RGB, upright; not changed.
        boxes: (N, 4) float, x1 y1 x2 y2 in pixels of `image`; N may be 0. Parts outside the photo are ignored.
        size: side of the crops in pixels.
        margin: share of the box's width and height added on each side, above -0.5; below 0 it is taken away.

    >>> crop(np.full((20, 10, 3), 7, np.uint8), np.array([[0, 0, 10, 20]]), 4).shape
    (1, 4, 4, 3)
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"crop: want a photo (H, W, 3) uint8, got {image.shape} {image.dtype}")
    if size < 1:
        raise ValueError(f"crop: want a size of at least 1 pixel, got {size}")
    areas = areas_of(boxes, image.shape[1], image.shape[0], margin)
    out = np.full((len(areas), size, size, 3), FILL, np.uint8)
    for row, (x1, y1, x2, y2) in enumerate(areas.tolist()):
        part = fit(image[y1:y2, x1:x2], size)
        top, left = (size - part.shape[0]) // 2, (size - part.shape[1]) // 2
        out[row, top : top + part.shape[0], left : left + part.shape[1]] = part
    return out


def fit(picture: np.ndarray, size: int) -> np.ndarray:
    """Resize (h, w, 3) uint8 so that its longer side is `size`; the shorter is rounded half up, at least 1."""
    height, width = picture.shape[:2]
    longer = max(height, width)
    shape = (max(1, (2 * width * size + longer) // (2 * longer)), max(1, (2 * height * size + longer) // (2 * longer)))
    how = cv2.INTER_AREA if longer > size else cv2.INTER_LINEAR
    return cv2.resize(np.ascontiguousarray(picture), shape, interpolation=how)


def areas_of(boxes: np.ndarray, width: int, height: int, margin: float = MARGIN) -> np.ndarray:
    """Step 1: boxes (N, 4) to (N, 4) int64 x1 y1 x2 y2 inside a photo of `width` x `height`, x2 and y2 not included."""
    boxes = np.asarray(boxes, np.float64)
    if boxes.size == 0:
        boxes = boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"crop: want boxes (N, 4), got {boxes.shape}")
    if not -0.5 < margin < np.inf:
        raise ValueError(f"crop: want a margin above -0.5, got {margin}")
    frame = np.array([width, height, width, height], np.float64)
    visible = np.clip(boxes, 0, frame)
    covers = np.isfinite(boxes).all(axis=1) & (visible[:, 2:] > visible[:, :2]).all(axis=1)
    for row in np.flatnonzero(~covers):
        raise ValueError(
            f"crop: box {row} {boxes[row].tolist()} covers nothing of a photo of {width} x {height} pixels"
        )
    boxes = visible if margin < 0 else boxes  # so that what is left lies within the photo
    more = (boxes[:, 2:] - boxes[:, :2]) * margin
    wide = np.clip(np.concatenate([boxes[:, :2] - more, boxes[:, 2:] + more], axis=1), 0, frame)
    low = np.minimum(np.floor(wide[:, :2] + 0.5), frame[:2] - 1)
    high = np.maximum(np.floor(wide[:, 2:] + 0.5), low + 1)
    return np.concatenate([low, high], axis=1).astype(np.int64)
