"""Parts joined into one index: equal to FAISS' own index of all rows, mapped when read; other parts are refused."""

from pathlib import Path

import faiss
import numpy as np
import pytest

from retrieval import ann_build
from retrieval.ann_files import opened, read_index
from retrieval.ann_lists import packed, without_rows
from tests.retrieval.clustered import damaged, gallery, planned

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
    once = opened("trained", trained)
    once.add_with_ids(rows[0], np.arange(N))
    assert (tmp_path / "index.faiss").read_bytes()[:-24] == faiss.serialize_index(once).tobytes()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]  # nothing passing is left


def test_no_rows_at_all_join_to_an_empty_index(trained, tmp_path):
    ann_build.merge(trained, [], tmp_path / "index.faiss")
    index = read_index(tmp_path / "index.faiss")
    assert index.ntotal == 0
    assert without_rows(index) == trained


def test_few_rows_leave_clusters_empty(trained, rows, tmp_path):
    ann_build.merge(trained, written(tmp_path, trained, rows[0][:3], []), tmp_path / "index.faiss")
    index = read_index(tmp_path / "index.faiss")
    assert index.ntotal == 3 and index.search(rows[0][:3], 1)[1][:, 0].tolist() == [0, 1, 2]


def test_the_rows_are_read_from_the_file_not_loaded(trained, rows, tmp_path):
    ann_build.merge(trained, written(tmp_path, trained, rows[0], []), tmp_path / "index.faiss")
    index = read_index(tmp_path / "index.faiss")
    lists = faiss.downcast_InvertedLists(faiss.extract_index_ivf(index).invlists)
    assert isinstance(lists, faiss.OnDiskInvertedLists)
    assert without_rows(index) == trained
    assert index.ntotal == N and index.search(rows[0][:5], 1)[1].shape == (5, 1)  # and it still answers


def test_packed_codes_rank_as_the_plain_ones(rows, tmp_path):
    """FastScan rounds the table of distances, not the codes: with every cluster searched nearly the same come first."""
    trained = ann_build.train(planned("ivf_pq", N, DIM), rows[0], seed=3)
    ann_build.merge(trained, written(tmp_path, trained, rows[0], [500]), tmp_path / "index.faiss")
    plain = read_index(tmp_path / "index.faiss")
    n_lists = planned("ivf_pq", N, DIM).n_lists
    all_clusters = faiss.SearchParametersPreTransform(index_params=faiss.SearchParametersIVF(nprobe=n_lists))
    first, second = (index.search(rows[2], 50, params=all_clusters)[1] for index in (plain, packed(plain)))
    assert np.mean([len(set(a) & set(b)) / 50 for a, b in zip(first, second, strict=True)]) >= 0.9
    assert sorted(packed(plain).search(rows[2][:1], N, params=all_clusters)[1][0]) == list(range(N))


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
