"""Rank fusion: several ranked lists of a query become one. Ids and scores in, ids and scores out, all queries at once.

Sources: reciprocal rank fusion, Cormack, Clarke and Büttcher, SIGIR 2009; CombSUM and CombMNZ, Fox and Shaw, TREC-2,
1993, after the normalisation of Lee, SIGIR 1997 (min-max) or Montague and Aslam, CIKM 2001 (z-score: zero mean, unit
variance).
"""

from collections.abc import Sequence

import numpy as np

METHODS = ("rrf", "combsum", "combmnz")
NORMALISATIONS = ("min-max", "z-score")
LEAST_SPREAD = 1e-9  # a list whose scores differ by less is one of equal scores
LINES = 1024  # queries fused at once: bounds memory, results do not depend on it


def fuse_lists(
    lists: Sequence[tuple[np.ndarray, np.ndarray]],
    method: str = "rrf",
    weights: Sequence[float] | None = None,
    k: int = 60,
    top_k: int = 100,
    *,
    normalisation: str = "min-max",
) -> tuple[np.ndarray, np.ndarray]:
    """Join the lists of each query.

    With w a list's weight, r the place of an item in it, from 1, and s its score there after normalisation within query
    and list: `rrf` gives an item the sum of `w / (k + r)` over the lists that have it, `combsum` the sum of `w * s`,
    `combmnz` that sum times the number of lists that have the item.

    Args:
        lists: each (ids (Q, K_i) int, best first, -1 for none, scores (Q, K_i) float, higher is better); at least one,
            Q the same. An id that stands twice in a list counts where it stands first; -1 takes no place.
        method: `rrf` (looks at places only), `combsum` or `combmnz`.
        weights: a number >= 0 per list, not all 0; a list of weight 0 is left out. None: all alike, 1.
        k: of `rrf`, at least 0; the larger, the less the first places stand out.
        top_k: results wanted, at least 1.
        normalisation: of `combsum` and `combmnz`: `min-max` brings a list's scores to 0 to 1, `z-score` to mean 0 and
            deviation 1, so that an item below the mean loses. Equal scores, as of a single item, become 0 either way.

    Returns ids (Q, top_k) int64 and scores (Q, top_k) float32, best first, equal scores by lower id; -1 and -inf where
    there are fewer. Raises ValueError for no list, shapes or weights that do not fit, an id below -1, a score that is
    not finite where there is an id, an unknown method or normalisation, and k or top_k out of range.

    >>> a, b = (np.array([[7, 8]]), np.array([[0.9, 0.1]])), (np.array([[8, -1]]), np.array([[5.0, -np.inf]]))
    >>> ids, scores = fuse_lists([a, b], k=1, top_k=2)    # 8: 1 / (1 + 2) + 1 / (1 + 1), 7: 1 / (1 + 1)
    >>> ids.tolist(), scores.round(3).tolist()
    ([[8, 7]], [[0.8330000042915344, 0.5]])
    """
    if method not in METHODS or normalisation not in NORMALISATIONS:
        raise ValueError(
            f"rank fusion: method {method!r}, normalisation {normalisation!r}; "
            f"want one of {', '.join(METHODS)}, and {' or '.join(NORMALISATIONS)}"
        )
    if not (np.isfinite(k) and k >= 0) or top_k < 1:
        raise ValueError(f"rank fusion: k {k}, top_k {top_k}; want k of at least 0, top_k of at least 1")
    checked = [_checked(ids, scores, number) for number, (ids, scores) in enumerate(lists)]
    if not checked or any(len(ids) != len(checked[0][0]) for ids, _ in checked):
        raise ValueError(f"rank fusion: want lists of the same queries, got {[ids.shape for ids, _ in checked]}")
    shares = _shares(weights, len(checked))
    n_queries = len(checked[0][0])
    fused = np.full((n_queries, top_k), -1, np.int64), np.full((n_queries, top_k), -np.inf, np.float32)
    for start in range(0, n_queries, LINES):
        some = slice(start, start + LINES)
        parts = [
            (ids[some], share * _worth(ids[some], scores[some], method, k, normalisation))
            for (ids, scores), share in zip(checked, shares, strict=True)
            if share > 0
        ]
        _fuse(parts, method == "combmnz", fused[0][some], fused[1][some])
    return fused


