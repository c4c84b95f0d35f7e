"""Multinomial logistic regression: a linear layer and a softmax, fitted to labelled rows.

In: features, labels and how much large weights cost. Out: weights and biases; the cost is convex, so there is one best
answer. Source: Bishop, Pattern Recognition and Machine Learning (2006), section 4.3.4.
"""

import numpy as np


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Logarithms of probabilities, (..., C) float64, from (..., C) logits.

    >>> np.exp(log_softmax(np.array([0.0, np.log(3)]))).round(6).tolist()
    [0.25, 0.75]
    """
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def fit(
    features: np.ndarray,
    labels: np.ndarray,
    n_classes: int,
    decay: float,
    *,
    importance: np.ndarray | None = None,
    max_steps: int = 500,
) -> tuple[np.ndarray, np.ndarray]:
    """Weights (C, D) and biases (C,), float64: P(class | row) is the softmax of `row @ weights.T + biases`.

    They minimise the mean of -log P(label | row) by `importance`, plus decay / 2 times the sum of squared weights.
    Raises ValueError for no rows, shapes that do not fit, labels outside [0, C), or a decay that is not above 0.

    Args:
        features: (N, D) float. labels: (N,) int in [0, C).
        n_classes: C. decay: above 0; larger is smoother.
        importance: (N,) float above 0, how much each row counts; None: all alike.
        max_steps: of the optimiser, L-BFGS.
    """
    from scipy.optimize import minimize  # delays scipy

    features, labels = np.asarray(features, np.float64), np.asarray(labels)
    if features.ndim != 2 or labels.shape != (len(features),) or not len(features):
        raise ValueError(f"softmax regression: features {features.shape}, labels {labels.shape}; want (N, D), (N,)")
    if labels.min() < 0 or labels.max() >= n_classes or not decay > 0:
        raise ValueError(f"softmax regression: want labels from 0 to {n_classes - 1} and a decay above 0, got {decay}")
    n, dim = features.shape
    wanted = np.zeros((n, n_classes))
    wanted[np.arange(n), labels] = 1
    counts = np.ones(n) if importance is None else np.asarray(importance, np.float64)
    counts = (counts / counts.sum())[:, None]

    def cost(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights, biases = flat[:-n_classes].reshape(n_classes, dim), flat[-n_classes:]
        logs = log_softmax(features @ weights.T + biases)
        off = (np.exp(logs) - wanted) * counts
        slope = off.T @ features + decay * weights
        value = -(logs * wanted * counts).sum() + decay / 2 * (weights**2).sum()
        return float(value), np.concatenate([slope.ravel(), off.sum(axis=0)])

    start = np.zeros((dim + 1) * n_classes)
    found = minimize(cost, start, jac=True, method="L-BFGS-B", options={"maxiter": max_steps, "maxfun": 2 * max_steps})
    return found.x[:-n_classes].reshape(n_classes, dim), found.x[-n_classes:]
