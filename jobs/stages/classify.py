"""The classifier of detected garments: which file, and whether it fits the models.

In: the setting `search.classifier` of a run or a gallery. Out: a `RunClassifier`, empty where the file is for other
embedders or categories; then the fused boxes alone say what a garment is, and the note says why.
"""

import hashlib
import os
from collections.abc import Sequence

from jobs.runs.catalogue import weights_folder
from jobs.runs.categories import listed
from jobs.runs.models import Model
from jobs.runs.run import Run
from jobs.runs.run_classifier import RunClassifier
from jobs.runs.settings import Settings
from retrieval import classifier, models
from store.errors import UserError
from store.objects import ObjectMissing, open_store


def classifier_of(run: Run) -> RunClassifier:
    """The classifier that the run's settings name, if it fits; UserError as `classifier_for`."""
    return classifier_for(run.settings, run.detectors, run.embedders, run.categories)


def classifier_for(
    settings: Settings, detectors: Sequence[Model], embedders: Sequence[Model], categories: Sequence[str]
) -> RunClassifier:
    """The classifier that the settings name, if it fits these embedders and categories, id 1 first.

    Whole photos, without detectors, are of no category and have none.

    Raises:
        UserError: the file is damaged or not the shipped one, or does not exist where the setting gives its place.
    """
    name = settings.search.classifier
    if name is None or not detectors:
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
    has = {model.name: model.weights for model in embedders}
    if lacking := [embedder for embedder, weights in found.embedders.items() if has.get(embedder) != weights]:
        return RunClassifier(note=_note(f"{file} wants embeddings that are not made here: {listed(lacking)}"))
    try:
        return RunClassifier(found.for_categories(categories), file, sha256, settings.items.hypotheses)
    except ValueError as error:
        return RunClassifier(note=_note(f"{file}: {error}"))


def _note(reason: str) -> str:
    return f"the fused boxes alone say what a garment is: {reason}"
