"""The benchmark's consumer-to-shop Acc@k: ranked shop garments and the ground truth in, Acc@k out.

A consumer item and a shop item match when pair_id and style are equal and style is above 0. Each detection of a
photo belongs to the true item that it overlaps most. Of those that also have the item's category, the one with the
highest score stands for the item. Its list is right at k when one of its first k boxes lies in a matching shop
photo with IoU >= 0.5 to a matching box. Every true item with style > 0 counts, detected or not.

A result may have several hypotheses of its category. Each is an entry of the submission, with the same box and list.

Source: DeepFashion2, arXiv:1901.07973, and the retrieval evaluator its authors publish; the same numbers, from sorted
arrays where theirs scans everything once per item. Where we differ: an item without any matching shop item counts as
wrong (theirs stops with an error), lists shorter than k are judged as they are (likewise), and `missed` also counts
the items of photos that have no detection at all.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from postproc.belonging import belonging, coco_iou
from postproc.places import spans
from retrieval.results import QueryDetections, Records, Results, columns_of, detections_of, shop_lists

KS = (1, 5, 10, 15, 20)
TOPS = ("top", "top_one_category", "top_any_category")
ANY_CATEGORY_IOU = 0.5  # overlap with a true item from which a box stands for it whatever its category
ATTRIBUTES = ("scale", "occlusion", "zoom_in", "viewpoint")
BLOCK_CELLS = 1 << 22  # shop photo ids compared at once: bounds the memory when many shop items match one query


class Answers(NamedTuple):
    """What each of Q queries was answered; a query is an entry of `query_gt` with style > 0, in its order."""

    row: np.ndarray  # (Q,) int64, the result that stands for it; -1 for a missed item
    # (Q, k) int64, the row of `gallery_gt` of the true item that is found at a place, -1 at all others. A place finds
    # at most one item and an item is found once, at the first place that may have it.
    found: np.ndarray
    relevant: np.ndarray  # (Q,) int64, how many entries of `gallery_gt` match it


class Hits(NamedTuple):
    """How each of R results is judged, in the order of the results."""

    right: np.ndarray  # (R, k) bool, which of its first k shop boxes are right
    # (R,) int64, the row of `query_gt` it belongs to with the right category and a style above 0, or -1 (then nothing
    # in its list can be right)
    item: np.ndarray
    stands: np.ndarray  # (R,) bool, whether it is the one that stands for that item


def consumer_to_shop_accuracy(
    results: Results | Records,
    query_gt: Records,
    gallery_gt: Records,
    ks: Sequence[int] = KS,
    iou_threshold: float = 0.5,
) -> dict[str, Any]:
    """Acc@k of a submission.

    Args:
        results: `[{query_image_id, query_bbox, query_cls, query_score, gallery_image_id, gallery_bbox}]`, the last two
            lists of ids and of boxes, best first; boxes x1 y1 x2 y2 in pixels. Photos without true items are ignored.
        query_gt: `[{query_image_id, style, cls, pair_id, bbox}]`, every true consumer item. Those of style 0 are no
            queries, but detections may belong to them. Equal overlaps: the earlier item.
        gallery_gt: `[{gallery_image_id, style, pair_id, bbox}]`, every true shop item.
        ks: list lengths to judge at, each at least 1.
        iou_threshold: overlap in [0, 1] at which a shop box counts as the true one; equal counts.

    Returns `{"top": {k: share in [0, 1]}, "missed": items no detection stands for, "queries": items with style > 0}`;
    the shares are None where there is no query. Of equal scores the earlier result stands for the item. Raises
    ValueError where a record lacks a key, a score is NaN, or a list has not as many boxes as ids.
    """
    queries, judged = _judge(results, query_gt, gallery_gt, ks, iou_threshold)
    return _summary(*judged[0], queries.style > 0, ks)


def evaluate(
    results: Results | Records,
    query_gt: Records,
    gallery_gt: Records,
    *,
    ks: Sequence[int] = KS,
    iou_threshold: float = 0.5,
    category_names: Sequence[str] = (),
) -> dict[str, Any]:
    """Acc@k in the shape of metrics.json: overall, per category and per attribute of the query item.

    Entries of `query_gt` may carry `scale`, `occlusion`, `zoom_in`, `viewpoint` (0 or absent: not known). The name of
    category id n is `category_names[n - 1]`; each is listed, with None where it has no query. An id without a name
    appears as its number. The rest is as above.

    Returns:
        `{"top": {"1": …}, "top_one_category": likewise, "top_any_category": likewise, "missed", "queries",
        "per_category": {name: the same five}, "per_attribute": {"scale": {"1": the same five, …}, …}}`. `top` and
        `missed` are the submission's. For `top_one_category` each result has its own category alone. For
        `top_any_category` no category is asked: the box with the highest score that belongs to the item, at an overlap
        of at least 0.5, stands for it.
    """
    queries, judged = _judge(results, query_gt, gallery_gt, ks, iou_threshold, every=True)
    is_query = queries.style > 0

    def part(chosen: np.ndarray) -> dict[str, Any]:
        summaries = [_summary(*answer, is_query & chosen, ks) for answer in judged]
        tops = [{str(k): share for k, share in summary["top"].items()} for summary in summaries]
        return summaries[0] | dict(zip(TOPS, tops, strict=True))

    names = {i + 1: name for i, name in enumerate(category_names)}
    names |= {int(i): str(i) for i in np.unique(queries.cls[is_query]) if i not in names}
    per_attribute = {}
    for attribute in ATTRIBUTES:
        values = np.array([entry.get(attribute, 0) for entry in query_gt], dtype=np.int64)
        present = np.unique(values[is_query & (values > 0)])
        per_attribute[attribute] = {str(value): part(values == value) for value in present}
    return part(is_query) | {
        "per_category": {name: part(queries.cls == i) for i, name in names.items()},
        "per_attribute": per_attribute,
    }


def first_hit_ranks(
    results: Results | Records, query_gt: Records, gallery_gt: Records, *, k: int = max(KS), iou_threshold: float = 0.5
) -> np.ndarray:
    """The place of each query's first right shop box: what Acc@k and its bootstrap are computed from.

    Returns (Q,) int64, 1 to k, one per entry of `query_gt` with style > 0, in its order; 0 where the item is missed or
    no box of its list is right. `np.mean((ranks > 0) & (ranks <= 10))` is Acc@10.
    """
    queries, ((first, _),) = _judge(results, query_gt, gallery_gt, (k,), iou_threshold)
    return first[queries.style > 0]


def hits(
    results: Results | Records, query_gt: Records, gallery_gt: Records, *, iou_threshold: float = 0.5, k: int = max(KS)
) -> Hits:
    """Judge every result: its item, whether it stands for that item, which of its first k shop boxes are right."""
    (queries, gallery), detections = _truth(query_gt, gallery_gt), detections_of(results)
    belongs, _ = _belonging(detections, queries)
    stands = np.zeros(len(results), dtype=bool)
    standing = _standing(detections, belongs, queries)
    stands[standing[standing >= 0]] = True
    claiming = detections.row[_claims(detections, belongs, queries)]
    item = np.full(len(results), -1, dtype=np.int64)
    item[claiming] = belongs[claiming]
    rows = np.flatnonzero(item >= 0)
    right = np.zeros((len(results), k), dtype=bool)
    which, place, _, _ = _right_entries(results, rows, item[rows], queries, gallery, k, iou_threshold)
    right[rows[which], place] = True
    return Hits(right, item, stands)


def answers(
    results: Results | Records, query_gt: Records, gallery_gt: Records, *, iou_threshold: float = 0.5, k: int = max(KS)
) -> Answers:
    """Which true shop items the first k boxes of each query's list find: what mAP, MRR and nDCG are computed from.

    Place by place, a box finds that matching item, not yet found by an earlier box, which it overlaps most (at least by
    `iou_threshold`; equal overlaps: the earlier entry of `gallery_gt`). Further boxes on the same item find nothing.
    The first place that finds something is that of `first_hit_ranks`.
    """
    (queries, gallery), detections = _truth(query_gt, gallery_gt), detections_of(results)
    standing = _standing(detections, _belonging(detections, queries)[0], queries)
    asked = np.flatnonzero(queries.style > 0)
    row = standing[asked]
    detected = np.flatnonzero(row >= 0)
    entries = _right_entries(results, row[detected], asked[detected], queries, gallery, k, iou_threshold)
    found = np.full((len(asked), k), -1, np.int64)
    which, place, shop = _found_once(*entries, len(gallery.style))
    found[detected[which], place] = shop
    query_key, gallery_key = _match_keys(queries, gallery)
    matching, _ = spans(np.sort(gallery_key), query_key[asked])
    return Answers(row, found, np.bincount(matching, minlength=len(asked)))


def _found_once(
    which: np.ndarray, place: np.ndarray, shop: np.ndarray, overlap: np.ndarray, n_shops: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of `_right_entries`, those in which a place finds an item: each place once, and each item of a list once."""
    order = np.lexsort((shop, -overlap, place, which))
    which, place, shop = which[order], place[order], shop[order]
    pairs, pair = np.unique(which * n_shops + shop, return_inverse=True)
    taken, chosen = np.zeros(len(pairs), bool), [np.zeros(0, np.int64)]
    for here in np.unique(place):
        rows = np.flatnonzero((place == here) & ~taken[pair])
        rows = rows[np.unique(which[rows], return_index=True)[1]]  # the first of each list is the best
        taken[pair[rows]] = True
        chosen.append(rows)
    kept = np.concatenate(chosen)
    return which[kept], place[kept], shop[kept]


