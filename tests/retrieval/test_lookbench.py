"""LookBench's figures: by hand, beside a plain loop, and beside the package look-bench on the same lists."""

from math import log2
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.lookbench import KS, graded_figures, label_figures
from store.imageset import ATTRIBUTES
from tests.retrieval.made_lists import rankings_of

labels = st.sampled_from("abc")


def lists_of(similarity: np.ndarray) -> np.ndarray:
    """Rows of the gallery by falling similarity, ties by row."""
    return np.argsort(-similarity, axis=1, kind="stable")


def plain(ranked: list[int], label: str, gallery: list[str], k: int) -> tuple[float, float]:
    right = [gallery[row] == label for row in ranked[:k]]
    gain = sum(is_right / log2(1 + place) for place, is_right in enumerate(right, 1))
    ideal = sum(1 / log2(1 + place) for place in range(1, min(gallery.count(label), k) + 1))
    return float(any(right)), gain / ideal if ideal else 0.0


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[str], list[str], np.ndarray]:
    """Labels of queries and gallery, and similarities of few values: ties are common, and labels without an answer."""
    queries = draw(st.lists(labels, min_size=1, max_size=6))
    gallery = draw(st.lists(labels, min_size=1, max_size=30))
    levels = st.lists(st.integers(0, 3), min_size=len(gallery), max_size=len(gallery))
    return queries, gallery, np.array([draw(levels) for _ in queries])


@given(cases())
def test_whole_rankings_agree_with_a_plain_loop(case):
    queries, gallery, similarity = case
    ranked = lists_of(similarity)
    got = label_figures(ranked, np.array(queries), np.array(gallery))
    for k in KS:
        each = [plain(row, label, gallery, k) for row, label in zip(ranked.tolist(), queries, strict=True)]
        for name, values in zip(("recall", "ndcg"), zip(*each, strict=True), strict=True):
            assert got[name][str(k)] == pytest.approx(sum(values) / len(values), abs=1e-12)
    assert got["queries"] == len(queries)


@given(cases())
def test_whole_rankings_agree_with_the_package(case):
    package = pytest.importorskip("look_bench.metrics")
    queries, gallery, similarity = case
    ranked = lists_of(similarity)
    got = label_figures(ranked, np.array(queries), np.array(gallery))
    for name, evaluator in (("recall", package.RankEvaluator()), ("ndcg", package.NDCGEvaluator())):
        for k in KS:
            pairs = zip(ranked, queries, strict=True)
            theirs = [evaluator.metric_eval(row, k, label, np.array(gallery)) for row, label in pairs]
            assert got[name][str(k)] == pytest.approx(np.mean(theirs), abs=1e-9)


@given(st.lists(st.tuples(labels, st.lists(st.integers(0, 9), max_size=9, unique=True)), max_size=5))
def test_lists_that_end_early_agree_with_a_plain_loop(drawn):
    gallery = list("abcaabbcca")
    width = max([0, *(len(listed) for _, listed in drawn)])
    ranked = np.array([listed + [-1] * (width - len(listed)) for _, listed in drawn], np.int64).reshape(
        len(drawn), width
    )
    got = label_figures(ranked, np.array([label for label, _ in drawn], "<U1"), np.array(gallery))
    for k in KS:
        each = [plain(listed, label, gallery, k) for label, listed in drawn]
        want = [sum(values) / len(drawn) for values in zip(*each, strict=True)] if drawn else [None, None]
        assert [got["recall"][str(k)], got["ndcg"][str(k)]] == (pytest.approx(want, abs=1e-12) if drawn else want)


def photos(rows: list[tuple[int, str, dict[str, str]]]) -> pa.Table:
    image_id, source, attributes = zip(*rows, strict=True)
    maps = pa.array([list(one.items()) for one in attributes], ATTRIBUTES)
    return pa.table({"image_id": pa.array(image_id, pa.int64()), "source": list(source), "attributes": maps})


def shown(subset: str, category: str, main: str = "plain") -> dict[str, str]:
    return {"subset": subset, "category": category, "main_attribute": main, "price": "9"}


def test_each_subset_has_its_own_gallery():
    table = photos([
        (1, "user", shown("flat", "skirt", "pleated")), (2, "user", shown("street", "skirt", "pleated")),
        (3, "user", shown("street", "vest")), (4, "user", {"category": "vest"}), (5, "user", {}),
        (10, "shop", shown("flat", "skirt", "plain")), (11, "shop", shown("flat", "skirt", "pleated")),
        (20, "shop", shown("street", "skirt", "pleated")), (30, "shop", shown("noise", "vest", "noise")),
    ])  # fmt: skip
    lists = [
        (1, 0, 0.9, [(20, 0, 0.9), (10, 0, 0.8), (30, 0, 0.7), (11, 0, 0.6)]),
        (2, 0, 0.9, [(11, 0, 0.9), (30, 0, 0.8), (20, 0, 0.7)]),
        (4, 0, 0.9, [(30, 0, 0.9)]),
    ]
    got = graded_figures(rankings_of(lists), table)
    assert {grade: list(parts) for grade, parts in got.items()} == {g: ["flat", "street"] for g in ("coarse", "fine")}
    # photo 1 among 10, 30, 11: coarsely right at places 1 and 3, finely at 3 alone
    assert got["coarse"]["flat"]["recall"] == {"1": 1, "5": 1, "10": 1, "20": 1}
    assert got["fine"]["flat"]["recall"] == {"1": 0, "5": 1, "10": 1, "20": 1}
    assert got["coarse"]["flat"]["ndcg"]["5"] == pytest.approx((1 + 1 / log2(4)) / (1 + 1 / log2(3)))
    assert got["fine"]["flat"]["ndcg"]["5"] == pytest.approx(1 / log2(4))
    # photo 2 among 30, 20: right at place 2; photo 3 was not detected
    assert got["fine"]["street"]["recall"] == {"1": 0, "5": 1 / 2, "10": 1 / 2, "20": 1 / 2}
    assert got["fine"]["street"]["ndcg"]["5"] == pytest.approx(1 / log2(3) / 2)
    assert got["coarse"]["street"]["recall"]["5"] == 1 / 2
    counts = [(got["fine"][subset]["queries"], got["fine"][subset]["short"]) for subset in ("flat", "street")]
    assert counts == [(1, 0), (2, 1)]


@pytest.mark.parametrize("attributes", [{}, {"category": "skirt"}, {"main_attribute": "plain"}])
def test_photos_without_grades_have_no_figures(attributes: dict[str, Any]):
    assert graded_figures(rankings_of([(1, 0, 0.9, [(10, 0, 0.5)])]), photos([(1, "user", attributes)])) == {}


def test_photos_of_no_subset_are_one():
    table = photos([(1, "user", shown("", "skirt")), (10, "shop", shown("", "skirt"))])
    got = graded_figures(rankings_of([(1, 0, 0.9, [(10, 0, 0.5)])]), table)
    assert got["fine"] == {
        "all": {"recall": dict.fromkeys(map(str, KS), 1.0), "ndcg": dict.fromkeys(map(str, KS), 1.0)}
        | {"queries": 1, "short": 0}
    }
