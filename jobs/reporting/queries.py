"""The queries of a run: how each ended, which of their shop results are right, which of them get pictures.

In: an image set's ground truth and `rankings/BOXES.parquet` of a run. Out: `Standings` over all queries, an `Example` of each.
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
SUREST_SHARE = 5  # one picture in so many is of a surest mistake, the others of queries as they come
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


@dataclass(frozen=True)
class Standings:
    """Every query and how it ended; the columns have an entry per query.

    Attributes:
        row: (Q,) row of the ranking that stands for it; -1 for a missed garment.
        asked: (Q,) row of the truth's `query_gt`; -1 where the set has no ground truth.
        first: (Q,) 1-based rank of the first right result; 0 for none.
        right: (R, K) bool, of the ranking's rows, which results are right; None without ground truth.
        length: K, to which lists are judged.
    """

    row: np.ndarray
    asked: np.ndarray
    first: np.ndarray
    right: np.ndarray | None
    length: int

    def __len__(self) -> int:
        return len(self.row)


@dataclass(frozen=True)
class Source:
    """What the image set says about one photo; `digest` of its bytes, hex."""

    file_name: str
    product_id: str
    digest: str


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


def read_ranking(output: ObjectStore, key: str, length: int = LIST_LENGTH) -> Ranking:
    """Read a ranking batch by batch, at most `length` results of each list, best first."""
    parts: dict[str, list[np.ndarray]] = {}
    with output.open(key) as file:
        table = pq.ParquetFile(file)
        for batch in table.iter_batches(batch_size=BATCH_ROWS):
            for name, values in _columns(batch, length).items():
                parts.setdefault(name, []).append(values)
        if not parts:
            parts = {n: [v] for n, v in _columns(table.schema_arrow.empty_table(), length).items()}
    columns = {name: np.concatenate(values) for name, values in parts.items()}
    beside = {name: columns.pop(name) for name in ("query_item", "gallery_item", "similarity")}
    return Ranking(metrics.Results(**columns), **beside)


def judge(ranking: Ranking, truth: Truth) -> Standings:
    """How every query ended, the surest mistakes first.

    With ground truth the queries are its items of style > 0, those without a box included; without, the ranking's rows. In order:
    wrong ones (none right in the list), those right later than first, missed ones, those right at once; in each by falling
    similarity of the first result, then in the set's order.
    """
    rows = truth.queries
    length = max(1, ranking.results.gallery_image_id.shape[1])
    if not len(rows):
        found = np.lexsort((ranking.query_item, ranking.results.query_image_id))
        nothing = np.full(len(found), -1)
        standings = Standings(found, nothing, np.zeros(len(found), np.int64), None, length)
    else:
        judged = metrics.hits(ranking.results, truth.query_gt, truth.gallery_gt, k=length)
        standing = np.full(len(truth.query_gt), -1)
        standing[judged.item[judged.stands]] = np.flatnonzero(judged.stands)
        first = metrics.first_hit_ranks(ranking.results, truth.query_gt, truth.gallery_gt, k=length)
        standings = Standings(standing[rows], rows, first, judged.right, length)
    order = np.lexsort((np.arange(len(standings)), -similarities(ranking, standings), _badness(standings)))
    return Standings(standings.row[order], standings.asked[order], standings.first[order], standings.right, length)


def similarities(ranking: Ranking, standings: Standings) -> np.ndarray:
    """(Q,) float64 similarity of each query's first result; -1, the least there is, without any."""
    if not len(ranking.results):
        return np.full(len(standings), -1.0)
    some = (standings.row >= 0) & (ranking.results.gallery_count[standings.row] > 0)
    return np.where(some, ranking.similarity[standings.row, 0].astype(np.float64), -1.0)


def _badness(standings: Standings) -> np.ndarray:
    """(Q,) 0 wrong, 1 right later than first, 2 missed, 3 right at once; 0 where nothing is judged."""
    if standings.right is None:
        return np.zeros(len(standings), np.int64)
    later = np.where(standings.first == 1, 3, np.where(standings.first > 1, 1, 0))
    return np.where(standings.row < 0, 2, later)


def pick(standings: Standings, n: int) -> np.ndarray:
    """Which queries get pictures: places in `standings`, rising.

    Four fifths of n are taken at even steps of all queries, lined up by the rank of their first right result (none, then missed,
    last), then in the set's order, both ends among them, so right and wrong ones come in their true shares; the rest are the surest
    mistakes not yet among them.
    """
    if n <= 0:
        return np.zeros(0, np.int64)
    judged = standings.right is not None
    rank = np.where(standings.first > 0, standings.first, standings.length + 1)
    key = standings.asked if judged else standings.row
    lined_up = np.lexsort((key, standings.row < 0, rank))
    chosen = _even(lined_up, n - n // SUREST_SHARE if judged else n)
    more = np.setdiff1d(np.arange(len(standings)), chosen)  # the surest mistakes come first in `standings`
    return np.sort(np.r_[chosen, more[: n - len(chosen)]])


def example(ranking: Ranking, truth: Truth, standings: Standings, place: int, top: int) -> Example:
    """One query with its first `top` results, judged."""
    row, asked = int(standings.row[place]), int(standings.asked[place])
    if row < 0:
        return _missed(truth.query_gt[asked])
    return _ranked(ranking, row, None if standings.right is None else standings.right[row], top)


def read_sources(imageset: ImageSet, truth: Truth, image_ids: Iterable[int]) -> dict[int, Source]:
    """What the set says about some photos, a shard at a time and without their pictures."""
    sources: dict[int, Source] = {}
    for shard, ids in truth.shards_of(image_ids).items():
        table = imageset.read(shard, columns=["image_id", "file_name", "product_id", "digest"])
        for row in table.filter(pc.is_in(table["image_id"], value_set=pa.array(ids, pa.int64()))).to_pylist():
            sources[row["image_id"]] = Source(row["file_name"] or "", row["product_id"] or "", row["digest"].hex())
    return sources


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
