"""Image sets to the photos a detector learns from and is judged by; pixels are decoded when they are needed."""

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from detection.training_photos import Photos
from jobs.cli import UserError
from jobs.training import data as training_data

if TYPE_CHECKING:
    from detection.models import DetectorSpec


@dataclass(frozen=True)
class Read:
    """The photos of all image sets.

    Attributes:
        left_out: how many are not learnt from, by reason.
        identity: digests and weights of the sets, and the digest of the one that judges.
        told: how many there are, in words.
    """

    learn: Photos
    held_out: Photos
    validation: Photos
    left_out: dict[str, int]
    identity: dict[str, Any]
    told: str


def read(args: argparse.Namespace, spec: "DetectorSpec") -> Read:
    """Every usable photo: with garments, and boxes that are more than the photo's frame, which would teach the wrong thing.

    Raises:
        UserError: there is none to learn from.
    """
    data = training_data.LearningSet(training_data.parts(args), args.validation, weak_boxes=False)
    budget = int(args.cache_gb * 1e9)
    learn, held_out, validation = Photos(spec, budget * 9 // 10), Photos(spec, budget // 10), Photos(spec, 0)
    for photo in data.photos():
        weight = photo.weight * (args.user_weight if photo.about["source"] == "user" else 1.0)
        (held_out if photo.held_out else learn).add(photo.table, photo.row, weight)
    for photo in data.validation_photos():
        validation.add(photo.table, photo.row, 1.0)
    told = f"{len(learn)} photos to learn from, {len(held_out)} held out" + (
        f" ({data.told()} left out)" if data.told() else ""
    )
    if not len(learn):
        places = ", ".join(part.uri for part in data.sets)
        raise UserError(
            f"{places}: no photos with boxes to learn from, {told}; ingest them with jobs/ingest.py deepfashion2"
        )
    return Read(learn, held_out, validation, dict(data.left_out), data.identity(), told)
