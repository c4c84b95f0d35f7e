"""Which detected garments are worth embedding, for retrieval: the least scores, found on one half of the photos and
judged on the other.

In: a finished run with detected boxes and ground truth. Out: a row of ablation.parquet, whose `steps` are the `items`
settings found. No model runs, so only scores above the run's own can be tried: run with low ones to have a choice.
"""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from jobs.ablation import verdict
from jobs.ablation.bench import Bench
from jobs.ablation.ranking import judge, standing_items
from jobs.runs.finished import FinishedRun, SearchData
from jobs.runs.progress import say
from jobs.runs.reader import EmbeddedItems

LEAST_SCORES = (0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3)  # tried of consumers' and of shops' garments
TASK_NAME = "jobs.ablation.items.judge_kept"


def tune_items(bench: Bench) -> list[dict[str, Any]]:
    """The run's own items and the best choice among them; no row where the run has no query or no choice."""
    data = bench.run.search_data("detected")
    if data.truth.kind is None:
        return []
    tried = {f"items from {a:g} and {b:g}": {"of_queries": a, "of_gallery": b} for a, b in _pairs(bench.run)}
    need_mb = 500 + 6 * sum(rows.nbytes for rows in data.gallery.embeddings.values()) / 1e6
    answers = bench.judge("items", tried, judge_kept, data, need_mb, TASK_NAME)
    base, *_ = tried
    if base not in answers:
        return []
    half = verdict.selection_half(data.truth.photo)
    best = max(answers, key=lambda name: verdict.worth(answers[name]["ranks"], half))  # of equal ones the first
    settings = dict(zip(("query_score_threshold", "score_threshold"), tried[best].values(), strict=True))
    say(f"ablation: items: on one half of the photos the best are {json.dumps(settings)}")
    arguments = answers[best], answers[base], data.truth.photo, standing_items(data)
    return [verdict.row("detected", best, "tuned", json.dumps({"items": settings}), *arguments)]


def _pairs(run: FinishedRun) -> Iterator[tuple[float, float]]:
    """Least scores of consumers' and of shops' garments, the run's own first."""
    items = run.record["settings"]["items"]
    shops = items["score_threshold"]
    users = items.get("query_score_threshold")
    users = shops if users is None else users
    for of_queries in (users, *(score for score in LEAST_SCORES if score > users)):
        for of_gallery in (shops, *(score for score in LEAST_SCORES if score > shops)):
            yield of_queries, of_gallery


def judge_kept(data: SearchData, of_queries: float, of_gallery: float) -> dict[str, Any]:
    """`jobs.ablation.ranking.judge` of plain concatenation, with items of at least these scores."""
    queries, gallery = data.queries.score >= of_queries, data.gallery.score >= of_gallery
    facts = dataclasses.replace(
        data.facts, hypotheses=data.facts.hypotheses[gallery], score=data.facts.score[gallery],
        photo=data.facts.photo[gallery], product=data.facts.product[gallery],
    )  # fmt: skip
    kept = dataclasses.replace(
        data, queries=_only(data.queries, queries), gallery=_only(data.gallery, gallery), facts=facts
    )
    entries = [{"step": "concat"}]
    return judge(kept, entries, None, data.length)


def _only(items: EmbeddedItems, rows: np.ndarray) -> EmbeddedItems:
    """The items that `rows`, (N,) bool, names; the others stay in `items`."""
    return dataclasses.replace(items, embeddings=dict(items.embeddings)).split(rows)[0]
