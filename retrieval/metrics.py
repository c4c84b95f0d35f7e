"""The benchmark's consumer-to-shop accuracy: ranked shop garments and the truth in, top-k accuracy out.

A consumer item and a shop item match when pair_id and style are equal and style is above 0. Each detection of a
photo belongs to the true item that it overlaps most; of those that also carry the item's category the one with the
highest score stands for the item, and its list is right at k when one of its first k boxes lies in a matching shop
photo with IoU >= 0.5 to a matching box. Every true item with style > 0 counts, found or not.

Source: DeepFashion2, arXiv:1901.07973, and the retrieval evaluator its authors publish; the same numbers, from sorted
arrays where theirs scans everything once per item. Where we differ: an item without any matching shop item counts as
wrong (theirs stops with an error), lists shorter than k are judged as they are (likewise), and `missed` also counts
the items of photos that have no detection at all.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

KS = (1, 5, 10, 15, 20)
ATTRIBUTES = ("scale", "occlusion", "zoom_in", "viewpoint")
BLOCK_CELLS = 1 << 22
"""Comparisons of shop photo ids done at once: bounds the memory when very many shop items match one query."""

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Results:
    """A submission as columns: R detected consumer garments, each with a list of up to K shop boxes, best first.

    Every function here takes either this or the official list of dictionaries.

    Attributes:
        query_image_id: (R,) int, the consumer photo.
        query_bbox: (R, 4) float, x1 y1 x2 y2 in its pixels.
        query_cls: (R,) int, category id.
        query_score: (R,) float.
        gallery_image_id: (R, K) int, the shop photos.
        gallery_bbox: (R, K, 4) float, x1 y1 x2 y2 in their pixels.
        gallery_count: (R,) int, how long each list is; what a row holds after that is not looked at.
    """

    query_image_id: np.ndarray
    query_bbox: np.ndarray
    query_cls: np.ndarray
    query_score: np.ndarray
    gallery_image_id: np.ndarray
    gallery_bbox: np.ndarray
    gallery_count: np.ndarray

    def __post_init__(self) -> None:
        n, k = self.gallery_image_id.shape
        want = {"query_image_id": (n,), "query_bbox": (n, 4), "query_cls": (n,), "query_score": (n,)}
        for name, shape in (want | {"gallery_bbox": (n, k, 4), "gallery_count": (n,)}).items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"results: {name} has shape {getattr(self, name).shape}, others want {shape}")

    def __len__(self) -> int:
        return len(self.query_image_id)


class Hits(NamedTuple):
    """What the judge thinks of each result, in the order of the results.

    right: (R, k) bool, which of its first k shop boxes are right. item: (R,) int64, the row of `query_gt` it belongs to
    with the right category and a style above 0, or -1 (then nothing in its list can be right). stands: (R,) bool,
    whether it is the one that stands for that item.
    """

    right: np.ndarray
    item: np.ndarray
    stands: np.ndarray


def consumer_to_shop_accuracy(
    results: Results | Sequence[Record],
    query_gt: Sequence[Record],
    gallery_gt: Sequence[Record],
    ks: Sequence[int] = KS,
    iou_threshold: float = 0.5,
) -> dict[str, Any]:
    """Judge a submission end to end.

    Args:
        results: `[{query_image_id, query_bbox, query_cls, query_score, gallery_image_id, gallery_bbox}]`, the last two
            lists of ids and of boxes, best first; boxes x1 y1 x2 y2 in pixels. Photos without true items are ignored.
        query_gt: `[{query_image_id, style, cls, pair_id, bbox}]`, every true consumer item. Those of style 0 are no
            queries, but detections may belong to them. Equal overlaps: the earlier item.
        gallery_gt: `[{gallery_image_id, style, pair_id, bbox}]`, every true shop item.
        ks: list lengths to judge at.
        iou_threshold: overlap in [0, 1] at which a shop box counts as the true one; equal counts.

    Returns:
        `{"top": {k: share in [0, 1]}, "missed": items no detection stands for, "queries": items with style > 0}`; the
        shares are None where there is no query. Equal scores: the earlier result stands.

    Raises:
        ValueError: when a record lacks a key, a score is NaN, or a list has not as many boxes as ids.
    """
    queries, first, stands = _judge(results, query_gt, gallery_gt, ks, iou_threshold)
    return _summary(first, stands, queries.style > 0, ks)


def evaluate(
    results: Results | Sequence[Record],
    query_gt: Sequence[Record],
    gallery_gt: Sequence[Record],
    *,
    ks: Sequence[int] = KS,
    iou_threshold: float = 0.5,
    category_names: Sequence[str] = (),
) -> dict[str, Any]:
    """The same judgement in the shape of metrics.json: overall, per category and per attribute of the query item.

    Args:
        query_gt: as above; entries may carry `scale`, `occlusion`, `zoom_in`, `viewpoint` (0 or absent: not known).
        category_names: the name of category id n at n - 1; each is listed, with None where it has no query. An id
            without a name appears as its number.

    Returns:
        `{"top": {"1": …}, "missed", "queries", "per_category": {name: {"top", "missed", "queries"}},
        "per_attribute": {"scale": {"1": {"top", "missed", "queries"}, …}, …}}`.
    """
    queries, first, stands = _judge(results, query_gt, gallery_gt, ks, iou_threshold)
    asked = queries.style > 0

    def part(chosen: np.ndarray) -> dict[str, Any]:
        summary = _summary(first, stands, asked & chosen, ks)
        return summary | {"top": {str(k): share for k, share in summary["top"].items()}}

    names = {i + 1: name for i, name in enumerate(category_names)}
    names |= {int(i): str(i) for i in np.unique(queries.cls[asked]) if i not in names}
    per_attribute = {}
    for attribute in ATTRIBUTES:
        values = np.array([entry.get(attribute, 0) for entry in query_gt], dtype=np.int64)
        known = np.unique(values[asked & (values > 0)])
        per_attribute[attribute] = {str(value): part(values == value) for value in known}
    return part(asked) | {
        "per_category": {name: part(queries.cls == i) for i, name in names.items()},
        "per_attribute": per_attribute,
    }


def first_hit_ranks(
    results: Results | Sequence[Record],
    query_gt: Sequence[Record],
    gallery_gt: Sequence[Record],
    *,
    k: int = max(KS),
    iou_threshold: float = 0.5,
) -> np.ndarray:
    """Where each query's first right shop box is: what top-k accuracy and its bootstrap are made of.

    Returns:
        (Q,) int64, 1 to k, one per entry of `query_gt` with style > 0, in its order; 0 where the item is missed or no
        box of its list is right. `np.mean((ranks > 0) & (ranks <= 10))` is top-10.
    """
    queries, first, _ = _judge(results, query_gt, gallery_gt, (k,), iou_threshold)
    return first[queries.style > 0]


def hits(
    results: Results | Sequence[Record],
    query_gt: Sequence[Record],
    gallery_gt: Sequence[Record],
    *,
    iou_threshold: float = 0.5,
    k: int = max(KS),
) -> Hits:
    """Mark every result: what it belongs to, whether it stands for it, which of its first k shop boxes are right."""
    queries, gallery, asked = _query_truth(query_gt), _gallery_truth(gallery_gt), _asked(results)
    item = _item_of_each(asked, queries)
    stands = np.zeros(len(results), dtype=bool)
    standing = _standing(asked, item, len(queries.style))
    stands[standing[standing >= 0]] = True
    rows = np.flatnonzero(item >= 0)
    right = np.zeros((len(results), k), dtype=bool)
    which, place = _right_entries(results, rows, item[rows], queries, gallery, k, iou_threshold)
    right[rows[which], place] = True
    return Hits(right, item, stands)


def ground_truth(truth: pa.Table) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The official ground-truth lists of an image set: items of `user` photos ask, items of `shop` photos answer.

    Args:
        truth: columns image_id, source, pair_id and items of an image set, as `store.imageset` describes them.

    Returns:
        `query_gt` (with the four attributes besides the official keys) and `gallery_gt`, every style, in table order.
    """
    nested = truth["items"].combine_chunks()
    items, photo = nested.flatten(), pc.list_parent_indices(nested).to_numpy()
    source = truth["source"].combine_chunks().take(pa.array(photo)).to_pylist()
    image_id, pair_id = (truth[name].to_numpy()[photo].tolist() for name in ("image_id", "pair_id"))
    boxes = items.field("bbox").flatten().to_numpy(zero_copy_only=False).reshape(-1, 4).tolist()
    style, cls, *attributes = (items.field(name).to_pylist() for name in ("style", "category_id", *ATTRIBUTES))
    query_gt: list[dict[str, Any]] = []
    gallery_gt: list[dict[str, Any]] = []
    for i, side in enumerate(source):
        common = {"style": style[i], "pair_id": pair_id[i], "bbox": boxes[i]}
        if side == "user":
            seen = {name: values[i] for name, values in zip(ATTRIBUTES, attributes, strict=True)}
            query_gt.append({"query_image_id": image_id[i], "cls": cls[i]} | common | seen)
        elif side == "shop":
            gallery_gt.append({"gallery_image_id": image_id[i]} | common)
    return query_gt, gallery_gt


