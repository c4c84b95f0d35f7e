"""The entry of a detector of the user's own code, before that code is imported."""

import math

import pytest

from detection import calls


@pytest.mark.parametrize("weight", [-1, math.nan, math.inf, "1", True, None])
def test_a_fusion_weight_is_a_finite_number_from_0_up(weight: object) -> None:
    with pytest.raises(ValueError, match=f"detector 'own': fusion_weight wants a number from 0 up, got {weight!r}"):
        calls.from_fields({"name": "own", "call": "package.module:Class", "fusion_weight": weight})
