"""Optima that are known in closed form, and torch's cross entropy as the oracle of the slope."""

import numpy as np
import pytest
import torch

from postproc.softmax_regression import fit, log_softmax


def test_features_that_say_nothing_leave_the_shares() -> None:
    labels = np.array([0, 0, 0, 1])
    weights, biases = fit(np.zeros((4, 2)), labels, n_classes=2, decay=1.0)
    assert np.abs(weights).max() == 0
    np.testing.assert_allclose(np.exp(log_softmax(biases)), [3 / 4, 1 / 4], atol=1e-4)


def test_a_row_that_counts_twice_is_two_rows() -> None:
    features, labels = np.array([[1.0], [-1.0], [0.5]]), np.array([1, 0, 0])
    twice = fit(features[[0, 1, 2, 2]], labels[[0, 1, 2, 2]], n_classes=2, decay=0.1)
    for found, want in zip(fit(features, labels, 2, 0.1, importance=np.array([1, 1, 2])), twice, strict=True):
        np.testing.assert_allclose(found, want, atol=1e-3)


def test_two_classes_on_a_line() -> None:
    # rows +1 of class 1 and -1 of class 0: with w = weights[1] = -weights[0] the slope of
    # log(1 + exp(-2 w)) + decay * w**2 is 0 where decay * w = 1 / (1 + exp(2 w)); w = 1 for this decay
    decay = 1 / (1 + np.exp(2))
    weights, biases = fit(np.array([[1.0], [-1.0]]), np.array([1, 0]), n_classes=2, decay=decay)
    np.testing.assert_allclose(weights[:, 0], [-1, 1], atol=1e-3)
    np.testing.assert_allclose(biases, 0, atol=1e-6)


def test_no_slope_is_left_where_torch_computes_it() -> None:
    rng = np.random.default_rng(1)
    features, labels = rng.normal(size=(60, 5)), rng.integers(0, 3, 60)
    found = fit(features, labels, n_classes=3, decay=0.1)
    weights, biases = (torch.tensor(part, requires_grad=True) for part in found)
    loss = torch.nn.functional.cross_entropy(torch.tensor(features) @ weights.T + biases, torch.tensor(labels))
    (loss + 0.05 * (weights**2).sum()).backward()
    assert weights.grad is not None and biases.grad is not None
    assert weights.grad.abs().max() < 1e-4
    assert biases.grad.abs().max() < 1e-4


@pytest.mark.parametrize(
    ("features", "labels", "decay"),
    [
        (np.zeros((0, 2)), np.zeros(0, int), 1.0),  # no rows
        (np.zeros((2, 2)), np.array([0]), 1.0),
        (np.zeros((2, 2)), np.array([0, 2]), 1.0),  # a class beyond the last
        (np.zeros((2, 2)), np.array([0, 1]), 0.0),
    ],
)
def test_refused(features: np.ndarray, labels: np.ndarray, decay: float) -> None:
    with pytest.raises(ValueError, match="softmax regression"):
        fit(features, labels, n_classes=2, decay=decay)
