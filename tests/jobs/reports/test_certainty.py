"""Intervals, the level of chance and the sentences about single models, against arithmetic and the judge's own AP."""

import itertools

import numpy as np
import pytest
import report_runs as runs

from detection.matching import TrueBoxes
from detection.metrics import evaluate_boxes
from jobs.reports import certainty, figures
from postproc.bootstrap import interval_of_alike


def test_chance_is_the_share_of_orders_that_begin_with_a_right_item():
    """Two of five items are right: of all 10 pairs of places 3 have none among the first two."""
    pairs = list(itertools.combinations(range(5), 2))
    want = sum(min(pair) < 2 for pair in pairs) / len(pairs)
    one = np.array([2]), np.array([True])
    assert certainty.accuracy_by_chance(*one, 5, 2) == pytest.approx(want) == pytest.approx(0.7)
    assert certainty.accuracy_by_chance(*one, 5, 10) == 1.0  # the list holds the whole gallery
    assert certainty.accuracy_by_chance(np.array([2, 0]), np.array([True, True]), 5, 2) == pytest.approx(0.35)
    assert certainty.accuracy_by_chance(*one, 0, 2) is None


def test_an_interval_of_accuracy_holds_the_figure_and_shrinks_with_photos():
    first = np.array([1, 0, 3, 11, 0, 2, 1, 0] * 50)
    low, high = certainty.accuracy_interval(first, np.arange(400), 10)
    assert low < 0.5 < high and high - low == pytest.approx(2 * 1.96 * 0.5 / 20, rel=0.2)
    few = certainty.accuracy_interval(np.r_[first, 0], np.r_[np.arange(400) // 40, 9], 10)  # ten photos, nearly alike
    assert few[0] == pytest.approx(0.5, abs=0.05) and few[1] == pytest.approx(0.5, abs=0.05)
    assert certainty.accuracy_interval(first[:0], first[:0], 10) is None


@pytest.mark.parametrize("rank, want", [(1, (25 / (25 + 3.8415), 1)), (0, (0, 3.8415 / (25 + 3.8415)))])
def test_all_right_or_all_wrong_says_what_so_few_photos_can(rank, want):
    """Wilson's interval of 25 of 25, and of 0 of 25; a photo's two queries are one witness."""
    first, photo = np.full(50, rank), np.repeat(np.arange(25), 2)
    assert certainty.accuracy_interval(first, photo, 1) == pytest.approx(want, abs=1e-4)


def test_ap50_of_boxes_that_are_all_right_has_an_interval_too():
    true, _ = boxes(np.random.default_rng(0), 25)
    found = true | {"score": np.linspace(0.5, 1, 75)}
    matched = [TrueBoxes(true, np.arange(25), 3).matches(found)]
    assert certainty.ap50_intervals(matched, [np.arange(25)], {"AP50": (1, 2, 3)})["AP50"] == pytest.approx(
        (25 / (25 + 3.8415), 1), abs=1e-4
    )


def boxes(rng: np.random.Generator, n_photos: int) -> tuple[dict, dict]:
    """True boxes of three categories and detections of which some hit."""
    n = 3 * n_photos
    image, corner = np.repeat(np.arange(n_photos), 3), rng.uniform(0, 50, (n, 2))
    true = {"image_id": image, "bbox": np.c_[corner, corner + 40], "category_id": rng.integers(1, 4, n)}
    moved = true["bbox"] + rng.normal(0, 8, (n, 1))
    found = {"image_id": image, "bbox": moved, "category_id": true["category_id"], "score": rng.uniform(0, 1, n)}
    return true, found


def test_every_photo_once_is_the_judges_ap(monkeypatch):
    """Draws that hold each photo once give AP50 itself; in two shards as in one."""
    true, found = boxes(np.random.default_rng(0), 60)
    photos, names = np.arange(60), ("x", "y", "z")
    want = evaluate_boxes(true | {"area": np.full(180, 1600.0)}, found, photos, names)["AP50"]
    halves = [photos[:23], photos[23:]]
    matched = [TrueBoxes(true, half, 3).matches(found) for half in halves]

    class Once:
        def integers(self, n: int, size: int) -> np.ndarray:
            return np.arange(size)

    monkeypatch.setattr(np.random, "default_rng", lambda seed: Once())
    interval = certainty.ap50_intervals(matched, halves, {"AP50": (1, 2, 3)})["AP50"]
    assert interval == pytest.approx(interval_of_alike(want, 60, (0, 1)), abs=1e-9)


def test_an_interval_of_ap_holds_the_figure():
    true, found = boxes(np.random.default_rng(1), 60)
    matched = [TrueBoxes(true, np.arange(60), 3).matches(found)]
    intervals = certainty.ap50_intervals(matched, [np.arange(60)], {"all": (1, 2, 3), "one": (2,)})
    want = evaluate_boxes(true | {"area": np.full(180, 1600.0)}, found, np.arange(60), ("x", "y", "z"))["AP50"]
    low, high = intervals["all"]
    assert low < want < high < low + 0.4 and set(intervals) == {"all", "one"}


@pytest.mark.parametrize("cells", [1, 60, 7 * 60])  # one draw at a time, by its photos and by its boxes; seven
def test_an_interval_does_not_depend_on_how_many_draws_are_held_at_once(monkeypatch, cells):
    true, found = boxes(np.random.default_rng(1), 60)
    matched = [TrueBoxes(true, np.arange(60), 3).matches(found)]
    want = certainty.ap50_intervals(matched, [np.arange(60)], {"all": (1, 2, 3)})
    monkeypatch.setattr(certainty, "CELLS", cells)
    assert certainty.ap50_intervals(matched, [np.arange(60)], {"all": (1, 2, 3)}) == want


def test_a_single_model_that_is_better_is_named():
    detection = {"atss": runs.figures(0.625), "fused": runs.figures(0.5)}
    retrieval = {"detected": {"lite": runs.accuracy(0.75), "b": runs.accuracy(0.1), "concat": runs.accuracy(0.5)}}
    said = figures.better_alone({"detection": detection, "retrieval": retrieval}, {"detected": "concat"})
    assert said == [
        "atss alone is better than the fused boxes: AP50 62.5 against 50.0.",
        "atss alone is better than the fused boxes: AP10_50 62.5 against 50.0.",
        "lite alone is better than the final list: Acc@10 with detected boxes 75.0 against 50.0.",
    ]


@pytest.mark.parametrize("single", [0.5, 0.5004, None])
def test_equal_as_printed_is_not_better(single):
    detection = {"atss": runs.figures(single), "fused": runs.figures(0.5)}
    assert figures.better_alone({"detection": detection}, {}) == []
