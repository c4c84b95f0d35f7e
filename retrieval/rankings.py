"""The result lists of a run's queries, as arrays."""

from dataclasses import dataclass

import numpy as np

from retrieval.results import Results


@dataclass(frozen=True)
class Rankings:
    """The result lists of R queries, padded to K results each."""

    results: Results  # as `retrieval.metrics` takes them
    query_item: np.ndarray  # (R,) int32, number of the item within its photo
    gallery_item: np.ndarray  # (R, K) int32
    similarity: np.ndarray  # (R, K) float32, cosine
