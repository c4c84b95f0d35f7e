"""An index is tuned to the recall asked for, and filled as tasks on Ray with the bytes it has when filled here."""

import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from jobs.gallery import build
from jobs.gallery.build import tuned
from jobs.runs.settings import Settings
from retrieval import ann_build
from retrieval.ann import AnnIndex
from store.errors import UserError
from tests.retrieval.clustered import planned

N_ROWS, DIM = 3_500, 16


@pytest.fixture(scope="module")
def coarse(tmp_path_factory: pytest.TempPathFactory) -> AnnIndex:
    """Rows without clusters behind short codes: not all neighbours are found at any price."""
    folder = tmp_path_factory.mktemp("coarse")
    vectors = np.random.default_rng(0).normal(size=(6_000, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ann_build.write_vectors(folder, vectors, np.arange(len(vectors)))
    plan_ = planned("ivf_pq", *vectors.shape)
    ann_build.build(plan_, folder)
    return AnnIndex.open(folder, plan_)


def test_a_sample_shows_more_than_is_asked_for(coarse: AnnIndex) -> None:
    parameters = tuned(coarse, 0.5)
    assert parameters["target"] == 0.7 and parameters["recall"] >= 0.7


def test_the_best_there_is_must_be_what_is_asked_for(coarse: AnnIndex) -> None:
    with pytest.raises(UserError, match=r"gallery.recall 1: .*, 0\.\d+ at the most.* or ask for less") as refused:
        tuned(coarse, 1.0)
    match = re.search(r"(0\.\d+) at the most", str(refused.value))
    assert match
    most = float(match[1])
    assert tuned(coarse, most - 0.001)["target"] == most - 0.001  # its margin is out of reach


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    vectors = np.random.default_rng(0).normal(size=(N_ROWS, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for name in ("here", "ray"):
        (tmp_path / name).mkdir()
        ann_build.write_vectors(tmp_path / name, vectors, np.arange(N_ROWS))
    return tmp_path / "here", tmp_path / "ray"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ivf_flat", "ivf_pq"])
def test_filled_on_ray_it_is_what_is_filled_here(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    plan_ = planned(kind, N_ROWS, DIM)
    monkeypatch.setattr(ann_build, "PART_ROWS", 1_000)  # four parts, the last one short
    ann_build.build(plan_, folders[0], seed=build.SEED)
    monkeypatch.setattr(build, "LOCAL_ROWS", 0)
    on_ray = partial(build.fill_parts, Settings())
    ann_build.build(plan_, folders[1], seed=build.SEED, fill_parts=on_ray)
    assert (folders[1] / "index.faiss").read_bytes() == (folders[0] / "index.faiss").read_bytes()
    assert sorted(path.name for path in folders[1].iterdir()) == ["ids.npy", "index.faiss", "vectors.npy"]
