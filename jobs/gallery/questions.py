"""Questions to a gallery: rows of garments and of texts in, the shop items most like each out.

In: `PhotoGarments`, as the models in a process of their own give them (`infer`), and an open gallery. Out: records of
`answers`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.gallery.answers import Answer, FoundGarment, Hit, likely_ids
from postproc.boxes import iou_with
from postproc.hypotheses import Hypotheses
from postproc.nms import nms

if TYPE_CHECKING:
    from retrieval.gallery import Category, Gallery  # FAISS

# Overlap (IoU) above which boxes are of one garment, whatever their categories: on ccp_df2 val, of 31 pairs of detected
# boxes with at least this overlap one lay on two garments, and of 52 pairs with 0.5 to 0.6 twelve
SAME_GARMENT = 0.6

NOTHING: dict[str, Any] = {  # of `PhotoGarments`, without garments
    "photo": np.zeros(0, np.int64), "bbox": np.zeros((0, 4), np.float32), "score": np.zeros(0, np.float32),
    "category_id": np.zeros(0, np.int16), "hypothesis_id": np.zeros((0, 1), np.int64),
    "hypothesis_score": np.zeros((0, 1), np.float32), "vectors": np.zeros((0, 0), np.float32),
}  # fmt: skip


@dataclass(frozen=True)
class PhotoGarments:
    """The garments of some photos, photo by photo, the surest first."""

    photo: np.ndarray  # (N,) int64, the number of each garment's photo
    bbox: np.ndarray  # (N, 4) float32, px x1 y1 x2 y2 of the upright photo
    score: np.ndarray  # (N,) float32
    category_id: np.ndarray  # (N,) int16
    hypothesis_id: np.ndarray  # (N, H) int64, categories that each may have, its own first; 0 for none
    hypothesis_score: np.ndarray  # (N, H) float32, their scores
    vectors: np.ndarray  # (N, D) float32, the embedders' unit rows side by side in the settings' order
    failed: Mapping[int, str]  # number of a photo -> why it has no garments
    # (T, D) float32, of the texts asked with, the embedders' unit rows side by side like `vectors`
    texts: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))

    def __len__(self) -> int:
        return len(self.photo)

    def at_least(self, score: float) -> "PhotoGarments":
        """Those that the detectors give this score or more."""
        return self.select(np.flatnonzero(self.score >= score))

    def hypotheses(self, row: int) -> tuple[tuple[int, float], ...]:
        """Category ids that a garment may have, and their scores."""
        pairs = zip(self.hypothesis_id[row].tolist(), self.hypothesis_score[row].tolist(), strict=True)
        return tuple((id_, value) for id_, value in pairs if id_)

    def likely(self, row: int) -> list[int]:
        """Category ids of what a garment is likely to be."""
        return likely_ids(int(self.category_id[row]), self.hypotheses(row))

    def select(self, rows: np.ndarray) -> "PhotoGarments":
        columns = {name: getattr(self, name)[rows] for name in NOTHING}
        return PhotoGarments(**columns, failed=self.failed, texts=self.texts)


def ask(
    gallery: "Gallery", queries: PhotoGarments, top: int, category_id: int | None, *, every: bool = False
) -> dict[int, list[FoundGarment]]:
    """The shop items for every garment, by the photo's number; the surest garment first.

    Boxes of a photo that overlap more than SAME_GARMENT are one garment, of which the surest stays. `category_id` keeps
    the garments that are likely to be of one category (`likely_ids`), and is theirs in the search, for certain; None
    keeps all, each of which is searched for with its hypotheses. `every`: all pictures of a product instead of the
    best. A GalleryError says that the vectors do not fit the gallery.
    """
    if category_id is not None:
        queries = queries.select(np.flatnonzero([category_id in queries.likely(row) for row in range(len(queries))]))
    queries = queries.select(_one_a_garment(queries))
    if not len(queries):
        return {}
    category: Category = Hypotheses(queries.hypothesis_id, queries.hypothesis_score)
    if category_id is not None:
        category = np.full(len(queries), category_id)
    found = _search(gallery, queries.vectors, category, top, every=every)
    garments: dict[int, list[FoundGarment]] = {}
    for row, hits in enumerate(found):
        bbox, score = tuple(queries.bbox[row].tolist()), float(queries.score[row])
        garment = FoundGarment(bbox, score, int(queries.category_id[row]), hits, queries.hypotheses(row))
        garments.setdefault(int(queries.photo[row]), []).append(garment)
    return garments


def ask_in_words(
    gallery: "Gallery",
    texts: list[str],
    vectors: np.ndarray,
    top: int,
    category_id: int | None,
    *,
    every: bool = False,
) -> list[Answer]:
    """The shop items for every text, of one category if an id is given; `vectors` (T, D) are the texts' embeddings."""
    category = np.full(len(texts), category_id or 0)  # 0: a text of no category
    found = _search(gallery, vectors, category, top, category_id, every=every)
    return [Answer("", b"", [], text=text, hits=hits) for text, hits in zip(texts, found, strict=True)]