def ground_truth(truth: pa.Table) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The official ground-truth lists of an image set: queries are the items of `user` photos, gallery those of `shop`.

    `truth` has the columns image_id, source, pair_id and items of an image set, as `store.imageset` describes them.
    Returns `query_gt` (with the four attributes besides the official keys) and `gallery_gt`, every style, in table
    order.
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
            graded = {name: values[i] for name, values in zip(ATTRIBUTES, attributes, strict=True)}
            query_gt.append({"query_image_id": image_id[i], "cls": cls[i]} | common | graded)
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


def _judge(
    results: Results | Records,
    query_gt: Records,
    gallery_gt: Records,
    ks: Sequence[int],
    iou_threshold: float,
    *,
    every: bool = False,
) -> tuple[_Queries, list[tuple[np.ndarray, np.ndarray]]]:
    """The truth as columns; per true item the 1-based rank of its first right box (0: none), and if a result stands.

    With `every`, ranks and standing come for each of TOPS, else for the submission alone.
    """
    if not ks or min(ks) < 1:
        raise ValueError(f"Acc@k: every k must be at least 1, got {list(ks)}")
    (queries, gallery), detections = _truth(query_gt, gallery_gt), detections_of(results)
    belongs, overlap = _belonging(detections, queries)
    standings = [_standing(detections, belongs, queries)]
    if every:
        own = detections_of(replace(results, hypotheses=None)) if isinstance(results, Results) else detections
        near = np.flatnonzero(overlap >= ANY_CATEGORY_IOU)
        standings.append(_standing(own, belongs, queries))
        standings.append(_best_of_each(belongs[near], own.score[near], near, len(queries.style)))
    standing = np.stack(standings)
    figure, item = np.nonzero(standing >= 0)
    pairs, pair = np.unique(np.stack([standing[figure, item], item]), axis=1, return_inverse=True)  # mostly the same
    which, place, _, _ = _right_entries(results, pairs[0], pairs[1], queries, gallery, max(ks), iou_threshold)
    none = np.iinfo(np.int64).max
    of_pair = np.full(pairs.shape[1], none)
    np.minimum.at(of_pair, which, place + 1)
    first = np.zeros(standing.shape, np.int64)
    first[figure, item] = np.where(of_pair == none, 0, of_pair)[pair.reshape(-1)]
    return queries, list(zip(first, standing >= 0, strict=True))


