"""Several classifiers' logits as one: a weighted sum, its few weights fitted to labelled rows.

The log-linear opinion pool; with one classifier its weight is the inverse temperature of temperature scaling. So few
numbers can be fitted to some hundred rows, and make the probabilities what they claim to be. Sources: Genest and Zidek,
Combining Probability Distributions (1986); Guo et al., arXiv:1706.04599, section 4.2.
"""

import numpy as np

from postproc.softmax_regression import log_softmax


def pool(logits: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Logarithms of probabilities (N, C), float64, from (K, N, C) logits and (K,) weights.

    >>> both = np.log(np.array([[[0.5, 0.5]], [[0.8, 0.2]]]))
    >>> np.exp(pool(both, np.array([1.0, 1.0]))).round(6).tolist()
    [[0.8, 0.2]]
    """
    return log_softmax(np.tensordot(weights, logits, 1))


def fit(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Weights (K,), float64, that minimise the mean of -log P(label).

    Raises ValueError for no rows, shapes that do not fit, or labels outside [0, C).

    Args:
        logits: (K, N, C) float. labels: (N,) int in [0, C).
    """
    from scipy.optimize import minimize  # delays scipy

    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
    if logits.ndim != 3 or labels.shape != logits.shape[1:2] or not len(labels):
        raise ValueError(f"logit pool: logits {logits.shape}, labels {labels.shape}; want (K, N, C), (N,)")
    k, n, n_classes = logits.shape
    if labels.min() < 0 or labels.max() >= n_classes:
        raise ValueError(f"logit pool: want labels from 0 to {n_classes - 1}")
    wanted = np.zeros((n, n_classes))
    wanted[np.arange(n), labels] = 1

    def cost(weights: np.ndarray) -> tuple[float, np.ndarray]:
        logs = pool(logits, weights)
        return float(-(logs * wanted).sum() / n), np.tensordot(logits, (np.exp(logs) - wanted) / n, 2)

    found: np.ndarray = minimize(cost, np.full(k, 1 / k), jac=True, method="L-BFGS-B").x
    return found
