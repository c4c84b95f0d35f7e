"""Several indexes searched as one: the parts of a gallery that is larger than one machine builds or holds.

Every part proposes its own nearest rows with their exact similarities, and the best of all proposals are the answer. So
exact parts answer as one exact index over all their rows does, to the last bit and in the same order.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from retrieval.ann import AnnIndex, best_of

Answer = tuple[np.ndarray, np.ndarray]  # similarity (Q, k) float32 and ids (Q, k) int64, as `AnnIndex.search` gives


def merged(answers: Iterable[Answer], n_queries: int, k: int) -> Answer:
    """The k best of several answers to the same queries, by falling similarity, then lower id.

    Each answer is similarity (Q, k') float32 and ids (Q, k') int64 of rows that no other answer has; k' may differ.
    Returns both as (Q, k), -inf and -1 where there are fewer.

    >>> one, other = ([[0.9, 0.5]], [[4, 7]]), ([[0.9, 0.1]], [[2, 3]])
    >>> [found.tolist() for found in merged([tuple(map(np.array, one)), tuple(map(np.array, other))], 1, 3)]
    [[[0.9, 0.9, 0.5]], [[2, 4, 7]]]
    """
    nothing = np.full((n_queries, k), -np.inf, np.float32), np.full((n_queries, k), -1, np.int64)
    similarity, ids = (np.concatenate(column, axis=1) for column in zip(*answers, nothing, strict=True))
    return best_of(similarity, ids, k)


class StackedRows:
    """The rows of several arrays as if they stood below each other; only what is taken is read.

    `shape` is (N, D); an index is an array of row numbers (n,) or a mask (N,), and gives (n, D).
    """

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        self._arrays, self._starts = tuple(arrays), np.cumsum([0, *map(len, arrays)])
        self.shape, self.dtype = (int(self._starts[-1]), arrays[0].shape[1]), np.result_type(*arrays)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        rows = np.arange(len(self))[rows]
        part = np.searchsorted(self._starts, rows, side="right") - 1
        taken = np.empty((len(rows), self.shape[1]), self.dtype)
        for i in np.unique(part):
            taken[part == i] = self._arrays[i][rows[part == i] - self._starts[i]]
        return taken


class AnnParts:
    """The indexes of one version's parts, which have no living id in common; reads like an `AnnIndex`.

    `vectors` (N, D) and `ids` (N,) int64 are those of the parts, one after the other; `dead` (M,) int64 are rising row
    numbers of these.
    """

    def __init__(self, parts: Sequence[AnnIndex]) -> None:
        self.parts = tuple(parts)
        starts = np.cumsum([0, *(len(part.ids) for part in parts)])
        self.vectors = StackedRows([part.vectors for part in parts])
        self.ids = np.concatenate([part.ids for part in parts])
        self.dead = np.concatenate([start + part.dead for start, part in zip(starts, parts, strict=False)])

    @property
    def rows(self) -> int:
        """Number of living rows."""
        return sum(part.rows for part in self.parts)

    def search(self, queries: np.ndarray, k: int) -> Answer:
        """As `AnnIndex.search`: the k best of what the parts find."""
        return merged((part.search(queries, k) for part in self.parts), len(queries), k)

    def exact(self, queries: np.ndarray, k: int) -> Answer:
        """As `AnnIndex.exact`: every living row of every part is compared."""
        return merged((part.exact(queries, k) for part in self.parts), len(queries), k)
