"""Which searches are tried, and what one of them is worth: the retrieval half of the ablation.

In: the models of a run and `Data`. Out: variants, each a whole list of `search.steps`, and for each the rank of the first right
result of every query, the seconds of its steps and the memory it took. Nothing here knows of Ray or of files.
"""

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jobs.ablation.folder import Data
from retrieval import steps
from retrieval.metrics import KS, Results, first_hit_ranks, hits

# The order in which a search's parts stand; a variant changes one of them.
SLOTS = (
    "views", "each", "join", "power", "project", "dba", "qe", "rank", "score", "category", "group",
)  # fmt: skip


@dataclass(frozen=True)
class Option:
    """One technique with its parameters: what it puts into which slot of a search.

    Attributes:
        name: what the table calls it. slot: one of SLOTS.
        steps: entries of `search.steps`. weights: of the models that are joined, with slot `join`.
    """

    name: str
    slot: str
    steps: tuple[Mapping[str, Any], ...]
    weights: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Variant:
    """A search to be judged: options of different slots, laid over the plain concatenation of all models."""

    name: str
    options: tuple[Option, ...] = ()

    def steps(self, models: Sequence[str]) -> list[dict[str, Any]]:
        """The entries of `search.steps`, in their order."""
        chosen: dict[str, tuple[Mapping[str, Any], ...]] = {"join": ({"step": "concat"},)} if len(models) > 1 else {}
        if any("@" in name for name in models):
            chosen["views"] = ()
        chosen |= {option.slot: option.steps for option in self.options}
        return [dict(entry) for slot in SLOTS for entry in chosen.get(slot, ())]

    @property
    def weights(self) -> tuple[float, ...] | None:
        return next((option.weights for option in self.options if option.weights is not None), None)


