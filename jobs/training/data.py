"""What both training jobs learn from: image sets, one's own or a mixture, less every photo that judges.

One pair_id in ten of each set is held out of training and tells how it goes; by the photo's number where the pair is unknown.
A photo whose bytes are held out, or stand in the validation set, is not learnt from whatever set it comes in by; how many
were left out so, and why, is counted and said.
"""

import argparse
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jobs.cli import UserError

if TYPE_CHECKING:
    import pyarrow as pa

    from retrieval.datasets.mixtures import Part
    from store.imageset import ImageSet

HOLD_OUT_EVERY = 10  # numbers divisible by this are never trained on
ABOUT = ["image_id", "source", "pair_id", "digest", "weak_box"]  # what decides whether and how a photo is used


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
        part: number of its image set among those learnt from; weight: of that set.
        table, row: where it lies, a table with an image set's columns; mapped from the file where that is local.
        about: columns ABOUT of it, and `n_items`.
        held_out: kept from training.
    """

    part: int
    weight: float
    table: "pa.Table" = field(repr=False)
    row: int
    about: dict[str, Any]
    held_out: bool

    def read(self) -> dict[str, Any]:
        """The encoded `image`, and its `items`."""
        found: dict[str, Any] = self.table.slice(self.row, 1).select(["image", "items"]).to_pylist()[0]
        return found

    def items(self) -> list[dict[str, Any]]:
        """Its garments alone."""
        found: list[dict[str, Any]] = self.table["items"][self.row].as_py()
        return found


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

    Args:
        sets: the image sets and their weights.
        validation: address of the image set that judges in the end; None: none.
        weak_boxes: whether photos whose boxes are only their frame are of use.

    Attributes:
        images: the opened image sets.
        n_photos: in all of them.
        left_out: reason -> photos not learnt from for it; `photos` counts them.
    """

    def __init__(self, sets: "list[Part]", validation: str | None = None, *, weak_boxes: bool = True) -> None:
        from store import imageset

        self.sets, self.weak_boxes = sets, weak_boxes
        self.images = [imageset.open_imageset(part.uri) for part in sets]
        self.validation = imageset.open_imageset(validation) if validation else None
        self.n_photos = sum(images.manifest.images for images in self.images)
        self.left_out: Counter[str] = Counter()
        judging = [self.validation] if self.validation else []
        self._validating = {about["digest"] for about in _abouts(judging)}
        self._held_out = {about["digest"] for about in _abouts(self.images) if is_held_out(about)}

    def photos(self) -> Iterator[LearningPhoto]:
        """Every photo of use, in order."""
        for number, (part, images) in enumerate(zip(self.sets, self.images, strict=True)):
            for table, row, about in _rows(images):
                reason = self._reason_against(about)
                if reason:
                    self.left_out[reason] += 1
                else:
                    yield LearningPhoto(number, part.weight, table, row, about, is_held_out(about))

    def validation_photos(self) -> Iterator[LearningPhoto]:
        """Every photo of use of the validation set."""
        for table, row, about in _rows(self.validation) if self.validation else ():
            if about["n_items"] and (self.weak_boxes or not about["weak_box"]):
                yield LearningPhoto(0, 1.0, table, row, about, True)

    def _reason_against(self, about: dict[str, Any]) -> str:
        """Why a photo is of no use; "" where it is. One that is held out and validates judges only there."""
        if about["digest"] in self._validating:
            return "in the validation set"
        if about["digest"] in self._held_out and not is_held_out(about):
            return "held out elsewhere"
        if about["weak_box"] and not self.weak_boxes:
            return "with weak boxes"
        return "" if about["n_items"] else "without garments"

    def told(self) -> str:
        """What `photos` left out, in words; "" if nothing."""
        return ", ".join(f"{n} {reason}" for reason, n in self.left_out.items())

    def identity(self) -> dict[str, Any]:
        """What a checkpoint remembers of the data: the digests and weights of the sets, and of what judges."""
        learnt = [[images.digest, part.weight] for part, images in zip(self.sets, self.images, strict=True)]
        return {"data": learnt, "validation": self.validation.digest if self.validation else None}


def is_held_out(about: dict[str, Any]) -> bool:
    """By the pair, so that a garment is never on both sides; by the photo, where the pair is unknown."""
    held_out: bool = (about["pair_id"] or about["image_id"]) % HOLD_OUT_EVERY == 0
    return held_out


def _rows(images: "ImageSet") -> Iterator[tuple["pa.Table", int, dict[str, Any]]]:
    """Table, row and facts of each photo; a shard is read whole, so that its digest is checked."""
    for shard in images.shards:
        table = images.read(shard.name)
        for row, about in enumerate(_facts(table)):
            yield table, row, about


def _abouts(sets: "list[ImageSet]") -> Iterator[dict[str, Any]]:
    """The facts of each photo alone; little is read."""
    for images in sets:
        for shard in images.shards:
            yield from _facts(images.read(shard.name, [*ABOUT, "items"]))


def _facts(table: "pa.Table") -> list[dict[str, Any]]:
    import pyarrow.compute as pc

    return table.select(ABOUT).append_column("n_items", pc.list_value_length(table["items"])).to_pylist()  # type: ignore[no-any-return]
