"""Questions to a gallery: rows of garments and of texts in, the shop items most like each out.

In: `PhotoGarments`, as the models in a process of their own give them (`infer`), and an open gallery. Out: records of
`answers`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.gallery.answers import Answer, FoundGarment, Hit

if TYPE_CHECKING:
    from retrieval.gallery import Gallery  # FAISS

NOTHING: dict[str, Any] = {  # of `PhotoGarments`, without garments
    "photo": np.zeros(0, np.int64), "bbox": np.zeros((0, 4), np.float32), "score": np.zeros(0, np.float32),
    "category_id": np.zeros(0, np.int16), "vectors": np.zeros((0, 0), np.float32),
}  # fmt: skip


@dataclass(frozen=True)
class PhotoGarments:
    """The garments of some photos, photo by photo, the surest first."""

    photo: np.ndarray  # (N,) int64, the number of each garment's photo
    bbox: np.ndarray  # (N, 4) float32, px x1 y1 x2 y2 of the upright photo
    score: np.ndarray  # (N,) float32
    category_id: np.ndarray  # (N,) int16
    vectors: np.ndarray  # (N, D) float32, the embedders' unit rows side by side in the settings' order
    failed: Mapping[int, str]  # number of a photo -> why it has no garments
    # (T, D) float32, of the texts asked with, the embedders' unit rows side by side like `vectors`
    texts: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))

    def __len__(self) -> int:
        return len(self.photo)

    def at_least(self, score: float) -> "PhotoGarments":
        """Those that the detectors give this score or more."""
        return self.select(np.flatnonzero(self.score >= score))

    def select(self, rows: np.ndarray) -> "PhotoGarments":
        columns = {name: getattr(self, name)[rows] for name in NOTHING}
        return PhotoGarments(**columns, failed=self.failed, texts=self.texts)


def ask(gallery: "Gallery", queries: PhotoGarments, top: int, category_id: int | None) -> dict[int, list[FoundGarment]]:
    """The shop items for every garment, by the photo's number; the surest garment first.

    `category_id` keeps the garments of one category, None all. A GalleryError says that the vectors do not fit the
    gallery.
    """
    if category_id is not None:
        queries = queries.select(np.flatnonzero(queries.category_id == category_id))
    if not len(queries):
        return {}
    similarity, ids = gallery.search(queries.vectors, top, category=queries.category_id.astype(np.int64))
    garments: dict[int, list[FoundGarment]] = {}
    for row in range(len(queries)):
        bbox, score = tuple(queries.bbox[row].tolist()), float(queries.score[row])
        hits = hits_of(gallery, similarity[row], ids[row])
        garment = FoundGarment(bbox, score, int(queries.category_id[row]), hits)
        garments.setdefault(int(queries.photo[row]), []).append(garment)
    return garments


def ask_in_words(
    gallery: "Gallery", texts: list[str], vectors: np.ndarray, top: int, category_id: int | None
) -> list[Answer]:
    """The shop items for every text; `vectors` (T, D) are the texts' embeddings.

    With a `category_id` the gallery is searched deeper and deeper until each text has `top` items of that category, or
    the whole gallery was searched.
    """
    category, k = np.full(len(texts), category_id or 0), top  # 0: a text of no category
    while True:
        similarity, ids = gallery.search(vectors, k, category=category)  # the category weighs, `hits_of` filters
        found = [hits_of(gallery, *row, category_id)[:top] for row in zip(similarity, ids, strict=True)]
        if category_id is None or k >= len(gallery) or all(len(hits) == top for hits in found):
            return [Answer("", b"", [], text=text, hits=hits) for text, hits in zip(texts, found, strict=True)]
        k = min(4 * k, len(gallery))


def hits_of(gallery: "Gallery", similarity: np.ndarray, ids: np.ndarray, category_id: int | None = None) -> list[Hit]:
    """One query's shop items, best first; of one category alone, if one is given."""
    items = [(value, item) for value, item in zip(similarity.tolist(), gallery.lookup(ids), strict=True) if item]
    kept = [(value, item) for value, item in items if category_id in (None, item["category_id"])]
    return [Hit(rank, value, item) for rank, (value, item) in enumerate(kept, 1)]


def mixed(queries: PhotoGarments, dims: Sequence[int], weight: float) -> PhotoGarments:
    """The garments' rows averaged with those of the one text: each model's part apart, at unit length again.

    `dims` are the widths of the models' parts; `weight` in [0, 1] is the text's.
    """
    both = (1 - weight) * queries.vectors + weight * queries.texts
    parts = np.split(both, np.cumsum(dims)[:-1], axis=1)
    units = [part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12) for part in parts]
    return dataclasses.replace(queries, vectors=np.concatenate(units, axis=1).astype(np.float32))
