"""Values of JSON, parquet and the like as the text of an image set's attributes."""

import math
from collections import Counter
from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import numpy as np


def text_of(value: Any) -> str | None:
    """A single value as text; None where it says nothing: null, NaN, or a text of spaces alone.

    Numbers are as short as they can be read back, times are ISO 8601. Raises ValueError for anything else, such as a
    list, an object or bytes.

    >>> text_of(19.9), text_of(True), text_of(" red "), text_of(""), text_of(float("nan"))
    ('19.9', 'true', 'red', None, None)
    """
    if value is None:
        return None
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float | np.floating):  # np.float32 has fewer digits than the float it converts to
        return None if math.isnan(value) else str(value)
    if isinstance(value, date | datetime | time):
        return None if value != value else value.isoformat()  # pandas' NaT differs from itself
    if isinstance(value, int | Decimal | timedelta):
        return str(value)
    raise ValueError(f"want a text, a number or a time, got {type(value).__name__}")


def attributes_of(values: Mapping[str, Any], skipped: Counter[str]) -> dict[str, str]:
    """Those of the values that are single ones, as text; the others are counted under their names in `skipped`."""
    attributes = {}
    for name, value in values.items():
        try:
            text = text_of(value)
        except ValueError:
            skipped[f"values of {name!r} that are no single ones"] += 1
            continue
        if text is not None:
            attributes[name] = text
    return attributes
