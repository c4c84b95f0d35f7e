"""Exact nearest rows by inner product, in bounded memory: rows in, each query's k best rows out; NumPy alone.

Re-ranking, diffusion and expansion start from these. The Q x N products are never held: they are formed block by block,
and the few above the k-th best so far are kept. Source of the bound on rounding: Higham, Accuracy and Stability (2002),
3.1.
"""

from collections.abc import Iterator
from math import isqrt

import numpy as np

BLOCK_CELLS = 1 << 22  # products held at once: 16 MB
MOST_LINES = 1024  # queries in a block: enough for the matrix product to be at its fastest
PAIR_CELLS = 1 << 15  # numbers gathered at once when single pairs are multiplied: they stay in a near cache
LONGEST = 1e18  # of a row: the product of two such rows is still far inside float32
UNIT_TOLERANCE = 0.01  # rows stored in float16 are unit length within this
NO_NAME = (1 << 32) - 1  # of a row
NO_KEY = -(0x7F800000 + 1 << 32)  # of -inf and NO_NAME


def nearest(
    queries: np.ndarray, rows: np.ndarray, k: int, *, block_cells: int = BLOCK_CELLS
) -> tuple[np.ndarray, np.ndarray]:
    """The k rows with the greatest inner product for every query.

    Args:
        queries: (Q, D) float32, finite, D at least 1; Q may be 0.
        rows: (N, D) float32, finite; N may be 0, at most 2**32 - 1. May be memory-mapped: read once from start to end,
            then here and there. Where it is the very array `queries` is, each pair's product is formed once, in half
            the time.
        k: at least 1; may exceed N.
        block_cells: products held at once, at least 1; the answer does not depend on it.

    Returns:
        similarity (Q, k) float32, falling, the float64 sum rounded: it depends on the two rows and on nothing else, so
        copies of a row are equal whatever the block; -inf where there are fewer than k rows. And rows (Q, k) int64;
        equal similarities by lower row; -1 where there are fewer.

    Raises ValueError for k or block_cells under 1, shapes that do not fit, too many rows, and a row that is not finite
    or longer than 1e18.

    >>> [part.tolist() for part in nearest(np.array([[1.0, 0.0]]), np.array([[0.5, 0], [1, 0], [0.5, 1]]), 2)]
    [[[1.0, 0.5]], [[1, 0]]]
    """
    kept = _passed(queries, rows, k, block_cells, None)
    similarity, found = np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1, np.int64)
    for some in _runs(len(queries), MOST_LINES):
        keys = kept.best(some, order_only=False)
        similarity[some, : kept.k], found[some, : kept.k] = as_scores(keys), as_names(keys)
    return similarity, found


def ranked_and_lowest(
    queries: np.ndarray, rows: np.ndarray, k: int, *, block_cells: int = BLOCK_CELLS
) -> tuple[np.ndarray, np.ndarray]:
    """The rows of `nearest` without their similarities, which is quicker, and the smallest inner product with any row.

    Returns rows (Q, min(k, N)) int64 and lowest (Q,) float32, inf if N is 0: the float32 sum as the matrix product
    gives it, whose last digits may differ with the block.
    """
    lowest = np.full(len(queries), np.inf, np.float32)
    kept = _passed(queries, rows, k, block_cells, lowest)
    found = np.empty((len(queries), kept.k), np.int64)
    for some in _runs(len(queries), MOST_LINES):
        found[some] = as_names(kept.best(some, order_only=True))
    return found, lowest


