"""Plain box arithmetic: areas, overlaps, and the layout in which many images' boxes are worked on at once.

A box is `x1 y1 x2 y2` in any one unit (pixels, fractions), edges continuous: a box from 0 to 1 is 1 wide. Everything is
computed and returned in float64, whatever comes in; inputs are never changed. Overlap is intersection over union (IoU).
"""

import numpy as np

LARGEST_COORDINATE = 1e15  # beyond this, areas and weighted sums would leave the range of float32
NOWHERE = 4 * LARGEST_COORDINATE
LEAST_AREA = 5e-324
PAIRS_IN_MEMORY = 1_000_000  # of `overlapping`: some 200 MB at most
PAIRS_AT_ONCE = 8_192  # so many stay in a processor's nearest cache; results do not depend on it


def area(boxes: np.ndarray) -> np.ndarray:
    """Areas (...) float64 of boxes (..., 4) with x1 <= x2, y1 <= y2 (see `check`), in the square of their unit.

    >>> area(np.array([[0, 0, 2, 3], [1, 1, 1, 5]]))
    array([6., 0.])
    """
    boxes = np.asarray(boxes, dtype=np.float64)
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def iou_matrix(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of all (N, 4) boxes with all (M, 4) of the same unit: (N, M) float64 in [0, 1], 0 where both have no area.

    >>> iou_matrix(np.array([[0, 0, 2, 2]]), np.array([[0, 0, 2, 2], [1, 0, 3, 2], [5, 5, 6, 6]])).round(3)
    array([[1.   , 0.333, 0.   ]])
    """
    a = np.asarray(a, dtype=np.float64).reshape(-1, 4)
    b = np.asarray(b, dtype=np.float64).reshape(-1, 4)
    width = np.minimum(a[:, None, 2], b[:, 2]) - np.maximum(a[:, None, 0], b[:, 0])
    height = np.minimum(a[:, None, 3], b[:, 3]) - np.maximum(a[:, None, 1], b[:, 1])
    shared = np.maximum(width, 0) * np.maximum(height, 0)
    union = area(a)[:, None] + area(b) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def iou_with(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
    """IoU of each of (N, 4) boxes with one box (4,): (N,) float64. See `iou_matrix`."""
    return iou_matrix(boxes, np.reshape(box, (1, 4)))[:, 0]


def pairwise_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of row i of one (N, 4) list with row i of another: (N,) float64 in [0, 1]. See `iou_matrix`."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    shared = np.maximum(sides[:, 0], 0) * np.maximum(sides[:, 1], 0)
    union = area(a) + area(b) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def overlapping(
    boxes: np.ndarray, groups: np.ndarray, kept: np.ndarray, iou_threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """The boxes behind each kept one: itself, and those of its group that overlap it by more than the threshold.

    `groups` (N,) are whole numbers, `kept` (K,) rows of `boxes` (N, 4). Overlap is in [0, 1]; overlap equal to the
    threshold does not count. Returns place (P,) int64 in [0, K), rising, and row (P,) int64 in [0, N), rising within
    one place. A box may stand behind several kept ones, or behind none.

    >>> boxes = np.array([[0, 0, 9, 9], [0, 0, 9, 8], [20, 0, 29, 9]])
    >>> [part.tolist() for part in overlapping(boxes, np.zeros(3, int), np.array([1, 2]), 0.5)]
    [[0, 0, 1], [0, 1, 2]]
    """
    order = np.argsort(groups, kind="stable")
    ranked = np.asarray(groups)[order]
    begins, ends = (np.searchsorted(ranked, np.asarray(groups)[kept], side=side) for side in ("left", "right"))
    found = [(np.zeros(0, np.int64), np.zeros(0, np.int64))]
    for part in _runs(ends - begins, PAIRS_IN_MEMORY):
        sizes = (ends - begins)[part]
        place = np.repeat(np.arange(len(kept))[part], sizes)
        within = np.arange(len(place)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        row = order[begins[place] + within]
        near = (pairwise_iou(boxes[kept[place]], boxes[row]) > iou_threshold) | (row == kept[place])
        found.append((place[near], row[near]))
    place, row = (np.concatenate(column) for column in zip(*found, strict=True))
    return place, row


def _runs(sizes: np.ndarray, most: int) -> list[slice]:
    """Places in runs whose sizes add up to about `most`, at least one place each."""
    number = np.cumsum(sizes) // most
    ends = [*(np.flatnonzero(number[1:] != number[:-1]) + 1).tolist(), len(sizes)] if len(sizes) else []
    return [slice(begin, end) for begin, end in zip([0, *ends[:-1]], ends, strict=True)] if ends else []


def check(boxes: np.ndarray) -> np.ndarray:
    """Boxes as an (N, 4) float64 array; an empty list of any shape is no boxes, and boxes without area pass.

    Raises ValueError, with the row, for x2 < x1, y2 < y1, a wrong shape, or a coordinate NaN, infinite or beyond 1e15.
    """
    boxes = np.asarray(boxes, dtype=np.float64)
    if boxes.size == 0:
        return np.zeros((0, 4))
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes: want shape (N, 4), got {boxes.shape}")
    usable = np.abs(boxes) <= LARGEST_COORDINATE
    if not usable.all():
        row = int(np.argmin(usable.all(axis=1)))
        raise ValueError(f"boxes: row {row} is {boxes[row].tolist()}; coordinates must be finite numbers up to 1e15")
    if (boxes[:, 2] < boxes[:, 0]).any() or (boxes[:, 3] < boxes[:, 1]).any():
        row = int(np.argmax((boxes[:, 2] < boxes[:, 0]) | (boxes[:, 3] < boxes[:, 1])))
        raise ValueError(
            f"boxes: row {row} is {boxes[row].tolist()}, which ends before it begins; "
            "want x1 y1 x2 y2 (were these x y width height?)"
        )
    return boxes


# --- many groups at once ----------------------------------------------------------------------------------------------
# Suppression and fusion go through a group's boxes one by one, best first, so a single group cannot be vectorised; a
# thousand groups can: step r handles the r-th best box of every group that has one. Largest groups first, so that the
# groups still at work are always the first columns.


def by_rank(scores: np.ndarray, *keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Order rows so that the best row of every group comes first, then every second best, and so on.

    Rows that agree in all `keys`, each (N,), are one group. Of `scores` (N,), finite, the higher is better; equal ones
    keep the order of the rows.

    Returns:
        order: (N,) int64 rows. `order[steps[r] : steps[r + 1]]` are the r-th best rows of all groups with more than r
        rows, largest group first; a group is in the same column of every step.
        steps: (R + 1,) int64, R the size of the largest group.

    >>> by_rank(np.array([0.1, 0.9, 0.5]), np.array([7, 7, 8]))    # group 7 is rows 1, 0; group 8 is row 2
    (array([1, 2, 0]), array([0, 2, 3]))
    """
    n = len(scores)
    if n == 0:
        return np.zeros(0, np.int64), np.zeros(1, np.int64)
    keys = tuple(narrow(key) for key in keys)
    rows = falling(scores)
    rows = np.take(rows, np.lexsort([np.take(key, rows) for key in keys]))
    first = np.ones(n, dtype=bool)
    first[1:] = np.logical_or.reduce([key[rows[1:]] != key[rows[:-1]] for key in keys])
    starts = np.flatnonzero(first)
    sizes = np.diff(starts, append=n)
    column = np.empty(len(sizes), np.int64)
    column[np.argsort(-sizes, kind="stable")] = np.arange(len(sizes))
    active = len(sizes) - np.cumsum(np.bincount(sizes))[:-1]  # groups with more than r rows, for r = 0, 1, …
    steps = np.concatenate([[0], np.cumsum(active)])
    rank = np.arange(n) - np.repeat(starts, sizes)
    order = np.empty(n, np.int64)
    order[steps[rank] + np.repeat(column, sizes)] = rows
    return order, steps


def narrow(key: np.ndarray) -> np.ndarray:
    """(N,) whole numbers as uint16, in the same order, where their range allows: NumPy sorts those far faster."""
    if len(key) and np.can_cast(key.dtype, np.int64) and int(key.max()) - int(key.min()) < 65_536:
        return (key.astype(np.int64) - int(key.min())).astype(np.uint16)
    return key


def falling(scores: np.ndarray) -> np.ndarray:
    """(N,) int64 rows by falling score, equal scores in order: NumPy's stable sort in a third of its time."""
    order = np.argsort(-scores)
    ranked = np.take(scores, order)
    changes = ranked[1:] != ranked[:-1]
    if changes.all():
        return order
    level = np.cumsum(np.append(0, changes))
    return np.sort(level * len(order) + order) % len(order)


def edges(boxes: np.ndarray) -> np.ndarray:
    """(N, 4) boxes as (5, N) float64 rows x1, y1, x2, y2, area, no area being 5e-324: what `Stacks` works on."""
    rows = np.empty((5, len(boxes)))
    rows[:4] = boxes.T
    rows[4] = np.maximum((rows[2] - rows[0]) * (rows[3] - rows[1]), LEAST_AREA)
    return rows


class Stacks:
    """For each of G columns a growing stack of boxes, compared with one new box per column at once.

    Columns may only fall away from the right as the work goes on. Memory: 48 bytes a slot; slots grow with the highest
    stack among the columns still in use, so they stay within a few times the number of boxes handled in all.
    """

    def __init__(self, n_columns: int) -> None:
        self.height = np.zeros(n_columns, np.int64)  # boxes in each stack; slots below it are taken
        self._n_slots, self._n_columns, self._in_use = 0, n_columns, n_columns
        self._edges, self._names = np.empty((5, 0)), np.empty(0, np.int64)  # slot by slot
        self._overlap = np.empty(0)
        self._grow(4, n_columns)

    def _grow(self, n_slots: int, n_columns: int) -> None:
        """More slots, for the columns still in use."""
        taken, n_columns_before = self._n_slots, self._n_columns
        rows, names = np.empty((5, n_slots, n_columns)), np.empty((n_slots, n_columns), np.int64)
        rows[:, :taken] = self._edges.reshape(5, taken, n_columns_before)[:, :, :n_columns]
        names[:taken] = self._names.reshape(taken, n_columns_before)[:, :n_columns]
        rows[0:2, taken:], rows[2:4, taken:], rows[4, taken:] = NOWHERE, -NOWHERE, 1  # overlaps nothing
        self._edges, self._names = rows.reshape(5, -1), names.ravel()
        self._n_slots, self._n_columns = n_slots, n_columns

    def overlap(self, new: np.ndarray) -> np.ndarray:
        """IoU of each column's new box with its stack: (K, A) float64, K >= 1 the highest of these stacks.

        `new` (5, A) has a box for each of the first A columns, as `edges` gives them; the other columns are finished.
        The result is zero or less where boxes do not overlap and in free slots, and is valid until the next call.
        """
        n = self._in_use = new.shape[1]
        n_slots = max(1, int(self.height[:n].max()))
        if self._overlap.size < n_slots * n:
            self._overlap = np.empty(2 * n_slots * n)
        overlap = self._overlap[: n_slots * n].reshape(n_slots, n)
        stacked = self._edges.reshape(5, self._n_slots, self._n_columns)[:, :n_slots, :n]
        left, top, right, bottom, new_area = new
        at_once = max(1, PAIRS_AT_ONCE // n)
        spare = np.empty((2, min(at_once, n_slots), n))
        for begin in range(0, n_slots, at_once):
            shared = overlap[begin : begin + at_once]
            x1, y1, x2, y2, own_area = stacked[:, begin : begin + at_once]
            height, other = spare[:, : len(shared)]
            np.subtract(np.minimum(x2, right, out=shared), np.maximum(x1, left, out=other), out=shared)
            np.maximum(shared, 0, out=shared)  # two negative sides must not make an area
            np.subtract(np.minimum(y2, bottom, out=height), np.maximum(y1, top, out=other), out=height)
            np.multiply(shared, height, out=shared)
            union = np.subtract(np.add(own_area, new_area, out=height), shared, out=height)
            np.divide(shared, union, out=shared)
        return overlap

    def names(self, slots: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """The names of the boxes in these slots, one per column given."""
        return self._names[slots * self._n_columns + columns]

    def put(self, slots: np.ndarray, columns: np.ndarray, boxes: np.ndarray, names: np.ndarray) -> None:
        """Write boxes (5, C) and their whole-number names into one slot each of C different columns.

        A slot that is taken gets a new box; the slot at the stack's height makes the stack higher.
        """
        if len(columns) == 0:
            return
        if slots.max() >= self._n_slots:
            self._grow(2 * self._n_slots, self._in_use)
        places = slots * self._n_columns + columns
        self._names[places] = names
        for row, values in zip(self._edges, boxes, strict=True):
            row[places] = values
        self.height[columns] += slots == self.height[columns]


def chunks(keys: np.ndarray, most: int) -> list[slice]:
    """Cut rows into runs of about `most` rows, never between two rows of one key.

    Equal `keys` (N,) stand side by side. A single key with more than `most` rows is a run of its own.

    >>> chunks(np.array([3, 3, 1, 1, 1, 2]), 4)
    [slice(0, 2, None), slice(2, 6, None)]
    """
    ends = np.append(np.flatnonzero(keys[1:] != keys[:-1]) + 1, len(keys)).tolist() if len(keys) else []
    runs, begin, last = [], 0, 0
    for end in ends:
        if end - begin > most and last > begin:
            runs.append(slice(begin, last))
            begin = last
        last = end
    return [*runs, slice(begin, last)] if last > begin else runs
