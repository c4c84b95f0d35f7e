"""The retrieval half of the ablation: which searches are tried, what one is worth, which techniques go together.

In: the models of a run and its `SearchData`. Out: variants, each a whole list of `search.steps`; for each the rank
of the first right result of every query, the seconds of its steps and the memory it took; rows of ablation.parquet.
"""

import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from jobs.ablation import verdict
from jobs.ablation.bench import Bench, matches
from jobs.runs import events
from jobs.runs.finished import SearchData
from jobs.runs.progress import say
from retrieval import steps
from retrieval.rankings import Rankings
from retrieval.results import Results

# The order in which a search's parts stand; a variant changes one of them.
SLOTS = ("views", "each", "join", "power", "project", "dba", "qe", "rank", "score", "category", "group")
JUDGE_NAME = "jobs.ablation.ranking.judge"  # part of stored answers' names


@dataclass(frozen=True)
class Technique:
    """One technique with its parameters: what it puts into which slot of a search."""

    name: str  # as in the table
    slot: str  # one of SLOTS
    steps: tuple[Mapping[str, Any], ...]  # entries of `search.steps`
    weights: tuple[float, ...] | None = None  # of the models that are joined, with slot `join`


@dataclass(frozen=True)
class Variant:
    """A search to be judged: techniques of different slots, laid over the plain concatenation of all models."""

    name: str
    techniques: tuple[Technique, ...] = ()

    def steps(self, models: Sequence[str]) -> list[dict[str, Any]]:
        """The entries of `search.steps`, in their order."""
        chosen: dict[str, tuple[Mapping[str, Any], ...]] = {"join": ({"step": "concat"},)} if len(models) > 1 else {}
        if any("@" in name for name in models):
            chosen["views"] = ()
        chosen |= {technique.slot: technique.steps for technique in self.techniques}
        return [dict(entry) for slot in SLOTS for entry in chosen.get(slot, ())]

    @property
    def weights(self) -> tuple[float, ...] | None:
        return next((technique.weights for technique in self.techniques if technique.weights is not None), None)

    def is_possible(self, models: Sequence[str]) -> bool:
        """Whether its techniques go together."""
        try:
            steps.parse(self.steps(models), models)
        except ValueError:
            return False
        return len({technique.slot for technique in self.techniques}) == len(self.techniques)


