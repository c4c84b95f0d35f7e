"""DARN (Huang, Feris, Chen, Yan: Dual Attribute-aware Ranking Network, ICCV 2015): its folder in, rows of an image set out.

    DIR/image.txt   PICTURE PRODUCT 0|1 CATEGORY on each line, spaces between: 0 a customer's photo, 1 the shop's
    DIR/pic/…       PICTURE, a path relative to pic/ or to DIR

The paper describes pairs of shop photos and customers' photos of one garment with attributes, collected from an online shop;
the authors' own files could not be seen. What is read are the lists in the form in which later work uses them. No licence was
found with them, and the photos are the shops' and the customers' own: take it as research only. product.txt, the attributes,
is not read.

The 20 category numbers, 0 to 19, have no names in these lists. Every garment is written as short sleeve top, so its category
means nothing, and its box is the whole photo, hence `weak_box`. Two photos show the same garment if their product is the same:
pair_id from the product id, style 1. No split is published: "all" is the only one. Nothing is skipped.
"""

from collections.abc import Iterator
from pathlib import Path

from retrieval.datasets import folder
from retrieval.datasets.listing import Entry, Garment, Listing
from store.imageset import Failure, Photo

SPLITS = ("all",)
N_CATEGORIES = 20
SOURCES = {"0": "user", "1": "shop"}
GARMENTS = (Garment(category_id=1),)


def read(directory: str | Path, split: str = "all") -> Iterator[Photo | Failure]:
    """Rows in the order of image.txt; image_id is `folder.image_id` of the picture's path. Bad lines are failures.

    Raises:
        ValueError: the folder is not laid out so, there is no such split, or two ids collide.
    """
    return listing(directory, split).rows()


def check(directory: str | Path, split: str = "all") -> list[str]:
    """What is missing or strange, a line each; no picture is opened. Raises as `read`."""
    found = listing(directory, split)
    return found.remarks + found.missing()


def listing(directory: str | Path, split: str = "all") -> Listing:
    """image.txt, and which picture is whose. Raises as `read`."""
    directory = Path(directory)
    if split not in SPLITS:
        raise ValueError(f"split {split!r}: no split of DARN is published, want all")
    if not (directory / "image.txt").is_file():
        raise ValueError(f"{directory} has no image.txt: want DARN's list and its pictures in pic/")
    found = Listing(directory)
    domains: dict[int, set[str]] = {}
    with open(directory / "image.txt", encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            fields = line.split()
            if not fields:
                continue
            try:
                entry = _entry(found, fields)
            except _BadLine as error:
                found.fail(f"image.txt, line {number}", str(error))
                continue
            found.add(entry)
            domains.setdefault(entry.pair_id, set()).add(entry.source)
    if not len(found):
        raise ValueError(f"{directory}/image.txt has not one line PICTURE PRODUCT 0|1 CATEGORY")
    lonely = sum(len(sources) < len(SOURCES) for sources in domains.values())
    if lonely:
        found.remarks.append(f"{lonely:,} of {len(domains):,} products have photos of one side only")
    return found


class _BadLine(ValueError):
    """A line that is not laid out so; a collision of ids is a plain ValueError, and ends it all."""


def _entry(found: Listing, fields: list[str]) -> Entry:
    if len(fields) != 4:
        raise _BadLine(f"{len(fields)} fields, want PICTURE PRODUCT 0|1 CATEGORY")
    picture, product, side, category = fields
    if side not in SOURCES:
        raise _BadLine(f"side {side!r}, want 0 or 1")
    if not (category.isascii() and category.isdigit() and int(category) < N_CATEGORIES):
        raise _BadLine(f"category {category!r}, want 0 to {N_CATEGORIES - 1}")
    name = picture if (found.directory / picture).is_file() else f"pic/{picture}"
    return Entry(folder.image_id(picture), name, SOURCES[side], found.pair_id(product), product, GARMENTS)
