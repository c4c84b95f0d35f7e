"""Values as text, and which are kept."""

from collections import Counter
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sources.attributes import attributes_of, text_of


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, None),
        ("", None),
        ("  ", None),
        (" red ", "red"),
        (True, "true"),
        (False, "false"),
        (0, "0"),
        (10**30, "1" + 30 * "0"),
        (0.1, "0.1"),
        (np.float32(0.1), "0.1"),
        (np.float16(0.1), "0.1"),
        (float("nan"), None),
        (float("inf"), "inf"),
        (Decimal("19.90"), "19.90"),
        (date(2026, 1, 31), "2026-01-31"),
        (datetime(2026, 1, 31, 12, 5, tzinfo=UTC), "2026-01-31T12:05:00+00:00"),
    ],
)
def test_text(value: Any, text: str | None) -> None:
    assert text_of(value) == text


@given(st.floats(allow_nan=False))
def test_numbers_are_read_back(value: float) -> None:
    assert float(text_of(value) or "") == value


@pytest.mark.parametrize("value", [[1], {}, b"x", (1,)])
def test_no_single_value(value: Any) -> None:
    with pytest.raises(ValueError, match="want a text, a number or a time"):
        text_of(value)


def test_the_others_are_counted() -> None:
    skipped: Counter[str] = Counter()
    for values in ({"a": 1, "b": [2], "c": None}, {"b": [], "d": {}}):
        attributes_of(values, skipped)
    assert skipped == {"values of 'b' that are no single ones": 2, "values of 'd' that are no single ones": 1}
    assert attributes_of({"a": 1, "b": [2], "c": None}, Counter()) == {"a": "1"}
