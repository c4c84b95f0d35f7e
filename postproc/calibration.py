"""Are probabilities what they say? Of answers given with confidence 0.8, four in five should be right.

In: the confidence of each answer and whether it was right. Out: a table by bins of confidence, and the expected
calibration error. Source: Guo et al., On Calibration of Modern Neural Networks, arXiv:1706.04599, section 2.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Reliability:
    """Answers by bins of confidence, [0, 1/B], (1/B, 2/B] …; `confidence` and `accuracy` are 0 in an empty bin."""

    count: np.ndarray  # (B,) int64
    confidence: np.ndarray  # (B,) float64, mean
    accuracy: np.ndarray  # (B,) float64, share of right answers

    @property
    def error(self) -> float:
        """Expected calibration error: the mean over answers of |accuracy - confidence| of their bin; 0 for none."""
        gaps = self.count * np.abs(self.accuracy - self.confidence)
        return float(gaps.sum() / max(int(self.count.sum()), 1))


def reliability(confidence: np.ndarray, right: np.ndarray, n_bins: int = 10) -> Reliability:
    """Sort answers into bins by their confidence.

    Raises ValueError for different lengths, or a confidence outside [0, 1].

    Args:
        confidence: (N,) float in [0, 1]. right: (N,) bool.
        n_bins: B, equally wide.

    >>> reliability(np.array([0.9, 0.8, 0.3]), np.array([True, False, False]), n_bins=2).accuracy.tolist()
    [0.0, 0.5]
    """
    confidence, right = np.asarray(confidence, np.float64), np.asarray(right, bool)
    if confidence.ndim != 1 or confidence.shape != right.shape:
        raise ValueError(f"reliability: want two (N,) arrays, got {confidence.shape} and {right.shape}")
    if not ((confidence >= 0) & (confidence <= 1)).all():
        raise ValueError("reliability: want confidences from 0 to 1")
    bins = np.clip(np.ceil(confidence * n_bins).astype(np.int64) - 1, 0, n_bins - 1)
    count = np.bincount(bins, minlength=n_bins)
    sums = (np.bincount(bins, values, n_bins) for values in (confidence, right))
    return Reliability(count, *(total / np.maximum(count, 1) for total in sums))