def _summary(first: np.ndarray, stands: np.ndarray, chosen: np.ndarray, ks: Sequence[int]) -> dict[str, Any]:
    n, ranks = int(chosen.sum()), first[chosen]
    top = {int(k): float(((ranks > 0) & (ranks <= k)).sum()) / n if n else None for k in ks}
    return {"top": top, "missed": n - int(stands[chosen].sum()), "queries": n}


def _belonging(detections: QueryDetections, queries: _Queries) -> tuple[np.ndarray, np.ndarray]:
    """(R,) int64, the true item that each result overlaps most, -1 on a photo without any; (R,) that overlap."""
    return belonging(detections.image, detections.bbox, queries.image, queries.bbox)


def _claims(detections: QueryDetections, belongs: np.ndarray, queries: _Queries) -> np.ndarray:
    """(C,) int64: the entries that have the category of the item they belong to, whose style is above 0."""
    item = belongs[detections.row]
    entry = np.flatnonzero(item >= 0)
    return entry[(queries.cls[item[entry]] == detections.cls[entry]) & (queries.style[item[entry]] > 0)]


def _standing(detections: QueryDetections, belongs: np.ndarray, queries: _Queries) -> np.ndarray:
    """(n_items,) int64: the result that stands for each item, -1 without any; `belongs` (R,) as of `_belonging`."""
    entry = _claims(detections, belongs, queries)
    row = detections.row[entry]
    return _best_of_each(belongs[row], detections.score[entry], row, len(queries.style))


