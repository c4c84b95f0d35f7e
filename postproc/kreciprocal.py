"""k-reciprocal re-ranking: gallery rows whose neighbourhoods resemble the query's move up.

Unit rows in, ranked lists out. Source: Zhong, Zheng, Cao and Li, "Re-ranking person re-identification with k-reciprocal
encoding", arXiv:1701.08398, section 3; the results are those of the authors' published code on squared Euclidean
distances. Sparse throughout: N x N is never held.
"""

from collections.abc import Iterator

import numpy as np
from scipy import sparse

from postproc.neighbours import (
    NO_KEY,
    as_keys,
    as_names,
    as_scores,
    kth_at_least,
    ranked_and_lowest,
    rounding,
    unit_rows,
)

PRODUCTS_AT_ONCE = 1 << 22  # of queries x gallery: enough for the matrix product to be at its fastest
CELLS_AT_ONCE = 1 << 20  # of these, looked through at once
PAIR_CELLS = 1 << 17  # numbers gathered at once when single pairs are multiplied: they stay in a near cache
SHARED_AT_ONCE = 1 << 19  # pairs of shared neighbours listed at once
ALIKE = 1e-6  # distances below this are rounding


def rerank(
    query: np.ndarray, gallery: np.ndarray, k1: int = 20, k2: int = 6, lambda_value: float = 0.3, top_k: int = 100
) -> tuple[np.ndarray, np.ndarray]:
    """Rank the gallery anew for every query.

    The original distance is d = 2 - 2 cos, divided for each embedding by its largest value over all Q + G embeddings. V
    holds the weights exp(-d) of an embedding over its expanded set of k1-reciprocal neighbours; they sum to 1, and are
    averaged over the k2 nearest embeddings. With m the sum of min(V_query, V_gallery), the new distance is
    `(1 - lambda) * (1 - m / (2 - m)) + lambda * d`: formulas 7 to 12 of arXiv:1701.08398. One difference from the
    published code: where all embeddings are equal, d is 0, while it divides 0 by 0. As there, equal embeddings have d =
    0, but their new distance is above 0 where k1 cuts between them: another row then counts only the first as near.

    Args:
        query: (Q, D) float, gallery: (G, D) float, unit rows within 0.01 (brought to exactly that); Q or G may be 0.
        k1: nearest neighbours besides the embedding itself, of which the reciprocal ones count; at least 1. The
            expansion takes k1 / 2 of them, rounded as `np.around` does: x.5 to the even number.
        k2: embeddings averaged, the embedding itself counted, at least 1.
        lambda_value: share of the original distance, in [0, 1].
        top_k: results wanted, at least 1.

    Returns:
        indices (Q, K) int64, K = min(top_k, G), and distances (Q, K) float32 in [0, 1], ascending. Equal distances are
        ordered by the lower row. Neighbours are ordered in the same way, queries before gallery.

    Raises ValueError for k1, k2, top_k or lambda_value out of range, and an embedding that is not finite or not of unit
    length, with its row.

    >>> query, gallery = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0], [0.6, 0.8]])
    >>> indices, distances = rerank(query, gallery, k1=1, k2=1, lambda_value=1.0)
    >>> indices.tolist(), distances.round(3).tolist()    # (2 - 1.2) / 2, 2 / 2
    ([[1, 0]], [[0.4000000059604645, 1.0]])
    """
    if k1 < 1 or k2 < 1 or top_k < 1 or not 0 <= lambda_value <= 1:
        raise ValueError(
            f"re-ranking: k1 {k1}, k2 {k2}, top_k {top_k}, lambda {lambda_value}; want at least 1, and lambda in [0, 1]"
        )
    n_queries, top_k = len(query), min(top_k, len(gallery))
    rows = unit_rows("re-ranking", query, gallery)
    if not n_queries or not top_k:
        return np.zeros((n_queries, top_k), np.int64), np.zeros((n_queries, top_k), np.float32)
    ranked, largest = _neighbours(rows, max(k1 + 1, k2))
    weights = _encode(rows, ranked, largest, k1)
    if k2 > 1:
        weights = _mean_of_neighbours(weights, ranked[:, :k2])
    return _best(rows, weights, largest, n_queries, top_k, lambda_value)


# --- neighbours -------------------------------------------------------------------------------------------------------


