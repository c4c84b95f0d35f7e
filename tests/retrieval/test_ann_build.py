"""Building an index: the same bytes from the same seed, the planned size on disk, and unfit rows refused."""

import pickle
from dataclasses import replace

import numpy as np
import pytest

from retrieval import ann_build
from retrieval.ann import AnnIndex
from tests.retrieval.clustered import built, gallery, planned

N, DIM = 1500, 16


@pytest.fixture(scope="module")
def rows() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return gallery(N, 20, DIM)


@pytest.mark.parametrize("kind", ["hnsw", "ivf_flat", "ivf_pq"])
def test_the_same_seed_gives_the_same_bytes(kind, rows, tmp_path):
    made = planned(kind, N, DIM)
    digests = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        folder = tmp_path / name
        folder.mkdir()
        ann_build.write_vectors(folder, *rows[:2])
        ann_build.build(made, folder, seed=seed)
        digests.append((folder / "index.faiss").read_bytes())
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("kind, threads", [("hnsw", (1, 2, 3)), ("ivf_flat", (2, 2)), ("ivf_pq", (2, 2))])
def test_equal_nights_give_equal_bytes(kind, threads, rows, tmp_path):
    """A build and a night with additions and removals; a graph whatever the number of threads."""
    nights = []
    for run, count in enumerate(threads):
        folder = tmp_path / str(run)
        folder.mkdir()
        ann_build.write_vectors(folder, rows[0][:1300], rows[1][:1300])
        made = replace(planned(kind, N, DIM), threads=count)
        ann_build.build(made, folder, seed=3)
        AnnIndex.open(folder, made).with_changes(folder / "next", rows[0][1300:], rows[1][1300:], rows[1][:100], seed=3)
        nights.append([(each / "index.faiss").read_bytes() for each in (folder, folder / "next")])
    assert all(night == nights[0] for night in nights)


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf_flat", "ivf_pq"])
def test_disk_is_as_planned(kind, rows, tmp_path):
    index = built(tmp_path, kind, *rows[:2])
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) / 1e6 == pytest.approx(index.plan.disk_mb, rel=0.05)


def test_the_steps_travel_to_other_processes():
    for step in (ann_build.train, ann_build.fill, ann_build.merge, planned("ivf_pq", N, DIM)):
        assert pickle.loads(pickle.dumps(step)) == step


@pytest.mark.parametrize(
    "vectors, ids, message",
    [
        (np.eye(2, dtype=np.float32), [1, 1], "id 1 stands for several rows"),
        (np.eye(2, dtype=np.float32), [1, -2], "id -2 is negative"),
        (np.eye(2, dtype=np.float32), [1], r"want \(2,\) int64"),
        (np.eye(2), [1, 2], "float64"),
        (np.array([[1, 0], [0.9, 0]], np.float32), [1, 2], "row 1 has length 0.9"),
        (np.array([[1, 0], [np.nan, 0]], np.float32), [1, 2], "row 1 has length nan"),
    ],
)
def test_rows_that_are_no_gallery_are_refused(tmp_path, vectors, ids, message):
    with pytest.raises(ValueError, match=message):
        ann_build.write_vectors(tmp_path, vectors, np.array(ids, np.int64))
    assert not (tmp_path / "ids.npy").exists() and not list(tmp_path.glob(".*"))


def test_training_wants_the_right_kind_and_enough_rows(rows):
    with pytest.raises(ValueError, match="learns nothing"):
        ann_build.train(planned("hnsw", N, DIM), rows[0])
    with pytest.raises(ValueError, match="31 sample rows"):
        ann_build.train(planned("ivf_pq", N, DIM), rows[0][:31])
    with pytest.raises(ValueError, match="another model"):
        ann_build.train(planned("ivf_pq", N, DIM), rows[0][:, :8])