class _Queries(NamedTuple):
    image: np.ndarray
    bbox: np.ndarray
    style: np.ndarray
    pair: np.ndarray
    cls: np.ndarray


class _Gallery(NamedTuple):
    image: np.ndarray
    bbox: np.ndarray
    style: np.ndarray
    pair: np.ndarray


class _Asked(NamedTuple):
    """The consumer side of the results: all but the shop lists, which are read only where they are needed."""

    image: np.ndarray
    bbox: np.ndarray
    cls: np.ndarray
    score: np.ndarray


def _judge(
    results: Results | Sequence[Record],
    query_gt: Sequence[Record],
    gallery_gt: Sequence[Record],
    ks: Sequence[int],
    iou_threshold: float,
) -> tuple[_Queries, np.ndarray, np.ndarray]:
    """The truth as columns; per true item the 1-based rank of its first right box (0: none), and if a result stands."""
    if not ks or min(ks) < 1:
        raise ValueError(f"top-k accuracy: every k must be at least 1, got {list(ks)}")
    queries, gallery, asked = _query_truth(query_gt), _gallery_truth(gallery_gt), _asked(results)
    item = _item_of_each(asked, queries)
    standing = _standing(asked, item, len(queries.style))
    found = np.flatnonzero(standing >= 0)
    which, place = _right_entries(results, standing[found], found, queries, gallery, max(ks), iou_threshold)
    none = np.iinfo(np.int64).max
    first = np.full(len(queries.style), none)
    np.minimum.at(first, found[which], place + 1)
    first[first == none] = 0
    return queries, first, standing >= 0


