"""The table of a comparison, of rows few enough to work out by hand."""

import pytest

from jobs.comparison.table import as_markdown, compare_rows, winner


def row(variant: str, seed: int, acc10: float, ranks: list[int]) -> dict:
    figures = {"acc@1": acc10 / 2, "acc@10": acc10, "queries": len(ranks)}
    return {
        "variant": variant, "seed": seed, "held_out": figures, "validation": None, "seconds": 60,
        "ranks": {"photo": list(range(len(ranks))), "rank": ranks},
    }  # fmt: skip


def test_the_table_worked_out_by_hand():
    rows = [
        row("a", 0, 0.5, [1, 0, 11, 3]), row("b", 0, 0.75, [1, 2, 11, 3]),
        row("a", 1, 0.25, [1, 0, 0, 0]), row("b", 1, 1.0, [1, 10, 1, 1]),
    ]  # fmt: skip
    a, b = compare_rows(rows, ["a", "b"], ["a"])
    assert a["held_out acc@10"] == {"each": [0.5, 0.25], "mean": 0.375, "spread": pytest.approx(0.125 * 2**0.5)}
    assert a["against"] == {"a": None} and b["minutes"] == 1.0
    assert b["against"]["a"]["acc@10"] == pytest.approx((3 / 4 + 4 / 4) / 2 - (2 / 4 + 1 / 4) / 2)
    assert winner([a, b]) == "b"
    text = as_markdown([a, b])
    assert text.startswith("| variant | held out Acc@1 | held out Acc@10 | Acc@10 against a |")
    assert "| b | 0.438 ± 0.088 (0.375, 0.500) | 0.875 ± 0.177 (0.750, 1.000) | +0.500 [" in text
    assert compare_rows(rows[:1], ["a", "c"], ["c"])[1]["held_out acc@1"]["mean"] is None  # nothing trained yet
