"""Image sets to garments in memory: every usable box of every photo, cut at the size an embedder learns from."""

import argparse
from typing import TYPE_CHECKING

import numpy as np

from jobs.cli import UserError
from jobs.training_data import LearningPhoto, LearningSet
from retrieval import training_crops
from retrieval.training_crops import Augmentation, Cached, Garments
from store import decode

if TYPE_CHECKING:
    from retrieval.models import EmbedderSpec


def read(args: argparse.Namespace, spec: "EmbedderSpec", learning: LearningSet) -> Garments:
    """Every garment of the image sets with a usable box, cut and kept in memory (about 110 kB each at 160 px)."""
    try:
        how = Augmentation(args.jitter, args.turn, args.flip, args.light, args.colour, args.erase)
    except ValueError as error:
        raise UserError(str(error)) from None
    two_garments = 2 * 3 * training_crops.canvas_side(spec.input_size) ** 2  # bytes, what a photo has about
    as_jpeg = learning.n_photos * two_garments > args.cache_gb * 1e9
    items: list[Cached] = []
    bad = 0
    for number, photo in enumerate(learning.photos()):
        found = cut(photo, number, spec, as_jpeg)
        items += found or []
        bad += found is None
    garments = Garments(items, spec, how)
    if bad or learning.left_out:
        print(f"{bad} photos could not be decoded; left out: {learning.told() or 'none'}", flush=True)
    if len(garments.classes) < 2:
        raise UserError(
            f"{', '.join(part.uri for part in learning.sets)}: want garments of known pair_id and style in several photos, "
            f"found {len(garments.classes)}"
        )
    return garments


def cut(photo: LearningPhoto, number: int, spec: "EmbedderSpec", as_jpeg: bool = False) -> list[Cached] | None:
    """The garments of one photo; None where it cannot be decoded."""
    row, about = photo.read(), photo.about
    found = []
    try:
        pixels = decode.decode(row["image"])
    except decode.DecodeError:
        return None
    for item in row["items"]:
        canvas, box, extent = training_crops.cut(pixels, np.array(item["bbox"]), spec.input_size)
        known = about["pair_id"] > 0 and item["style"] > 0
        found.append(
            Cached(
                training_crops.packed(canvas) if as_jpeg else canvas, box, extent,
                (photo.part, about["pair_id"], item["style"]) if known else None,
                about["source"] == "shop", photo.held_out, number, tuple(item["bbox"]), item["category_id"], photo.weight,
            )
        )  # fmt: skip
    return found


def read_validation(spec: "EmbedderSpec", learning: LearningSet) -> Garments:
    """Every garment of the validation set; all of them are held out."""
    found = (cut(photo, number, spec) for number, photo in enumerate(learning.validation_photos()))
    return Garments([one for some in found for one in some or ()], spec)
