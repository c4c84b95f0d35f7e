"""Embedding without a job: each embedder's rows of one photo's crops, side by side."""

from types import SimpleNamespace

import numpy as np
import pytest

from retrieval.photos import embed, load_embedder
from store.errors import UserError


class Sums:
    """A row of `dim` numbers a crop, all the sum of its pixels."""

    def __init__(self, input_size: int, dim: int) -> None:
        self.spec, self.dim = SimpleNamespace(input_size=input_size), dim

    def embed(self, crops: np.ndarray, *, batch_size: int = 32) -> np.ndarray:
        assert crops.shape[1:] == (self.spec.input_size, self.spec.input_size, 3)
        return np.repeat(crops.sum(axis=(1, 2, 3), dtype=np.float32)[:, None], self.dim, axis=1)


def test_rows_stand_side_by_side_in_the_order_of_the_embedders() -> None:
    image = np.full((20, 20, 3), 2, np.uint8)
    image[:10] = 1
    rows = embed([Sums(4, 1), Sums(2, 3)], image, np.array([[0, 0, 10, 10], [0, 10, 10, 20]]))
    small, large = 2 * 2 * 3, 4 * 4 * 3  # numbers of a crop
    assert rows.tolist() == [[large, small, small, small], [2 * large, 2 * small, 2 * small, 2 * small]]


def test_a_photo_without_garments() -> None:
    assert embed([Sums(4, 1), Sums(2, 3)], np.zeros((5, 5, 3), np.uint8), np.zeros((0, 4))).shape == (0, 4)


def test_what_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="want at least one embedder"):
        embed([], np.zeros((5, 5, 3), np.uint8), np.zeros((0, 4)))
    with pytest.raises(ValueError, match=r"box 0 .* covers nothing of a photo"):
        embed([Sums(4, 1)], np.zeros((5, 5, 3), np.uint8), np.array([[6, 6, 8, 8]]))
    with pytest.raises(UserError, match=r"lite0-sg: no weights"):
        load_embedder("lite0-sg", weights_dir=tmp_path)
    with pytest.raises(ValueError, match="no embedder named 'none'"):
        load_embedder("none")
