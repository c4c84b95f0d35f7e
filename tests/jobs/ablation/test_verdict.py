"""What the ranks of two searches say when compared, on queries few enough to count."""

import numpy as np
import pytest

from jobs.ablation import verdict

PHOTO = np.array([10, 10, 11, 12])
ITEM = np.array([0, 1, 0, -1])
BASE = {"ranks": [1, 11, 0, 3], "seconds": [["concat", 0.25], ["search", 0.5]], "peak_mb": 5.0}
BETTER = {"ranks": [1, 10, 2, 4], "seconds": [["concat", 0.25], ["search", 1.0]], "peak_mb": 7.0}


def test_a_row_counts_what_is_among_the_first() -> None:
    row = verdict.row("true", "x", "single", "[]", BETTER, BASE, PHOTO, ITEM)
    assert (row["value"], row["top1"], row["top5"], row["top10"]) == (4 / 4, 1 / 4, 3 / 4, 4 / 4)
    assert row["difference"] == pytest.approx((4 - 2) / 4)  # 11 is beyond ten, 0 is none
    assert row["low"] <= row["difference"] <= row["high"] and row["seconds"] == 1.25
    assert "half_value" not in row  # nothing was chosen


def test_a_chosen_variant_gets_figures_on_the_half_it_was_not_chosen_on() -> None:
    ids = np.arange(100)
    chosen, other = (ids[verdict.selection_half(ids) == half][0] for half in (True, False))
    row = verdict.row("true", "x", "greedy", "[]", BETTER, BASE, np.array([chosen, other, other, chosen]), ITEM)
    assert row["half_value"] == (1 + 1) / 2 and row["half_difference"] == (1 + 1) / 2  # the second and third query


def test_queries_helped_and_hurt_are_sorted_by_how_much() -> None:
    helped, hurt = verdict.changes(BASE["ranks"], BETTER["ranks"], PHOTO, ITEM)
    assert helped == [
        {"image_id": 11, "item": 0, "before": 0, "after": 2},  # from nowhere, 21, to 2
        {"image_id": 10, "item": 1, "before": 11, "after": 10},
    ]
    assert hurt == [{"image_id": 12, "item": -1, "before": 3, "after": 4}]


def test_halves_depend_on_the_photo_alone_and_are_of_like_size() -> None:
    photos = np.arange(4000)
    half = verdict.selection_half(photos)
    assert (verdict.selection_half(photos[::-1]) == half[::-1]).all() and 0.45 < half.mean() < 0.55


@pytest.mark.parametrize("low, high, want", [
    (0.01, 0.02, "helps"), (-0.02, -0.01, "hurts"), (-0.01, 0.01, "noise"), (0.0, 0.0, "noise"), (None, None, ""),
])  # fmt: skip
def test_the_word_for_an_interval(low: float | None, high: float | None, want: str) -> None:
    assert verdict.word(low, high) == want
