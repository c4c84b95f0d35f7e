"""What a run's rankings are judged by: true items where somebody drew boxes, else which photos show one product.

`truth_of` decides for a run as a whole. By item, the benchmark's rules (`retrieval.metrics`): a query is a true item of
a consumer photo with a style above 0, right answers are the shop's true items of its pair_id and style. By photo: a
query is a consumer photo with a pair_id or a product_id, right answers are shop photos by the rule of
`retrieval.photo_lists.PhotoIdentity`, and the lists of the photo's items are joined to one. Either way each query has
one list, and Acc@k, mAP, MRR and nDCG follow from `Judged`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from postproc.places import places
from retrieval import metrics
from retrieval.list_metrics import first_ranks, list_figures
from retrieval.photo_lists import PhotoIdentity, identities, is_right, join_photos, right_pairs
from retrieval.rankings import Rankings
from retrieval.results import Records, Results

COLUMNS = ("image_id", "source", "pair_id", "product_id", "items")  # of an image set: all that decides


@dataclass(frozen=True)
class Judged:
    """How the Q queries of a run were answered by R lists of K places."""

    lists: Rankings  # those that were judged: of items, or joined to one of each photo
    row: np.ndarray  # (Q,) int64, the list of each query; -1 where nothing was detected that stands for it
    found: np.ndarray  # (Q, K) bool, which places of its list hold a right answer that no earlier place holds
    relevant: np.ndarray  # (Q,) int64, how many right answers there are in the gallery
    right: np.ndarray  # (R, K) bool, every right result of every list, those that are there again included

    @property
    def first(self) -> np.ndarray:
        """(Q,) int64: the 1-based place of the first right result; 0 for none."""
        return first_ranks(self.found)


@dataclass(frozen=True)
class ItemTruth:
    """True items; `kind` is None where no consumer item has a style above 0, so that there is no query."""

    query_gt: Records  # as `retrieval.metrics` reads them; those of style 0 are no queries
    gallery_gt: Records

    @property
    def kind(self) -> str | None:
        return "item" if len(self.queries) else None

    @cached_property
    def queries(self) -> np.ndarray:
        """(Q,) int64 rows of `query_gt` that are queries."""
        return np.flatnonzero(np.array([entry["style"] for entry in self.query_gt], np.int64) > 0)

    @cached_property
    def photo(self) -> np.ndarray:
        """(Q,) int64: image_id of the consumer photo of each query."""
        return np.array([self.query_gt[row]["query_image_id"] for row in self.queries.tolist()], np.int64)

    def entry(self, query: int) -> Mapping[str, Any]:
        """What is known of a query, as in `query_gt`."""
        return self.query_gt[int(self.queries[query])]

    def lists(self, rankings: Rankings, length: int | None = None) -> Rankings:
        """The lists that are judged: these."""
        return rankings

    def judge(self, rankings: Rankings) -> Judged:
        k = rankings.results.gallery_image_id.shape[1]
        answers = metrics.answers(rankings.results, self.query_gt, self.gallery_gt, k=k)
        right = metrics.hits(rankings.results, self.query_gt, self.gallery_gt, k=k).right
        return Judged(rankings, answers.row, answers.found >= 0, answers.relevant, right)

    def right(self, results: Results) -> tuple[np.ndarray, np.ndarray]:
        """(R, K) bool, which results are right; (R,) bool, of which lists that is known: a query belongs to them."""
        judged = metrics.hits(results, self.query_gt, self.gallery_gt, k=results.gallery_image_id.shape[1])
        return judged.right, judged.item >= 0

    def figures(self, rankings: Rankings, category_names: Sequence[str]) -> dict[str, Any]:
        """Of one ranking as metrics.json has them: `retrieval.metrics.evaluate`'s, `truth`, `map`, `mrr`, `ndcg`."""
        results = rankings.results
        figures = metrics.evaluate(results, self.query_gt, self.gallery_gt, category_names=category_names)
        k = results.gallery_image_id.shape[1]
        answers = metrics.answers(results, self.query_gt, self.gallery_gt, k=k)
        return figures | {"truth": self.kind} | list_figures(answers.found >= 0, answers.relevant)


@dataclass(frozen=True)
class PhotoTruth:
    """Photos that show one product; the queries are consumer photos of which a pair_id or a product_id is known."""

    consumers: PhotoIdentity  # (Q,), all of them queries
    shops: PhotoIdentity

    kind = "photo"

    @property
    def photo(self) -> np.ndarray:
        """(Q,) int64: image_id of each query."""
        return self.consumers.image_id

    @cached_property
    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """All right answers: (M,) rows of the queries, (M,) rows of `shops`."""
        return right_pairs(self.consumers, self.shops)

    def entry(self, query: int) -> Mapping[str, Any]:
        """What is known of a query besides its photo: nothing."""
        return {}

    def lists(self, rankings: Rankings, length: int | None = None) -> Rankings:
        """The lists that are judged: one a consumer photo, cut or padded to `length` places (None: all there are)."""
        return join_photos(rankings, length)

    def judge(self, rankings: Rankings) -> Judged:
        lists = self.lists(rankings)
        results = lists.results
        row = places(results.query_image_id, self.photo)
        right, _ = self.right(results)
        found = np.zeros((len(row), right.shape[1]), bool)
        found[row >= 0] = right[row[row >= 0]]
        relevant = np.bincount(self.pairs[0], minlength=len(self.photo))
        return Judged(lists, row, found, relevant, right)

    def right(self, results: Results) -> tuple[np.ndarray, np.ndarray]:
        """(R, K) bool, which results are right; (R,) bool, of which lists that is known: their photo is a query."""
        query, shop = places(self.photo, results.query_image_id), places(self.shops.image_id, results.gallery_image_id)
        real = np.arange(shop.shape[1]) < results.gallery_count[:, None]
        right = real & (query >= 0)[:, None] & (shop >= 0)
        row, place = np.nonzero(right)
        right[row, place] = is_right(self.consumers, self.shops, query[row], shop[row, place])
        return right, query >= 0

    def figures(self, rankings: Rankings, category_names: Sequence[str] = ()) -> dict[str, Any]:
        """Of one ranking as metrics.json has them. A photo has no category, so `per_category` is empty."""
        judged = self.judge(rankings)
        first, n = judged.first, len(judged.row)
        top = {str(k): float(((first > 0) & (first <= k)).sum() / n) if n else None for k in metrics.KS}
        counts = {"missed": int((judged.row < 0).sum()), "queries": n, "per_category": {}, "per_attribute": {}}
        return {"top": top} | counts | {"truth": self.kind} | list_figures(judged.found, judged.relevant)


Truth = ItemTruth | PhotoTruth


def truth_of(photos: pa.Table, *, whole_photos: bool = False) -> Truth:
    """What the rankings over these photos, COLUMNS of an image set, are judged by.

    By item where any consumer photo has a true item with a style above 0; else by photo where any has a pair_id above 0
    or a product_id. Where neither is so, there is no query: an `ItemTruth` whose `kind` is None. With `whole_photos`,
    for runs without detectors, whose items have no category, only the second is asked.
    """
    by_item = ItemTruth([], []) if whole_photos else ItemTruth(*metrics.ground_truth(photos))
    if by_item.kind:
        return by_item
    known, source = identities(photos), np.asarray(photos["source"].to_pylist(), dtype=np.str_)
    consumers = known.rows((source == "user") & known.known)
    return PhotoTruth(consumers, known.rows(source == "shop")) if len(consumers) else by_item