def unit_rows(doing: str, *parts: np.ndarray) -> np.ndarray:
    """The parts' rows one after the other, float32, brought to exactly unit length: (N_1 + N_2 + …, D), always a copy.

    Raises ValueError for shapes that do not fit, and with part and row for a length not finite or not 1 within 0.01.

    >>> unit_rows("asking", np.array([[1.004, 0.0]]), np.array([[0.0, 1.0]])).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    parts = tuple(np.asarray(part) for part in parts)
    if any(part.ndim != 2 or part.shape[1] < 1 or part.shape[1] != parts[0].shape[1] for part in parts):
        raise ValueError(f"{doing}: want (N, D) rows of one width, got {' and '.join(str(p.shape) for p in parts)}")
    joined = np.empty((sum(map(len, parts)), parts[0].shape[1]), np.float32)
    start = 0
    for number, part in enumerate(parts):
        for some in _pieces(len(part), part.shape[1]):
            block = part[some].astype(np.float64)
            lengths = np.sqrt(np.vecdot(block, block))
            if not (np.abs(lengths - 1) <= UNIT_TOLERANCE).all():
                row = int(np.argmin(np.abs(lengths - 1) <= UNIT_TOLERANCE))
                name = "gallery" if number else "query"
                raise ValueError(
                    f"{doing}: {name} row {some.start + row} has length {lengths[row]:.4g}; "
                    "want finite rows of unit length"
                )
            joined[start + some.start : start + some.stop] = block / lengths[:, None]
        start += len(part)
    return joined


def pair_products(a: np.ndarray, b: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """(P,) float32 inner products of rows a[i] and b[j], float32 (Q, D) and (N, D), each its float64 sum rounded."""
    products = np.empty(len(i), np.float32)
    for some in _pieces(len(i), a.shape[1]):
        products[some] = np.vecdot(a[i[some]].astype(np.float64), b[j[some]].astype(np.float64))
    return products


def kth_at_least(products: np.ndarray, k: int, axis: int = 1) -> np.ndarray:
    """(B,) a lower bound, close and quick to find, of the k-th greatest of each line's C products, k <= C.

    It is the k-th greatest of the maxima of some 4 k disjoint groups. `products` is (B, C) with axis 1, (C, B) with
    axis 0.

    >>> kth_at_least(np.array([[1.0, 7, 3, 4]]), 2).tolist()
    [4.0]
    """
    n_groups = max(k, min(products.shape[axis], 4 * k))
    size = products.shape[axis] // n_groups
    if axis == 1:
        highest = products[:, : size * n_groups].reshape(len(products), size, n_groups).max(axis=1)
    else:
        highest = np.ascontiguousarray(products[: size * n_groups].reshape(size, n_groups, -1).max(axis=0).T)
    return np.partition(highest, n_groups - k, axis=1)[:, n_groups - k]


def rounding(width: int) -> float:
    """Greatest error of a float32 inner product of two unit rows, whatever the order of its `width` terms."""
    return float(0.6 * np.finfo(np.float32).eps * (width + 4))


# --- one pass over the products ---------------------------------------------------------------------------------------


def _passed(queries: np.ndarray, rows: np.ndarray, k: int, block_cells: int, lowest: np.ndarray | None) -> "_Kept":
    """See `nearest`; `lowest` (Q,), where given, is lowered in place."""
    if k < 1 or block_cells < 1:
        raise ValueError(f"nearest rows: k {k}, block_cells {block_cells}; want both at least 1")
    queries, rows = _matrix("queries", queries), _matrix("rows", rows)
    if queries.shape[1] != rows.shape[1]:
        raise ValueError(
            f"nearest rows: queries of {queries.shape[1]} numbers, rows of {rows.shape[1]}; "
            "were they made by another model?"
        )
    if len(rows) > NO_NAME:
        raise ValueError(f"nearest rows: {len(rows)} rows; want at most {NO_NAME}: search them in parts")
    kept = _Kept(queries, rows, min(k, len(rows)), _lengths("query", queries, 0), lowest)
    if queries is rows:
        kept.look_through_half(max(1, min(len(rows), isqrt(block_cells) // 2)))
    else:
        lines = max(1, min(len(queries), MOST_LINES, isqrt(block_cells)))
        kept.look_through(lines, max(1, min(len(rows), block_cells // lines)))
    return kept


class _Kept:
    """Each query's candidates so far, as keys, rising. Memory: 8 (k + spare) bytes a query.

    A float32 product differs from the true one by at most `doubt`, whatever the order of its sum. With T the k-th best
    product seen, k rows are truly T - doubt or better, so a row that belongs among the k best has a product of T - 2
    doubt or more: all of those are kept and in the end compared by float64 sums. Where they are too many to keep, which
    takes many near copies, they are compared at once, and the k best stay.
    """

    def __init__(
        self, queries: np.ndarray, rows: np.ndarray, k: int, length: np.ndarray, lowest: np.ndarray | None
    ) -> None:
        self.queries, self.rows, self.k, self.length, self.lowest = queries, rows, k, length, lowest
        self.longest = 0.0  # of the rows seen
        self.n_slots = k + max(16, k // 4)
        self.keys = np.full((len(queries), self.n_slots), NO_KEY)
        self.threshold = np.full(len(queries), -np.inf, np.float32)

    def look_through(self, lines: int, columns: int) -> None:
        """All products, in blocks; each row is read once, so that a file can stream through."""
        scores, above = np.empty(lines * columns, np.float32), np.empty(lines * columns, bool)
        for start in range(0, len(self.rows), columns):
            block = self.rows[start : start + columns]
            self.longest = max(self.longest, float(_lengths("row", block, start).max()))
            for some in _runs(len(self.queries), lines):
                shape, n = (some.stop - some.start, len(block)), (some.stop - some.start) * len(block)
                products = np.matmul(self.queries[some], block.T, out=scores[:n].reshape(shape))
                self._take(some, products, start, above[:n].reshape(shape), axis=1)

    def look_through_half(self, side: int) -> None:
        """All products of rows with themselves: a block (a, b) is what b has with a, too, read the other way."""
        self.longest = float(self.length.max(initial=0))
        scores, above = np.empty(side * side, np.float32), np.empty(side * side, bool)
        for a in _runs(len(self.rows), side):
            for b in _runs(len(self.rows), side):
                if b.start > a.start:
                    continue
                shape, n = (a.stop - a.start, b.stop - b.start), (a.stop - a.start) * (b.stop - b.start)
                products = np.matmul(self.rows[a], self.rows[b].T, out=scores[:n].reshape(shape))
                self._take(a, products, b.start, above[:n].reshape(shape), axis=1)
                if b.start < a.start:
                    self._take(b, products, a.start, above[:n].reshape(shape), axis=0)

    def _take(self, some: slice, products: np.ndarray, start: int, above: np.ndarray, axis: int) -> None:
        """Look through the products of these queries with the rows from `start` on.

        `products` is (B, C) with axis 1, the rows along it, and (C, B) with axis 0; `above` is spare room of its shape.
        """
        if self.lowest is not None:
            np.minimum(self.lowest[some], products.min(axis=axis), out=self.lowest[some])
        threshold = self.threshold[some]
        if np.isneginf(threshold[0]) and products.shape[axis] > self.n_slots:
            threshold = kth_at_least(products, self.k, axis) - self._slack(some)
        np.greater_equal(products, np.expand_dims(threshold, axis), out=above)
        flat = np.flatnonzero(above)
        if not len(flat):
            return
        line, column = np.divmod(flat, products.shape[1])
        scores = products.ravel()[flat]
        if axis == 0:
            order = np.argsort(column.astype(np.min_scalar_type(products.shape[1])), kind="stable")  # few bits: quicker
            line, column, scores = column[order], line[order], scores[order]
        counts = np.bincount(line, minlength=some.stop - some.start)
        lines = np.flatnonzero(counts)
        counts = counts[lines]
        keys = np.full((len(lines), self.n_slots + int(counts.max())), NO_KEY)
        keys[:, : self.n_slots] = self.keys[some.start + lines]
        first = np.arange(len(lines)) * keys.shape[1] + self.n_slots
        place = np.arange(len(flat)) + np.repeat(first - (np.cumsum(counts) - counts), counts)
        keys.ravel()[place] = as_keys(scores, column + start)
        self._keep(some.start + lines, keys)

    def best(self, some: slice, order_only: bool) -> np.ndarray:
        """(B, k) keys of these queries' rows by their true similarity, best first, ties by lower row.

        With `order_only`, the similarities in them are within `doubt`, and the order is the same.
        """
        at, keys = np.arange(len(self.queries))[some], self.keys[some]
        hopeful = keys > as_keys(self.threshold[some, None], NO_NAME)
        return self._compared(at, np.where(hopeful, keys, NO_KEY), order_only)[:, : -self.k - 1 : -1]

    def _slack(self, some: slice | np.ndarray) -> np.ndarray:
        """(B,) float32, 2 doubt."""
        # the last term is for numbers near 0
        doubt = rounding(self.queries.shape[1]) * self.length[some] * self.longest + 1e-37
        return (2 * doubt).astype(np.float32)

    def _keep(self, at: np.ndarray, keys: np.ndarray) -> None:
        """Keep those candidates (B, M) of the queries `at` (B,), M above the slots, that may be among the k best."""
        keys.sort(axis=1)
        threshold = as_scores(keys[:, -self.k]) - self._slack(at)
        least = as_keys(threshold, NO_NAME)
        crowded = np.flatnonzero(keys[:, -self.n_slots - 1] > least)
        if len(crowded):
            hopeful = np.where(keys[crowded] > least[crowded, None], keys[crowded], NO_KEY)
            keys[crowded] = self._compared(at[crowded], hopeful, False)
            keys[crowded, : -self.k] = NO_KEY
            threshold[crowded] = as_scores(keys[crowded, -self.k]) - self._slack(at[crowded])
        self.keys[at], self.threshold[at] = keys[:, -self.n_slots :], threshold

    def _compared(self, at: np.ndarray, keys: np.ndarray, order_only: bool) -> np.ndarray:
        """(B, M) keys of the same candidates by true similarity, rising; with `order_only`, only where that matters."""
        wanted = keys > NO_KEY
        if order_only:
            scores = as_scores(keys)
            near = scores[:, 1:] <= scores[:, :-1] + self._slack(at)[:, None]
            wanted[:, 1:] &= near | np.append(near[:, 1:], np.zeros((len(at), 1), bool), axis=1)
            wanted[:, 0] &= near[:, 0]
        line, place = np.nonzero(wanted)
        names = as_names(keys[line, place])
        keys[line, place] = as_keys(pair_products(self.queries, self.rows, at[line], names), names)
        keys.sort(axis=1)
        return keys


# --- score and row in one number: sorting a single array is several times as fast as sorting one by another -----------


def as_keys(scores: np.ndarray, names: np.ndarray | int) -> np.ndarray:
    """int64 in the order of (score, -name): float32 scores, not NaN; names below 2**32 - 1, or NO_NAME, the last."""
    bits = (scores + np.float32(0)).view(np.int32)  # the sum makes 0.0 of -0.0
    return (_folded(bits).astype(np.int64) << 32) | (NO_NAME - names)


def as_scores(keys: np.ndarray) -> np.ndarray:
    """The float32 scores in the keys."""
    return _folded((keys >> 32).astype(np.int32)).view(np.float32)


def as_names(keys: np.ndarray) -> np.ndarray:
    """The int64 names in the keys."""
    return NO_NAME - (keys & NO_NAME)


def _folded(bits: np.ndarray) -> np.ndarray:
    """Of int32 read from float32, numbers that rise as the float32 do; and back."""
    return bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))


# --- rows checked -----------------------------------------------------------------------------------------------------


def _matrix(name: str, rows: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # a number beyond float32 becomes inf and is refused as such
        rows = np.asarray(rows, np.float32)
    if rows.ndim != 2 or rows.shape[1] < 1:
        raise ValueError(f"nearest rows: want {name} (N, D), D at least 1, got {rows.shape}")
    return rows


def _lengths(name: str, rows: np.ndarray, first: int) -> np.ndarray:
    """(N,) float64 lengths; `first` is the number of the first row, for the message."""
    lengths = np.empty(len(rows))
    for some in _pieces(len(rows), rows.shape[1]):
        block = rows[some].astype(np.float64)
        lengths[some] = np.sqrt(np.vecdot(block, block))
    if not (lengths <= LONGEST).all():
        row = int(np.argmin(lengths <= LONGEST))
        raise ValueError(
            f"nearest rows: {name} {first + row} has length {lengths[row]:g}; "
            "want finite rows, best of unit length: look at the model that made them"
        )
    return lengths


def _pieces(n: int, width: int) -> Iterator[slice]:
    """0 … n - 1 in runs of as many rows of `width` numbers as are gathered at once."""
    return _runs(n, max(1, PAIR_CELLS // width))


def _runs(n: int, most: int) -> Iterator[slice]:
    """0 … n - 1 in runs of `most`, the last one of what is left."""
    return (slice(start, min(start + most, n)) for start in range(0, n, most))
