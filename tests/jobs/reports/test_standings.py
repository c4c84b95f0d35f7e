"""In what order queries come, and which of them get pictures."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.reports.standings import Standings, pick


def judged(first: list[int], missed: tuple[int, ...] = ()) -> Standings:
    """Queries in the order of the page; `missed` are places without a row."""
    row = np.array([-1 if place in missed else place for place in range(len(first))])
    return Standings(row, np.arange(len(first)), np.array(first), np.zeros((len(first), 20), bool), 20, row)


@pytest.mark.parametrize(
    "n, want",
    [
        (0, []),
        (1, [8]),  # the best: place 8 is right at once
        (2, [7, 8]),  # and the missed one
        (
            5,
            [0, 1, 5, 7, 8],
        ),  # places 0, 3, 6, 9 of 8 9 4 5 6 0 1 2 3 7, sorted by rank, and the most confident mistake
        (10, list(range(10))),
        (99, list(range(10))),
    ],
)
def test_four_fifths_are_typical_queries_and_one_fifth_confident_mistakes(n, want):
    standings = judged([0, 0, 0, 0, 2, 3, 4, 0, 1, 1], missed=(7,))
    assert pick(standings, n).tolist() == want


@given(st.lists(st.integers(0, 20), max_size=40), st.integers(0, 50))
def test_no_query_is_picked_twice_and_none_too_few(first, n):
    places = pick(judged(first), n)
    assert len(places) == min(n, len(first)) == len(set(places.tolist()))
    assert (np.diff(places) > 0).all()
