"""The gate: copies of known photos, and the lines it prints."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest
from galleries import shop, stock

from jobs.gallery import gate
from postproc.hypotheses import Hypotheses
from retrieval.hypotheses import as_column
from store.decode import decode
from store.imageset import open_imageset


def test_copies_are_judged_by_the_runs_own_limit_of_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A default of 9 pixels, which no photo of the set keeps, stands for one that a very large photo exceeds."""

    def strict(data: bytes, *, max_pixels: int = 9) -> Any:
        return decode(data, max_pixels=max_pixels)

    monkeypatch.setattr(gate, "decode", strict)
    stock(shop(range(2)), tmp_path / "set")
    images = open_imageset(tmp_path / "set")
    boxes = {0: [0.0, 0.0, 9.0, 9.0], 1: [0.0, 0.0, 9.0, 9.0]}
    copies = list(gate.copied_photos(images, images.photos(("image_id",)), boxes, max_pixels=10_000))
    assert [copy.image_id for copy in copies] == [0, 1] and all(copy.width > 3 for copy in copies)


def test_copies_are_searched_for_with_all_that_they_may_be() -> None:
    asked: list[Any] = []

    class Shelf:
        dims: ClassVar = {"m": 2}

        def search(self, vectors: np.ndarray, k: int, *, category: Any) -> tuple[np.ndarray, np.ndarray]:
            asked.append(category)
            return np.ones((len(vectors), k), np.float32), np.full((len(vectors), k), 5)

        def lookup(self, ids: np.ndarray) -> list[dict[str, Any]]:
            return [{"digest": b"5" * 16} for _ in ids]

    may_be = Hypotheses(np.array([[7, 1]]), np.array([[0.5, 0.25]], np.float32))
    found = pa.table({
        "category_id": pa.array([7], pa.int16()), "score": pa.array([0.5], pa.float32()),
        "hypotheses": as_column(may_be), "m": pa.array([[1.0, 0.0]], pa.list_(pa.float32(), 2)),
    })  # fmt: skip
    photos = pa.table({"image_id": [5, 6], "digest": [b"5" * 16, b"6" * 16]})
    figure = gate.of_copies(Shelf(), photos, {5: found, 6: found[:0]}, 0.9)  # type: ignore[arg-type]
    assert figure.value == 0.5 and [one.category_id.tolist() for one in asked] == [[[7, 1]]]


@pytest.mark.parametrize("figure, line", [
    (gate.of_share("failed", 3, 20, 0.01), "failed 0.15 (at most 0.01, 3 of 20 photos)"),
    (gate.of_share("gone", 0, 0, 0.5), "gone not measured (at most 0.5, no such photos before)"),
    (gate.Figure("rows", 0.0, 0.0, most=True, counted="of 24 embeddings those that are not finite"),
     "rows 0 (at most 0, of 24 embeddings those that are not finite)"),
    (gate.Figure("recall", 0.987, 0.9), "recall 0.987 (at least 0.9)"),
])  # fmt: skip
def test_a_line_says_what_its_figure_counts(figure: gate.Figure, line: str) -> None:
    assert str(figure) == line and "counted" not in figure.as_json()
