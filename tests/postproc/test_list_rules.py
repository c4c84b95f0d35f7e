"""The category rule, the detector's score and grouping on lists small enough to be looked through."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from postproc.category_rule import category_rule
from postproc.detector_score import with_detector_score
from postproc.grouping import group
from postproc.hypotheses import Hypotheses

NONE = -np.inf


def lists(rows: list, similarity: list) -> tuple[np.ndarray, np.ndarray]:
    return np.array(rows, np.int64).reshape(len(rows), -1), np.array(similarity, np.float32).reshape(len(rows), -1)


def sure(*category: int) -> Hypotheses:
    return Hypotheses.own(np.array(category), np.ones(len(category)))


CATEGORY = sure(1, 2, 1, 2)


@pytest.mark.parametrize("rule, penalty, want_rows, want", [
    ("off", 9.0, [0, 1, 2], [0.75, 0.5, 0.25]),
    ("hard", 9.0, [1, -1, -1], [0.5, NONE, NONE]),                   # the query is of category 2, and so is item 1 only
    ("soft", 0.5, [1, 0, 2], [0.5, 0.75 - 0.5, 0.25 - 0.5]),
    ("soft", 0.25, [0, 1, 2], [0.75 - 0.25, 0.5, 0.0]),              # equal now, so they stand as they stood
    ("soft", 0.0, [0, 1, 2], [0.75, 0.5, 0.25]),
])  # fmt: skip
def test_other_categories_lose_places_or_go(rule: str, penalty: float, want_rows: list, want: list) -> None:
    rows, similarity = category_rule(*lists([[0, 1, 2]], [[0.75, 0.5, 0.25]]), sure(2), CATEGORY, rule, penalty)
    assert rows.tolist() == [want_rows]
    np.testing.assert_allclose(similarity, [want])


def test_the_soft_rule_asks_for_the_probability_of_one_category() -> None:
    query = Hypotheses(np.array([[1, 2]]), np.array([[0.6, 0.2]]))  # shares 3/4, 1/4
    gallery = Hypotheses(np.array([[1, 2], [2, 0]]), np.array([[0.1, 0.1], [0.3, 0.0]]))  # 1/2, 1/2; 1
    rows, similarity = category_rule(*lists([[0, 1]], [[0.5, 0.75]]), query, gallery, "soft", 1.0)
    assert rows.tolist() == [[0, 1]]
    np.testing.assert_allclose(similarity, [[0.5 - (1 - (3 / 8 + 1 / 8)), 0.75 - (1 - 1 / 4)]], atol=1e-7)


@pytest.mark.parametrize("rule", ["soft", "hard"])
def test_a_query_of_unknown_category_keeps_its_list(rule: str) -> None:
    both = lists([[0, 1], [0, 1]], [[0.75, 0.5], [0.75, 0.5]])
    rows, similarity = category_rule(*both, sure(0, 2), CATEGORY, rule, 0.5)
    assert rows[0].tolist() == [0, 1]
    assert similarity[0].tolist() == [0.75, 0.5]
    assert rows[1, 0] == 1


@pytest.mark.parametrize("weight, want_rows, want", [
    (0.0, [0, 1], [0.5, 0.25]),
    (0.5, [1, 0], [0.25 + 0.5 * 1.0, 0.5 + 0.5 * 0.25]),
    (-1.0, [0, 1], [0.5 - 0.25, 0.25 - 1.0]),
])  # fmt: skip
def test_scores_are_added_with_their_weight(weight: float, want_rows: list, want: list) -> None:
    rows, similarity = with_detector_score(*lists([[0, 1]], [[0.5, 0.25]]), np.array([0.25, 1.0]), weight)
    assert rows.tolist() == [want_rows]
    np.testing.assert_allclose(similarity, [want])


@pytest.mark.parametrize("rows, key, want", [
    ([0, 1, 2, 3], [5, 5, 6, 6], [0, 2, -1, -1]),
    ([3, 1, 2, 0], [5, 5, 6, 6], [3, 1, -1, -1]),                    # the better one stays
    ([0, 1, 2, 3], [-1, -1, -1, 6], [0, 1, 2, 3]),                   # what has no product is alone
    ([0, -1, 1, -1], [5, 5, 6, 6], [0, -1, -1, -1]),
    ([-1, 0, -1, 1], [5, 5, 6, 5], [0, -1, -1, -1]),                 # nothing in between parts nothing
])  # fmt: skip
def test_the_best_of_each_group_stays(rows: list, key: list, want: list) -> None:
    found, similarity = group(*lists([rows], [[0.9, 0.8, 0.7, 0.6]]), np.array(key))
    assert found.tolist() == [want]
    assert ((similarity == NONE) == (found < 0)).all()


RULES: list[Callable] = [
    lambda rows, s: category_rule(rows, s, sure(*[3] * len(rows)), CATEGORY, "hard"),
    lambda rows, s: category_rule(rows, s, sure(*[1] * len(rows)), CATEGORY, "soft", 0.3),
    lambda rows, s: with_detector_score(rows, s, np.linspace(0, 1, 4), 0.7),
    lambda rows, s: group(rows, s, np.array([3, 3, -1, 4])),
]


@pytest.mark.parametrize("rule", RULES)
@given(data=st.data(), n=st.integers(0, 4), k=st.integers(0, 4))
@settings(max_examples=40)
def test_any_lists_come_back_as_lists(rule: Callable, data: st.DataObject, n: int, k: int) -> None:
    rows = np.array([data.draw(st.permutations(range(4)))[:k] for _ in range(n)], np.int64).reshape(n, k)
    similarity = np.sort(data.draw(st.lists(st.floats(-1, 1, width=32), min_size=n * k, max_size=n * k)))[::-1]
    similarity = np.ascontiguousarray(similarity, np.float32).reshape(n, k)
    before = rows.copy()
    found, scores = rule(rows, similarity)
    assert found.shape == scores.shape == (n, k) and (rows == before).all()
    for line, values, asked in zip(found, scores, before, strict=True):
        there = line >= 0
        assert not (there[1:] & ~there[:-1]).any()  # nothing stands before something
        assert set(line[there]) <= set(asked) and len(set(line[there])) == there.sum()
        assert (np.diff(values[there]) <= 0).all() and (values[~there] == NONE).all()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("rows, similarity, words", [
    ([[4]], [[0.5]], "row 4"), ([[-2]], [[0.5]], "row -2"), ([[0]], [[np.nan]], "query 0, place 0"),
    ([[0]], [[0.5, 0.4]], "one"),
])  # fmt: skip
def test_lists_that_cannot_be_are_refused(rule: Callable, rows: list, similarity: list, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        rule(np.array(rows), np.array(similarity))


@pytest.mark.parametrize("call", [
    lambda: category_rule(*lists([[0]], [[1.0]]), sure(1, 2), CATEGORY),
    lambda: category_rule(*lists([[0]], [[1.0]]), sure(1), CATEGORY, "medium"),
    lambda: category_rule(*lists([[0]], [[1.0]]), sure(1), CATEGORY, "soft", -1.0),
    lambda: with_detector_score(*lists([[0]], [[1.0]]), np.array([2.0])),
    lambda: with_detector_score(*lists([[0]], [[1.0]]), np.array([0.5]), np.nan),
    lambda: group(*lists([[0]], [[1.0]]), np.array([0.5])),
])  # fmt: skip
def test_what_does_not_fit_is_refused(call: Callable) -> None:
    with pytest.raises(ValueError):
        call()
