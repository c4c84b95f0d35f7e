"""Diffusion: similarity flows from a query's nearest gallery rows along the gallery's graph of nearest neighbours.

Unit rows in, lists out. Sources: Zhou et al., "Ranking on data manifolds", NIPS 2003; Iscen et al., arXiv:1611.05113,
sections 3 and 4 (queries outside the graph, conjugate gradients, truncation). Sparse throughout; the gallery's graph
has at most k edges a row.
"""

from collections.abc import Callable

import numpy as np
from scipy import sparse

from postproc.neighbours import nearest, unit_rows

QUERIES_AT_ONCE = 64  # solved side by side; each takes some 6 x 4 bytes for each gallery row


def diffuse(
    query: np.ndarray,
    gallery: np.ndarray,
    *,
    k: int = 50,
    query_k: int = 10,
    alpha: float = 0.99,
    gamma: float = 3.0,
    top_k: int = 100,
    truncate: int | None = None,
    tolerance: float = 1e-5,
    max_steps: int = 1000,
) -> tuple[np.ndarray, np.ndarray]:
    """Rank the gallery by the similarity that reaches each row.

    Two rows that are among each other's k nearest are joined with weight max(cos, 0) ** gamma, which gives A; with the
    sums of its rows D, S = D^-1/2 A D^-1/2. The scores f of a query solve `(I - alpha S) f = y`, where y is
    `max(cos, 0) ** gamma` at its query_k nearest gallery rows and 0 elsewhere.

    Args:
        query: (Q, D) float, gallery: (N, D) float, unit rows within 0.01 (brought to exactly that); Q or N may be 0.
        k: neighbours of a gallery row, the row itself not counted, at least 1.
        query_k: gallery rows a query starts from, at least 1.
        alpha: share that flows on, in [0, 1); 0 ranks by y alone.
        gamma: above 0; the larger, the more a near neighbour outweighs a far one.
        top_k: results wanted, at least 1.
        truncate: solve for each query among its `truncate` nearest gallery rows only, at least 1: less work, and rows
            farther away are not reached. None: the whole gallery.
        tolerance: greatest error |y - (I - alpha S) f| as a share of |y|, above 0; float32 reaches some 1e-6.
        max_steps: of conjugate gradients, at least 1; 20 is the paper's.

    Returns:
        indices (Q, K) int64, K = min(top_k, N), and scores (Q, K) float32, falling, at least 0; equal scores by lower
        row. Rows that nothing reaches have 0 and come last, by falling cosine, then by lower row.

    Raises ValueError for an argument out of range, a row not finite or not of unit length, or no solution in max_steps.

    >>> rows = np.array([[1.0, 0.0], [0.6, 0.8], [-1.0, 0.0]])
    >>> indices, scores = diffuse(rows[:1], rows, k=1, query_k=1, alpha=0.5, gamma=1.0)
    >>> indices.tolist(), scores.round(3).tolist()    # f0 = 1 + f1 / 2, f1 = f0 / 2
    ([[0, 1, 2]], [[1.3329999446868896, 0.6669999957084656, 0.0]])
    """
    _check(k, query_k, alpha, gamma, top_k, truncate, tolerance, max_steps)
    rows = unit_rows("diffusion", query, gallery)
    query, gallery = rows[: len(query)], rows[len(query) :]
    top_k = min(top_k, len(gallery))
    indices, scores = np.zeros((len(query), top_k), np.int64), np.zeros((len(query), top_k), np.float32)
    if not indices.size:
        return indices, scores
    flow = alpha * graph(gallery, k, gamma)
    similarity, near = nearest(query, gallery, min(max(top_k, query_k, truncate or 1), len(gallery)))
    start = np.maximum(similarity[:, :query_k].astype(np.float64), 0) ** gamma
    peak = start[:, :1].copy()  # solved for y / peak, for a high gamma would leave the range of float32
    start = np.divide(start, peak, out=np.zeros_like(start), where=peak > 0).astype(np.float32)
    for first in range(0, len(query), QUERIES_AT_ONCE):
        some = slice(first, first + QUERIES_AT_ONCE)
        reached = _solve_block(flow, near[some], start[some], truncate, tolerance, max_steps)
        indices[some], scores[some] = _best(reached, near[some], top_k)
    return indices, (scores * peak).astype(np.float32)


def graph(rows: np.ndarray, k: int, gamma: float) -> sparse.csr_array:
    """S, (N, N) float32: weights of rows among each other's k nearest, divided by the roots of both rows' sums.

    `rows` (N, D) are float32 unit rows; for `k` and `gamma` see `diffuse`.

    >>> graph(np.array([[1.0, 0.0], [0.6, 0.8], [-1.0, 0.0]], np.float32), 1, 1.0).toarray().round(3).tolist()
    [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """
    n = len(rows)
    similarity, near = nearest(rows, rows, min(k + 1, n))
    other = near != np.arange(n)[:, None]
    other[other.all(axis=1), -1] = False  # k + 1 copies before the row itself: the last goes, so that k remain
    ends = np.concatenate([[0], np.cumsum(other.sum(axis=1))])
    weight = np.maximum(similarity[other].astype(np.float64), 0) ** gamma
    one_way = sparse.csr_array((weight, near[other].astype(np.int32), ends), shape=(n, n))
    joined = one_way.minimum(one_way.T).tocsr()  # 0, so no edge, unless both name each other
    joined.eliminate_zeros()
    root = np.sqrt(joined.sum(axis=1))
    scale = np.divide(1, root, out=np.zeros(n), where=root > 0)
    joined.data *= scale[joined.indices] * np.repeat(scale, np.diff(joined.indptr))
    return joined.astype(np.float32)