def _best_of_each(item: np.ndarray, score: np.ndarray, row: np.ndarray, n_items: int) -> np.ndarray:
    """(n_items,) int64: of an item's (N,) entries the `row` of the highest score, first on ties; -1 without any."""
    worst_first = np.argsort(-score, kind="stable")[::-1]  # the best is written last
    standing = np.full(n_items, -1, dtype=np.int64)
    standing[item[worst_first]] = row[worst_first]
    return standing


def _right_entries(
    results: Results | Records,
    rows: np.ndarray,
    items: np.ndarray,
    queries: _Queries,
    gallery: _Gallery,
    k: int,
    iou_threshold: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Every right box of results `rows`, which belong to the true `items`, with every true shop box it is right for.

    Four times (M,): position in `rows`, 0-based place in the list, row of the gallery's ground truth, overlap.

    Pairs each row with the shop items that match its query, then reads boxes only where the photo is theirs.
    """
    query_key, gallery_key = _match_keys(queries, gallery)
    order = np.argsort(gallery_key, kind="stable")
    row, position = spans(gallery_key[order], query_key[items])
    shop = order[position]
    ids, count, boxes = shop_lists(results, rows, k)
    block = max(1, BLOCK_CELLS // k)
    parts = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    for start in range(0, len(row), block):
        r, s = row[start : start + block], shop[start : start + block]
        pair, place = np.nonzero((ids[r] == gallery.image[s, None]) & (np.arange(ids.shape[1]) < count[r, None]))
        overlap = coco_iou(boxes(rows[r[pair]], place), gallery.bbox[s[pair]])
        right = overlap >= iou_threshold
        parts.append((r[pair][right], place[right], s[pair][right], overlap[right]))
    which, place, shop, overlap = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return which, place, shop, overlap


def _match_keys(queries: _Queries, gallery: _Gallery) -> tuple[np.ndarray, np.ndarray]:
    """One number for each (pair_id, style), the same on both sides."""
    _, pair = np.unique(np.concatenate([queries.pair, gallery.pair]), return_inverse=True)
    styles, style = np.unique(np.concatenate([queries.style, gallery.style]), return_inverse=True)
    key = pair * len(styles) + style
    return key[: len(queries.pair)], key[len(queries.pair) :]


def _truth(query_gt: Records, gallery_gt: Records) -> tuple[_Queries, _Gallery]:
    keys = ("bbox", "style", "pair_id")
    queries = _Queries(*columns_of(query_gt, ("query_image_id", *keys, "cls"), "query ground truth"))
    return queries, _Gallery(*columns_of(gallery_gt, ("gallery_image_id", *keys), "gallery ground truth"))
