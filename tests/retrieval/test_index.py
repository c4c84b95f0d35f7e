"""An exact index: the same bytes for the same rows, read back as it was, wrong rows and bytes refused."""

import subprocess
import sys

import numpy as np
import pytest

from retrieval import index


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_bytes_bring_the_same_index_back():
    gallery = unit(np.random.default_rng(1).normal(size=(50, 8)))
    data = index.save(index.build(gallery))
    assert data == index.save(index.build(gallery.copy()))
    for got, want in zip(index.load(data).search(gallery, 3), index.build(gallery).search(gallery, 3), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    "rows, message",
    [
        (np.zeros((2, 3)), "float32"),  # float64
        (np.zeros(3, np.float32), r"\(N, D\)"),  # one row, not a table
        (np.zeros((2, 0), np.float32), r"\(2, 0\)"),  # rows of nothing
        (np.array([[0, 0], [np.nan, 0]], np.float32), "row 1 has numbers that are not finite"),
        (np.array([[np.inf, 0]], np.float32), "row 0"),
    ],
)
def test_rows_that_cannot_be_compared_are_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        index.build(rows)


def test_wrong_bytes_are_refused():
    with pytest.raises(ValueError, match="no FAISS index"):
        index.load(b"something else")
    with pytest.raises(ValueError, match="exact inner-product"):
        index.load(index.faiss.serialize_index(index.faiss.IndexFlatL2(2)).tobytes())


def test_no_torch_comes_along():
    code = "import sys, retrieval.index; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=index.__file__.rsplit("/", 2)[0]).returncode == 0
