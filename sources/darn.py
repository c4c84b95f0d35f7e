"""DARN (Huang, Feris, Chen, Yan, ICCV 2015): its folder in, rows of an image set out.

    DIR/image.txt   PICTURE PRODUCT 0|1 CATEGORY on each line, spaces between: 0 a customer's photo, 1 the shop's
    DIR/pic/…       PICTURE, a path relative to pic/ or to DIR

"Cross-domain Image Retrieval with a Dual Attribute-aware Ranking Network" describes pairs of shop photos and customers'
photos of one garment with attributes, collected from an online shop. We have not seen the authors' own files; this
reads the lists in the form in which later work uses them. No licence was photos with them, and the photos belong to the
shops and the customers: use it for research only. product.txt, the attributes, is not read.

The 20 category numbers, 0 to 19, have no names in these lists. Every garment is written as short sleeve top, so its
category means nothing, and its box is the whole photo, hence `weak_box`. Two photos show the same garment if they have
the same product: pair_id is made from the product id, and style is 1. No split is published: "all" is the only one.
Nothing is skipped.
"""

from pathlib import Path

from sources import folder
from sources.listing import Entry, ListedGarment, Listing, read_fields

SPLITS = ("all",)
N_CATEGORIES = 20
SOURCES = {"0": "user", "1": "shop"}
GARMENTS = (ListedGarment(category_id=1),)


def listing(directory: str | Path, split: str = "all") -> Listing:
    """The photos in the order of image.txt; image_id is `folder.image_id` of a picture's path. Bad lines are failures.

    Raises ValueError if the folder is not laid out so, there is no such split, or two ids collide.
    """
    directory = Path(directory)
    if split not in SPLITS:
        raise ValueError(f"split {split!r}: no split of DARN is published, want all")
    if not (directory / "image.txt").is_file():
        raise ValueError(f"{directory} has no image.txt: want DARN's list and its pictures in pic/")
    photos = Listing(directory)
    domains: dict[int, set[str]] = {}
    for number, fields in read_fields(directory / "image.txt"):
        if reason := _bad(fields):
            photos.fail(f"image.txt, line {number}", reason)
            continue
        picture, product, side, _ = fields
        name = picture if (directory / picture).is_file() else f"pic/{picture}"
        pair = photos.pair_id(product)
        photos.add(Entry(folder.image_id(picture), name, SOURCES[side], pair, product, GARMENTS))
        domains.setdefault(pair, set()).add(side)
    if not len(photos):
        raise ValueError(f"{directory}/image.txt has not one line PICTURE PRODUCT 0|1 CATEGORY")
    lonely = sum(len(sources) < len(SOURCES) for sources in domains.values())
    if lonely:
        photos.remarks.append(f"{lonely:,} of {len(domains):,} products have photos of one side only")
    return photos


def _bad(fields: list[str]) -> str | None:
    """Why a line cannot be taken, or None."""
    if len(fields) != 4:
        return f"{len(fields)} fields, want PICTURE PRODUCT 0|1 CATEGORY"
    _, _, side, category = fields
    if side not in SOURCES:
        return f"side {side!r}, want 0 or 1"
    known = category.isascii() and category.isdigit() and int(category) < N_CATEGORIES
    return None if known else f"category {category!r}, want 0 to {N_CATEGORIES - 1}"
