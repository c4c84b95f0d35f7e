"""An index's files are refused in one line where they are damaged, or belong to another version or kind."""

import os
import shutil

import numpy as np
import pytest

from retrieval.ann import AnnIndex
from store.files import file_digest
from tests.retrieval.clustered import built, damaged, gallery, planned

N, DIM = 1500, 16


@pytest.fixture(scope="module")
def rows() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return gallery(N, 20, DIM)


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign", "empty"])
@pytest.mark.parametrize("name", ["index.faiss", "vectors.npy", "ids.npy"])
@pytest.mark.parametrize("kind", ["hnsw", "ivf_flat"])
def test_damaged_files_are_refused_in_one_line(rows, tmp_path, kind, name, damage):
    index = built(tmp_path, kind, rows[0][:1200], rows[1][:1200])
    digest = file_digest(tmp_path / name)
    AnnIndex.open(tmp_path, index.plan, digests={name: digest})
    (tmp_path / name).write_bytes(damaged((tmp_path / name).read_bytes(), damage))
    with pytest.raises(ValueError, match=name) as raised:
        AnnIndex.open(tmp_path, index.plan, digests={name: digest})
    assert "\n" not in str(raised.value)
    if name == "index.faiss" or damage != "flipped":  # only a digest can tell that a number is another
        with pytest.raises(ValueError):
            AnnIndex.open(tmp_path, index.plan)


def test_a_folder_name_need_not_be_utf8(rows, tmp_path):
    """Lists are mapped by another reader than graphs."""
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    index = built(folder, "ivf_flat", rows[0], rows[1])
    opened = AnnIndex.open(folder, index.plan)
    assert np.array_equal(opened.search(rows[0][:5], 1)[1], index.search(rows[0][:5], 1)[1])


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