def _search(
    gallery: "Gallery",
    vectors: np.ndarray,
    category: "Category",
    top: int,
    category_id: int | None = None,
    *,
    every: bool,
) -> list[list[Hit]]:
    """Each query's first `top` hits. The gallery is searched deeper and deeper until each query has as many of those
    that are kept, or the whole gallery was searched."""
    k = top
    while True:
        similarity, ids = gallery.search(vectors, k, category=category)  # the category weighs, `hits_of` filters
        found = [hits_of(gallery, *row, category_id, every)[:top] for row in zip(similarity, ids, strict=True)]
        whole = every and category_id is None  # nothing is left out
        if whole or k >= len(gallery) or all(len(hits) == top for hits in found):
            return found
        k = min(4 * k, len(gallery))


def hits_of(
    gallery: "Gallery", similarity: np.ndarray, ids: np.ndarray, category_id: int | None = None, every: bool = False
) -> list[Hit]:
    """One query's shop items, best first; of one category alone, if one is given; of each product one, or `every`."""
    items = [(value, item) for value, item in zip(similarity.tolist(), gallery.lookup(ids), strict=True) if item]
    kept = [(value, item) for value, item in items if category_id is None or category_id in _likely(item)]
    if not every:
        kept = _one_a_product(kept)
    return [Hit(rank, value, item) for rank, (value, item) in enumerate(kept, 1)]


def _likely(item: Mapping[str, Any]) -> list[int]:
    """Category ids of what a shop item is likely to be; versions of earlier releases know its own alone."""
    hypotheses = [(one["category_id"], one["score"]) for one in item.get("hypotheses") or ()]
    return likely_ids(item["category_id"], hypotheses)


def _one_a_product(items: Sequence[tuple[float, dict[str, Any]]]) -> list[tuple[float, dict[str, Any]]]:
    """The first of each product; where a photo has none, the first of its boxes that overlap more than SAME_GARMENT."""
    products: set[str] = set()
    boxes: dict[int, list[Sequence[float]]] = {}
    kept = []
    for value, item in items:
        product, bbox, shown = item["product_id"], item["bbox"], boxes.setdefault(item["image_id"], [])
        if product in products:
            continue
        if product:
            products.add(product)
        elif shown and iou_with(np.array(shown), np.array(bbox)).max() > SAME_GARMENT:
            continue
        else:
            shown.append(bbox)
        kept.append((value, item))
    return kept


def _one_a_garment(queries: PhotoGarments) -> np.ndarray:
    """(K,) int64 rows, rising: of boxes of a photo that overlap more than SAME_GARMENT the surest."""
    kept = [np.zeros(0, np.int64)]
    for photo in np.unique(queries.photo):
        rows = np.flatnonzero(queries.photo == photo)
        kept.append(rows[nms(queries.bbox[rows], queries.score[rows], iou_threshold=SAME_GARMENT)])
    return np.sort(np.concatenate(kept))


def mixed(queries: PhotoGarments, dims: Sequence[int], weight: float) -> PhotoGarments:
    """The garments' rows averaged with those of the one text: each model's part apart, at unit length again.

    `dims` are the widths of the models' parts; `weight` in [0, 1] is the text's.
    """
    both = (1 - weight) * queries.vectors + weight * queries.texts
    parts = np.split(both, np.cumsum(dims)[:-1], axis=1)
    units = [part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12) for part in parts]
    return dataclasses.replace(queries, vectors=np.concatenate(units, axis=1).astype(np.float32))
