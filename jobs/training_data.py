"""What both training jobs learn from: image sets, one's own or a mixture, less every photo that judges.

One pair_id in ten of each set is held out of training and tells how it goes. A photo whose bytes are held out, or stand in
the validation set, is not learnt from whatever set it comes in by; how many were left out so is counted and said.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobs.cli import UserError

if TYPE_CHECKING:
    from retrieval.datasets.mixtures import Part
    from store.imageset import ImageSet

HOLD_OUT_EVERY = 10  # pair_ids divisible by this are never trained on
COLUMNS = ["image", "source", "pair_id", "weak_box", "items", "digest"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    sets = parser.add_argument_group("what is learnt from")
    sets.add_argument(
        "--imageset",
        action="append",
        default=[],
        metavar="URI[:WEIGHT]",
        help="an image set of jobs/ingest.py and how much it counts (1); repeatable",
    )
    sets.add_argument(
        "--mixture", choices=("m0", "m1", "m2", "m3", "m4", "m5"), help="the paper's mixture; with --data"
    )
    sets.add_argument("--data", metavar="ROOT", help="folder or s3:// with an image set for each data set's name")
    sets.add_argument(
        "--validation",
        metavar="URI",
        help="image set that is measured once, at the end; its photos are left out of training",
    )


@dataclass(frozen=True)
class LearningPhoto:
    """One photo as it lies in an image set.

    Attributes:
        part: number of its image set among those learnt from.
        weight: of that set.
        row: columns COLUMNS; `image` the encoded bytes.
        held_out: kept from training, by its pair_id.
    """

    part: int
    weight: float
    row: dict[str, Any]
    held_out: bool


def is_held_out(pair_id: int) -> bool:
    return pair_id % HOLD_OUT_EVERY == 0


def parts(args: argparse.Namespace) -> "list[Part]":
    """The image sets the arguments name.

    Raises:
        UserError: none, or a mixture without its place.
    """
    from retrieval.datasets import mixtures

    if bool(args.mixture) != bool(args.data):
        raise UserError("--mixture and --data go together: which data sets, and where their image sets lie")
    try:
        named = mixtures.parts(args.mixture, args.data) if args.mixture else []
        found = [*named, *map(mixtures.parse, args.imageset)]
    except ValueError as error:
        raise UserError(str(error)) from None
    if not found:
        raise UserError("nothing to learn from: give --imageset URI, or --mixture m0 … m5 with --data ROOT")
    return found


class LearningSet:
    """The photos of several image sets, less those that judge.

    Attributes:
        sets, images: the parts and their opened image sets.
        n_photos: in all of them.
        left_out: photos not learnt from because their bytes are held out or in the validation set; `photos` counts them.
    """

    def __init__(self, sets: "list[Part]", validation: str | None = None) -> None:
        from store import imageset

        self.sets = sets
        self.images = [imageset.open_imageset(part.uri) for part in sets]
        self.validation = imageset.open_imageset(validation) if validation else None
        self.n_photos = sum(images.manifest.images for images in self.images)
        self.left_out = 0
        self._validating = {digest for digest, _ in _digests(self.validation)}
        self._held_out = {d for images in self.images for d, pair_id in _digests(images) if is_held_out(pair_id)}

    def photos(self) -> Iterator[LearningPhoto]:
        """Every photo with garments, in order; a held-out photo that is also in the validation set judges only there."""
        for number, (part, images) in enumerate(zip(self.sets, self.images, strict=True)):
            for row in rows(images):
                held_out = is_held_out(row["pair_id"])
                if row["digest"] in self._validating or (not held_out and row["digest"] in self._held_out):
                    self.left_out += 1
                    continue
                yield LearningPhoto(number, part.weight, row, held_out)

    def identity(self) -> dict[str, Any]:
        """What a checkpoint remembers of the data: the digests and weights of the sets, and of what judges."""
        learnt = [[images.digest, part.weight] for part, images in zip(self.sets, self.images, strict=True)]
        return {"data": learnt, "validation": self.validation.digest if self.validation else None}


def rows(images: "ImageSet") -> Iterator[dict[str, Any]]:
    """The photos with garments of one image set, a shard in memory at a time."""
    for shard in images.shards:
        for row in images.read(shard.name).select(COLUMNS).to_pylist():  # read whole, so that its digest is checked
            if row["items"]:
                yield row


def _digests(images: "ImageSet | None") -> Iterator[tuple[bytes, int]]:
    """(digest, pair_id) of each photo."""
    for shard in images.shards if images else ():
        table = images.read(shard.name, ["digest", "pair_id"])  # type: ignore[union-attr]
        yield from zip(table["digest"].to_pylist(), table["pair_id"].to_pylist(), strict=True)
