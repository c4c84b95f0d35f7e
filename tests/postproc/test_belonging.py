"""Against every overlap of every box, one after the other."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from postproc.belonging import belonging
from postproc.boxes import iou_matrix

SIDES = st.lists(st.tuples(*[st.integers(0, 3)] * 2, *[st.integers(1, 3)] * 2, st.integers(0, 2)), max_size=6)


def split(drawn: list) -> tuple[np.ndarray, np.ndarray]:
    values = np.array(drawn, float).reshape(-1, 5)
    return values[:, 4].astype(int), np.c_[values[:, :2], values[:, :2] + values[:, 2:4]]


@given(drawn=SIDES, true=SIDES)
def test_the_most_overlapped_true_box_of_its_photo(drawn: list, true: list) -> None:
    (image, boxes), (true_image, true_boxes) = split(drawn), split(true)
    found, most = belonging(image, boxes, true_image, true_boxes)
    overlaps = np.where(image[:, None] == true_image, iou_matrix(boxes, true_boxes), -1)
    for row, overlap in enumerate(overlaps):
        none = not (image[row] == true_image).any()
        assert found[row] == (-1 if none else overlap.argmax())
        assert most[row] == (0 if none else overlap.max())
