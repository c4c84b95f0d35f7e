"""The gate: copies of known photos, and the lines it prints."""

from pathlib import Path
from typing import Any

import pytest
from galleries import shop, stock

from jobs.gallery import gate
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


@pytest.mark.parametrize("figure, line", [
    (gate.of_share("failed", 3, 20, 0.01), "failed 0.15 (at most 0.01, 3 of 20 photos)"),
    (gate.of_share("gone", 0, 0, 0.5), "gone not measured (at most 0.5, no such photos before)"),
    (gate.Figure("rows", 0.0, 0.0, most=True, counted="of 24 embeddings those that are not finite"),
     "rows 0 (at most 0, of 24 embeddings those that are not finite)"),
    (gate.Figure("recall", 0.987, 0.9), "recall 0.987 (at least 0.9)"),
])  # fmt: skip
def test_a_line_says_what_its_figure_counts(figure: gate.Figure, line: str) -> None:
    assert str(figure) == line and "counted" not in figure.as_json()
