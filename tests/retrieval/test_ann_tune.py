"""The recall of each kind of index, the parameters that reach a recall, and the error that shows drift."""

from pathlib import Path

import numpy as np
import pytest

from retrieval.ann import AnnIndex
from retrieval.ann_lists import without_rows
from retrieval.ann_tune import quantisation_error, recall, tune
from tests.retrieval.clustered import built, gallery, unit


@pytest.fixture(scope="module")
def rows() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return gallery(3000, 60, 32)


@pytest.fixture(scope="module", params=["flat", "hnsw", "ivf_flat", "ivf_pq"])
def index(request, rows, tmp_path_factory) -> AnnIndex:
    return built(tmp_path_factory.mktemp(request.param), request.param, *rows[:2])


def test_tuning_reaches_its_target_with_other_queries(index, rows):
    queries = rows[2]
    tuned = tune(index, queries[:30], 0.95)
    assert tuned["recall"] >= 0.95 and tuned["target"] == 0.95
    folder = Path(index.vectors.filename).parent
    assert recall(AnnIndex.open(folder, index.plan, parameters=tuned), queries[30:]) >= 0.9
    assert tune(index, queries[:30], 0.95) == tuned  # nothing in it is timed
    least = tune(index, queries[:30], 0.5)
    assert all(least[name] <= tuned[name] for name in ("nprobe", "ef_search") if name in tuned)


@pytest.mark.parametrize("kind", ["hnsw", "ivf_flat", "ivf_pq"])
def test_the_recall_told_is_that_of_a_search(kind: str, tmp_path: Path) -> None:
    """On rows without families, which the narrowest search does not find."""
    random = np.random.default_rng(0)
    vectors, asked = unit(random.normal(size=(4000, 64))), unit(random.normal(size=(200, 64)))
    index = built(tmp_path, kind, vectors, np.arange(4000))
    narrow = {"ef_search": 16} if kind == "hnsw" else {"nprobe": 1}
    assert recall(index.with_parameters(**narrow, k_factor=1), asked) < 0.85
    tuned = tune(index, asked, 0.95)
    found = recall(AnnIndex.open(tmp_path, index.plan, parameters=tuned), asked)
    assert found == pytest.approx(tuned["recall"], abs=0.005) and found >= 0.95


def test_tuning_refuses_what_it_cannot_reach_or_judge(index, rows):
    for target, queries in ((0.0, rows[2]), (1.1, rows[2]), (0.9, rows[2][:0])):
        with pytest.raises(ValueError, match="tune:"):
            tune(index, queries, target)


def test_drift_shows_in_the_quantisation_error(index, rows):
    home = quantisation_error(index, rows[2])
    away = quantisation_error(index, unit(np.random.default_rng(9).normal(size=(60, 32))))
    if index.plan.kind in ("flat", "hnsw"):
        assert home == away == 0  # they learn nothing, so nothing can drift
    else:
        assert 0 < home < away
        assert quantisation_error(without_rows(index.faiss_index), rows[2]) == pytest.approx(home)
