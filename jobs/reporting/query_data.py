"""The queries of a run as data for the query page: one index that the filters read, and the rest in chunks that are loaded when shown.

In: the ranking with its standings, the run's boxes, the pictures that were written. Out: contents for `script_data`. Ids are texts, for
JavaScript's numbers hold 53 bits of their 63. All queries are in it; only those chosen have pictures.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from detection.categories import CATEGORIES
from jobs import overlay, tables
from jobs.reporting import figures
from jobs.reporting.pictures import Crop, Marked, Shot, Wanted
from jobs.reporting.queries import Example, Ranking, Result, Source, Standings, Truth, example, similarities
from store.objects import ObjectStore

CHUNK = 250  # queries in one data file
MIN_FUSED_SCORE = 0.3  # fused boxes under it are left undrawn; items/ is cut already
NOT_CHOSEN, NOT_DECODED = 0, 1  # instead of a picture


@dataclass(frozen=True)
class Drawn(overlay.Mark):
    """A drawn box and what the legend says of it."""

    score: float | None = None
    votes: int | None = None
    missed: bool = False


@dataclass(frozen=True)
class PhotoBoxes:
    """The boxes of many photos, sorted by photo, best first: (B,) image_id, (B, 4) bbox, (B,) score, category_id, votes."""

    columns: Mapping[str, np.ndarray]

    def of(self, image_id: int) -> list[dict[str, Any]]:
        ids = self.columns["image_id"]
        low, high = (int(np.searchsorted(ids, image_id, side)) for side in ("left", "right"))  # type: ignore[call-overload]
        names, values = list(self.columns), [column[low:high].tolist() for column in self.columns.values()]
        return [dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)]


class QueryData:
    """Everything the page shows of the queries; an `Example` is made when it is asked for, so memory holds arrays only."""

    def __init__(self, ranking: Ranking, truth: Truth, standings: Standings, boxes: PhotoBoxes, top: int) -> None:
        self.ranking, self.truth, self.standings, self.boxes, self.top = ranking, truth, standings, boxes, top

    def example(self, place: int) -> Example:
        return example(self.ranking, self.truth, self.standings, place, self.top)

    def image_ids(self) -> np.ndarray:
        """Of every photo that a query or one of its shown results lies in, each once."""
        found, standings = self.ranking.results, self.standings
        rows = standings.row[standings.row >= 0]
        counts = np.minimum(found.gallery_count[rows], self.top)
        shops = found.gallery_image_id[rows, : self.top]
        listed = shops[np.arange(shops.shape[1]) < counts[:, None]]
        missed = [self.truth.query_gt[row]["query_image_id"] for row in standings.asked[standings.row < 0].tolist()]
        return np.unique(np.r_[found.query_image_id[rows], listed, np.array(missed, np.int64)])

    def want(self, places: Iterable[int], wanted: Wanted) -> None:
        """Ask for the pictures of some queries; shop crops that several of them show are one picture."""
        for place in places:
            one = self.example(place)
            marks = marks_of(one, self.boxes.of(one.image_id))
            plain = tuple(overlay.Mark(m.bbox, m.category_id, m.label, m.strong, m.dashed) for m in marks)
            wanted.setdefault(one.image_id, {})[photo_name(one)] = Marked(plain)
            for result in one.results:
                wanted.setdefault(result.image_id, {})[crop_name(result)] = Crop(result.bbox)

    def index(self, sources: Mapping[int, Source], shots: Mapping[str, Shot | None]) -> dict[str, Any]:
        """What the page needs at once: how to name things, and per query what can be filtered, sorted and searched."""
        columns: dict[str, list] = {name: [] for name in INDEX_COLUMNS}
        similarity = similarities(self.ranking, self.standings)
        for place in range(len(self.standings)):
            one = self.example(place)
            for name, value in zip(INDEX_COLUMNS, self._entry(one, place, sources, shots), strict=True):
                columns[name].append(value)
        columns["similarity"] = [None if value < -1 + 1e-9 else round(float(value), 4) for value in similarity]
        return {
            "queries": len(self.standings),
            "chunk": CHUNK,
            "judged": self.standings.right is not None,
            "top": self.top,
            "length": self.standings.length,
            "categories": list(CATEGORIES),
            "attributes": [[name.replace("_", " "), list(words)] for name, words in figures.ATTRIBUTES.items()],
            "columns": columns,
        }

    def _entry(
        self, one: Example, place: int, sources: Mapping[int, Source], shots: Mapping[str, Shot | None]
    ) -> tuple[Any, ...]:
        asked = int(self.standings.asked[place])
        true: Mapping[str, Any] = self.truth.query_gt[asked] if asked >= 0 else {}
        own = sources.get(one.image_id, NOWHERE)
        products = dict.fromkeys(sources.get(r.image_id, NOWHERE).product_id for r in one.results)
        text = "\n".join(word for word in dict.fromkeys([own.file_name, own.product_id, *products]) if word)
        levels = "".join(str(int(true.get(name, 0))) for name in figures.ATTRIBUTES)
        score = None if one.score is None else round(one.score, 4)
        outcome = "missed" if one.missed else one.first_right
        return (
            str(one.image_id),
            one.item,
            one.category_id,
            outcome,
            score,
            None,
            levels,
            int(photo_name(one) in shots),
            text,
        )

    def chunks(self, sources: Mapping[int, Source], shots: Mapping[str, Shot | None]) -> Iterator[list[dict[str, Any]]]:
        """The details, CHUNK queries at a time, in the order of the index."""
        for start in range(0, len(self.standings), CHUNK):
            places = range(start, min(start + CHUNK, len(self.standings)))
            yield [self._details(self.example(place), sources, shots) for place in places]

    def _details(self, one: Example, sources: Mapping[int, Source], shots: Mapping[str, Shot | None]) -> dict[str, Any]:
        own = sources.get(one.image_id, NOWHERE)
        return {
            "file": own.file_name,
            "product": own.product_id,
            "ranked": one.ranked,
            "picture": _picture(photo_name(one), shots),
            "marks": [
                [m.label, m.category_id, overlay.colour_of(m.category_id), m.score and round(m.score, 4), m.votes, m.strong, m.missed]
                for m in marks_of(one, self.boxes.of(one.image_id))
            ],
            "results": [
                [str(r.image_id), round(r.similarity, 4), r.right, sources.get(r.image_id, NOWHERE).product_id, _picture(crop_name(r), shots)]
                for r in one.results
            ],
        }  # fmt: skip


INDEX_COLUMNS = ("photo", "item", "category", "first", "score", "similarity", "levels", "drawn", "text")
NOWHERE = Source("", "", "")  # of a photo that the set does not have


def photo_boxes(output: ObjectStore, boxes: str, truth: Truth, image_ids: Iterable[int]) -> PhotoBoxes:
    """The boxes of some photos, a shard at a time: the run's items, else its better fused boxes."""
    names = ["image_id", "bbox", "score", "category_id", "votes"]
    parts: list[pa.Table] = []
    for shard, ids in truth.shards_of(image_ids).items():
        key = next((k for k in (f"items/{boxes}/{shard}.parquet", f"fused/{shard}.parquet") if output.exists(k)), None)
        if key is None:
            continue
        table = tables.read(output, key, names)
        keep = pc.is_in(table["image_id"], value_set=pa.array(ids, pa.int64()))
        if key.startswith("fused/"):
            keep = pc.and_(keep, pc.greater_equal(table["score"], MIN_FUSED_SCORE))
        parts.append(table.filter(keep))
    if not parts:
        return PhotoBoxes({"image_id": np.zeros(0, np.int64)})
    whole = pa.concat_tables(parts)
    columns = {name: whole[name].to_numpy() for name in names if name != "bbox"}
    columns["bbox"] = tables.rows_of(whole["bbox"])
    order = np.lexsort((-columns["score"], columns["image_id"]))
    return PhotoBoxes({name: column[order] for name, column in columns.items()})