def _summary(first: np.ndarray, stands: np.ndarray, chosen: np.ndarray, ks: Sequence[int]) -> dict[str, Any]:
    n, ranks = int(chosen.sum()), first[chosen]
    top = {int(k): float(((ranks > 0) & (ranks <= k)).sum()) / n if n else None for k in ks}
    return {"top": top, "missed": n - int(stands[chosen].sum()), "queries": n}


def _item_of_each(asked: _Asked, queries: _Queries) -> np.ndarray:
    """(R,) int64: the true item each result belongs to, -1 without one of its category and of a style above 0."""
    order = np.argsort(queries.image, kind="stable")
    result, position = _spans(queries.image[order], asked.image)
    item = order[position]
    overlap = _iou(asked.bbox[result], queries.bbox[item])
    belongs = np.full(len(asked.image), -1, dtype=np.int64)
    if len(result):
        starts = np.flatnonzero(np.r_[True, result[1:] != result[:-1]])
        best = np.repeat(np.maximum.reduceat(overlap, starts), np.diff(np.r_[starts, len(result)]))
        tops = np.flatnonzero(overlap == best)[::-1]  # backwards, so that the first of equal overlaps is written last
        belongs[result[tops]] = item[tops]
    rows = np.flatnonzero(belongs >= 0)
    judged = (queries.cls[belongs[rows]] == asked.cls[rows]) & (queries.style[belongs[rows]] > 0)
    belongs[rows[~judged]] = -1
    return belongs


