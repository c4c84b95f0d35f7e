"""The gate before publishing: is the new version good? Figures, each beside its limit; one that misses keeps the old version serving.

recall            of the ten nearest by exact search over a sample of stored rows, the share the index finds
copies            known photos, cropped and encoded again, detected and embedded anew: the share that finds itself among the first ten
counts            garments in the index and in items.parquet are the same ids, each once, of every photo that has any, and not none
                  where there were some
rows              vectors that are not finite or not of unit length: none
canaries          rows of the night before, unchanged tonight: of what they found then and what is still there, the share found again,
                  but for what stands behind ten that are nearer
gone              share of the photos of the night before that are not there tonight: a folder that is half mounted
failed            share of tonight's photos without a result
"""

import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from jobs import tables
from jobs.gallery.build import SEED, Built
from retrieval.ann import recall
from retrieval.gallery import Gallery

SAMPLE = 200  # rows for recall and canaries
FIRST = 10  # results looked at
NEARER = 1e-6  # difference of similarities that is no rounding
CROP = 0.05  # of each side that a copy loses
QUALITY = 80  # of the JPEG a copy is written as
BLOCK = 65_536  # rows looked at at once


@dataclass(frozen=True)
class Figure:
    """One figure of the gate: good from `limit` up, or down where `most`."""

    name: str
    value: float | None
    limit: float
    most: bool = False
    note: str = ""

    @property
    def good(self) -> bool:
        """A figure that nothing could be measured for passes, and says so."""
        return self.value is None or (self.value <= self.limit if self.most else self.value >= self.limit)

    def as_json(self) -> dict[str, Any]:
        return {"value": self.value, "limit": self.limit, "good": self.good, "note": self.note}

    def __str__(self) -> str:
        value = "not measured" if self.value is None else f"{self.value:.4g}"
        word = "at most" if self.most else "at least"
        return f"{self.name} {value} ({word} {self.limit:g}{', ' + self.note if self.note else ''})"


def of_index(built: Built, limit: float) -> Figure:
    """Recall against exact search, on stored rows moved a little, as a photo taken again would be."""
    living = _living(built)
    if not len(living):
        return Figure("recall", None, limit, note="no garments")
    rng = np.random.default_rng(SEED + 1)
    chosen = rng.choice(living, min(SAMPLE, len(living)), replace=False)
    rows = np.asarray(built.index.vectors[np.sort(chosen)], np.float32)
    noise = rng.normal(size=rows.shape).astype(np.float32) * np.float32(0.3 / np.sqrt(rows.shape[1]))
    moved = rows + noise
    moved /= np.linalg.norm(moved, axis=1, keepdims=True)
    return Figure("recall", round(recall(built.index, moved, FIRST), 4), limit)


def of_counts(built: Built, wanted: Collection[int], before: Gallery | None) -> Figure:
    """1 where index and items agree on every id, and on the photos there are garments of, else 0.

    Args:
        wanted: image_ids of the photos that garments were found on.
    """
    living = np.sort(built.index.ids[_living(built)])
    listed = np.sort(built.items.column("id").to_numpy())
    images = set(built.items.column("image_id").to_pylist())
    notes = []
    if len(np.unique(listed)) != len(listed):
        notes.append("an id twice")
    if len(living) != len(listed) or not bool((living == listed).all()):
        notes.append(f"{len(living)} rows in the index, {len(listed)} items")
    if images != set(wanted):
        notes.append(f"garments of {len(images)} photos, {len(wanted)} wanted")
    if before is not None and len(before) and not len(living):
        notes.append(f"no garment at all, {len(before)} in the version before")
    return Figure("counts", float(not notes), 1.0, note=", ".join(notes))


def of_rows(built: Built) -> Figure:
    """How many living vectors are not finite or not of unit length."""
    bad = 0
    living = _living(built)
    for start in range(0, len(living), BLOCK):
        rows = np.asarray(built.index.vectors[living[start : start + BLOCK]], np.float32)
        lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows))
        bad += int((~(np.abs(lengths - 1) <= 0.01)).sum())  # what is not finite is not near 1 either
    return Figure("rows", float(bad), 0.0, most=True)


