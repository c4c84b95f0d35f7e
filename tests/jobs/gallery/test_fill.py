"""An index filled as tasks of a Ray is the one that is filled here, byte for byte."""

from pathlib import Path

import numpy as np
import pytest

from jobs.config import Settings
from jobs.gallery import fill
from retrieval import ann_build
from tests.retrieval.clustered import planned

ROWS, DIM = 3_500, 16


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    vectors = np.random.default_rng(0).normal(size=(ROWS, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for name in ("here", "ray"):
        (tmp_path / name).mkdir()
        ann_build.write_vectors(tmp_path / name, vectors, np.arange(ROWS))
    return tmp_path / "here", tmp_path / "ray"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ivf_flat", "ivf_pq"])
def test_filled_on_ray_it_is_what_is_filled_here(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    made = planned(kind, ROWS, DIM)
    monkeypatch.setattr(ann_build, "PART_ROWS", 1_000)  # four parts, the last one short
    ann_build.build(made, folders[0], seed=fill.SEED)
    monkeypatch.setattr(fill, "HERE", 0)
    fill.fill(made, folders[1], Settings(imageset="", output=""))
    assert (folders[1] / "index.faiss").read_bytes() == (folders[0] / "index.faiss").read_bytes()
    assert sorted(path.name for path in folders[1].iterdir()) == ["ids.npy", "index.faiss", "vectors.npy"]