def _standing(asked: _Asked, item: np.ndarray, n_items: int) -> np.ndarray:
    """(n_items,) int64: the result with the highest score among those of each item, first on ties; -1 without any."""
    rows = np.flatnonzero(item >= 0)
    rows = rows[np.argsort(-asked.score[rows], kind="stable")][::-1]  # worst first: the best is written last
    standing = np.full(n_items, -1, dtype=np.int64)
    standing[item[rows]] = rows
    return standing


def _right_entries(
    results: Results | Sequence[Record],
    rows: np.ndarray,
    items: np.ndarray,
    queries: _Queries,
    gallery: _Gallery,
    k: int,
    iou_threshold: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Of results `rows`, which belong to the true `items`: (M,) positions in `rows` and 0-based places of right boxes.

    Pairs each row with the shop items that match its query, then reads boxes only where the photo is theirs.
    """
    query_key, gallery_key = _match_keys(queries, gallery)
    order = np.argsort(gallery_key, kind="stable")
    row, position = _spans(gallery_key[order], query_key[items])
    shop = order[position]
    ids, count, boxes = _shop_lists(results, rows, k)
    block = max(1, BLOCK_CELLS // k)
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for start in range(0, len(row), block):
        r, s = row[start : start + block], shop[start : start + block]
        pair, place = np.nonzero((ids[r] == gallery.image[s, None]) & (np.arange(ids.shape[1]) < count[r, None]))
        right = _iou(boxes(rows[r[pair]], place), gallery.bbox[s[pair]]) >= iou_threshold
        found.append((r[pair][right], place[right]))
    if not found:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    return np.concatenate([r for r, _ in found]), np.concatenate([p for _, p in found])


def _spans(ordered: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every (row of `wanted`, position in the sorted `ordered`) with equal values, by row, then by position."""
    low, high = np.searchsorted(ordered, wanted, "left"), np.searchsorted(ordered, wanted, "right")
    n = high - low
    row = np.repeat(np.arange(len(wanted)), n)
    return row, np.arange(len(row)) + np.repeat(low - (np.cumsum(n) - n), n)


def _match_keys(queries: _Queries, gallery: _Gallery) -> tuple[np.ndarray, np.ndarray]:
    """One number for each (pair_id, style), the same on both sides."""
    _, pair = np.unique(np.concatenate([queries.pair, gallery.pair]), return_inverse=True)
    styles, style = np.unique(np.concatenate([queries.style, gallery.style]), return_inverse=True)
    key = pair * len(styles) + style
    return key[: len(queries.pair)], key[len(queries.pair) :]


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N,) overlap of row with row, x1 y1 x2 y2; through widths, as pycocotools has them, so that ties round alike."""
    a_size, b_size = a[:, 2:] - a[:, :2], b[:, 2:] - b[:, :2]
    sides = np.minimum(a[:, :2] + a_size, b[:, :2] + b_size) - np.maximum(a[:, :2], b[:, :2])
    shared = np.where((sides > 0).all(axis=1), sides[:, 0] * sides[:, 1], 0.0)
    union = a_size[:, 0] * a_size[:, 1] + b_size[:, 0] * b_size[:, 1] - shared
    return np.divide(shared, union, out=np.zeros(len(a)), where=shared > 0)


def _query_truth(query_gt: Sequence[Record]) -> _Queries:
    keys = ("query_image_id", "bbox", "style", "pair_id", "cls")
    return _Queries(*_columns(query_gt, keys, "query ground truth"))


def _gallery_truth(gallery_gt: Sequence[Record]) -> _Gallery:
    return _Gallery(*_columns(gallery_gt, ("gallery_image_id", "bbox", "style", "pair_id"), "gallery ground truth"))


def _asked(results: Results | Sequence[Record]) -> _Asked:
    keys = ("query_image_id", "query_bbox", "query_cls", "query_score")
    if isinstance(results, Results):
        asked = _Asked(*(getattr(results, key) for key in keys))
        asked = asked._replace(bbox=asked.bbox.astype(np.float64))
    else:
        asked = _Asked(*_columns(results, keys, "results"))
    if np.isnan(asked.score).any():
        raise ValueError(f"results: entry {int(np.isnan(asked.score).argmax())} has query_score NaN, want a number")
    return asked


def _columns(records: Sequence[Record], keys: Iterable[str], what: str) -> list[np.ndarray]:
    """The values of each key as one array: boxes (N, 4) float64, scores float64, all else int64."""
    columns = []
    for key in keys:
        try:
            values = list(map(itemgetter(key), records))
        except KeyError:
            lacking = next(i for i, record in enumerate(records) if key not in record)
            raise ValueError(f"{what}: entry {lacking} has no {key!r}, only {sorted(records[lacking])}") from None
        if key.endswith("bbox"):
            if set(map(len, values)) - {4}:
                wrong = next(i for i, box in enumerate(values) if len(box) != 4)
                raise ValueError(f"{what}: entry {wrong} has {key} {values[wrong]}, want [x1, y1, x2, y2]")
            flat = np.fromiter(chain.from_iterable(values), np.float64, 4 * len(values))
            columns.append(flat.reshape(-1, 4))
        else:
            columns.append(np.array(values, dtype=np.float64 if key.endswith("score") else np.int64))
    return columns


def _shop_lists(
    results: Results | Sequence[Record], rows: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray, Callable[[np.ndarray, np.ndarray], np.ndarray]]:
    """Shop photo ids (N, k) of these results, how many of them count (N,), and a reader of boxes by (result, place)."""
    if isinstance(results, Results):
        shop_boxes = results.gallery_bbox
        ids, count = results.gallery_image_id[rows, :k], np.minimum(results.gallery_count[rows], k)
        return ids, count, lambda row, place: shop_boxes[row, place].astype(np.float64)

    chosen = [results[row] for row in rows.tolist()]
    n_ids = [len(result["gallery_image_id"]) for result in chosen]
    n_boxes = [len(result["gallery_bbox"]) for result in chosen]
    if n_ids != n_boxes:
        i = next(i for i in range(len(rows)) if n_ids[i] != n_boxes[i])
        raise ValueError(f"results: entry {rows[i]} has {n_ids[i]} gallery_image_id and {n_boxes[i]} gallery_bbox")
    lists = [ids if len(ids := result["gallery_image_id"]) <= k else ids[:k] for result in chosen]
    count = np.minimum(np.array(n_ids, dtype=np.int64), k)
    table = np.zeros((len(lists), k), dtype=np.int64)
    table[np.arange(k) < count[:, None]] = np.fromiter(chain.from_iterable(lists), np.int64, count.sum())

    def boxes(row: np.ndarray, place: np.ndarray) -> np.ndarray:
        wanted = [results[r]["gallery_bbox"][p] for r, p in zip(row.tolist(), place.tolist(), strict=True)]
        return np.array(wanted, dtype=np.float64).reshape(-1, 4)

    return table, count, boxes
