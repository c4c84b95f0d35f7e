"""What both training commands learn from: image sets, one's own or a mixture, less every photo used to measure.

One pair_id in ten of each set is held out of training to measure progress; where the pair is unknown, the photo's
number decides. A photo whose bytes are held out, or are in the validation set, is not learnt from, whatever set it
comes in by; how many were left out, and why, is counted.

The sets' categories are joined by name, in order of first appearance; category ids are translated as photos are read.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from sources.mixtures import MixturePart
from store import imageset
from store.errors import UserError
from store.imageset import ImageSet
from store.joined import JoinedSet, joined_name

HOLD_OUT_EVERY = 10  # numbers divisible by this are never trained on
FACTS = ["image_id", "source", "pair_id", "digest", "weak_box"]  # columns that decide whether and how a photo is used


@dataclass(frozen=True)
class LearningPhoto:
    """One photo as it lies in an image set."""

    part: int  # number of its image set among those learnt from
    weight: float  # of that set
    table: pa.Table = field(repr=False)  # with an image set's columns; mapped from the file where that is local
    row: int
    facts: dict[str, Any]  # its columns FACTS, and `n_items`
    held_out: bool  # kept from training

    def read(self) -> dict[str, Any]:
        """The encoded `image`, and its `items`."""
        return self.table.slice(self.row, 1).select(["image", "items"]).to_pylist()[0]

    def items(self) -> list[dict[str, Any]]:
        """Its garments alone."""
        return self.table["items"][self.row].as_py()


class LearningSet:
    """The photos of several image sets, less those used to measure.

    `validation` is the address of the image set that is measured at the end; `weak_boxes` takes photos whose boxes are
    only their frame. `left_out`, reason -> number of photos not learnt from, is counted by `photos`. `categories` are
    the names of the category ids, id 1 first.

    Raises:
        UserError: the validation set has a category that none of the others has, so nobody learns it.
    """

    def __init__(
        self,
        sets: list[MixturePart],
        validation: str | None = None,
        *,
        weak_boxes: bool = True,
        endpoint_url: str | None = None,
    ) -> None:
        self.sets, self.weak_boxes = sets, weak_boxes
        how = {"endpoint_url": endpoint_url}
        self.images = [imageset.open_imageset(part.uri, **how) for part in sets]
        self.validation = imageset.open_imageset(validation, **how) if validation else None
        self._joined = JoinedSet([*self.images, *([self.validation] if self.validation else [])])
        self.categories = tuple(dict.fromkeys(name for images in self.images for name in images.categories))
        if unknown := self._joined.categories[len(self.categories) :]:
            reason = f"none of {self.uris()} has the category {unknown[0]!r}, so nothing is learnt of it"
            raise UserError(f"{validation}: {reason}; validate by a set with the same categories")
        self.n_photos = sum(images.manifest.images for images in self.images)
        self.left_out: Counter[str] = Counter()
        self._validating = {facts["digest"] for facts in _all_facts([self.validation] if self.validation else [])}
        self._held_out = {facts["digest"] for facts in _all_facts(self.images) if is_held_out(facts)}

    def photos(self) -> Iterator[LearningPhoto]:
        """The photos to learn from and those held out, in order."""
        for number, (part, images) in enumerate(zip(self.sets, self.images, strict=True)):
            for table, row, facts in self._rows(number, images):
                if reason := self._reason_against(facts):
                    self.left_out[reason] += 1
                else:
                    yield LearningPhoto(number, part.weight, table, row, facts, is_held_out(facts))

    def validation_photos(self) -> Iterator[LearningPhoto]:
        """The usable photos of the validation set."""
        for table, row, facts in self._rows(len(self.images), self.validation) if self.validation else ():
            if facts["n_items"] and (self.weak_boxes or not facts["weak_box"]):
                yield LearningPhoto(0, 1.0, table, row, facts, True)

    def _rows(self, number: int, images: ImageSet) -> Iterator[tuple[pa.Table, int, dict[str, Any]]]:
        """Table, row and facts of each photo of one set; a shard is read whole, so that its digest is checked."""
        for shard in images.shards:
            table = self._joined.read(joined_name(number, shard.name))
            for row, facts in enumerate(_facts(table)):
                yield table, row, facts

    def _reason_against(self, facts: dict[str, Any]) -> str:
        """Why a photo is left out, or "". A held-out photo of the validation set is measured only there."""
        if facts["digest"] in self._validating:
            return "in the validation set"
        if facts["digest"] in self._held_out and not is_held_out(facts):
            return "held out elsewhere"
        if facts["weak_box"] and not self.weak_boxes:
            return "with weak boxes"
        return "" if facts["n_items"] else "without garments"

    def uris(self) -> str:
        return ", ".join(part.uri for part in self.sets)

    def left_out_counts(self) -> str:
        """How many photos were left out, by reason; "" if none."""
        return ", ".join(f"{n} {reason}" for reason, n in self.left_out.items())

    def identity(self) -> dict[str, Any]:
        """What a checkpoint remembers of the data: digests and weights of the sets, and the validation set's digest."""
        sets = [[images.digest, part.weight] for part, images in zip(self.sets, self.images, strict=True)]
        return {"data": sets, "validation": self.validation.digest if self.validation else None}


def is_held_out(facts: dict[str, Any]) -> bool:
    """By the pair, so that a garment is never on both sides; by the photo, where the pair is unknown."""
    return (facts["pair_id"] or facts["image_id"]) % HOLD_OUT_EVERY == 0


def _all_facts(sets: list[ImageSet]) -> Iterator[dict[str, Any]]:
    """The facts of each photo, without reading the photos."""
    for images in sets:
        for shard in images.shards:
            yield from _facts(images.read(shard.name, [*FACTS, "items"]))


def _facts(table: pa.Table) -> list[dict[str, Any]]:
    return table.select(FACTS).append_column("n_items", pc.list_value_length(table["items"])).to_pylist()
