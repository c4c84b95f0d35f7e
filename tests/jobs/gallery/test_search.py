"""A gallery ranks as the evaluation does: the same photos, the same steps, the same lists."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import stand_ins
from galleries import night, opened

from jobs.runs import tables
from retrieval.hypotheses import read_hypotheses
from store.imageset_write import write_imageset

STEPS = {
    "plain": "[{step: concat}]",
    "whiten": "[{step: concat}, {step: whiten, dim: 12}]",
    "all": "[{step: concat}, {step: whiten, dim: 12}, {step: alpha_qe, k: 3}, "
    "{step: category, rule: soft, penalty: 0.2}, {step: group, by: image}]",
    "anew": "[{step: concat}, {step: k_reciprocal, k1: 6, k2: 2}]",
    "dba": "[{step: concat}, {step: dba, k: 2}]",
}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 consumer photos and 60 shop photos, two of each garment."""
    folder = tmp_path_factory.mktemp("both") / "set"
    rows = [stand_ins.photo(i, "user" if i < 30 else "shop", 1 + i % 30) for i in range(90)]
    write_imageset(rows, folder, source={"adapter": "stand-in", "arguments": {}}, max_images=45)
    return folder


@pytest.mark.parametrize("name, parts", [*((name, 1) for name in STEPS), ("whiten", 4), ("all", 4)])
def test_a_flat_gallery_ranks_as_the_evaluation_does(
    both: Path, tmp_path: Path, calls: Any, full: Any, name: str, parts: int
) -> None:
    how = ["--set", f"search.steps={STEPS[name]}", "--set", "search.top_k=10", "--set", "fusion.iou_threshold=0.5"]
    how += ["--set", "detectors=[near, unsure]"]  # a garment may be of two categories
    assert full(both, tmp_path / "run", *how, "--set", "boxes=[detected]") == 0
    night(both, tmp_path / "gallery", *how, "--set", f"gallery.parts={parts}")
    gallery = opened(tmp_path / "gallery")
    table = pq.read_table(tmp_path / "run" / "rankings" / "detected.parquet")
    ranked, hypotheses = table.to_pylist(), read_hypotheses(table, "query_")
    assert hypotheses.real.sum(axis=1).tolist() == [2] * 30
    rows = {model: _rows(tmp_path / "run", model) for model in gallery.dims}
    keys = [(line["query_image_id"], line["query_item"]) for line in ranked]
    vectors = np.stack([np.concatenate([rows[model][key] for model in gallery.dims]) for key in keys])
    similarity, ids = gallery.search(vectors, 10, category=hypotheses)
    for line, near, found in zip(ranked, similarity, ids, strict=True):
        want, n = np.array(line["similarity"]), len(line["similarity"])
        np.testing.assert_allclose(near[:n], want, atol=1e-5)
        assert (found[n:] == -1).all()
        _same_but_for_ties([row["image_id"] for row in gallery.lookup(found[:n])], line["gallery_image_id"], want)


def _rows(run: Path, model: str) -> dict[tuple[int, int], np.ndarray]:
    found = {}
    for path in sorted((run / "embeddings" / "detected" / model).glob("*.parquet")):
        table = pq.read_table(path)
        keys = zip(table["image_id"].to_pylist(), table["item"].to_pylist(), strict=True)
        found |= dict(zip(keys, tables.rows_of(table["embedding"]).astype(np.float32), strict=True))
    return found


def _same_but_for_ties(got: list[int], want: list[int], similarity: np.ndarray) -> None:
    """Equal lists, where neighbours within 1e-5 may change places; the last ones may have partners beyond the end."""
    start = 0
    for end in range(1, len(want) + 1):
        if end == len(want) or similarity[end - 1] - similarity[end] > 1e-5:
            if end < len(want):
                assert sorted(got[start:end]) == sorted(want[start:end])
            start = end