def _neighbours(rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """ranked (N, min(k, N)) int64, each row's nearest, ties by lower row; (N,) float64, the largest distance to any."""
    ranked, lowest = ranked_and_lowest(rows, rows, k)
    return ranked, np.maximum(2 - 2 * lowest.astype(np.float64), ALIKE)


def _distances(rows: np.ndarray, largest: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """(P,) float32, d of row i from row j, divided by row i's largest. Only the two rows decide it, so copies tie."""
    products, step = np.empty(len(i), np.float32), max(1, PAIR_CELLS // rows.shape[1])
    a, b = np.empty((2, step, rows.shape[1]), np.float32)
    for start in range(0, len(i), step):
        some, n = slice(start, start + step), min(step, len(i) - start)
        for which, gathered in ((i, a), (j, b)):
            rows.take(which[some], axis=0, out=gathered[:n], mode="clip")  # the default mode copies once more
        np.vecdot(a[:n], b[:n], out=products[some])
    return _scaled(products, largest[i])


def _scaled(products: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """float32 distances in [0, 1] of cosines, `largest` beside them or beside their lines."""
    return (np.clip(2 - 2 * products.astype(np.float64), 0, largest) / largest).astype(np.float32)


# --- encoding ---------------------------------------------------------------------------------------------------------


def _encode(rows: np.ndarray, ranked: np.ndarray, largest: np.ndarray, k1: int) -> sparse.csr_array:
    """(N, N) float32 weights V, each row's sum 1: formulas 3 to 7.

    A candidate c of row i is a reciprocal neighbour of it. Where more than two thirds of c's own set, taken within
    `k1 / 2`, are reciprocal neighbours of i, the whole set joins. With both sets as 0/1 matrices, the overlaps are one
    sparse product.
    """
    mutual = _reciprocal(ranked[:, : k1 + 1])
    half = _reciprocal(ranked[:, : int(np.around(k1 / 2)) + 1])
    # `half` is symmetric: (i, c) counts what i's and c's sets have in common
    overlap = (mutual @ half).multiply(mutual).tocsr()
    sizes = np.diff(half.indptr)
    overlap.data = (3 * overlap.data > 2 * sizes[overlap.indices]).astype(np.int32)
    expanded = (mutual + overlap @ half).tocsr()
    expanded.sort_indices()
    i = np.repeat(np.arange(len(rows)), np.diff(expanded.indptr))
    weights = np.exp(-_distances(rows, largest, i, expanded.indices)).astype(np.float64)
    weights /= np.bincount(i, weights, minlength=len(rows))[i]
    return sparse.csr_array((weights.astype(np.float32), expanded.indices, expanded.indptr), shape=expanded.shape)


def _reciprocal(ranked: np.ndarray) -> sparse.csr_array:
    """(N, N) int32, 1 where each of two rows is among the other's neighbours `ranked` (N, K)."""
    n, k = ranked.shape
    one_way = sparse.csr_array(
        (np.ones(ranked.size, np.int32), ranked.ravel().astype(np.int32), np.arange(n + 1) * k), shape=(n, n)
    )
    return one_way.multiply(one_way.T).tocsr()


def _mean_of_neighbours(weights: sparse.csr_array, ranked: np.ndarray) -> sparse.csr_array:
    """Local query expansion, section 3.4: each row's weights become the mean of those of its nearest rows (N, k2)."""
    n, k = ranked.shape
    share = np.full(ranked.size, 1 / k, np.float32)
    return (sparse.csr_array((share, ranked.ravel(), np.arange(n + 1) * k), shape=(n, n)) @ weights).tocsr()


# --- ranking ----------------------------------------------------------------------------------------------------------


def _best(
    rows: np.ndarray, weights: sparse.csr_array, largest: np.ndarray, n_queries: int, top_k: int, lambda_value: float
) -> tuple[np.ndarray, np.ndarray]:
    """indices (Q, top_k) and distances (Q, top_k), block by block."""
    gallery = rows[n_queries:]
    holders = weights[n_queries:].T.tocsr()  # a line for every row: which gallery rows have this neighbour
    pairs = np.concatenate([[0], np.cumsum(np.diff(holders.indptr)[weights.indices])])[weights.indptr[: n_queries + 1]]
    indices, distances = np.empty((n_queries, top_k), np.int64), np.empty((n_queries, top_k), np.float32)
    at_once = max(1, PRODUCTS_AT_ONCE // len(gallery))
    products, begin = np.empty((0, len(gallery)), np.float32), 0
    for some in _blocks(pairs, max(1, CELLS_AT_ONCE // len(gallery)), at_once):
        if some.start >= begin + len(products):
            begin = some.start
            products = rows[begin : min(begin + at_once, n_queries)] @ gallery.T
        shared = _shared(weights, holders, some)
        here = products[some.start - begin : some.stop - begin]
        line, row = _hopeful(here, shared, largest[some], rows.shape[1], top_k, lambda_value)
        original = _distances(rows, largest, some.start + line, n_queries + row)
        final = _final(shared[line, row], original, lambda_value)
        counts = np.bincount(line, minlength=len(shared))
        keys = np.full((len(shared), int(counts.max())), NO_KEY)
        keys[line, np.arange(len(line)) - np.repeat(np.cumsum(counts) - counts, counts)] = as_keys(-final, row)
        keys.sort(axis=1)
        best = keys[:, : -top_k - 1 : -1]
        indices[some], distances[some] = as_names(best), 0 - as_scores(best)  # 0 rather than -0.0
    return indices, distances


def _hopeful(
    products: np.ndarray, shared: np.ndarray, largest: np.ndarray, width: int, top_k: int, lambda_value: float
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (line, row), by line, then by row, that hold each line's top_k by final distance: few more than these.

    Rows that come after the top_k-th by more than rounding are dropped. Where that leaves many, as with a lambda near
    0, only gallery rows that share a neighbour with the query and the top_k nearest are kept. Proof: any other row g is
    at `(1 - lambda) + lambda * d`, the greatest final distance at its d. Each of the top_k nearest comes before g in
    the end: those at smaller d have a smaller final distance, those at equal d and lower row have none greater. With
    lambda 0 all of these tie, and the lowest rows replace the nearest.
    """
    doubt, shared = rounding(width), shared.astype(np.float32)
    closeness = 2 - shared  # becomes a constant of the line minus the final distance, within rounding
    np.divide(shared, closeness, out=closeness)
    closeness *= np.float32(1 - lambda_value)
    closeness += products * (2 * lambda_value / largest[:, None]).astype(np.float32)
    slack = 2 * (4 * lambda_value * doubt / largest + ALIKE)  # this product and the exact one are each off by doubt
    wanted = closeness >= (kth_at_least(closeness, top_k) - slack.astype(np.float32))[:, None]
    line, row = np.divmod(np.flatnonzero(wanted), wanted.shape[1])
    many = np.flatnonzero(np.bincount(line, minlength=len(wanted)) > 4 * top_k)
    if len(many):
        near = products[many] >= (kth_at_least(products[many], top_k) - np.float32(2 * doubt))[:, None]
        if lambda_value == 0:
            near[:, :top_k] = True
        wanted[many] &= near | (shared[many] > 0)
        line, row = np.divmod(np.flatnonzero(wanted), wanted.shape[1])
    return line, row


def _final(shared: np.ndarray, original: np.ndarray, lambda_value: float) -> np.ndarray:
    """(P,) float32, formula 12 of the paper, with formula 10's distance of the weights' sets."""
    shared = np.minimum(shared, 1)  # the weights sum to 1 within rounding
    return ((1 - lambda_value) * (1 - shared / (2 - shared)) + lambda_value * original).astype(np.float32)


def _blocks(pairs: np.ndarray, most: int, never_across: int) -> Iterator[slice]:
    """Runs of queries: at most `most` with SHARED_AT_ONCE pairs together, or one, within a block of `never_across`.

    `pairs` (Q + 1,) are the running sums of the queries' pairs.
    """
    start, n_queries = 0, len(pairs) - 1
    while start < n_queries:
        enough = int(np.searchsorted(pairs, pairs[start] + SHARED_AT_ONCE, side="right")) - 1
        border = (start // never_across + 1) * never_across
        stop = min(max(enough, start + 1), start + most, border, n_queries)
        yield slice(start, stop)
        start = stop


def _shared(weights: sparse.csr_array, holders: sparse.csr_array, some: slice) -> np.ndarray:
    """(B, G) float64, the sum of the smaller weights of queries and gallery rows over the neighbours they share.

    Of each query, the neighbours come in one order for all gallery rows: copies tie.
    """
    ends = weights.indptr[some.start : some.stop + 1]
    span = slice(ends[0], ends[-1])
    held = holders[weights.indices[span]]  # a line for every neighbour of every query
    smaller = np.minimum(held.data, np.repeat(weights.data[span], np.diff(held.indptr))).astype(np.float64)
    shape = (some.stop - some.start, holders.shape[1])
    return sparse.csr_array((smaller, held.indices, held.indptr[ends - ends[0]]), shape=shape).toarray()
