"""Expectations are sums a reader can check."""

import numpy as np
import pytest

from postproc.calibration import reliability


def test_bins_and_error_by_hand() -> None:
    confidence = np.array([0.25, 0.5, 0.75, 0.75, 1.0])
    right = np.array([False, True, True, False, True])
    found = reliability(confidence, right, n_bins=4)
    assert found.count.tolist() == [1, 1, 2, 1]  # a confidence on an edge belongs to the bin below it
    assert found.confidence.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert found.accuracy.tolist() == [0.0, 1.0, 0.5, 1.0]
    assert found.error == pytest.approx((1 * 0.25 + 1 * 0.5 + 2 * 0.25 + 1 * 0) / 5)


def test_nothing_to_judge() -> None:
    found = reliability(np.zeros(0), np.zeros(0, bool))
    assert found.count.tolist() == [0] * 10
    assert found.error == 0


@pytest.mark.parametrize("confidence", [[0.5], [-0.1, 0.5], [0.5, 1.1], [np.nan, 0.5]])
def test_refused(confidence: list[float]) -> None:
    with pytest.raises(ValueError, match="reliability: want"):
        reliability(np.array(confidence), np.array([True, False]))


def test_answers_drawn_by_their_confidence_are_calibrated() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.random(20_000)
    right = rng.random(20_000) < confidence
    assert reliability(confidence, right).error < 0.02
    assert reliability(confidence**3, right).error > 0.2
