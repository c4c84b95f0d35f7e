"""Marks of parameters. For tests only."""

from collections.abc import Iterable
from typing import Any

import pytest


def first_is_fast(parameters: Iterable[Any]) -> list[Any]:
    """The first as it is; the others are `slow`: for another model they repeat what the first shows."""
    first, *others = parameters
    return [first, *(pytest.param(each, marks=pytest.mark.slow) for each in others)]
