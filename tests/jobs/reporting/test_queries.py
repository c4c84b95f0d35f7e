"""Which queries get pictures, in what order queries come, accuracy over list length, and data that stays data."""

import json

import numpy as np
import pytest
import report_runs as runs
from hypothesis import given
from hypothesis import strategies as st

from jobs.reporting import queries, retrieval
from jobs.reporting.queries import Standings
from jobs.reporting.script_data import as_script, content_of
from retrieval import metrics
from store.objects import open_store


def standings(first: list[int], missed: tuple[int, ...] = ()) -> Standings:
    """Queries in the order of the page; `missed` are places without a row."""
    row = np.array([-1 if place in missed else place for place in range(len(first))])
    return Standings(row, np.arange(len(first)), np.array(first), np.zeros((len(first), 20), bool), 20)


@pytest.mark.parametrize(
    "n, want",
    [
        (0, []),
        (1, [8]),  # the best: place 8 is right at once
        (2, [7, 8]),  # and the missed one
        (5, [0, 1, 5, 7, 8]),  # of the line 8 9 4 5 6 0 1 2 3 7 the places 0, 3, 6, 9, and the surest mistake
        (10, list(range(10))),
        (99, list(range(10))),
    ],
)
def test_four_fifths_are_as_they_come_and_one_of_the_surest(n, want):
    found = standings([0, 0, 0, 0, 2, 3, 4, 0, 1, 1], missed=(7,))
    assert queries.pick(found, n).tolist() == want


@given(st.lists(st.integers(0, 20), max_size=40), st.integers(0, 50))
def test_as_many_as_asked_each_once(first, n):
    found = queries.pick(standings(first), n)
    assert len(found) == min(n, len(first)) == len(set(found.tolist()))
    assert (np.diff(found) > 0).all()


def test_curves_are_the_benchmarks_at_its_own_lengths(tmp_path):
    output = open_store(tmp_path / "run")
    images = runs.four(tmp_path / "set", output)
    truth = queries.read_truth(images)
    curve = retrieval.accuracy_curves(output, "detected", ["concat"], truth)["concat"]
    results = queries.read_ranking(output, "rankings/detected.parquet").results
    top = metrics.consumer_to_shop_accuracy(results, truth.query_gt, truth.gallery_gt)["top"]
    assert {k: curve[k - 1] for k in metrics.KS} == top
    assert curve[0] == 1 / 4 and curve[1] == 2 / 4 and len(curve) == 20


@pytest.mark.parametrize(
    "models, there, want",
    [
        (["lite"], ["detected"], {"lite": "rankings/detected.parquet"}),  # one model: its list is the final one
        (
            ["a", "concat"],
            ["detected", "detected/a"],
            {"a": "rankings/detected/a.parquet", "concat": "rankings/detected.parquet"},
        ),
        (
            ["concat", "steps"],
            ["detected", "detected/concat"],
            {"concat": "rankings/detected/concat.parquet", "steps": "rankings/detected.parquet"},
        ),
        (["a", "concat"], ["detected"], {"concat": "rankings/detected.parquet"}),  # a file that is gone
    ],
)
def test_each_model_has_its_ranking(tmp_path, models, there, want):
    output = open_store(tmp_path)
    for name in there:
        output.write(f"rankings/{name}.parquet", b"")
    assert retrieval.model_keys(output, "detected", models) == want


def test_similarities_of_right_and_wrong_first_results(tmp_path):
    output = open_store(tmp_path / "run")
    truth = queries.read_truth(runs.four(tmp_path / "set", output))
    ranking = queries.read_ranking(output, "rankings/detected.parquet")
    found = retrieval.similarity_histogram(ranking, queries.judge(ranking, truth))
    assert found.right.sum() == 1 and found.wrong.sum() == 2  # photo 1; 2 and 3; 4 is missed and has no first result


texts = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(texts)
def test_data_comes_back_and_nothing_in_it_is_markup(content):
    script = as_script("name", content)
    assert content_of(script) == content
    assert script.isascii() and not set(script) & set(b"<>&") and script.count(b"\n") == 1
    assert json.loads(script[len(b'(window.REPORT ??= {})["name"] = ') : -2]) == content


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_json_lacks_are_refused(value):
    with pytest.raises(ValueError):
        as_script("name", [value])
