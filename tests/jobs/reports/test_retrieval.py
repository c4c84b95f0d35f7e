"""Accuracy over the length of the list, each model's rankings, and the similarities of right and wrong results."""

import numpy as np
import pytest
import report_runs as runs

from jobs.reports import retrieval
from jobs.reports.standings import judge
from jobs.reports.truth import read_truth
from jobs.runs.reader import read_rankings
from retrieval import metrics
from store.objects import open_store


def test_a_curve_agrees_with_the_benchmark_at_its_lengths(tmp_path):
    output = open_store(tmp_path / "run")
    images = runs.four(tmp_path / "set", output)
    truth = read_truth(images)
    curve = retrieval.accuracy_curves(output, "detected", ["concat"], truth)["concat"]
    results = read_rankings(output, "detected").results
    top = metrics.consumer_to_shop_accuracy(results, truth.rankings.query_gt, truth.rankings.gallery_gt)["top"]
    assert {k: curve[k - 1] for k in metrics.KS} == top
    assert curve[0] == 1 / 4 and curve[1] == 2 / 4 and len(curve) == 20


@pytest.mark.parametrize(
    "models, stored, want",
    [
        (["lite"], ["detected"], {"lite": "detected"}),  # one model: its list is the final one
        (
            ["a", "concat"],
            ["detected", "detected/a"],
            {"a": "detected/a", "concat": "detected"},
        ),
        (
            ["concat", "steps"],
            ["detected", "detected/concat"],
            {"concat": "detected/concat", "steps": "detected"},
        ),
        (["a", "concat"], ["detected"], {"concat": "detected"}),  # a's file does not exist
    ],
)
def test_each_model_has_its_rankings(tmp_path, models, stored, want):
    output = open_store(tmp_path)
    for name in stored:
        output.write(f"rankings/{name}.parquet", b"")
    assert retrieval.model_rankings(output, "detected", models) == want


def test_similarities_of_right_and_wrong_first_results(tmp_path):
    output = open_store(tmp_path / "run")
    truth = read_truth(runs.four(tmp_path / "set", output))
    rankings = read_rankings(output, "detected")
    histogram = retrieval.similarity_histogram(rankings, judge(rankings, truth))
    assert (
        histogram.right.sum() == 1 and histogram.wrong.sum() == 2
    )  # photo 1; 2 and 3; 4 is missed and has no first result


@pytest.mark.parametrize(
    "low, high, first, last, width",
    [
        (66.2, 69.0, 66, 70, 1),
        (66.0, 66.0, 66, 67, 1),  # one similarity
        (-3.5, 98.0, -5, 100, 5),
        (0.0, 79.9, 0, 80, 2),  # 40 bins exactly
        (-100.0, 100.0, -100, 110, 10),
    ],
)
def test_bins_start_at_whole_numbers(low, high, first, last, width):
    edges = retrieval.whole_edges(low, high)
    assert (edges[0], edges[-1], set(np.diff(edges).tolist())) == (first, last, {width})
    assert edges[0] <= low and high <= edges[-1] and len(edges) <= retrieval.MOST_BINS + 1
