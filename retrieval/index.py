"""Exact search over unit rows by inner product: rows in, the k most similar rows of the gallery out; FAISS, never torch.

Row numbers are positions in the gallery; whose they are is the caller's table. An index is bytes (FAISS' own format), so it
goes to a folder or a bucket like any other file. Memory: 4 D bytes a row.
"""

from typing import Any

import faiss
import numpy as np

SPARE = 8  # candidates beyond k that FAISS is asked for at first
BLOCK = 256  # queries whose candidates are compared at once: BLOCK x (k + SPARE) x D x 8 bytes


def build(rows: np.ndarray) -> faiss.Index:
    """An index over gallery rows.

    Args:
        rows: (N, D) float32, finite, D at least 1; N may be 0.

    Raises:
        ValueError: another shape or type, or a row that is not finite, with its number.
    """
    index = faiss.IndexFlatIP(_checked("index", rows).shape[1])
    index.add(np.ascontiguousarray(rows))
    return index


def search(index: faiss.Index, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k gallery rows with the greatest inner product for every query.

    Args:
        index: from `build` or `load`.
        queries: (Q, D) float32, finite; Q may be 0.
        k: at least 1; may exceed the gallery.

    Returns:
        similarity (Q, k) float32, falling, the float64 sum rounded: it depends on the two rows and on nothing else; -inf where the gallery has fewer than k rows.
        rows (Q, k) int64; equal similarities by lower row; -1 where the gallery has fewer.

    Raises:
        ValueError: k under 1, or queries of another shape, type or width.
    """
    if k < 1:
        raise ValueError(f"search: want k of at least 1, got {k}")
    queries = _checked("search", queries)
    if queries.shape[1] != index.d:
        raise ValueError(
            f"search: the index has rows of {index.d} numbers, the queries {queries.shape[1]}; were they made by another model?"
        )
    similarity = np.full((len(queries), k), -np.inf, np.float32)
    rows = np.full((len(queries), k), -1, np.int64)
    held = min(k, index.ntotal)
    if held:
        gallery = _rows_of(index)
        doubt = _rounding(gallery, queries)
        for start in range(0, len(queries), BLOCK):
            block = slice(start, start + BLOCK)
            answer = _top(index, gallery, np.ascontiguousarray(queries[block]), doubt[block], held)
            similarity[block, :held], rows[block, :held] = answer
    return similarity, rows


def save(index: faiss.Index) -> bytes:
    """The index as bytes, the same for the same rows."""
    data: np.ndarray = faiss.serialize_index(index)
    return data.tobytes()


def load(data: bytes) -> faiss.Index:
    """An index from `save`'s bytes.

    Raises:
        ValueError: they are not such an index.
    """
    try:
        index = faiss.deserialize_index(np.frombuffer(data, np.uint8))
    except RuntimeError as error:
        raise ValueError(f"index: {len(data)} bytes are no FAISS index: {str(error).splitlines()[0]}") from None
    if not isinstance(index, faiss.IndexFlat) or index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise ValueError(f"index: want an exact inner-product index, got {type(index).__name__}; build it again")
    return index


def _top(
    index: faiss.Index, gallery: np.ndarray, queries: np.ndarray, doubt: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Best k of the gallery for each query, 1 <= k <= ntotal, ties by lower row, those at the border of the list included.

    FAISS' float32 sums differ in the last digit with the number of queries, even between two copies of a row, so it proposes
    and we compare. A query whose k-th best cannot be told from what FAISS left out is asked again for four times as many.
    """
    best, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    open_, asked = np.arange(len(queries)), min(k + SPARE, index.ntotal)
    while len(open_):
        proposed, candidates = index.search(queries[open_], asked)
        exact = np.stack(
            [
                gallery[c].astype(np.float64) @ q.astype(np.float64)
                for c, q in zip(candidates, queries[open_], strict=True)
            ]
        )
        exact = exact.astype(np.float32)
        order = np.lexsort((candidates, -exact), axis=1)[:, :k]
        best[open_], rows[open_] = (
            np.take_along_axis(exact, order, axis=1),
            np.take_along_axis(candidates, order, axis=1),
        )
        if asked == index.ntotal:
            break
        open_ = open_[proposed.min(axis=1) + doubt[open_] >= best[open_, k - 1]]
        asked = min(4 * asked, index.ntotal)
    return best, rows


def _rows_of(index: Any) -> np.ndarray:
    """(N, D) float32: the index's own memory, to be read only."""
    rows: np.ndarray = faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d).reshape(index.ntotal, index.d)
    return rows


def _rounding(gallery: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """(Q,) by how much a float32 inner product with any gallery row may be off, whatever the order of the sum."""
    longest = np.sqrt(np.einsum("nd,nd->n", gallery, gallery).max())
    return gallery.shape[1] * np.finfo(np.float32).eps / 2 * longest * np.linalg.norm(queries, axis=1)


def _checked(doing: str, rows: np.ndarray) -> np.ndarray:
    if rows.ndim != 2 or rows.shape[1] < 1 or rows.dtype != np.float32:
        raise ValueError(f"{doing}: want rows (N, D) float32, got {rows.shape} {rows.dtype}")
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        raise ValueError(
            f"{doing}: row {bad[0]} has numbers that are not finite ({len(bad)} such rows); look at the model that made them"
        )
    return rows
