"""The classifier of a run's or a gallery's garments, or none; `jobs.stages.classify` finds it.

In: the fused boxes' hypotheses, embeddings and scores of items. Out: better hypotheses.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from postproc.hypotheses import Hypotheses
from retrieval.classifier import Classifier

CODE = 1  # of what a classifier makes of garments; with another one galleries are built anew


@dataclass(frozen=True)
class RunClassifier:
    """What tells the categories of the garments of a run or a gallery, besides the fused boxes."""

    classifier: Classifier | None = None  # with their category ids
    file: str = ""  # its name, "" without a classifier
    sha256: str = ""  # of that file
    most: int = 1  # hypotheses of a garment
    note: str = ""  # why there is none although the settings name one

    @property
    def notes(self) -> list[str]:
        """The note, if there is one."""
        return [self.note] if self.note else []

    @property
    def basis(self) -> dict[str, Any] | None:
        """What its hypotheses follow from, besides the garments and `items.hypotheses`; None without a classifier."""
        return {"file": self.file, "sha256": self.sha256, "code": CODE} if self.classifier else None

    def hypotheses(self, fused: Hypotheses, embeddings: Mapping[str, np.ndarray], score: np.ndarray) -> Hypotheses:
        """The `most` likeliest categories of detected garments, best first; those of the fused boxes without a
        classifier. Arguments as of `Classifier.hypotheses`."""
        if self.classifier is None:
            return fused
        return self.classifier.hypotheses(fused, embeddings, score, self.most)
