"""Concatenation: the features of several models side by side, as the paper's ensemble for retrieval.

Rows in, rows out; no files. Two concatenated rows have as inner product the weighted mean of the models' cosines, so
the same exact inner-product index serves one model or several.
"""

from collections.abc import Sequence

import numpy as np

UNIT_TOLERANCE = 0.01  # rows stored in float16 are unit length within this


def concat(features: Sequence[np.ndarray], weights: Sequence[float] | None = None) -> np.ndarray:
    """Join several models' unit rows into one unit row per item: (N, sum D_i) float32, models in the order given.

    Model i's row is scaled by sqrt(w_i / sum w), so that `out[a] @ out[b] = sum_i w_i * cosine_i(a, b) / sum_i w_i`.
    `features` has one (N, D_i) float array of unit rows per model, the same items in the same order; N may be 0.
    `weights` are numbers >= 0, one per model, their sum positive; only their ratios matter, and None means all alike.

    Raises ValueError for no model, row counts that differ, weights that do not fit, and a row not of unit length, with
    its model and number.

    >>> concat([np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])], weights=[9, 16]).tolist()
    [[0.6000000238418579, 0.0, 0.0, 0.800000011920929]]
    """
    rows = [np.asarray(model_rows) for model_rows in features]
    if not rows:
        raise ValueError("concat: no features given; want at least one model's rows")
    shares = _shares(weights, len(rows))
    for model, model_rows in enumerate(rows):
        if model_rows.ndim != 2 or len(model_rows) != len(rows[0]):
            shapes = [one.shape for one in rows]
            raise ValueError(f"concat: want (N, D) arrays with one N, got {shapes}; are these the same items?")
        _check_unit(model_rows, model)
    joined = np.empty((len(rows[0]), sum(one.shape[1] for one in rows)), np.float32)
    column = 0
    for share, model_rows in zip(shares, rows, strict=True):
        joined[:, column : column + model_rows.shape[1]] = model_rows * np.float32(np.sqrt(share))
        column += model_rows.shape[1]
    return joined


def _shares(weights: Sequence[float] | None, n_models: int) -> np.ndarray:
    numbers = np.ones(n_models) if weights is None else np.asarray(weights, dtype=np.float64)
    if numbers.shape != (n_models,):
        raise ValueError(f"concat: {n_models} models but weights {weights}; want one weight per model")
    if not (np.isfinite(numbers).all() and (numbers >= 0).all() and numbers.sum() > 0):
        raise ValueError(f"concat: weights are {numbers.tolist()}; want numbers >= 0 that are not all 0")
    return numbers / numbers.sum()


def _check_unit(rows: np.ndarray, model: int) -> None:
    lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float32, casting="same_kind"))
    wrong = ~(np.abs(lengths - 1) <= UNIT_TOLERANCE)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(f"concat: model {model}, row {row} has length {lengths[row]:.4g}; want unit rows")
