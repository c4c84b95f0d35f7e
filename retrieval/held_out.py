"""How good an embedder is on garments it has not learnt from: the benchmark's own measure on true boxes, and its worst mistakes.

In: a model and `retrieval.training_crops.Garments`. Out: figures as `retrieval.metrics` has them. Queries are consumers'
garments of known identity, the gallery all shop garments given, so that what was learnt from is there to be confused with.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from retrieval import metrics
from retrieval.training_crops import Garments

TOP = max(metrics.KS)
GALLERY = (
    20_000  # shop garments besides the held-out ones that are searched at most, evenly spread: a measure costs seconds
)


@dataclass(frozen=True)
class Answers:
    """What was found.

    Attributes:
        queries: (Q,) rows of the garments that ask.
        gallery: (N,) rows of those that answer.
        ranked: (Q, K) rows of garments, best first, ties to the lower row.
        similarity: (Q, K) float32 cosine.
    """

    queries: np.ndarray
    gallery: np.ndarray
    ranked: np.ndarray
    similarity: np.ndarray


def answer(model: nn.Module, garments: Garments, *, device: str = "cpu", every: bool = False, k: int = TOP) -> Answers:
    """Rank the shop garments for each held-out consumer garment that has a shop photo; `every`: for each, held out or not."""
    shop = np.flatnonzero(garments.shop)
    related = np.isin(garments.identity, garments.identity[shop]) & (garments.identity >= 0)
    queries = np.flatnonzero(~garments.shop & related & (garments.held_out | every))
    kept = shop[garments.held_out[shop] | every]
    others = np.setdiff1d(shop, kept)
    gallery = np.sort(np.concatenate([kept, others[:: -(-len(others) // GALLERY) or 1]]))
    if not len(queries):
        return Answers(queries, gallery, np.zeros((0, 0), np.int64), np.zeros((0, 0), np.float32))
    asking, answering = (rows_of(model, garments, which, device) for which in (queries, gallery))
    similarity = asking @ answering.T
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    return Answers(queries, gallery, gallery[order], np.take_along_axis(similarity, order, axis=1))


def rows_of(model: nn.Module, garments: Garments, which: np.ndarray, device: str = "cpu") -> np.ndarray:
    """(n, D) float32 rows of garments, in evaluation mode."""
    model.eval()
    return np.concatenate([rows.float().cpu().numpy() for rows in _rows(model, garments, which, device)])


@torch.inference_mode()
def _rows(model: nn.Module, garments: Garments, which: np.ndarray, device: str, n: int = 32) -> Iterator[Tensor]:
    for start in range(0, len(which), n):
        out = model(garments.images(which[start : start + n], device=device))
        yield out[0] if isinstance(out, tuple) else out


def judge(garments: Garments, found: Answers, category_names: tuple[str, ...] = ()) -> dict[str, Any]:
    """`retrieval.metrics.evaluate`'s figures of these answers: "top", "missed", "queries", "per_category" …"""
    query_gt, gallery_gt = truth(garments, found)
    results = metrics.Results(
        garments.photo[found.queries],
        garments.bbox[found.queries],
        garments.category_id[found.queries],
        np.ones(len(found.queries)),
        garments.photo[found.ranked],
        garments.bbox[found.ranked].reshape(*found.ranked.shape, 4),
        np.full(len(found.queries), found.ranked.shape[1]),
    )
    return metrics.evaluate(results, query_gt, gallery_gt, category_names=category_names)


def truth(garments: Garments, found: Answers) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The official ground-truth lists of the garments asked for and searched; an identity is its own pair."""

    def common(row: int) -> dict[str, Any]:
        identity = int(garments.identity[row])
        return {"pair_id": identity + 1, "style": int(identity >= 0), "bbox": garments.bbox[row].tolist()}

    query_gt = [
        {"query_image_id": int(garments.photo[row]), "cls": int(garments.category_id[row]), **common(row)}
        for row in found.queries.tolist()
    ]
    gallery_gt = [{"gallery_image_id": int(garments.photo[row]), **common(row)} for row in found.gallery.tolist()]
    return query_gt, gallery_gt


def first_right(garments: Garments, found: Answers) -> np.ndarray:
    """(Q,) int64: at which place the first right garment of each query came, 1 and up; 0: not among those ranked."""
    right = garments.identity[found.ranked] == garments.identity[found.queries][:, None]
    return np.where(right.any(axis=1), right.argmax(axis=1) + 1, 0) if right.size else np.zeros(len(right), np.int64)


def worst(garments: Garments, found: Answers, n: int = 40) -> list[tuple[int, int, int, float]]:
    """The surest mistakes: (query, what came first, the best right one or -1, similarity of the first), surest first."""
    if not found.ranked.size:
        return []
    right = garments.identity[found.ranked] == garments.identity[found.queries][:, None]
    wrong = np.flatnonzero(~right[:, 0])
    order = wrong[np.argsort(-found.similarity[wrong, 0], kind="stable")][:n]
    picked = []
    for i in order.tolist():
        hits = np.flatnonzero(right[i])
        best = int(found.ranked[i, hits[0]]) if len(hits) else -1
        picked.append((int(found.queries[i]), int(found.ranked[i, 0]), best, float(found.similarity[i, 0])))
    return picked