def marks_of(one: Example, drawn: list[dict[str, Any]]) -> list[Drawn]:
    """The photo's boxes numbered from 1, the query's one strong; a missed garment's true box dashed."""
    same = np.array([np.allclose(row["bbox"], one.bbox, atol=0.5) for row in drawn], dtype=bool)
    if one.missed:
        same[:] = False
    strong = int(same.argmax()) if same.any() else -1
    marks = [
        Drawn(tuple(r["bbox"]), r["category_id"], str(i + 1), i == strong, False, r["score"], r["votes"])
        for i, r in enumerate(drawn)
    ]
    if one.missed:
        marks.append(Drawn(one.bbox, one.category_id, "?", True, True, missed=True))
    elif strong < 0:
        marks.append(Drawn(one.bbox, one.category_id, str(len(marks) + 1), True, False, one.score))
    return marks


def photo_name(one: Example) -> str:
    """Name of a query's picture: its ids, and for a missed garment the corner of its box."""
    item = f"missed-{one.bbox[0]:.0f}-{one.bbox[1]:.0f}" if one.missed else str(one.item)
    return f"query-{one.image_id}-{item}"


def crop_name(result: Result) -> str:
    return f"shop-{result.image_id}-{result.item}"


def _picture(name: str, shots: Mapping[str, Shot | None]) -> Any:
    if name not in shots:
        return NOT_CHOSEN
    shot = shots[name]
    return NOT_DECODED if shot is None else [shot.path, shot.width, shot.height]