def of_canaries(built: Built, before: Gallery | None, limit: float) -> Figure:
    """Queries of the night before find what they found, as far as it is still there."""
    if before is None or built.rebuilt:
        return Figure(
            "canaries", None, limit, note="no night before to compare with" if before is None else built.rebuilt
        )
    old = dict(zip(before.items.column("id").to_pylist(), before.items.column("digest").to_pylist(), strict=True))
    new = dict(zip(built.items.column("id").to_pylist(), built.items.column("digest").to_pylist(), strict=True))
    same = np.array([one for one, digest in old.items() if new.get(one) == digest], np.int64)
    if not len(same):
        return Figure("canaries", None, limit, note="nothing is as it was")
    chosen = np.sort(np.random.default_rng(SEED + 2).choice(same, min(SAMPLE, len(same)), replace=False))
    queries = before.vectors(chosen)
    similar, then = before.index.search(queries, FIRST)
    nearest, now = built.index.search(queries, FIRST)
    found = (then[:, :, None] == now[:, None, :]).any(axis=2)
    # what is new tonight may stand before what was there: then the last of the ten is nearer than it
    due = np.isin(then, same) & (found | (similar > nearest[:, -1:] + NEARER))
    if not due.any():
        return Figure("canaries", None, limit, note="nothing is where it was")
    return Figure("canaries", round(float(found[due].mean()), 4), limit)


def copy_of(data: bytes, bbox: Sequence[float], max_pixels: int) -> bytes:
    """A photo as it might come back: cropped a little, but not into the garment, and encoded again."""
    from PIL import Image

    from store.decode import decode

    pixels = decode(data, max_pixels=max_pixels)
    height, width = pixels.shape[:2]
    left, top = min(CROP * width, max(0.0, bbox[0])), min(CROP * height, max(0.0, bbox[1]))
    right, bottom = max((1 - CROP) * width, min(width, bbox[2])), max((1 - CROP) * height, min(height, bbox[3]))
    encoded = io.BytesIO()
    Image.fromarray(pixels[int(top) : int(np.ceil(bottom)), int(left) : int(np.ceil(right))]).save(
        encoded, "JPEG", quality=QUALITY
    )
    return encoded.getvalue()


def of_copies(gallery: Gallery, images: Sequence[int], found: Mapping[int, pa.Table], limit: float) -> Figure:
    """Of photos seen again, the share that finds itself, or another of the same bytes.

    Args:
        images: image_ids that were copied. found: image_id -> what was found in its copy, columns as `results.Results.schema`.
    """
    if not images:
        return Figure("copies", None, limit, note="no photo to copy")
    listed = zip(*(gallery.items.column(name).to_pylist() for name in ("image_id", "digest")), strict=True)
    digests, again = dict(listed), 0
    for image_id in images:
        mine = found.get(image_id)
        if mine is None or not len(mine):
            continue
        rows = [tables.rows_of(mine.column(name)) for name in gallery.dims]
        vectors = np.ascontiguousarray(np.concatenate(rows, axis=1), np.float32)
        _, ids = gallery.search(vectors, FIRST, category=mine.column("category_id").to_numpy().astype(np.int64))
        again += any(line.get("digest") == digests[image_id] for line in gallery.lookup(ids.reshape(-1)))
    return Figure("copies", round(again / len(images), 4), limit, note=f"{len(images)} photos")


def of_failures(failed: int, photos: int, most: float) -> Figure:
    return Figure(
        "failed", round(failed / photos, 6) if photos else None, most, most=True, note=f"{failed} of {photos} photos"
    )


def of_gone(removed: int, stayed: int, most: float) -> Figure:
    """Whoever means to take so much away says so by the limit."""
    photos = removed + stayed
    if not photos:
        return Figure("gone", None, most, most=True, note="no night before to compare with")
    return Figure("gone", round(removed / photos, 6), most, most=True, note=f"{removed} of {photos} photos")


def chosen_photos(items: pa.Table, n: int, tonight: int) -> list[tuple[int, list[float]]]:
    """Photos to copy: image_id and the box of their surest garment, spread by a seed of the night."""
    if not len(items) or not n:
        return []
    score, image = items.column("score").to_numpy(), items.column("image_id").to_numpy()
    order = np.lexsort((-score, image))
    first = order[np.r_[True, image[order][1:] != image[order][:-1]]]  # each photo's best
    chosen = np.random.default_rng([SEED, tonight]).choice(first, min(n, len(first)), replace=False)
    return [(int(image[row]), items.column("bbox")[int(row)].as_py()) for row in np.sort(chosen)]


def _living(built: Built) -> np.ndarray:
    alive = np.ones(len(built.index.ids), bool)
    alive[built.index.dead] = False
    return np.flatnonzero(alive)
