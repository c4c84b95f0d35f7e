"""The page queries.html: every query of a run, as data for its script.

One index has what the filters need of all queries; their details come in chunks, which the script loads when it shows
them. In: the rankings with their standings, the run's boxes, the pictures that were written. Out: contents for
`pages.publish_data`. Ids are texts, for JavaScript's numbers hold 53 bits and ids have 63. All queries are in it; only
those chosen have pictures.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.reports import figures, reasons
from jobs.reports.pictures import Crop, Mark, Marked, Shot, Shots, Wanted
from jobs.reports.reasons import Expected, Judged, Key, judged_categories
from jobs.reports.standings import LIST_LENGTH, judge, pick, similarities
from jobs.reports.truth import Box, GroundTruth, Source, Sources, as_box, of_photos
from jobs.runs import tables
from jobs.runs.reader import matching_rows, read_judged
from retrieval.hypotheses import as_column, read_hypotheses
from store.objects import ObjectStore

MOST_MISTAKES = 6  # on the first page
CHUNK = 250  # queries in one data file
MOST_LISTED = 10_000  # queries, chosen as those with pictures are; of a larger run the page would open ever more slowly
MIN_DRAWN_SCORE = 0.3  # weaker boxes are drawn only where they are the query's, or lie on a missed garment
NOT_CHOSEN, NOT_DECODED = 0, 1  # instead of a picture
NOWHERE = Source("", "", "")  # of a photo that the set does not have
BOX_COLUMNS = ["image_id", "bbox", "score", "category_id", "votes"]


@dataclass(frozen=True)
class Result:
    """One shop item of a ranking; `similarity` is a cosine."""

    image_id: int
    item: int
    bbox: Box
    similarity: float
    right: bool


@dataclass(frozen=True)
class Query:
    """One query to show: a garment of a consumer photo, its results, how it ended.

    By photo it is the photo, and its garment with the highest score stands for all of them.
    """

    image_id: int
    item: int | None  # number within its photo; None when no detection matches the garment
    bbox: Box | None  # the true box where no detection matches, and then there is no score; None where nobody drew one
    category_id: int  # 0 where nobody knows it
    score: float | None
    first_right: int  # 1-based rank of the first right result; 0 for none among the first `ranked`, or without truth
    ranked: int  # length of the ranking's list, of which `results` is the beginning
    results: tuple[Result, ...]

    @property
    def missed(self) -> bool:
        return self.item is None


class QueryList:
    """All queries of the page. A `Query` is made whenever it is asked for, so that memory holds arrays only."""

    def __init__(self, output: ObjectStore, kind: str, truth: GroundTruth, top: int) -> None:
        """Read the rankings of a kind of boxes, detected or true, and the boxes of their photos."""
        self.truth, self.top = truth, top
        self.rankings = read_judged(output, kind, truth.rankings, max(top, LIST_LENGTH))
        self.every = judge(self.rankings, truth)
        self.standings = self.every.of(pick(self.every, MOST_LISTED))  # those that are listed
        rows = self.standings.row
        asked = self.rankings.results.query_image_id[rows[rows >= 0]]
        missed = truth.rankings.photo[self.standings.truth_row[rows < 0]]
        self.photos = np.unique(np.r_[asked, missed])
        self.boxes = photo_boxes(output, kind, truth, self.photos.tolist())
        self.photo_of_box = self.boxes["image_id"].to_numpy()
        # What `expected.find` says of queries that show no right result, by their number in the truth
        self.expected: dict[int, Expected | None] = {}
        self.gallery_size = 0  # 0 where it was not counted

    def query(self, place: int) -> Query:
        """One query with its first `top` results, judged."""
        row = int(self.standings.row[place])
        if row < 0:
            asked = int(self.standings.truth_row[place])
            entry = self.truth.rankings.entry(asked)
            box = as_box(entry["bbox"]) if entry else None
            return Query(int(self.truth.rankings.photo[asked]), None, box, entry.get("cls", 0), None, 0, 0, ())
        rankings, results = self.rankings, self.rankings.results
        truth_row = int(self.standings.truth_row[place])
        true: Mapping[str, Any] = self.truth.rankings.entry(truth_row) if truth_row >= 0 else {}
        n = int(results.gallery_count[row])
        right = np.zeros(n, bool) if self.standings.right is None else self.standings.right[row, :n]
        shown = tuple(
            Result(
                image_id=int(results.gallery_image_id[row, rank]),
                item=int(rankings.gallery_item[row, rank]),
                bbox=as_box(results.gallery_bbox[row, rank]),
                similarity=float(rankings.similarity[row, rank]),
                right=bool(right[rank]),
            )
            for rank in range(min(n, self.top))
        )
        return Query(
            image_id=int(results.query_image_id[row]),
            item=int(rankings.query_item[row]),
            bbox=as_box(results.query_bbox[row]),
            category_id=int(true.get("cls", results.query_cls[row])),
            score=float(results.query_score[row]),
            first_right=int(right.argmax()) + 1 if right.any() else 0,
            ranked=n,
            results=shown,
        )

    def unanswered(self, places: Iterable[int]) -> dict[int, list[Key]]:
        """Those of some queries that show no right result, by their number in the truth, with the items searched."""
        chosen = [place for place in places if self._lacks_answer(self.query(place))]
        return {int(self.standings.truth_row[place]): self._searched(place) for place in chosen}

    def _expected(self, place: int) -> Expected | None:
        return self.expected.get(int(self.standings.truth_row[place]))

    def _lacks_answer(self, query: Query) -> bool:
        """Whether the set knows a right answer and the page shows none."""
        return self.truth.rankings.kind is not None and not 0 < query.first_right <= self.top

    def _searched(self, place: int) -> list[Key]:
        """The items that stand for a query: one, by photo all; for a missed garment the box of another category."""
        query = self.query(place)
        boxes = self.boxes_of(query.image_id)  # by falling score, as items are numbered
        if self.truth.rankings.kind == "photo":
            return [(query.image_id, item) for item in range(len(boxes))]
        item = query.item if query.item is not None else reasons.nearest_box(boxes, query.bbox)
        return [] if item is None else [(query.image_id, item)]

    def boxes_of(self, image_id: int) -> list[dict[str, Any]]:
        """One photo's boxes by falling score, a dictionary of BOX_COLUMNS each, and `hypotheses` of items."""
        start, end = (int(np.searchsorted(self.photo_of_box, image_id, side)) for side in ("left", "right"))
        return self.boxes.slice(start, end - start).to_pylist()

    def image_ids(self) -> list[int]:
        """Of every photo that a query or one of its shown results lies in, each once, rising."""
        results, rows = self.rankings.results, self.standings.row[self.standings.row >= 0]
        shops = results.gallery_image_id[rows, : self.top]
        listed = shops[np.arange(shops.shape[1]) < np.minimum(results.gallery_count[rows], self.top)[:, None]]
        right = np.array([answer.image_id for answer in self.expected.values() if answer], np.int64)
        return np.unique(np.r_[self.photos, listed, right]).tolist()

    def want(self, places: Iterable[int], wanted: Wanted) -> None:
        """Ask for the pictures of some queries; a shop crop that several of them show is one picture."""
        for place in places:
            query, answer = self.query(place), self._expected(place)
            marks = tuple(mark for mark, *_ in legend(query, self.boxes_of(query.image_id)))
            wanted.setdefault(query.image_id, {})[photo_name(query)] = Marked(marks)
            for result in query.results:
                wanted.setdefault(result.image_id, {})[crop_name(result)] = Crop(result.bbox)
            if answer:
                part = Crop(answer.bbox) if answer.bbox else Marked(())
                wanted.setdefault(answer.image_id, {})[answer_name(answer)] = part

    def mistakes(self, shots: Shots) -> list[tuple[Query, Shot | None, Shot | None]]:
        """The most confident mistakes that have pictures: the query's photo, and the shop item ranked first for it."""
        shown: list[tuple[Query, Shot | None, Shot | None]] = []
        for query in map(self.query, range(len(self.standings) if self.standings.right is not None else 0)):
            if query.first_right == 1 or query.missed or len(shown) == MOST_MISTAKES:
                break
            photo, crop = photo_name(query), crop_name(query.results[0]) if query.results else ""
            if photo in shots and crop in shots:
                shown.append((query, shots[photo], shots[crop]))
        return shown

    def index(self, sources: Sources, shots: Shots, categories: Sequence[str]) -> dict[str, Any]:
        """What the page needs at once: names, and per query what can be filtered, sorted and searched."""
        similarity = similarities(self.rankings, self.standings)
        rows = [self._index_row(place, float(value), sources, shots) for place, value in enumerate(similarity)]
        return {
            "queries": len(self.standings),
            "chunk": CHUNK,
            "truth": self.truth.rankings.kind,
            "top": self.top,
            "length": self.standings.length,
            "categories": list(categories),
            "attributes": [[name.replace("_", " "), list(words)] for name, words in figures.ATTRIBUTES.items()],
            "columns": {name: [row[name] for row in rows] for name in rows[0]},
        }

    def _index_row(self, place: int, similarity: float, sources: Sources, shots: Shots) -> dict[str, Any]:
        query, truth_row = self.query(place), int(self.standings.truth_row[place])
        true: Mapping[str, Any] = self.truth.rankings.entry(truth_row) if truth_row >= 0 else {}
        own = sources.get(query.image_id, NOWHERE)
        names = [own.file_name, own.product_id, *(sources.get(r.image_id, NOWHERE).product_id for r in query.results)]
        return {
            "photo": str(query.image_id),
            "item": query.item,
            "category": query.category_id,
            "first": "missed" if query.missed else query.first_right,
            "score": None if query.score is None else round(query.score, 4),
            "similarity": None if similarity < -1 + 1e-9 else round(similarity, 4),
            "levels": "".join(str(int(true.get(name, 0))) for name in figures.ATTRIBUTES),
            "drawn": int(photo_name(query) in shots),
            "text": "\n".join(name for name in dict.fromkeys(names) if name),
        }

    def chunks(self, sources: Sources, shots: Shots, categories: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
        """The details, CHUNK queries at a time, in the order of the index."""
        for start in range(0, len(self.standings), CHUNK):
            places = range(start, min(start + CHUNK, len(self.standings)))
            yield [self._details(place, sources, shots, categories) for place in places]

    def _details(self, place: int, sources: Sources, shots: Shots, categories: Sequence[str]) -> dict[str, Any]:
        query = self.query(place)
        own = sources.get(query.image_id, NOWHERE)
        marks, results = [], []
        for mark, score, votes, known in legend(query, self.boxes_of(query.image_id)):
            shown = [mark.label, mark.category_id, mark.colour, score and round(score, 4), votes]
            marks.append([*shown, mark.strong, mark.dashed, [(i, round(value, 4)) for i, value in known]])
        for result in query.results:
            sold, crop = sources.get(result.image_id, NOWHERE), _picture(crop_name(result), shots)
            judged = [str(result.image_id), round(result.similarity, 4), result.right]
            results.append([*judged, sold.sold_as, crop, list(map(list, sold.attributes))])
        return {
            "file": own.file_name,
            "product": own.product_id,
            "attributes": list(map(list, own.attributes)),
            "ranked": query.ranked,
            "picture": _picture(photo_name(query), shots),
            "marks": marks,
            "results": results,
            "reason": self._reason(place, query, categories),
            "answer": self._answer(place, query, sources, shots),
        }

    def _reason(self, place: int, query: Query, categories: Sequence[str]) -> str:
        """Why the page shows no right result; "" where it does, or where the rank says it all."""
        if not self._lacks_answer(query):
            return ""
        if query.missed:
            return reasons.why_missed(query.category_id, query.bbox, self.boxes_of(query.image_id), categories)
        looked_at = int(self.standings.truth_row[place]) in self.expected
        return reasons.why_unranked(self._expected(place), self.standings.length) if looked_at else ""

    def _answer(self, place: int, query: Query, sources: Sources, shots: Shots) -> dict[str, Any] | None:
        """What would have been right, for the queries that were looked at."""
        if (answer := self._expected(place)) is None:
            return None
        box = reasons.nearest_box(self.boxes_of(query.image_id), query.bbox) if query.missed else None
        return {
            "photo": str(answer.image_id),
            "name": sources.get(answer.image_id, NOWHERE).sold_as,
            "place": reasons.rank_in_words(answer, self.gallery_size, box),
            "similarity": None if answer.similarity is None else round(answer.similarity, 4),
            "picture": _picture(answer_name(answer), shots),
        }


def photo_boxes(output: ObjectStore, kind: str, truth: GroundTruth, image_ids: Iterable[int]) -> pa.Table:
    """The run's items of some photos, by photo and falling score; of a shard without items its fused boxes.

    The hypotheses of an item are those of the rankings, by which it is judged: a classifier's are not in items/.
    """
    columns = ["query_image_id", "query_item", "query_category_id", "query_score", "query_hypotheses"]
    ranked = tables.read(output, f"rankings/{kind}.parquet", columns)
    judged = as_column(read_hypotheses(ranked, "query_"))
    ranked = ranked.select(columns[:2]).rename_columns(["image_id", "item"])
    parts = []
    for shard, ids in truth.shards_of(image_ids).items():
        keys = (f"items/{kind}/{shard}.parquet", f"fused/{shard}.parquet")
        if key := next((key for key in keys if output.exists(key)), None):
            table = of_photos(tables.read(output, key), ids)
            boxes = table.select(BOX_COLUMNS)
            if key.startswith("fused/"):
                boxes = boxes.filter(pc.greater_equal(table["score"], MIN_DRAWN_SCORE))
            else:
                row = matching_rows(table, ranked)
                boxes = boxes.append_column("hypotheses", judged.take(pa.array(row, mask=row < 0)))
            parts.append(boxes)
    if not parts:
        return tables.ITEMS.empty_table()
    whole = pa.concat_tables(parts, promote_options="default")  # fused boxes have no hypotheses
    return whole.take(np.lexsort((-whole["score"].to_numpy(), whole["image_id"].to_numpy()))).combine_chunks()


def legend(query: Query, boxes: list[dict[str, Any]]) -> list[tuple[Mark, float | None, int | None, Sequence[Judged]]]:
    """What is drawn on a query's photo, each mark with score, votes and categories, for the legend beside it.

    The photo's boxes are numbered from 1, the query's one is strong; a missed garment's true box is dashed. The
    categories that a box was judged by are told of the query's box, and of the one that lies on a missed garment. Of
    the other boxes only those of MIN_DRAWN_SCORE are drawn: items are detected down to much lower scores.
    """
    detected = None if query.missed else query.bbox
    own = [detected is not None and np.allclose(row["bbox"], detected, atol=0.5) for row in boxes]
    strong = own.index(True) if any(own) else -1
    told = reasons.nearest_box(boxes, query.bbox) if query.missed else strong
    marks: list[tuple[Mark, float | None, int | None, Sequence[Judged]]] = []
    for i, row in enumerate(boxes):
        if i not in (strong, told) and row["score"] < MIN_DRAWN_SCORE:
            continue
        judged = judged_categories(row)
        mark = Mark(tuple(row["bbox"]), judged[0][0], str(i + 1), strong=i == strong)
        marks.append((mark, row["score"], row["votes"], judged if i == told else ()))
    if query.bbox is None:
        return marks
    if query.missed:
        marks.append((Mark(query.bbox, query.category_id, "?", strong=True, dashed=True), None, None, ()))
    elif strong < 0:
        marks.append((Mark(query.bbox, query.category_id, str(len(boxes) + 1), strong=True), query.score, None, ()))
    return marks


def photo_name(query: Query) -> str:
    """Name of a query's picture: its ids, and for a missed garment the corner of its box."""
    corner = "" if query.bbox is None else f"-{query.bbox[0]:.0f}-{query.bbox[1]:.0f}"
    item = f"missed{corner}" if query.missed else str(query.item)
    return f"query-{query.image_id}-{item}"


def crop_name(result: Result) -> str:
    return f"shop-{result.image_id}-{result.item}"


def answer_name(answer: Expected) -> str:
    """Name of the picture of a right answer: that of the run's box, so that results share it, or of the true one."""
    if answer.item is not None:
        return f"shop-{answer.image_id}-{answer.item}"
    corner = "" if answer.bbox is None else f"-{answer.bbox[0]:.0f}-{answer.bbox[1]:.0f}"
    return f"shop-{answer.image_id}-true{corner}"


def _picture(name: str, shots: Shots) -> Any:
    """A picture as the script takes it: path, width, height; or one of the numbers that say why there is none."""
    if name not in shots:
        return NOT_CHOSEN
    shot = shots[name]
    return NOT_DECODED if shot is None else [shot.path, shot.width, shot.height]
