"""Rankings written down by hand, as arrays."""

import numpy as np

from retrieval.rankings import Rankings
from retrieval.results import Results

Listed = list[tuple[int, int, float]]  # shop photo, item, similarity


def rankings_of(rows: list[tuple[int, int, float, Listed]], width: int | None = None) -> Rankings:
    """From (consumer photo, item, score, list); a box names its row and place. Rubbish after the end of each list."""
    width = max([1, *(len(listed) for *_, listed in rows)]) if width is None else width
    ids, items = np.full((len(rows), width), 99, np.int64), np.full((len(rows), width), 9, np.int32)
    boxes, similarity = np.full((len(rows), width, 4), -1.0), np.full((len(rows), width), 7, np.float32)
    for r, (*_, listed) in enumerate(rows):
        for p, (photo, item, value) in enumerate(listed):
            ids[r, p], items[r, p], similarity[r, p], boxes[r, p] = photo, item, value, (r, p, r + 1, p + 1)
    photo, item, score = (np.array([row[i] for row in rows]) for i in range(3))
    own = np.repeat(np.arange(len(rows), dtype=float)[:, None], 4, axis=1)
    count = np.array([len(listed) for *_, listed in rows], np.int64)
    results = Results(photo.astype(np.int64), own, item.astype(np.int64), score.astype(float), ids, boxes, count)
    return Rankings(results, item.astype(np.int32), items, similarity)
