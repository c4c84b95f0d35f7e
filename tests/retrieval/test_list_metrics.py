"""Average precision, reciprocal rank and nDCG: by hand, beside a plain loop."""

from math import log2
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.list_metrics import average_precision, first_ranks, list_figures, ndcg, reciprocal_rank


@pytest.mark.parametrize(
    "places, relevant, want_ap, want_rr, want_ndcg5",
    [
        ([], 0, 0, 0, 0),  # no right answer at all
        ([], 3, 0, 0, 0),  # none of three in the list
        ([1], 1, 1, 1, 1),
        ([2], 1, 1 / 2, 1 / 2, (1 / log2(3)) / 1),
        ([1, 3], 2, (1 / 1 + 2 / 3) / 2, 1, (1 + 1 / log2(4)) / (1 + 1 / log2(3))),
        ([1, 3], 4, (1 / 1 + 2 / 3) / 4, 1, (1 + 1 / log2(4)) / sum(1 / log2(1 + i) for i in range(1, 5))),
        ([6], 1, 1 / 6, 1 / 6, 0),  # below the fifth place
        ([1, 2, 3, 4, 5, 6], 9, 6 / 9, 1, 1),  # more right answers than places: the best there is
        ([7], 7, (1 / 7) / 7, 1 / 7, 0),
    ],
)
def test_by_hand(places, relevant, want_ap, want_rr, want_ndcg5):
    found = np.isin(np.arange(1, 9), places)[None]
    count = np.array([relevant])
    assert average_precision(found, count)[0] == pytest.approx(want_ap, abs=1e-15)
    assert reciprocal_rank(found)[0] == want_rr
    assert ndcg(found, count, 5)[0] == pytest.approx(want_ndcg5, abs=1e-15)
    assert first_ranks(found)[0] == min(places, default=0)


def plain(found: list[bool], relevant: int) -> dict[str, Any]:
    hits = [i for i, is_right in enumerate(found, 1) if is_right]
    gain = {k: sum(1 / log2(1 + i) for i in hits if i <= k) for k in (5, 10, 20)}
    ideal = {k: sum(1 / log2(1 + i) for i in range(1, min(relevant, k) + 1)) for k in (5, 10, 20)}
    return {
        "map": sum((n + 1) / i for n, i in enumerate(hits)) / relevant if relevant else 0,
        "mrr": 1 / hits[0] if hits else 0,
        "ndcg": {str(k): gain[k] / ideal[k] if relevant else 0 for k in (5, 10, 20)},
    }


lists = st.integers(0, 30).flatmap(
    lambda k: st.lists(st.tuples(st.lists(st.booleans(), min_size=k, max_size=k), st.integers(0, 40)), max_size=6)
)


@given(lists)
def test_agrees_with_a_plain_loop(drawn):
    drawn = [(found, more + sum(found)) for found, more in drawn]
    width = len(drawn[0][0]) if drawn else 0
    found = np.array([found for found, _ in drawn], bool).reshape(len(drawn), width)
    got = list_figures(found, np.array([relevant for _, relevant in drawn], np.int64))
    each = [plain(found, relevant) for found, relevant in drawn]
    if not each:
        assert got == {"map": None, "mrr": None, "ndcg": {"5": None, "10": None, "20": None}, "unanswered": 0}
        return
    for name in ("map", "mrr"):
        assert got[name] == pytest.approx(sum(one[name] for one in each) / len(each), abs=1e-12)
    for k in ("5", "10", "20"):
        assert got["ndcg"][k] == pytest.approx(sum(one["ndcg"][k] for one in each) / len(each), abs=1e-12)