# --- solving ----------------------------------------------------------------------------------------------------------


def _solve_block(
    flow: sparse.csr_array, near: np.ndarray, start: np.ndarray, size: int | None, tolerance: float, steps: int
) -> np.ndarray:
    """(N, B) float32 scores of B queries over the whole gallery, or each over the first `size` of its rows `near`."""
    if size is not None:
        return _solve_nearby(flow, near, start, min(size, flow.shape[0]), tolerance, steps)
    wanted = np.zeros((flow.shape[0], len(near)), np.float32)
    wanted[near[:, : start.shape[1]], np.arange(len(near))[:, None]] = start
    return _solve(lambda scores: scores - flow @ scores, wanted, tolerance, steps)


def _solve_nearby(
    flow: sparse.csr_array, near: np.ndarray, start: np.ndarray, size: int, tolerance: float, steps: int
) -> np.ndarray:
    """`_solve_block` among the first `size` of `near`: one sparse matrix of B separate blocks."""
    n_lines = len(near)
    where = np.full((n_lines, flow.shape[0]), -1, np.int32)  # the place of a gallery row in each query's list
    np.put_along_axis(where, near[:, :size], np.arange(size, dtype=np.int32)[None], axis=1)
    rows = near[:, :size].T.ravel()  # unknown (place, line) is number place * B + line
    counts = np.diff(flow.indptr)[rows]
    ends = np.cumsum(counts)
    entry = np.arange(ends[-1]) + np.repeat(flow.indptr[rows] - (ends - counts), counts)
    line = np.repeat(np.tile(np.arange(n_lines), size), counts)
    place = where[line, flow.indices[entry]]
    inside = place >= 0
    total = np.concatenate([[0], np.cumsum(inside)])[np.concatenate([[0], ends])]
    column = place[inside].astype(np.int64) * n_lines + line[inside]
    blocks = sparse.csr_array((flow.data[entry[inside]], column, total), shape=(len(rows), len(rows)))
    wanted = np.zeros((size, n_lines), np.float32)
    wanted[: start.shape[1]] = start[:, :size].T
    local = _solve(lambda scores: scores - (blocks @ scores.ravel()).reshape(scores.shape), wanted, tolerance, steps)
    reached = np.zeros((flow.shape[0], n_lines), np.float32)
    reached[near[:, :size], np.arange(n_lines)[:, None]] = local.T
    return reached


def _solve(apply: Callable[[np.ndarray], np.ndarray], wanted: np.ndarray, tolerance: float, steps: int) -> np.ndarray:
    """(N, B) float32, each column by conjugate gradients. A solved column stays, so none depends on others."""
    scores, left = np.zeros_like(wanted), wanted.copy()
    direction, error = left.copy(), _squares(left, left)
    enough = error * tolerance**2
    for _ in range(steps):
        at_work = error > enough
        if not at_work.any():
            return scores
        ahead = apply(direction)
        step = np.divide(error, _squares(direction, ahead), out=np.zeros_like(error), where=at_work).astype(np.float32)
        scores += step * direction
        left -= step * ahead
        before, error = error, np.where(at_work, _squares(left, left), error)
        direction *= np.divide(error, before, out=np.zeros_like(error), where=at_work).astype(np.float32)
        direction += left
    if (error > enough).any():
        worst = float(np.sqrt(error / np.maximum(enough, np.finfo(np.float64).tiny)).max() * tolerance)
        raise ValueError(
            f"diffusion: an error of {worst:.1e} is left after {steps} steps, {tolerance:g} is wanted; "
            "take more max_steps, a smaller alpha or a larger tolerance"
        )
    return scores


def _squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(B,) float64, the columns' inner products."""
    return np.einsum("nb,nb->b", a, b).astype(np.float64)


# --- ranking ----------------------------------------------------------------------------------------------------------


def _best(reached: np.ndarray, near: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """indices and scores (B, top_k): by score, then by row; rows that are not reached follow in the order of `near`.

    `near` has at least top_k rows, so those of it that are not reached always suffice to fill the list.
    """
    scores = np.ascontiguousarray(reached.T)
    if scores.shape[1] > top_k:
        cut = np.maximum(np.partition(scores, -top_k, axis=1)[:, -top_k], np.finfo(np.float32).tiny)
    else:
        cut = np.full(len(scores), np.finfo(np.float32).tiny)
    indices, values = np.empty((len(scores), top_k), np.int64), np.zeros((len(scores), top_k), np.float32)
    for line, (own, least) in enumerate(zip(scores, cut, strict=True)):
        rows = np.flatnonzero(own >= least)
        rows = rows[np.argsort(-own[rows], kind="stable")][:top_k]
        indices[line, : len(rows)], values[line, : len(rows)] = rows, own[rows]
        if len(rows) < top_k:
            indices[line, len(rows) :] = near[line][own[near[line]] < least][: top_k - len(rows)]
    return indices, values


def _check(
    k: int, query_k: int, alpha: float, gamma: float, top_k: int, truncate: int | None, tolerance: float, max_steps: int
) -> None:
    if min(k, query_k, top_k, max_steps, 1 if truncate is None else truncate) < 1:
        raise ValueError(
            f"diffusion: k {k}, query_k {query_k}, top_k {top_k}, truncate {truncate}, max_steps {max_steps}; "
            "want at least 1"
        )
    if not (0 <= alpha < 1 and 0 < gamma < np.inf and tolerance > 0):
        raise ValueError(
            f"diffusion: alpha {alpha}, gamma {gamma}, tolerance {tolerance}; want alpha in [0, 1), the others above 0"
        )
