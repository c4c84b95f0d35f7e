"""Shops that change from night to night, and nights of a gallery over them with stand-in models. For tests only."""

import contextlib
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import stand_ins
from PIL import Image

from jobs import reindex_gallery
from jobs.gallery.results import PhotoResults
from retrieval.gallery import Gallery, open_gallery
from store.imageset import Photo
from store.imageset_write import write_imageset
from store.objects import ObjectStore

QUIET = ["--set", "gallery.copies=0"]  # a copy is a JPEG, in which the stand-ins see more than there is


@dataclass(frozen=True)
class Goods:
    """A shop photo: `look` decides its bytes, with `number` where `same_bytes` is None."""

    number: int
    look: int
    product: str = ""
    corner: tuple[int, int, int] = stand_ins.BACKDROP
    broken: bool = False
    same_bytes: int | None = None

    def photo(self) -> Photo:
        place = self.number if self.same_bytes is None else self.same_bytes
        made = stand_ins.photo(place, "shop", self.look, self.corner)
        data = made.image[: len(made.image) // 2] if self.broken else made.image
        return replace(made, image_id=self.number, image=data, product_id=self.product, file_name=f"{self.number}.png")


def shop(numbers: Iterable[int]) -> list[Goods]:
    """A photo of each number, each with a garment of its own."""
    return [Goods(number, number, f"sku-{number}") for number in numbers]


def blank(number: int) -> Photo:
    """A shop photo without a garment; its shade is its number's."""
    encoded = io.BytesIO()
    Image.fromarray(np.full((20, 16, 3), number, np.uint8)).save(encoded, "PNG")
    return Photo(number, encoded.getvalue(), 16, 20, "shop", file_name=f"{number}.png")


def stock(goods: Sequence[Goods | Photo], where: Path | str, max_images: int = 64) -> None:
    """Write the image set anew."""
    rows = [one if isinstance(one, Photo) else one.photo() for one in goods]
    write_imageset(rows, where, source={"adapter": "stand-in", "arguments": {}}, max_images=max_images, overwrite=True)


def line(imageset: Path | str, gallery: Path | str, *more: str) -> list[str]:
    return [*stand_ins.SETTINGS, *QUIET, "--imageset", str(imageset), "--gallery", str(gallery), *more]


def night(imageset: Path | str, gallery: Path | str, *more: str, status: int = 0) -> dict[str, Any]:
    """One night in this process; returns the summary, which is the last line on standard output."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        found = reindex_gallery.main(line(imageset, gallery, *more), stand_ins.CATALOGUE)
    assert found == status, said.getvalue()
    return json.loads(said.getvalue().splitlines()[-1])


def house(gallery: Path | str, *what: str) -> str:
    """--list, --rollback or --prune; returns what it printed."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert reindex_gallery.main(["--gallery", str(gallery), *what]) == 0
    return said.getvalue()


def content(gallery: Gallery) -> dict[int, tuple[Any, ...]]:
    """id -> all there is of a garment, its vector's bytes included: equal in two galleries of the same photos."""
    rows = gallery.items.to_pylist()
    vectors = gallery.vectors(np.array([row["id"] for row in rows], np.int64))
    return {row["id"]: (*map(repr, row.values()), vector.tobytes()) for row, vector in zip(rows, vectors, strict=True)}


def queries(gallery: Gallery, n: int = 40, seed: int = 0) -> np.ndarray:
    """(n, D) float32 unit rows for each model, random: of the width that `search` wants."""
    rng = np.random.default_rng(seed)
    parts = [rng.normal(size=(n, dim)).astype(np.float32) for dim in gallery.dims.values()]
    return np.concatenate([part / np.linalg.norm(part, axis=1, keepdims=True) for part in parts], axis=1)


def stored(results: PhotoResults) -> int:
    return len(results.photos())


def listing(store: ObjectStore) -> dict[str, bytes]:
    return {info.key: store.read(info.key) for info in store.list()}


def on_disk(folder: Path) -> dict[str, int]:
    """Every file, hidden ones too -> its time of the last change."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def opened(gallery: Path | str) -> Gallery:
    return open_gallery(str(gallery))