def techniques(models: Sequence[str], dims: Mapping[str, int], kind: str, *, has_products: bool) -> list[Technique]:
    """Every technique on its own, with the parameters of its paper and some around them.

    `models` are the embedders, views included, `dims` the dimensions of their embeddings; `kind` of boxes is `detected`
    or `true`; `has_products`: the gallery knows product ids.
    """
    views = any("@" in name for name in models)
    joined = steps.bases(models) if views else list(models)
    dim = sum(dims[name] for name in joined if name in dims) or sum(dims.values())
    tried = [Technique("views", "views", ({"step": "views"},))] if views else []
    if len(joined) > 1:
        for name in joined:
            for title, weight in ((f"without {name}", 0.0), (f"{name} twice", 2.0)):
                weights = tuple(weight if other == name else 1.0 for other in joined)
                tried.append(Technique(title, "join", ({"step": "concat"},), weights))
        for method in ("rrf", "combsum", "combmnz"):
            tried.append(Technique(method, "join", ({"step": "rank_fusion", "method": method},)))
    narrower = product([dim // share for share in (2, 4, 8) if dim // share >= 16], ("pca", "whiten"))
    tried += [
        Technique("each whitened", "each", ({"step": "whiten"},)),
        *(Technique(f"power {alpha}", "power", ({"step": "power", "alpha": alpha},)) for alpha in (0.5, 0.7)),
        *(Technique(f"{step} {n}", "project", ({"step": step, "dim": n},)) for n, step in narrower),
        Technique("whiten", "project", ({"step": "whiten"},)),
        Technique("half whitened", "project", ({"step": "whiten", "power": 0.5},)),
        *(Technique(f"dba {k}", "dba", ({"step": "dba", "k": k},)) for k in (1, 3, 5)),
        Technique("dba 5, by similarity", "dba", ({"step": "dba", "k": 5, "weights": "similarity"},)),
        *(Technique(f"average qe {k}", "qe", ({"step": "average_qe", "k": k},)) for k in (1, 3)),
        *(Technique(f"alpha qe {k}", "qe", ({"step": "alpha_qe", "k": k},)) for k in (1, 3, 10)),
        Technique("k-reciprocal 20, 6, 0.3", "rank", ({"step": "k_reciprocal"},)),
        Technique("k-reciprocal 10, 3, 0.5", "rank", ({"step": "k_reciprocal", "k1": 10, "k2": 3, "lambda": 0.5},)),
        Technique("diffusion", "rank", ({"step": "diffusion"},)),
        *(
            Technique(f"category, soft {p}", "category", ({"step": "category", "rule": "soft", "penalty": p},))
            for p in (0.02, 0.05, 0.1)  # the first is the default
        ),
        Technique("category, hard", "category", ({"step": "category", "rule": "hard"},)),
        Technique("one result a photo", "group", ({"step": "group", "by": "image"},)),
    ]
    if kind == "detected":
        scores = [{"step": "detector_score", "weight": weight} for weight in (0.05, 0.2)]
        tried += [Technique(f"detector score {step['weight']:g}", "score", (step,)) for step in scores]
    if has_products:
        tried.append(Technique("one result a product", "group", ({"step": "group", "by": "product"},)))
    return tried


# --- one search, judged in a task -------------------------------------------------------------------------------------
def judge(
    data: SearchData, entries: Sequence[Mapping[str, Any]], weights: Sequence[float] | None, pool: int
) -> dict[str, Any]:
    """Search the stored embeddings with these `search.steps`, `search.weights` and `search.pool`.

    Returns ranks: of the first right result of each judged query, 1 to 20, 0 for none, in the ground truth's order;
    seconds: [step, seconds] in order, "search" last; peak_mb: memory taken on top of the embeddings (10^6 bytes).
    """
    with contextlib.suppress(OSError):  # not Linux, or not allowed: the peak may then be an earlier one's
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before_mb = events.memory()["rss_mb"]
    start = time.perf_counter()
    queries, gallery = data.queries, data.gallery.embeddings
    fitted = steps.fit(steps.parse(entries, list(gallery)), gallery, weights)
    lists = fitted.rank(queries.embeddings, queries.hypotheses, data.facts, top_k=data.length, pool=pool)
    search_s = time.perf_counter() - start - sum(fitted.seconds.values())
    peak_mb = events.memory()["peak_mb"] - before_mb
    seconds = [[step.name, round(fitted.seconds.get(i, 0.0), 4)] for i, step in enumerate(fitted.steps)]
    seconds.append(["search", round(search_s, 4)])
    first = data.truth.judge(rankings(data, *lists)).first
    ranks = np.where(first <= verdict.LONGEST, first, 0)
    return {"ranks": ranks.tolist(), "seconds": seconds, "peak_mb": round(max(0.0, peak_mb), 1)}


def rankings(data: SearchData, rows: np.ndarray, similarity: np.ndarray) -> Rankings:
    """Lists of gallery rows (Q, K), -1 for none, with their similarities, as truth takes them."""
    queries, gallery, real = data.queries, data.gallery, rows >= 0
    image_id, item = np.zeros(rows.shape, np.int64), np.zeros(rows.shape, np.int32)
    bbox = np.zeros((*rows.shape, 4))
    image_id[real], item[real], bbox[real] = (
        values[rows[real]] for values in (gallery.image_id, gallery.item, gallery.bbox)
    )
    results = Results(
        query_image_id=queries.image_id, query_bbox=queries.bbox.astype(np.float64),
        query_cls=queries.category_id.astype(np.int64), query_score=queries.score.astype(np.float64),
        gallery_image_id=image_id, gallery_bbox=bbox, gallery_count=real.sum(axis=1),
        hypotheses=queries.hypotheses,
    )  # fmt: skip
    return Rankings(results, queries.item, item, similarity)


def standing_items(data: SearchData) -> np.ndarray:
    """(A,) int64: item number of the box that stands for each judged query, -1 for none; the same in every search."""
    no_rows = np.full((len(data.queries), 1), -1, np.int64)
    judged = data.truth.judge(rankings(data, no_rows, np.zeros(no_rows.shape, np.float32)))
    return np.where(judged.row >= 0, np.append(judged.lists.query_item, -1)[judged.row], -1).astype(np.int64)


# --- all searches over one kind of boxes ------------------------------------------------------------------------------
def judge_searches(bench: Bench, kind: str, patterns: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of the table: the base, each technique alone, the greedy combination, and that without each of its parts."""
    data, models = bench.run.search_data(kind), bench.run.models
    if data.truth.kind is None:
        say(f"ablation: {kind} boxes: no query to judge by (no consumer photo has a style, a pair_id or a product_id)")
        return []
    dims = {name: embeddings.shape[1] for name, embeddings in data.gallery.embeddings.items()}
    tried = techniques(models, dims, kind, has_products=bool((data.facts.product >= 0).any()))
    base = Variant("concat" if len(models) > 1 else models[0])
    alone = [Variant(technique.name, (technique,)) for technique in tried if matches(technique.name, patterns)]
    searches = _Searches(bench, kind, data)
    searches.judge([base, *alone])
    if base.name not in searches.answers:
        return []
    greedy = _add_greedily(base, alone, searches)
    best = greedy[-1].techniques if len(greedy) > 1 else ()  # every round adds one technique
    without = [Variant(f"best without {part.name}", tuple(t for t in best if t is not part)) for part in best]
    searches.judge(without)
    return searches.rows(base, {"base": [base], "single": alone, "greedy": greedy, "removed": without})


def _add_greedily(base: Variant, alone: Sequence[Variant], searches: "_Searches") -> list[Variant]:
    """Add, round by round, the technique that helps most on the selection half of the photos, until none does.

    Only techniques that help alone are tried: each of the others would cost a judgement a round, and they seldom help
    later. Returns the best variant of each round.
    """
    half = verdict.selection_half(searches.data.truth.photo)

    def worth(variant: Variant) -> tuple[float, float]:
        return verdict.worth(searches.answers[variant.name]["ranks"], half)

    rounds = [base]
    helpful = [variant for variant in alone if variant.name in searches.answers and worth(variant) > worth(base)]
    while True:
        best = rounds[-1]
        extended = [(*best.techniques, *variant.techniques) for variant in helpful]
        tried = [Variant(" + ".join(technique.name for technique in parts), parts) for parts in extended]
        searches.judge(tried)
        winner = max((variant for variant in tried if variant.name in searches.answers), key=worth, default=best)
        if worth(winner) <= worth(best):
            return rounds[1:]
        rounds.append(winner)


@dataclass(frozen=True)
class _Searches:
    """The searches over one kind of boxes; `answers` of those judged so far, by the variant's name."""

    bench: Bench
    kind: str
    data: SearchData
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)

    def judge(self, variants: Sequence[Variant]) -> None:
        """Add the answers of those variants that are possible and do not fail."""
        run = self.bench.run
        pool = run.record["settings"]["search"]["pool"]
        arguments = {}
        for variant in [variant for variant in variants if variant.is_possible(run.models)]:
            weights = variant.weights and list(variant.weights)
            arguments[variant.name] = {"entries": variant.steps(run.models), "weights": weights, "pool": pool}
        sides = (self.data.gallery.embeddings, self.data.queries.embeddings)
        need_mb = 500 + 6 * sum(embeddings.nbytes for side in sides for embeddings in side.values()) / 1e6
        self.answers.update(self.bench.judge(self.kind, arguments, judge, self.data, need_mb, JUDGE_NAME))

    def rows(self, base: Variant, groups: Mapping[str, Sequence[Variant]]) -> list[dict[str, Any]]:
        """Rows of the table, of the variants of each group that were judged."""
        photo, item, theirs = self.data.truth.photo, standing_items(self.data), self.answers[base.name]
        rows = []
        for group, variants in groups.items():
            for variant in [variant for variant in variants if variant.name in self.answers]:
                weights = {"weights": variant.weights} if variant.weights else {}
                search = json.dumps({"steps": variant.steps(self.bench.run.models), **weights})
                ours = self.answers[variant.name]
                rows.append(verdict.row(self.kind, variant.name, group, search, ours, theirs, photo, item))
        return rows
