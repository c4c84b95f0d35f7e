"""What an approximate index is asked for, and what is said where it cannot give it."""

import re

import numpy as np
import pytest

from jobs.cli import UserError
from jobs.gallery.build import tuned
from retrieval import ann_build
from retrieval.ann import AnnIndex
from tests.retrieval.clustered import planned


@pytest.fixture(scope="module")
def coarse(tmp_path_factory: pytest.TempPathFactory) -> AnnIndex:
    """Rows without clusters behind short codes: not all neighbours are found at any price."""
    folder = tmp_path_factory.mktemp("coarse")
    vectors = np.random.default_rng(0).normal(size=(6_000, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ann_build.write_vectors(folder, vectors, np.arange(len(vectors)))
    made = planned("ivf_pq", *vectors.shape)
    ann_build.build(made, folder)
    return AnnIndex.open(folder, made)


def test_a_sample_shows_more_than_is_asked_for(coarse: AnnIndex) -> None:
    told = tuned(coarse, 0.5)
    assert told["target"] == 0.7 and told["recall"] >= 0.7


def test_the_best_there_is_must_be_what_is_asked_for(coarse: AnnIndex) -> None:
    with pytest.raises(UserError, match=r"gallery.recall 1: .*, 0\.\d+ at the most.* or ask for less") as refused:
        tuned(coarse, 1.0)
    found = re.search(r"(0\.\d+) at the most", str(refused.value))
    assert found
    most = float(found[1])
    assert tuned(coarse, most - 0.001)["target"] == most - 0.001  # its margin is out of reach
