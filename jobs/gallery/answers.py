"""The answers of a search: photos and texts, their garments, the shop items most like each; and a terminal's lines.

In: rows of a gallery, as `Gallery.lookup` returns them. Out: records for `page.py` and lines of text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jobs.cli import one_line
from store.categories import category_name

LIKELY = 0.5  # share of the best hypothesis's score from which another is named beside it
OFFERED = ("title", "price")  # columns of what shops tell, where they tell it
WIDEST = 40  # characters of a column; longer text pushes the rest of its line to the right


@dataclass(frozen=True)
class Hit:
    """One shop item; `item` is as `Gallery.lookup` returns it."""

    rank: int
    similarity: float
    item: dict[str, Any]


@dataclass(frozen=True)
class Offer:
    """What is said of a shop item beside what the gallery knows; texts are "" where nothing is known."""

    title: str  # its title, product or file name
    price: str = ""
    link: str = ""  # an http or https address
    others: Sequence[tuple[str, str]] = ()  # further attributes as a page shows them, names and texts
    attributes: Mapping[str, str] = field(default_factory=dict)  # all of its photo, as the image set has them


Offers = Mapping[int, Offer]  # by the item's id


@dataclass(frozen=True)
class FoundGarment:
    """One garment of a photo and the shop items found for it, best first; bbox px x1 y1 x2 y2 of the upright photo."""

    bbox: tuple[float, float, float, float]
    score: float
    category_id: int
    hits: list[Hit]
    hypotheses: Sequence[tuple[int, float]] = ()  # category id and score of what it may be, its own first


@dataclass(frozen=True)
class Answer:
    """A photo by the name the user gave it; its bytes and garments, or why it could not be searched.

    `text` are the words asked with. Without a photo name and bytes are empty, and `hits` are what was found for them.
    """

    name: str
    data: bytes
    garments: list[FoundGarment]
    reason: str = ""
    text: str = ""
    hits: list[Hit] = field(default_factory=list)

    @property
    def every_hit(self) -> list[Hit]:
        """Those of the words and of all garments."""
        return [*self.hits, *(hit for garment in self.garments for hit in garment.hits)]

    @property
    def question(self) -> str:
        """What was asked: a photo's name, words in quotes, or both."""
        return ", ".join([self.name] * bool(self.name) + [f'"{self.text}"'] * bool(self.text))


NO_OFFERS: Offers = {}


def lines(answer: Answer, categories: Sequence[str], offers: Offers = NO_OFFERS) -> list[str]:
    """A photo's garments and a table for each, or a text's table; characters that would steer the terminal are escaped.

    `categories` are the gallery's names, id 1 first; `offers` give titles and prices.
    """
    asked = one_line(answer.question)
    if not answer.name:
        n = len(answer.hits)
        found = f"{asked}: {n or 'no'} shop item{'' if n == 1 else 's'} found"
        return [found, *(f"     {line}" for line in table(answer.hits, categories, offers))]
    n = len(answer.garments)
    out = [f"{asked}: {n or 'no'} garment{'' if n == 1 else 's'} found"]
    for number, garment in enumerate(answer.garments, 1):
        name = one_line(likely_names(categories, garment.category_id, garment.hypotheses))
        out += [f"  {number}. {name} {garment.score:.2f}, box {box_of(garment.bbox)}"]
        out += [f"     {line}" for line in table(garment.hits, categories, offers)] or [
            "     the gallery has nothing for it"
        ]
    return out


def as_json(answer: Answer, categories: Sequence[str], offers: Offers = NO_OFFERS) -> dict[str, Any]:
    """The answer as plain JSON values; `reason` says why a photo was not searched, and is "" where it was.

    Each item has its photo's `attributes`, all of `offers`, {} where none are known.
    """
    garments = [
        {
            "category": category_name(categories, garment.category_id), "score": garment.score, "bbox": garment.bbox,
            "items": [_hit_as_json(hit, categories, offers) for hit in garment.hits],
        }
        for garment in answer.garments
    ]  # fmt: skip
    found = {"items": [_hit_as_json(hit, categories, offers) for hit in answer.hits]} if not answer.name else {}
    return {"photo": answer.name, "text": answer.text, "reason": answer.reason, "garments": garments} | found


def _hit_as_json(hit: Hit, categories: Sequence[str], offers: Offers) -> dict[str, Any]:
    item = {name: value for name, value in hit.item.items() if name not in ("digest", "category_id")}
    category = category_name(categories, hit.item["category_id"])
    attributes = dict(offers[hit.item["id"]].attributes) if hit.item.get("id") in offers else {}
    return {"rank": hit.rank, "similarity": hit.similarity, "category": category} | item | {"attributes": attributes}


def table(hits: Sequence[Hit], categories: Sequence[str], offers: Offers = NO_OFFERS) -> list[str]:
    """A line of column names, and a line for each shop item; titles and prices where any item has one."""
    if not hits:
        return []
    rows = [("rank", "similarity", "product", "title", "price", "file name", "category", "box x1 y1 x2 y2 px")]
    for hit in hits:
        product, file = (one_line(str(hit.item[name])) for name in ("product_id", "file_name"))
        own, box = hit.item["category_id"], box_of(hit.item["bbox"])
        hypotheses = [(one["category_id"], one["score"]) for one in hit.item.get("hypotheses") or ()]  # new in items
        category = one_line(likely_names(categories, own, hypotheses))
        offer = offers.get(hit.item.get("id", -1), Offer(product))
        title = "" if offer.title in (hit.item["product_id"], hit.item["file_name"]) else one_line(offer.title)
        price = one_line(offer.price)
        rows.append((str(hit.rank), f"{hit.similarity:.4f}", product, title, price, file, category, box))
    told = [i for i, (name, *texts) in enumerate(zip(*rows, strict=True)) if name not in OFFERED or any(texts)]
    shown = [[row[i] for i in told] for row in rows]
    widths = [min(WIDEST, max(map(len, column))) for column in zip(*shown, strict=True)]
    return [
        "  ".join(f"{text:{'>' if i < 2 else '<'}{widths[i]}}" for i, text in enumerate(row)).rstrip() for row in shown
    ]


def likely_names(categories: Sequence[str], own: int, hypotheses: Sequence[tuple[int, float]]) -> str:
    """The names of what a garment is likely to be, best first: those with at least half of the best one's score.

    `categories` are names, id 1 first; `own` is the garment's category id, the first of its `hypotheses` where these
    are known.

    >>> likely_names(("vest", "skirt", "dress"), 2, [(2, 0.6), (3, 0.4), (1, 0.1)])
    'skirt or dress'
    """
    return " or ".join(category_name(categories, category_id) for category_id in likely_ids(own, hypotheses))


def likely_ids(own: int, hypotheses: Sequence[tuple[int, float]]) -> list[int]:
    """The category ids of `likely_names`."""
    least = LIKELY * max((score for _, score in hypotheses), default=0)
    best_first = sorted(hypotheses, key=lambda pair: -pair[1])
    return [category_id for category_id, score in best_first if score >= least] or [own]


def box_of(bbox: Sequence[float]) -> str:
    """A box in whole pixels.

    >>> box_of((1.2, 2.0, 30.6, 40.0))
    '1 2 31 40'
    """
    return " ".join(str(round(edge)) for edge in bbox)