def options(models: Sequence[str], dims: Mapping[str, int], kind: str, *, has_products: bool) -> list[Option]:
    """Every technique on its own, at the parameters of its paper and some about them.

    Args:
        models: the embedders, views included. dims: their numbers a row. kind: of boxes.
        has_products: whether the gallery knows product ids.
    """
    views = any("@" in name for name in models)
    joined = steps.bases(models) if views else list(models)
    dim = sum(dims[name] for name in joined if name in dims) or sum(dims.values())
    found = [Option("views", "views", ({"step": "views"},))] if views else []
    if len(joined) > 1:
        for i, name in enumerate(joined):
            others = tuple(0.0 if j == i else 1.0 for j in range(len(joined)))
            twice = tuple(2.0 if j == i else 1.0 for j in range(len(joined)))
            found.append(Option(f"without {name}", "join", ({"step": "concat"},), others))
            found.append(Option(f"{name} twice", "join", ({"step": "concat"},), twice))
        for method in ("rrf", "combsum", "combmnz"):
            found.append(Option(method, "join", ({"step": "rank_fusion", "method": method},)))
    found += [
        Option("each whitened", "each", ({"step": "whiten"},)),
        Option("power 0.5", "power", ({"step": "power", "alpha": 0.5},)),
        Option("power 0.7", "power", ({"step": "power", "alpha": 0.7},)),
    ]
    for share in (2, 4, 8):
        if dim // share >= 16:
            found.append(Option(f"pca {dim // share}", "project", ({"step": "pca", "dim": dim // share},)))
            found.append(Option(f"whiten {dim // share}", "project", ({"step": "whiten", "dim": dim // share},)))
    found += [
        Option("whiten", "project", ({"step": "whiten"},)),
        Option("half whitened", "project", ({"step": "whiten", "power": 0.5},)),
        *(Option(f"dba {k}", "dba", ({"step": "dba", "k": k},)) for k in (1, 3, 5)),
        Option("dba 5, by similarity", "dba", ({"step": "dba", "k": 5, "weights": "similarity"},)),
        *(Option(f"average qe {k}", "qe", ({"step": "average_qe", "k": k},)) for k in (1, 3)),
        *(Option(f"alpha qe {k}", "qe", ({"step": "alpha_qe", "k": k},)) for k in (1, 3, 10)),
        Option("k-reciprocal 20, 6, 0.3", "rank", ({"step": "k_reciprocal"},)),
        Option("k-reciprocal 10, 3, 0.5", "rank", ({"step": "k_reciprocal", "k1": 10, "k2": 3, "lambda": 0.5},)),
        Option("diffusion", "rank", ({"step": "diffusion"},)),
        Option("category, soft 0.1", "category", ({"step": "category", "rule": "soft", "penalty": 0.1},)),
        Option("category, hard", "category", ({"step": "category", "rule": "hard"},)),
        Option("one result a photo", "group", ({"step": "group", "by": "image"},)),
    ]
    if kind == "detected":
        found += [
            Option(f"detector score {w:g}", "score", ({"step": "detector_score", "weight": w},)) for w in (0.05, 0.2)
        ]
    if has_products:
        found.append(Option("one result a product", "group", ({"step": "group", "by": "product"},)))
    return found


def possible(variant: Variant, models: Sequence[str]) -> bool:
    """Whether these options go together."""
    try:
        steps.parse(variant.steps(models), models)
    except ValueError:
        return False
    return len({option.slot for option in variant.options}) == len(variant.options)


def judge(
    data: Data, entries: Sequence[Mapping[str, Any]], weights: Sequence[float] | None, pool: int
) -> dict[str, Any]:
    """Carry out a search on stored rows.

    Args:
        entries, weights, pool: as `search.steps`, `search.weights`, `search.pool`.

    Returns:
        ranks: of the first right result of each query asked, 1 to 20, 0 for none, in the truth's order.
        seconds: [step, seconds] in order, "search" last; peak_mb: how much memory the process took on top of the rows (10^6 bytes).
    """
    before = _begin_peak()
    start = time.perf_counter()
    fitted = steps.fit(steps.parse(entries, list(data.gallery)), data.gallery, weights)
    rows, _ = fitted.ask(data.queries, data.query_category, data.facts, top_k=max(KS), pool=pool)
    whole = time.perf_counter() - start
    peak = _peak_mb() - before
    spent = [[step.name, round(fitted.seconds.get(i, 0.0), 4)] for i, step in enumerate(fitted.steps)]
    rest = whole - sum(fitted.seconds.values())
    ranks = first_hit_ranks(results(data, rows), data.query_gt, data.gallery_gt, k=max(KS))
    return {
        "ranks": ranks.tolist(),
        "seconds": [*spent, ["search", round(rest, 4)]],
        "peak_mb": round(max(0.0, peak), 1),
    }


def results(data: Data, rows: np.ndarray) -> Results:
    """Lists of gallery rows (Q, K), -1 for none, as the metric wants them."""
    found = rows >= 0
    images = np.where(found, data.gallery_image[rows] if len(data.gallery_image) else 0, 0)
    boxes = np.zeros((*rows.shape, 4))
    boxes[found] = data.gallery_bbox[rows[found]]
    return Results(
        query_image_id=data.query_image, query_bbox=data.query_bbox, query_cls=data.query_category,
        query_score=data.query_score, gallery_image_id=images, gallery_bbox=boxes, gallery_count=found.sum(axis=1),
    )  # fmt: skip


def standing_items(data: Data) -> np.ndarray:
    """(A,) int64: the item number of the box that stands for each query asked, -1 where none does; no search changes it."""
    nothing = results(data, np.full((len(data.query_image), 1), -1, np.int64))
    found = hits(nothing, data.query_gt, data.gallery_gt, k=1)
    item = np.full(len(data.query_gt), -1, np.int64)
    item[found.item[found.stands]] = data.query_item[found.stands]
    return item[data.asked]


def _begin_peak() -> float:
    """Forget the highest memory so far, where the system lets us; MB resident now."""
    from jobs import run_log

    with contextlib.suppress(OSError):  # not Linux, or not allowed: the peak may then be an earlier one's
        Path("/proc/self/clear_refs").write_text("5")
    return float(run_log.memory()["rss_mb"])


def _peak_mb() -> float:
    from jobs import run_log

    return float(run_log.memory()["peak_mb"])
