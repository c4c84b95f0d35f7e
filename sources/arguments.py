"""Types of numeric command-line arguments: a number outside its limits is refused in argparse's one line."""

import argparse
import math
from collections.abc import Callable
from typing import Any


def whole(low: int, high: int = 2**31) -> Callable[[str], int]:
    """A type of whole numbers from `low` to `high`; `1_000` is one."""
    return _checked(int, f"a whole number from {low} to {high}", lambda value: low <= value <= high)


def number(
    low: float, high: float = math.inf, *, above: bool = False, below: bool = False, endless: bool = False
) -> Callable[[str], float]:
    """A type of numbers from `low` to `high`; `above` and `below` refuse the limits themselves.

    Infinity passes where it is `endless`.
    """
    upper = f" to below {high}" if below else f" to {high}" if high < math.inf else "" if above else " up"
    kind = "finite number" if high == math.inf and not endless else "number"
    words = f"a {kind} {'above' if above else 'from'} {low}{upper}"

    def fits(value: float) -> bool:
        in_range = (low < value if above else low <= value) and (value < high if below else value <= high)
        return in_range and (endless or math.isfinite(value))

    return _checked(float, words, fits)


def _checked(convert: Callable[[str], Any], words: str, fits: Callable[[Any], bool]) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            value = convert(text)
        except ValueError:
            value = math.nan  # fits nowhere
        if not fits(value):
            raise argparse.ArgumentTypeError(f"want {words}, got {text}")
        return value

    return read


positive = whole(1)
natural = whole(0)
share = number(0, 1)
amount = number(0)
above_zero = number(0, above=True)
minutes = number(0, endless=True)
