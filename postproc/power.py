"""Power normalisation: large numbers of a row lose weight against the small ones.

Rows in, unit rows out. Source: Perronnin, Sánchez and Mensink, "Improving the Fisher kernel for large-scale image
classification", ECCV 2010, section 3.2: sign(x) |x|^alpha, then L2.
"""

import numpy as np

from postproc.features import finite, unit

BLOCK = 2048  # rows at once: two copies stay in a processor's cache


def power_normalise(rows: np.ndarray, alpha: float = 0.5, out: np.ndarray | None = None) -> np.ndarray:
    """Raise every number to a power, keeping its sign, then bring rows to unit length; a row of zeros stays.

    `rows` (N, D) float are finite and may be memory-mapped; `alpha` is in (0, 1], and 1 changes nothing but the length.
    Returns (N, D) float32, `out` where it is given. Raises ValueError for a row that is not finite, or alpha out of
    range.

    >>> power_normalise(np.array([[0.64, -0.36]])).round(2)    # roots 0.8 and -0.6
    array([[ 0.8, -0.6]], dtype=float32)
    """
    if not 0 < alpha <= 1:
        raise ValueError(f"power normalisation: alpha {alpha}; want more than 0, at most 1")
    result = np.empty(np.shape(rows), np.float32) if out is None else out
    for start in range(0, len(rows), BLOCK):
        block = finite(rows[start : start + BLOCK], start, np.float32)
        size = np.abs(block)
        # a square root is far cheaper than a power
        size = np.sqrt(size, out=size) if alpha == 0.5 else np.power(size, np.float32(alpha), out=size)
        result[start : start + BLOCK] = unit(np.copysign(size, block, out=size))
    return result
