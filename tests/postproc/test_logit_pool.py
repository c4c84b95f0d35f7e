"""Optima that are known in closed form, and torch's cross entropy as the oracle of the slope."""

import numpy as np
import pytest
import torch

from postproc.logit_pool import fit, pool


def test_temperature_in_closed_form() -> None:
    # logits (2, 0), right in 3 rows of 4: P(first) = 1 / (1 + exp(-2 w)) is 3/4 where 2 w = log 3
    logits = np.tile([2.0, 0.0], (1, 4, 1))
    weights = fit(logits, np.array([0, 0, 0, 1]))
    assert weights[0] == pytest.approx(np.log(3) / 2, abs=1e-3)
    np.testing.assert_allclose(np.exp(pool(logits, weights))[0], [3 / 4, 1 / 4], atol=1e-3)


def test_a_classifier_that_says_nothing_has_no_weight_that_matters() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 400)
    good = np.eye(3)[labels] * 2 + rng.normal(size=(400, 3))
    noise = rng.normal(size=(400, 3))
    weights = fit(np.stack([good, noise]), labels)
    assert weights[0] > 1
    assert abs(weights[1]) < 0.3


def test_no_slope_is_left_where_torch_computes_it() -> None:
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(2, 50, 4)), rng.integers(0, 4, 50)
    weights = torch.tensor(fit(logits, labels), requires_grad=True)
    summed = (weights[:, None, None] * torch.tensor(logits)).sum(0)
    torch.nn.functional.cross_entropy(summed, torch.tensor(labels)).backward()
    assert weights.grad is not None
    assert weights.grad.abs().max() < 1e-4


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (np.zeros((1, 0, 2)), np.zeros(0, int)),  # no rows
        (np.zeros((2, 2)), np.array([0, 1])),
        (np.zeros((1, 2, 2)), np.array([0, 2])),  # a class beyond the last
    ],
)
def test_refused(logits: np.ndarray, labels: np.ndarray) -> None:
    with pytest.raises(ValueError, match="logit pool"):
        fit(logits, labels)
