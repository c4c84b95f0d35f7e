"""The lists of a photo's items joined to one list of the photo, and what makes a shop photo right for it.

In: the result lists of detected garments, a row each; what the image set says of the photos. Out: lists with one row a
consumer photo, in which each shop photo stands once.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from postproc.places import spans
from retrieval.rankings import Rankings
from retrieval.results import Results


def join_photos(rankings: Rankings, length: int | None = None) -> Rankings:
    """One list a consumer photo: its items' lists joined, of each shop photo the box with the best similarity.

    Shop photos are ordered by falling similarity; equal ones by the place in the item's list, then by lower image_id,
    then by the earlier row of `rankings`. The photo's row has the box, category and score of its item with the highest
    score, the first of equals. Joined lists come out as they are.

    Args:
        rankings: R lists of items; similarities fall along each list.
        length: places of each list, cut or padded to it; None: as long as the longest list.

    Returns:
        (P,) rows, one for each photo with a row in `rankings`, in the order of their first rows. A list may be longer
        than those it was joined from.
    """
    results = rankings.results
    row, place = np.nonzero(np.arange(results.gallery_image_id.shape[1]) < results.gallery_count[:, None])
    _, first_row, owner = np.unique(results.query_image_id, return_index=True, return_inverse=True)
    number = np.argsort(np.argsort(first_row))  # of each photo, in the order of the first rows
    owner = number[owner] if len(owner) else owner
    shop, similarity = results.gallery_image_id[row, place], rankings.similarity[row, place]
    order = np.lexsort((row, shop, place, -similarity, owner[row]))
    shops, shop_number = np.unique(shop[order], return_inverse=True)
    _, kept = np.unique(owner[row[order]] * len(shops) + shop_number, return_index=True)  # the first is the best
    kept = order[np.sort(kept)]
    row, place = row[kept], place[kept]

    counts = np.bincount(owner[row], minlength=len(first_row))
    width = max([*counts.tolist(), 1]) if length is None else length
    at = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    inside = at < width
    row, place, at = row[inside], place[inside], at[inside]
    best = np.lexsort((-results.query_score, owner))  # stable: of equal scores the earlier row comes first
    asked = best[np.searchsorted(owner[best], np.arange(len(first_row)))] if len(best) else best

    def listed(values: np.ndarray) -> np.ndarray:
        table = np.zeros((len(first_row), width, *values.shape[2:]), values.dtype)
        table[owner[row], at] = values[row, place]
        return table

    joined = Results(
        query_image_id=results.query_image_id[asked],
        query_bbox=results.query_bbox[asked],
        query_cls=results.query_cls[asked],
        query_score=results.query_score[asked],
        gallery_image_id=listed(results.gallery_image_id),
        gallery_bbox=listed(results.gallery_bbox),
        gallery_count=np.minimum(counts, width),
        hypotheses=None if results.hypotheses is None else results.hypotheses[asked],
    )
    items = rankings.query_item[asked], listed(rankings.gallery_item), listed(rankings.similarity)
    return Rankings(joined, *items)


@dataclass(frozen=True)
class PhotoIdentity:
    """What joins photos of one product, a row a photo.

    A shop photo is right for a consumer photo when both have a pair_id above 0 and these are equal. Where one of them
    has no pair_id above 0, it is right when the product_ids are equal and not empty. So two pair_ids above 0 decide
    alone: photos of one product_id with different pair_ids are not right for each other.
    """

    image_id: np.ndarray  # (N,) int64
    pair_id: np.ndarray  # (N,) int64, 0 for unknown
    product: np.ndarray  # (N,) int64, number of the product_id, the same on both sides; -1 for an empty one

    def __len__(self) -> int:
        return len(self.image_id)

    def rows(self, chosen: np.ndarray) -> "PhotoIdentity":
        return PhotoIdentity(self.image_id[chosen], self.pair_id[chosen], self.product[chosen])

    @property
    def known(self) -> np.ndarray:
        """(N,) bool: whether a pair_id or a product_id says what else shows the same product."""
        return (self.pair_id > 0) | (self.product >= 0)


def identities(photos: pa.Table) -> PhotoIdentity:
    """From the columns image_id, pair_id and product_id of an image set, rows in its order."""
    numbers: dict[str, int] = {"": -1}
    product = [numbers.setdefault(name or "", len(numbers)) for name in photos["product_id"].to_pylist()]
    return PhotoIdentity(photos["image_id"].to_numpy(), photos["pair_id"].to_numpy(), np.array(product, np.int64))


def is_right(queries: PhotoIdentity, shops: PhotoIdentity, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """Whether shop photos j are right for consumer photos i, by `PhotoIdentity`'s rule; i and j broadcast together."""
    pair, other = queries.pair_id[i], shops.pair_id[j]
    product, other_product = queries.product[i], shops.product[j]
    return np.where((pair > 0) & (other > 0), pair == other, (product >= 0) & (product == other_product))


def right_pairs(queries: PhotoIdentity, shops: PhotoIdentity) -> tuple[np.ndarray, np.ndarray]:
    """All right answers: (M,) rows of `queries` and (M,) rows of `shops`, by query, then by shop."""
    pairs = [_equal(queries.pair_id, shops.pair_id, 1), _equal(queries.product, shops.product, 0)]
    query, shop = (np.concatenate(columns) for columns in zip(*pairs, strict=True))
    by_product = np.arange(len(query)) >= len(pairs[0][0])
    both_paired = (queries.pair_id[query] > 0) & (shops.pair_id[shop] > 0)
    kept = ~(by_product & both_paired)
    query, shop = query[kept], shop[kept]
    order = np.lexsort((shop, query))
    return query[order], shop[order]


def _equal(ours: np.ndarray, theirs: np.ndarray, least: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of both with equal values of at least `least`."""
    a, b = np.flatnonzero(ours >= least), np.flatnonzero(theirs >= least)
    b = b[np.argsort(theirs[b], kind="stable")]
    row, position = spans(theirs[b], ours[a])
    return a[row], b[position]
