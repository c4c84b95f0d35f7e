"""Image sets to garments in memory: every usable box of every photo, cut at the size an embedder learns from."""

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING

from jobs.cli import UserError
from jobs.training import crops_cache
from jobs.training.crops_cache import Piece
from jobs.training.data import LearningPhoto, LearningSet
from retrieval import training_crops
from retrieval.training_crops import Augmentation, Cached, Garments

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
    photos = list(learning.photos())
    items, bad = _garments(photos, crops_cache.pieces(photos, spec.input_size, as_jpeg, args.crops))
    garments = Garments(items, spec, how, args.share)
    if bad or learning.left_out:
        print(f"{bad} photos could not be decoded; left out: {learning.told() or 'none'}", flush=True)
    if len(garments.classes) < 2:
        raise UserError(
            f"{', '.join(part.uri for part in learning.sets)}: want garments of known pair_id and style in several photos, "
            f"found {len(garments.classes)}"
        )
    return garments


def read_validation(args: argparse.Namespace, spec: "EmbedderSpec", learning: LearningSet) -> Garments:
    """Every garment of the validation set; all of them are held out."""
    photos = list(learning.validation_photos())
    items, _ = _garments(photos, crops_cache.pieces(photos, spec.input_size, False, args.crops))
    return Garments(items, spec)


def _garments(photos: list[LearningPhoto], cut: Iterable[list[Piece] | None]) -> tuple[list[Cached], int]:
    """The garments of all photos, and how many photos could not be decoded."""
    found, bad = [], 0
    for number, (photo, pieces) in enumerate(zip(photos, cut, strict=True)):
        if pieces is None:
            bad += 1
            continue
        about = photo.about
        for item, (canvas, box, extent) in zip(photo.items(), pieces, strict=True):
            known = about["pair_id"] > 0 and item["style"] > 0
            found.append(
                Cached(
                    canvas, box, extent, (photo.part, about["pair_id"], item["style"]) if known else None,
                    about["source"] == "shop", photo.held_out, number, tuple(item["bbox"]), item["category_id"], photo.weight,
                )
            )  # fmt: skip
    return found, bad
