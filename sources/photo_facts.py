"""What a file says of a photo beside its picture, and the rows that follow from both.

Shared by the sources whose files hold photos under names: `coco`, `parquet`, `webdataset` and `lookbench`. The image_id
is that of a photo of a `folder`, `folder.Origin.image_id`, so the same photo has one id however it is given.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sources.attributes import attributes_of, text_of
from sources.folder import Origin
from sources.metadata import NO_VALUES, shares_problem
from store.categories import CategoryList
from store.decode import DecodeError, probe_size
from store.imageset import Failure, Item, Photo

Box = tuple[float, float, float, float]


@dataclass
class PhotoFacts:
    """What is known of one photo, fields as in `store.imageset.Photo`.

    Attributes:
        drawn: whether somebody looked for garments to draw boxes around, though there may be none. Photos where nobody
            did are marked `weak_box`, so that a garment found on them is not counted as wrong.
        whole_photo: category id of the garment where there is no box; the item is then as large as the photo.
        wrong: why items were left out, a line each.
    """

    product_id: str = ""
    pair_id: int = 0
    attributes: dict[str, str] = field(default_factory=dict)
    items: list[Item] = field(default_factory=list)
    drawn: bool = False
    whole_photo: int = 0
    wrong: list[str] = field(default_factory=list)


def facts_of(values: Mapping[str, Any], product_key: str, skipped: Counter[str]) -> PhotoFacts:
    """Product and pair under `product_key` and "pair_id", every other value an attribute.

    Raises ValueError where one of the two cannot be what it is meant to be.
    """
    rest = {name: value for name, value in values.items() if name not in (product_key, "pair_id")}
    product_id, pair_id = _product_id(product_key, values.get(product_key)), _pair_id(values.get("pair_id"))
    return PhotoFacts(product_id, pair_id, attributes_of(rest, skipped))


def item_of(categories: CategoryList, category: Any, box: Box, style: Any = 0) -> Item:
    """An item with a box x1 y1 x2 y2 in pixels.

    Raises ValueError for a category or a style that is none, and a box that ends within the first pixels.
    """
    if shares_problem([box]):
        wish = "want pixels, not shares of the width and height"
        raise ValueError(f"box {', '.join(f'{value:g}' for value in box)} ends within the first pixel; {wish}")
    if not isinstance(style, int) or isinstance(style, bool):
        raise ValueError(f"style {str(style)[:60]} is no whole number")
    return Item(category_id_of(categories, category), style, box)


def category_id_of(categories: CategoryList, category: Any) -> int:
    """Its id, which is new where the name is. Raises ValueError for a category that is no name."""
    if not isinstance(category, str):
        raise ValueError(f"category {str(category)[:60]} is no text")
    return categories.id_of(category.strip())


def box_of(values: Any, *, with_size: bool = False) -> Box:
    """Four numbers x1 y1 x2 y2, or x y width height, as x1 y1 x2 y2. Raises ValueError for anything else."""
    if not isinstance(values, list | tuple) or len(values) != 4 or not all(map(is_number, values)):
        raise ValueError(f"box {str(values)[:60]} is not a list of four numbers")
    try:
        x1, y1, x2, y2 = map(float, values)
    except OverflowError:
        raise ValueError(f"box {str(values)[:60]} is beyond all pictures") from None
    return (x1, y1, x1 + x2, y1 + y2) if with_size else (x1, y1, x2, y2)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def rows_of(name: str, origin: Origin, data: bytes, facts: PhotoFacts) -> Iterator[Photo | Failure]:
    """The photo and a failure for each item that was left out; or why there is no photo."""
    try:
        width, height = probe_size(data)
    except DecodeError as error:
        yield failure_of(name, origin, str(error))
        return
    items = facts.items
    if facts.whole_photo:
        items = [Item(facts.whole_photo, 0, (0.0, 0.0, float(width), float(height)))]
    yield Photo(
        image_id=origin.image_id(name),
        image=data,
        width=width,
        height=height,
        source=origin.source,
        pair_id=facts.pair_id,
        product_id=facts.product_id,
        file_name=name,
        weak_box=not facts.drawn,
        items=tuple(items),
        attributes=facts.attributes,
    )
    yield from (failure_of(name, origin, reason) for reason in facts.wrong)


def failure_of(name: str, origin: Origin, reason: str) -> Failure:
    return Failure(origin.image_id(name), name, reason)


def each_once(rows: Iterable[Photo | Failure]) -> Iterator[Photo | Failure]:
    """The rows, but a failure in the place of a photo whose image_id an earlier one has; some 60 bytes a photo."""
    advice = "make two sets of the files, one with --prefix"
    seen = set()
    for row in rows:
        if isinstance(row, Failure):
            yield row
        elif row.image_id in seen:
            yield Failure(row.image_id, row.file_name, f"another photo of this name came before; {advice}")
        else:
            seen.add(row.image_id)
            yield row


def _product_id(key: str, value: Any) -> str:
    if isinstance(value, float) and value.is_integer():  # a column of whole numbers in which some are missing
        value = int(value)
    try:
        text = text_of(value) or ""
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None
    if text.lower() in NO_VALUES:
        raise ValueError(f"{key} {text!r}; leave it empty where there is none")
    return text


def _pair_id(value: Any) -> int:
    text = _product_id("pair_id", value) or "0"
    if not text.isascii() or not text.isdigit() or len(text) > 19 or int(text) >= 2**63:
        raise ValueError(f"pair_id {text[:40]!r} is not a whole number below 2^63")
    return int(text)
