"""Types of numeric arguments: limits, what is refused, and in which words."""

import argparse
import math

import pytest

from sources.arguments import above_zero, amount, minutes, natural, number, positive, share, whole


@pytest.mark.parametrize("read, text, value", [
    (positive, "1", 1), (positive, "1_000", 1000), (natural, "0", 0), (whole(2, 4), "4", 4),
    (share, "0", 0.0), (share, "1", 1.0), (number(0, 1, below=True), "0.999", 0.999), (amount, "0", 0.0),
    (above_zero, "1e-320", 1e-320), (minutes, "inf", math.inf),
])  # fmt: skip
def test_numbers_within_the_limits(read, text, value):
    assert read(text) == value and type(read(text)) is type(value)


@pytest.mark.parametrize("read, words, texts", [
    (positive, "a whole number from 1 to 2147483648", ["0", "-1", "1.5", "1e3", "nan", "inf", "", "many", "3" * 10]),
    (whole(2, 4), "a whole number from 2 to 4", ["1", "5"]),
    (share, "a number from 0 to 1", ["-0.001", "1.001", "nan", "inf", "x"]),
    (number(0, 1, above=True), "a number above 0 to 1", ["0", "-0.0", "1.1", "nan"]),
    (number(0, 1, below=True), "a number from 0 to below 1", ["1", "-1", "inf", "nan"]),
    (amount, "a finite number from 0 up", ["-1e-9", "nan", "inf", "1e400"]),
    (above_zero, "a finite number above 0", ["0", "1e-400", "nan", "inf"]),
    (minutes, "a number from 0 up", ["-1", "nan", "-inf"]),
])  # fmt: skip
def test_numbers_outside_are_refused_with_the_limits(read, words, texts):
    for text in texts:
        with pytest.raises(argparse.ArgumentTypeError) as caught:
            read(text)
        assert str(caught.value) == f"want {words}, got {text}"
