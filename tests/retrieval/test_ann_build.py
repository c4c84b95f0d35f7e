"""An index's files: parts joined equal all at once, the same bytes again, mapped when read, and damage refused before FAISS sees it."""

import pickle
import shutil
from pathlib import Path

import faiss
import numpy as np
import pytest

from retrieval import ann_build
from retrieval.ann import AnnIndex
from tests.retrieval.clustered import built, gallery, planned

N, DIM = 1500, 16


@pytest.fixture(scope="module")
def rows() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return gallery(N, 20, DIM)


@pytest.fixture(scope="module", params=["ivf_flat", "ivf_pq"])
def trained(request, rows) -> bytes:
    return ann_build.train(planned(request.param, N, DIM), rows[0], seed=3)


def written(folder: Path, trained: bytes, vectors: np.ndarray, cuts: list[int]) -> list[Path]:
    """Parts of the gallery between the cuts."""
    paths = []
    for start, stop in zip([0, *cuts], [*cuts, len(vectors)], strict=True):
        paths.append(folder / f"part-{start}-{stop}")
        paths[-1].write_bytes(ann_build.fill(trained, vectors[start:stop], np.arange(start, stop)))
    return paths


@pytest.mark.parametrize("cuts", [[500], [0, 1, 700, 1500]])  # with parts of none and of one
def test_parts_joined_are_faiss_own_index_of_all(trained, rows, tmp_path, cuts):
    ann_build.merge(trained, written(tmp_path, trained, rows[0], cuts), tmp_path / "index.faiss")
    once = ann_build.opened("trained", trained)
    once.add_with_ids(rows[0], np.arange(N))
    assert (tmp_path / "index.faiss").read_bytes()[:-24] == faiss.serialize_index(once).tobytes()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]  # nothing passing is left


def test_no_rows_at_all_join_to_an_empty_index(trained, tmp_path):
    ann_build.merge(trained, [], tmp_path / "index.faiss")
    index = ann_build.read_index(tmp_path / "index.faiss")
    assert index.ntotal == 0
    assert ann_build.emptied(index) == trained


def test_few_rows_leave_clusters_empty(trained, rows, tmp_path):
    ann_build.merge(trained, written(tmp_path, trained, rows[0][:3], []), tmp_path / "index.faiss")
    index = ann_build.read_index(tmp_path / "index.faiss")
    assert index.ntotal == 3 and index.search(rows[0][:3], 1)[1][:, 0].tolist() == [0, 1, 2]


def test_the_rows_are_read_from_the_file_not_loaded(trained, rows, tmp_path):
    ann_build.merge(trained, written(tmp_path, trained, rows[0], []), tmp_path / "index.faiss")
    index = ann_build.read_index(tmp_path / "index.faiss")
    lists = faiss.downcast_InvertedLists(faiss.extract_index_ivf(index).invlists)
    assert isinstance(lists, faiss.OnDiskInvertedLists)
    assert ann_build.emptied(index) == trained
    assert index.ntotal == N and index.search(rows[0][:5], 1)[1].shape == (5, 1)  # and it still answers


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


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf_flat", "ivf_pq"])
def test_disk_is_as_planned(kind, rows, tmp_path):
    index = built(tmp_path, kind, *rows[:2])
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) / 1e6 == pytest.approx(index.plan.disk_mb, rel=0.05)


def test_the_steps_travel_to_other_processes():
    for step in (ann_build.train, ann_build.fill, ann_build.merge, planned("ivf_pq", N, DIM)):
        assert pickle.loads(pickle.dumps(step)) == step


def test_parts_that_do_not_belong_are_refused(rows, trained, tmp_path):
    vectors, out = rows[0], tmp_path / "index.faiss"
    parts = written(tmp_path, trained, vectors, [700])
    other = tmp_path / "other"
    kind = "ivf_flat" if b"IxPT" in trained[:8] else "ivf_pq"
    other.write_bytes(ann_build.fill(ann_build.train(planned(kind, N, DIM), vectors, 3), vectors[:1], np.array([0])))
    for wrong, message in (
        ([parts[0], parts[0]], "given twice"),
        ([parts[1]], "is a part missing"),
        ([other], "another training"),
    ):
        with pytest.raises(ValueError, match=message):
            ann_build.merge(trained, wrong, out)
    assert not out.exists()


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign", "empty"])
def test_damaged_parts_and_training_are_refused(rows, trained, tmp_path, damage):
    part = written(tmp_path, trained, rows[0], [])[0]
    part.write_bytes(damaged(part.read_bytes(), damage))
    with pytest.raises(ValueError, match="part-0-1500") as raised:
        ann_build.merge(trained, [part], tmp_path / "index.faiss")
    assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match="train again"):
        ann_build.fill(damaged(trained, damage), rows[0], np.arange(N))


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign", "empty"])
@pytest.mark.parametrize("name", ["index.faiss", "vectors.npy", "ids.npy"])
@pytest.mark.parametrize("kind", ["hnsw", "ivf_flat"])
def test_damaged_files_are_refused_in_one_line(rows, tmp_path, kind, name, damage):
    index = built(tmp_path, kind, rows[0][:1200], rows[1][:1200])
    digest = ann_build._file_digest(tmp_path / name, 0)[1].hex()
    AnnIndex.open(tmp_path, index.plan, digests={name: digest})
    (tmp_path / name).write_bytes(damaged((tmp_path / name).read_bytes(), damage))
    with pytest.raises(ValueError, match=name) as raised:
        AnnIndex.open(tmp_path, index.plan, digests={name: digest})
    assert "\n" not in str(raised.value)
    if name == "index.faiss" or damage != "flipped":  # only a digest can tell that a number is another
        with pytest.raises(ValueError):
            AnnIndex.open(tmp_path, index.plan)


def damaged(data: bytes, damage: str) -> bytes:
    middle = len(data) // 2
    return {
        "cut": data[:middle],
        "flipped": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
        "foreign": b"PK\x03\x04" + b"not ours at all" * 40,
        "empty": b"",
    }[damage]


def test_files_of_other_versions_and_kinds_are_refused(rows, tmp_path):
    vectors, ids, _ = rows
    index = built(tmp_path, "hnsw", vectors, ids)
    with pytest.raises(ValueError, match="hnsw of 1,500"):
        AnnIndex.open(tmp_path, planned("ivf_flat", N, DIM))
    with pytest.raises(ValueError, match="different versions"):
        AnnIndex.open(tmp_path, planned("hnsw", N, DIM + 1))
    shutil.copy(tmp_path / "ids.npy", tmp_path / "kept")
    np.save(tmp_path / "ids.npy", ids[:-1])
    with pytest.raises(ValueError, match="different versions"):
        AnnIndex.open(tmp_path, index.plan)
    shutil.copy(tmp_path / "kept", tmp_path / "ids.npy")
    (tmp_path / "index.faiss").unlink()
    with pytest.raises(ValueError, match="no such file"):
        AnnIndex.open(tmp_path, index.plan)


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
    with pytest.raises(ValueError, match="255 sample rows"):
        ann_build.train(planned("ivf_pq", N, DIM), rows[0][:255])
    with pytest.raises(ValueError, match="another model"):
        ann_build.train(planned("ivf_pq", N, DIM), rows[0][:, :8])
