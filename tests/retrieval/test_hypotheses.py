"""Hypotheses as a column and back."""

import numpy as np
import pyarrow as pa
import pytest

from postproc.hypotheses import Hypotheses
from retrieval.hypotheses import HYPOTHESES, as_column, read_hypotheses

FOUND = Hypotheses(
    np.array([[3, 9, 1], [0, 0, 0], [2, 0, 0]]), np.array([[0.5, 0.75, 0.25], [0, 0, 0], [1, 0, 0]], np.float32)
)


def test_a_column_holds_what_is_no_padding() -> None:
    column = as_column(FOUND)
    assert column.type == HYPOTHESES
    assert [[tuple(pair.values()) for pair in row] for row in column.to_pylist()] == [
        [(3, 0.5), (9, 0.75), (1, 0.25)],
        [],
        [(2, 1.0)],
    ]


@pytest.mark.parametrize("parts", [1, 3])
def test_it_comes_back(parts: int) -> None:
    table = pa.table({"category_id": [3, 0, 2], "score": [0.5, 1.0, 1.0], "hypotheses": as_column(FOUND)})
    pieces = [table.slice(3 * i // parts, 3 // parts) for i in range(parts)]
    again = read_hypotheses(pa.concat_tables(pieces))
    np.testing.assert_array_equal(again.category_id, FOUND.category_id)
    np.testing.assert_array_equal(again.score, FOUND.score)


def test_rows_and_tables_without_any_have_their_own_category() -> None:
    table = pa.table({"query_category_id": [3, 4], "query_score": [0.5, 0.25]})
    assert read_hypotheses(table, "query_").category_id.tolist() == [[3], [4]]
    column = pa.array([None, [{"category_id": 4, "score": 0.25}, {"category_id": 1, "score": 0.125}]], HYPOTHESES)
    mixed = read_hypotheses(table.append_column("query_hypotheses", column), "query_")
    assert mixed.category_id.tolist() == [[3, 0], [4, 1]] and mixed.score.tolist() == [[0.5, 0], [0.25, 0.125]]


def test_no_rows() -> None:
    table = pa.table({"category_id": pa.array([], pa.int16()), "score": pa.array([], pa.float32())})
    for rows in (table, table.append_column("hypotheses", pa.array([], HYPOTHESES))):
        assert read_hypotheses(rows).category_id.shape == (0, 1)
