"""Which queries the report shows, and which of their shop results are right.

In: an image set's ground truth and `rankings/BOXES.parquet` of a run. Out: at most n `Example` records.
The judgement is `retrieval.metrics`', the benchmark's own; this file only chooses and gathers.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from retrieval import metrics
from store.imageset import ImageSet
from store.objects import ObjectStore

LIST_LENGTH = max(metrics.KS)  # results further down are not read
BATCH_ROWS = 4096
LISTS = ("gallery_image_id", "gallery_item", "gallery_bbox", "similarity")  # the columns that hold a list per query

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Result:
    """One shop item of a ranking, as the run found it."""

    image_id: int
    item: int
    bbox: Box  # px x1 y1 x2 y2 of the upright shop photo
    similarity: float  # cosine, -1 to 1
    right: bool


@dataclass(frozen=True)
class Example:
    """One query to show: a garment of a consumer photo, its results, how it ended.

    Attributes:
        item: of the ranking; None when no box stands for the garment, then `bbox` is its true box and there is no score.
        bbox: px x1 y1 x2 y2 of the upright photo.
        judged: False where the set has no ground truth; then nothing is right or wrong.
        first_right: 1-based rank of the first right result, 0 for none among the `ranked` first.
    """

    image_id: int
    item: int | None
    bbox: Box
    category_id: int
    score: float | None
    judged: bool
    first_right: int
    ranked: int
    results: tuple[Result, ...]

    @property
    def missed(self) -> bool:
        return self.item is None


@dataclass(frozen=True)
class Truth:
    """What the report needs of an image set, without its pictures.

    Attributes:
        shard_ids: shard name -> ids of the images that the run took from it.
        query_gt, gallery_gt: as `retrieval.metrics` reads them; shop items that nothing can match are left out.
    """

    shard_ids: Mapping[str, np.ndarray]
    query_gt: Sequence[Mapping[str, Any]]
    gallery_gt: Sequence[Mapping[str, Any]]

    @property
    def queries(self) -> np.ndarray:
        """(Q,) rows of `query_gt` that the benchmark asks for: style above 0."""
        return np.array([row for row, entry in enumerate(self.query_gt) if entry["style"] > 0], dtype=np.int64)

    def shards_of(self, image_ids: Iterable[int]) -> dict[str, list[int]]:
        """Group image ids by the shard that holds them, in the set's order; ids the run did not take are left out."""
        wanted = np.unique(np.fromiter(image_ids, np.int64))
        held = {name: ids[np.isin(ids, wanted)].tolist() for name, ids in self.shard_ids.items()}
        return {name: ids for name, ids in held.items() if ids}


@dataclass(frozen=True)
class Ranking:
    """`rankings/BOXES.parquet`, lists cut to a length; rows as in the file, `item` and `similarity` beside `results`."""

    results: metrics.Results
    query_item: np.ndarray  # (R,)
    gallery_item: np.ndarray  # (R, K)
    similarity: np.ndarray  # (R, K)


def read_truth(imageset: ImageSet, taken: Mapping[str, Sequence[int]] | None = None) -> Truth:
    """Read ids and items, one shard at a time; pictures stay where they are.

    Args:
        imageset: the set of the run.
        taken: shard name -> rows the run took of it, as in run.json; None: all.
    """
    shard_ids: dict[str, np.ndarray] = {}
    query_gt: list[dict[str, Any]] = []
    gallery_gt: list[dict[str, Any]] = []
    for shard in imageset.shards:
        if taken is not None and not taken.get(shard.name):
            continue
        table = imageset.read(shard.name, columns=["image_id", "source", "pair_id", "items"])
        table = table if taken is None else table.take(pa.array(taken[shard.name], pa.int64()))
        shard_ids[shard.name] = table["image_id"].to_numpy()
        asking, answering = metrics.ground_truth(table)
        query_gt += asking
        gallery_gt += [entry for entry in answering if entry["style"] > 0]
    return Truth(shard_ids, query_gt, gallery_gt)


def read_ranking(output: ObjectStore, boxes: str, length: int = LIST_LENGTH) -> Ranking:
    """Read a ranking batch by batch, at most `length` results of each list, best first."""
    parts: dict[str, list[np.ndarray]] = {}
    with output.open(f"rankings/{boxes}.parquet") as file:
        table = pq.ParquetFile(file)
        for batch in table.iter_batches(batch_size=BATCH_ROWS):
            for name, values in _columns(batch, length).items():
                parts.setdefault(name, []).append(values)
        if not parts:
            parts = {n: [v] for n, v in _columns(table.schema_arrow.empty_table(), length).items()}
    columns = {name: np.concatenate(values) for name, values in parts.items()}
    beside = {name: columns.pop(name) for name in ("query_item", "gallery_item", "similarity")}
    return Ranking(metrics.Results(**columns), **beside)


