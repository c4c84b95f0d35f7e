"""How good an embedder is on garments it has not learnt from: Acc@k on true boxes, and its surest mistakes.

In: a model and `retrieval.training_crops.Garments`. Out: the figures of `retrieval.metrics`. Queries are consumers'
garments of known identity; the gallery also has shop garments that were learnt from, as things to confuse them with.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from retrieval import metrics
from retrieval.training_crops import Garments

BATCH = 32  # garments embedded at once
DISTRACTORS = 20_000  # at most so many shop garments besides the held-out ones: a measurement then takes seconds


@dataclass(frozen=True)
class HeldOutLists:
    """Ranked lists of Q held-out queries among N garments; garments are named by their rows in `Garments`."""

    queries: np.ndarray  # (Q,) int64
    gallery: np.ndarray  # (N,) int64
    ranked: np.ndarray  # (Q, K) int64, best first, ties to the lower row
    similarity: np.ndarray  # (Q, K) float32 cosine

    def __len__(self) -> int:
        return len(self.queries)


def rank(
    model: nn.Module, garments: Garments, *, device: str = "cpu", every: bool = False, k: int = max(metrics.KS)
) -> HeldOutLists:
    """Rank the shop garments, lists of `k`, for each held-out (or `every`) consumer garment that has a shop photo."""
    shop = np.flatnonzero(garments.shop)
    related = np.isin(garments.identity, garments.identity[shop]) & (garments.identity >= 0)
    queries = np.flatnonzero(~garments.shop & related & (garments.held_out | every))
    held_out = shop[garments.held_out[shop] | every]
    others = np.setdiff1d(shop, held_out)
    gallery = np.sort(np.concatenate([held_out, others[:: -(-len(others) // DISTRACTORS) or 1]]))
    if not len(queries):
        return HeldOutLists(queries, gallery, np.zeros((0, 0), np.int64), np.zeros((0, 0), np.float32))
    similarity = embed(model, garments, queries, device) @ embed(model, garments, gallery, device).T
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    return HeldOutLists(queries, gallery, gallery[order], np.take_along_axis(similarity, order, axis=1))


@torch.inference_mode()
def embed(model: nn.Module, garments: Garments, rows: np.ndarray, device: str = "cpu") -> np.ndarray:
    """(n, D) float32 embeddings of garments, in evaluation mode."""
    model.eval()
    batches = (rows[start : start + BATCH] for start in range(0, len(rows), BATCH))
    outputs = (model(garments.images(batch, device=device)) for batch in batches)
    return np.concatenate([(out[0] if isinstance(out, tuple) else out).float().cpu().numpy() for out in outputs])


def evaluate(garments: Garments, lists: HeldOutLists, category_names: tuple[str, ...] = ()) -> dict[str, Any]:
    """`retrieval.metrics.evaluate`'s figures of the lists: "top", "missed", "queries", "per_category" …"""
    query_gt, gallery_gt = ground_truth(garments, lists)
    results = metrics.Results(
        garments.photo[lists.queries],
        garments.bbox[lists.queries],
        garments.category_id[lists.queries],
        np.ones(len(lists)),
        garments.photo[lists.ranked],
        garments.bbox[lists.ranked].reshape(*lists.ranked.shape, 4),
        np.full(len(lists), lists.ranked.shape[1]),
    )
    return metrics.evaluate(results, query_gt, gallery_gt, category_names=category_names)


def ground_truth(garments: Garments, lists: HeldOutLists) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The official ground-truth lists of queries and gallery; an identity is its own pair."""

    def common(row: int) -> dict[str, Any]:
        identity = int(garments.identity[row])
        return {"pair_id": identity + 1, "style": int(identity >= 0), "bbox": garments.bbox[row].tolist()}

    photo, cls = garments.photo.tolist(), garments.category_id.tolist()
    query_gt = [{"query_image_id": photo[row], "cls": cls[row], **common(row)} for row in lists.queries.tolist()]
    gallery_gt = [{"gallery_image_id": int(garments.photo[row]), **common(row)} for row in lists.gallery.tolist()]
    return query_gt, gallery_gt


def first_hit_ranks(garments: Garments, lists: HeldOutLists) -> np.ndarray:
    """(Q,) int64: the place of each query's first right garment, from 1; 0 where none is ranked."""
    right = _right(garments, lists)
    return np.where(right.any(axis=1), right.argmax(axis=1) + 1, 0) if right.size else np.zeros(len(right), np.int64)


def surest_mistakes(garments: Garments, lists: HeldOutLists, n: int = 40) -> list[tuple[int, int, int, float]]:
    """(query, garment ranked first, best right one or -1, similarity of the first), highest similarity first."""
    if not lists.ranked.size:
        return []
    right = _right(garments, lists)
    wrong = np.flatnonzero(~right[:, 0])
    mistakes = []
    for i in wrong[np.argsort(-lists.similarity[wrong, 0], kind="stable")][:n].tolist():
        best = int(lists.ranked[i, right[i].argmax()]) if right[i].any() else -1
        mistakes.append((int(lists.queries[i]), int(lists.ranked[i, 0]), best, float(lists.similarity[i, 0])))
    return mistakes


def _right(garments: Garments, lists: HeldOutLists) -> np.ndarray:
    """(Q, K) bool, whether a ranked garment is of the query's identity."""
    same: np.ndarray = garments.identity[lists.ranked] == garments.identity[lists.queries][:, None]
    return same