def _worth(ids: np.ndarray, scores: np.ndarray, method: str, k: int, normalisation: str) -> np.ndarray:
    """(Q, K) float64: the score of each place of a list, before its weight; undefined where there is no id."""
    there = ids >= 0
    if method == "rrf":
        return 1 / (k + np.maximum(np.cumsum(there, axis=1), 1))
    count = np.maximum(there.sum(axis=1, keepdims=True), 1)
    if normalisation == "min-max":
        low = np.min(scores, axis=1, keepdims=True, where=there, initial=np.inf)
        spread = np.max(scores, axis=1, keepdims=True, where=there, initial=-np.inf) - low
    else:
        low = np.sum(scores, axis=1, keepdims=True, where=there) / count
        spread = np.sqrt(np.sum((scores - low) ** 2, axis=1, keepdims=True, where=there) / count)
    level = ~(spread >= LEAST_SPREAD)
    return np.where(there & ~level, scores - low, 0) / np.where(level, 1, spread)


def _fuse(parts: list[tuple[np.ndarray, np.ndarray]], times_lists: bool, ids: np.ndarray, scores: np.ndarray) -> None:
    """Add up each id's scores in all lists, and write the best of each query to ids and scores (Q, top_k)."""
    found = np.concatenate([part for part, _ in parts], axis=1)
    worth = np.concatenate([part for _, part in parts], axis=1)
    which = np.repeat(np.arange(len(parts)), [part.shape[1] for part, _ in parts])
    if not found.size:
        return
    order = np.argsort(found, axis=1, kind="stable")  # an id's places side by side, list by list, best first
    found, which = np.take_along_axis(found, order, axis=1), which[order]
    worth = np.take_along_axis(worth, order, axis=1)
    new = np.ones(found.shape, bool)
    new[:, 1:] = found[:, 1:] != found[:, :-1]
    again = ~new
    again[:, 1:] &= which[:, 1:] == which[:, :-1]
    counts = (found >= 0) & ~again
    group = np.cumsum(new) - 1
    total = np.bincount(group, np.where(counts, worth, 0).ravel())
    if times_lists:
        total = total * np.bincount(group, counts.ravel())
    line, place = np.nonzero(new & (found >= 0))
    total = total[group[line * found.shape[1] + place]].astype(np.float32)  # what is equal there is in order of ids
    _best(line, found[line, place], total, ids, scores)


def _best(line: np.ndarray, names: np.ndarray, total: np.ndarray, ids: np.ndarray, scores: np.ndarray) -> None:
    """Write each line's best, ties by lower id; `line` (P,) and within it `names` (P,) rise."""
    sizes = np.bincount(line, minlength=len(ids))
    first = np.cumsum(sizes) - sizes
    table = np.full((len(ids), int(sizes.max())), np.inf, np.float32)
    table[line, np.arange(len(line)) - first[line]] = -total
    order = np.argsort(table, axis=1, kind="stable")[:, : ids.shape[1]]
    there = np.arange(order.shape[1]) < sizes[:, None]
    rows = (first[:, None] + order)[there]
    ids[:, : order.shape[1]][there], scores[:, : order.shape[1]][there] = names[rows], total[rows]


def _checked(ids: np.ndarray, scores: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """A list as int64 and float64; ValueError where it is none."""
    ids, scores = np.asarray(ids), np.asarray(scores, np.float64)
    if ids.ndim != 2 or ids.shape != scores.shape or not (np.issubdtype(ids.dtype, np.integer) or not ids.size):
        raise ValueError(
            f"rank fusion: list {number} has ids {ids.dtype} {ids.shape}, scores {scores.shape}; want one (Q, K)"
        )
    ids = ids.astype(np.int64)
    bad = (ids < -1) | ((ids >= 0) & ~(np.abs(scores) <= np.finfo(np.float32).max))
    if bad.any():
        query, place = np.argwhere(bad)[0]
        raise ValueError(
            f"rank fusion: list {number}, query {query}, place {place}: id {ids[query, place]}, "
            f"score {scores[query, place]}; want ids from 0, or -1 for none, and finite scores"
        )
    return ids, scores


def _shares(weights: Sequence[float] | None, n_lists: int) -> np.ndarray:
    numbers = np.ones(n_lists) if weights is None else np.asarray(weights, np.float64)
    if numbers.shape != (n_lists,) or not ((numbers >= 0).all() and 0 < numbers.sum() < 1e30):
        raise ValueError(
            f"rank fusion: {n_lists} lists but weights {weights}; want one finite number >= 0 each, not all 0"
        )
    return numbers