def pick_examples(ranking: Ranking, truth: Truth, *, n: int, top: int) -> tuple[list[Example], int]:
    """Choose n queries of a ranking, judged, with their first `top` results.

    With ground truth the queries are its items of style > 0, those without a box included, lined up by the rank of their
    first right result (none, then missed, last), then in the set's order; n are taken at even steps, both ends among
    them, so right and wrong ones come in their true shares. Without, the ranking's rows at even steps.

    Returns:
        the examples by image id, and how many queries they were chosen from.
    """
    rows = truth.queries
    if not len(rows):
        order = np.lexsort((ranking.query_item, ranking.results.query_image_id))
        examples = [_ranked(ranking, row, None, top) for row in _even(order, n).tolist()]
        return _by_photo(examples), len(order)
    length = max(1, ranking.results.gallery_image_id.shape[1])
    judged = metrics.hits(ranking.results, truth.query_gt, truth.gallery_gt, k=length)
    standing = np.full(len(truth.query_gt), -1)
    standing[judged.item[judged.stands]] = np.flatnonzero(judged.stands)
    standing = standing[rows]
    first = metrics.first_hit_ranks(ranking.results, truth.query_gt, truth.gallery_gt, k=length)
    order = np.lexsort((rows, standing < 0, np.where(first > 0, first, length + 1)))
    examples = [
        _ranked(ranking, row, judged.right[row], top) if row >= 0 else _missed(truth.query_gt[asked])
        for row, asked in ((int(standing[place]), int(rows[place])) for place in _even(order, n))
    ]
    return _by_photo(examples), len(rows)


def _columns(batch: pa.RecordBatch | pa.Table, length: int) -> dict[str, np.ndarray]:
    """One batch as arrays, lists of any length padded to `length`."""

    lists = {n: pc.list_slice(_whole(batch[n]), 0, length) for n in LISTS}
    counts = pc.list_value_length(lists["gallery_image_id"]).to_numpy(zero_copy_only=False).astype(np.int64)
    filled = np.arange(length) < counts[:, None]
    columns: dict[str, np.ndarray] = {
        "query_image_id": _flat(batch["query_image_id"]),
        "query_item": _flat(batch["query_item"]),
        "query_bbox": _flat(pc.list_flatten(_whole(batch["query_bbox"]))).reshape(-1, 4),
        "query_score": _flat(batch["query_score"]),
        "query_cls": _flat(batch["query_category_id"]),
        "gallery_count": counts,
    }
    for name, values in lists.items():
        flat = _flat(pc.list_flatten(values, recursive=True))
        flat = flat.reshape(-1, 4) if name == "gallery_bbox" else flat
        columns[name] = np.zeros((*filled.shape, *flat.shape[1:]), flat.dtype)
        columns[name][filled] = flat
    return columns


def _whole(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _flat(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    return _whole(column).to_numpy(zero_copy_only=False)


def _ranked(ranking: Ranking, row: int, right: np.ndarray | None, top: int) -> Example:
    """A query with its list; `right` marks every place of it, None where nothing is known."""
    found = ranking.results
    n = int(found.gallery_count[row])
    marks = np.zeros(n, bool) if right is None else right[:n]
    results = tuple(
        Result(
            image_id=int(found.gallery_image_id[row, place]),
            item=int(ranking.gallery_item[row, place]),
            bbox=_box(found.gallery_bbox[row, place]),
            similarity=float(ranking.similarity[row, place]),
            right=bool(marks[place]),
        )
        for place in range(min(n, top))
    )
    return Example(
        image_id=int(found.query_image_id[row]),
        item=int(ranking.query_item[row]),
        bbox=_box(found.query_bbox[row]),
        category_id=int(found.query_cls[row]),
        score=float(found.query_score[row]),
        judged=right is not None,
        first_right=int(marks.argmax()) + 1 if marks.any() else 0,
        ranked=n,
        results=results,
    )


def _missed(entry: Mapping[str, Any]) -> Example:
    return Example(entry["query_image_id"], None, _box(entry["bbox"]), entry["cls"], None, True, 0, 0, ())


def _box(values: Iterable[float]) -> Box:
    x1, y1, x2, y2 = (float(value) for value in values)
    return x1, y1, x2, y2


def _even(order: np.ndarray, n: int) -> np.ndarray:
    """n entries of `order` at even steps, first and last included; all of them where there are no more."""
    if len(order) <= n:
        return order
    return order[np.linspace(0, len(order) - 1, n).round().astype(int)] if n > 1 else order[:n]


def _by_photo(examples: list[Example]) -> list[Example]:
    return sorted(examples, key=lambda e: (e.image_id, e.missed, e.item or 0, e.bbox))
