"""What a search found: photos, their garments, the shop items most like each; and the same in words, for a terminal.

In: rows of a gallery, as `Gallery.lookup` tells them. Out: records for `page.py` and lines of text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from detection.categories import CATEGORIES
from jobs.cli import one_line

WIDEST = 40  # letters of a column; what is longer pushes the rest of its line to the right


@dataclass(frozen=True)
class Hit:
    """One shop item found; `item` as `Gallery.lookup` tells it."""

    rank: int
    similarity: float
    item: dict[str, Any]


@dataclass(frozen=True)
class Garment:
    """One garment of a photo and what was found for it, best first."""

    bbox: tuple[float, float, float, float]  # px x1 y1 x2 y2 of the upright photo
    score: float
    category_id: int
    hits: list[Hit]


@dataclass(frozen=True)
class Answer:
    """A photo as it was named; its bytes and garments, or why there are none."""

    name: str
    data: bytes
    garments: list[Garment]
    reason: str = ""


def lines(answer: Answer) -> list[str]:
    """A photo's garments and a table for each; names are spelt out where they would steer the terminal."""
    n = len(answer.garments)
    out = [f"{one_line(answer.name)}: {n or 'no'} garment{'' if n == 1 else 's'} found"]
    for number, garment in enumerate(answer.garments, 1):
        out += [f"  {number}. {category_of(garment.category_id)} {garment.score:.2f}, box {box_of(garment.bbox)}"]
        out += [f"     {line}" for line in table(garment.hits)] or ["     the gallery has nothing for it"]
    return out


def table(hits: Sequence[Hit]) -> list[str]:
    """rank, similarity, product id, file name, category, box: a line each, and one of their names."""
    if not hits:
        return []
    head = ("rank", "similarity", "product", "file name", "category", "box x1 y1 x2 y2 px")
    rows = [(str(hit.rank), f"{hit.similarity:.4f}", *(one_line(str(hit.item[name])) for name in ("product_id", "file_name")),
             category_of(hit.item["category_id"]), box_of(hit.item["bbox"])) for hit in hits]  # fmt: skip
    widths = [min(WIDEST, max(len(row[i]) for row in (head, *rows))) for i in range(len(head))]
    return [
        "  ".join(f"{text:{'>' if i < 2 else '<'}{widths[i]}}" for i, text in enumerate(row)).rstrip()
        for row in (head, *rows)
    ]


def category_of(category_id: int) -> str:
    """The category's name.

    >>> category_of(8)
    'trousers'
    """
    return CATEGORIES[category_id - 1] if 1 <= category_id <= len(CATEGORIES) else f"category {category_id}"


def box_of(bbox: Sequence[float]) -> str:
    """A box in whole pixels.

    >>> box_of((1.2, 2.0, 30.6, 40.0))
    '1 2 31 40'
    """
    return " ".join(str(round(edge)) for edge in bbox)
