"""Tuning the items' least scores on a run whose garments have scores of 0.7 and above."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from jobs.ablation import items
from jobs.ablation.items import judge_kept, tune_items
from jobs.ablation.ranking import judge
from jobs.runs.finished import FinishedRun, open_finished


class InThisProcess:
    """A `jobs.ablation.bench.Bench` without Ray and without stored answers."""

    def __init__(self, run: FinishedRun) -> None:
        self.run = run

    def judge(
        self, part: str, variants: Mapping[str, Mapping], task: Callable, shared: Any, *_: Any
    ) -> dict[str, dict[str, Any]]:
        return {name: task(shared, **arguments) for name, arguments in variants.items()}


@pytest.fixture
def run(small_set: Path, tmp_path: Path, calls: list, full: Callable[..., int]) -> FinishedRun:
    full(small_set, tmp_path)
    return open_finished(str(tmp_path))


def test_the_runs_own_scores_give_its_own_search(run: FinishedRun) -> None:
    data = run.search_data("detected")
    want = judge(data, [{"step": "concat"}], None, data.length)
    assert judge_kept(data, 0.0, 0.0)["ranks"] == want["ranks"] == [1] * 12


@pytest.mark.parametrize("of_queries, of_gallery", [(0.99, 0.0), (0.0, 0.99)])
def test_without_queries_or_gallery_nothing_is_right(run: FinishedRun, of_queries: float, of_gallery: float) -> None:
    assert judge_kept(run.search_data("detected"), of_queries, of_gallery)["ranks"] == [0] * 12


def test_the_best_on_one_half_and_its_figures_on_the_other(run: FinishedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(items, "LEAST_SCORES", (0.3, 0.99))
    (row,) = tune_items(InThisProcess(run))  # type: ignore[arg-type]
    assert row["group"] == "tuned"
    assert row["steps"] == '{"items": {"query_score_threshold": 0.02, "score_threshold": 0.1}}'  # the run's: no loss
    assert (row["difference"], row["half_difference"], row["value"]) == (0, 0, 1)
