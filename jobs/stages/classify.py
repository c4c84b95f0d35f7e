"""The classifier of a run's garments: which file, whether it fits the run, and what it makes of the items.

In: the setting `search.classifier` of a run. Out: a `RunClassifier`, empty where the file is for other embedders
or categories; then the fused boxes alone say what a garment is, and the note says why.
"""

import hashlib
import os
from dataclasses import dataclass

from jobs.runs.catalogue import weights_folder
from jobs.runs.categories import listed
from jobs.runs.reader import EmbeddedItems
from jobs.runs.run import Run
from retrieval import classifier, models
from retrieval.classifier import Classifier
from store.errors import UserError
from store.objects import ObjectMissing, open_store


@dataclass(frozen=True)
class RunClassifier:
    """What tells the categories of a run's garments, besides the fused boxes."""

    classifier: Classifier | None = None  # with the run's category ids
    sha256: str = ""  # of its file, "" without a classifier
    note: str = ""  # why there is none although the settings name one

    def improved(self, items: EmbeddedItems, most: int) -> EmbeddedItems:
        """Detected items with the classifier's `most` hypotheses, the likeliest as their own category."""
        if self.classifier is None:
            return items
        hypotheses = self.classifier.hypotheses(items.hypotheses, items.embeddings, items.score, most)
        return items.with_hypotheses(hypotheses)


def classifier_of(run: Run) -> RunClassifier:
    """The classifier that the run's settings name, if it fits.

    Raises:
        UserError: the file is damaged or not the shipped one, or does not exist where the setting gives its place.
    """
    settings, name = run.settings, run.settings.search.classifier
    if name is None or not run.detectors:
        return RunClassifier()
    place, file = os.path.split(name)
    folder = open_store(place, endpoint_url=settings.storage.endpoint_url) if place else weights_folder(settings)
    try:
        data = folder.read(file)
    except ObjectMissing:
        reason = f"no {file} in {folder.uri}"
        if place:
            raise UserError(f"search.classifier: {reason}; make it with jobs/fit_categories.py") from None
        return RunClassifier(note=_note(reason))
    sha256 = hashlib.sha256(data).hexdigest()
    if (want := models.CLASSIFIERS.get(name, sha256)) != sha256:
        raise UserError(f"{folder.uri}/{file} has sha256 {sha256[:16]}…, want {want[:16]}…; fetch the weights again")
    try:
        found = classifier.load(data)
    except ValueError as error:
        raise UserError(f"{folder.uri}/{file}: {error}; make it with jobs/fit_categories.py") from None
    has = {model.name: model.weights for model in run.embedders}
    if lacking := [embedder for embedder, weights in found.embedders.items() if has.get(embedder) != weights]:
        return RunClassifier(note=_note(f"{file} wants embeddings that this run lacks: {listed(lacking)}"))
    try:
        return RunClassifier(found.for_categories(run.categories), sha256)
    except ValueError as error:
        return RunClassifier(note=_note(f"{file}: {error}"))


def _note(reason: str) -> str:
    return f"the fused boxes alone say what a garment is: {reason}"
