"""The column of items with one field replaced."""

import numpy as np
import pyarrow as pa
import pytest

from store.imageset import ITEM
from store.items import field_of, with_field


def column(lists: list[list[int]]) -> pa.ChunkedArray:
    """Items that show nothing but their style, photo by photo."""
    plain = {"category_id": 1, "bbox": [0, 0, 1, 1], "segmentation": [[0, 0, 1, 0, 1, 1]], "viewpoint": 2}
    graded = dict.fromkeys(("scale", "occlusion", "zoom_in"), 1)
    rows = [[plain | graded | {"style": style} for style in styles] for styles in lists]
    return pa.chunked_array([pa.array(rows, pa.list_(ITEM))])


@pytest.mark.parametrize("lists", [
    [], [[]], [[], [3], [], [1, 2], []],  # nothing, photos without items, both
])  # fmt: skip
def test_one_field_changes_and_no_other(lists: list[list[int]]) -> None:
    before = column(lists)
    flat = [style for styles in lists for style in styles]
    after = with_field(before, "style", 10 * np.array(flat, np.int64))
    assert (
        after.type == before.type
        and after.to_pylist() == column([[10 * style for style in styles] for styles in lists]).to_pylist()
    )
    assert field_of(after, "style").tolist() == [10 * style for style in flat]


def test_parts_of_a_table_and_several_chunks() -> None:
    whole = pa.chunked_array([*column([[1], [2, 3]]).chunks, *column([[4, 5], []]).chunks])
    part = whole.slice(1, 2)  # of two chunks, in the middle of both
    assert field_of(part, "style").tolist() == [2, 3, 4, 5]
    assert with_field(part, "style", np.array([9, 8, 7, 6])).to_pylist() == column([[9, 8], [7, 6]]).to_pylist()


def test_a_value_that_does_not_fit_is_refused() -> None:
    with pytest.raises(pa.ArrowInvalid):
        with_field(column([[1]]), "category_id", np.array([2**15]))
