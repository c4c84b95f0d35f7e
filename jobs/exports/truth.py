"""The truth of a few consumer photos at a time, for exports that never hold all rankings."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np

from retrieval.results import Results
from retrieval.truth import ItemTruth, PhotoTruth, Truth


class BlockTruth:
    """A run's truth, from which that of some consumer photos is taken."""

    def __init__(self, truth: Truth) -> None:
        self.truth = truth
        self.photos = np.unique(truth.photo)  # those that have a query, rising
        self._of_photo: dict[int, list[Any]] = defaultdict(list)
        self._of_pair: dict[int, list[Any]] = defaultdict(list)
        if isinstance(truth, ItemTruth):
            for entry in truth.query_gt:
                self._of_photo[entry["query_image_id"]].append(entry)
            for entry in truth.gallery_gt:
                self._of_pair[entry["pair_id"]].append(entry)

    def of(self, image_ids: Iterable[int]) -> Truth:
        """The queries of these consumer photos, and at least the shop side that can be right for them."""
        photos = dict.fromkeys(image_ids)
        if isinstance(self.truth, PhotoTruth):
            chosen = np.isin(self.truth.photo, list(photos))
            return PhotoTruth(self.truth.consumers.rows(chosen), self.truth.shops)
        query_gt = [entry for photo in photos for entry in self._of_photo.get(photo, ())]
        pairs = dict.fromkeys(entry["pair_id"] for entry in query_gt)
        return ItemTruth(query_gt, [entry for pair in pairs for entry in self._of_pair.get(pair, ())])

    def right(self, results: Results) -> tuple[np.ndarray, np.ndarray]:
        """Which results are right, as `Truth.right` says it."""
        return self.of(results.query_image_id.tolist()).right(results)
