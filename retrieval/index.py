"""An exact index over unit rows, as bytes in FAISS' own format, which other software can search; FAISS, without torch.

Row numbers are positions in the gallery; the caller's table says what they are. `postproc.neighbours` searches the rows
themselves, faster than this index and with ties in row order.
"""

import faiss
import numpy as np


def build(rows: np.ndarray) -> faiss.Index:
    """An index over gallery rows (N, D) float32, finite, D at least 1; N may be 0. Memory: 4 D bytes a row.

    Raises ValueError for another shape or type, or a row that is not finite, with its number.
    """
    if rows.ndim != 2 or rows.shape[1] < 1 or rows.dtype != np.float32:
        raise ValueError(f"index: want rows (N, D) float32, got {rows.shape} {rows.dtype}")
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        raise ValueError(
            f"index: row {bad[0]} has numbers that are not finite ({len(bad)} such rows); "
            "look at the model that made them"
        )
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(np.ascontiguousarray(rows))
    return index


def save(index: faiss.Index) -> bytes:
    """The index as bytes, the same for the same rows."""
    data: np.ndarray = faiss.serialize_index(index)
    return data.tobytes()


def load(data: bytes) -> faiss.Index:
    """An index from `save`'s bytes; raises ValueError where they are no such index."""
    try:
        index = faiss.deserialize_index(np.frombuffer(data, np.uint8))
    except RuntimeError as error:
        raise ValueError(f"index: {len(data)} bytes are no FAISS index: {str(error).splitlines()[0]}") from None
    if not isinstance(index, faiss.IndexFlat) or index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise ValueError(f"index: want an exact inner-product index, got {type(index).__name__}; build it again")
    return index
