"""The gate before publishing: is the new version good? A figure beyond its limit keeps the old one serving.

recall     share of the exact ten nearest that the index finds, over a sample of stored rows
copies     known photos, cropped, encoded again, detected and embedded: the share that finds itself in the first ten
counts     the index and items.parquet have the same garments, each once, of every photo that has any, and not none
           where there were some
rows       number of vectors that are not finite or not of unit length
canaries   rows of the night before that are unchanged tonight: of what they found then and what still exists, the
           share found again, unless ten nearer rows now stand before it
gone       share of the photos of the night before that are missing tonight: a folder may be half mounted
products_lost   share of the photos that had a product then and are still there, and have none tonight
garments_lost   the same of garments: pictures may have been replaced by placeholders
failed     share of tonight's photos without a result
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from jobs.gallery.built import SEED, Built, Published
from jobs.runs import tables
from postproc.places import places
from retrieval.ann_parts import Answer
from retrieval.ann_tune import recall
from retrieval.gallery import Category, Gallery
from retrieval.hypotheses import read_hypotheses
from store.decode import decode
from store.imageset import ImageSet, Item, Photo

SAMPLE = 200  # rows for recall and canaries
FIRST = 10  # results that count
NEARER = 1e-6  # a difference of similarities above what rounding makes
CROP = 0.05  # share of each side that a copy loses
QUALITY = 80  # of the JPEG a copy is written as
BLOCK = 65_536  # rows checked at once


@dataclass(frozen=True)
class Figure:
    """One figure of the gate: good from `limit` up, or with `most` from `limit` down."""

    name: str
    value: float | None
    limit: float
    most: bool = False
    note: str = ""
    counted: str = ""  # what the value counts, where neither name nor note says so; not recorded

    @property
    def good(self) -> bool:
        """Whether it passes; so does one that nothing could be measured for, which its note says."""
        return self.value is None or (self.value <= self.limit if self.most else self.value >= self.limit)

    def as_json(self) -> dict[str, Any]:
        return {"value": self.value, "limit": self.limit, "good": self.good, "note": self.note}

    def __str__(self) -> str:
        value = "not measured" if self.value is None else f"{self.value:.4g}"
        word = "at most" if self.most else "at least"
        return f"{self.name} {value} ({', '.join(filter(None, (f'{word} {self.limit:g}', self.note, self.counted)))})"


def of_index(built: Built, limit: float) -> Figure:
    """Recall against exact search, for stored rows moved a little, as if their photos were taken again."""
    living = built.index.living
    if not len(living):
        return Figure("recall", None, limit, note="no garments")
    rng = np.random.default_rng(SEED + 1)
    chosen = rng.choice(living, min(SAMPLE, len(living)), replace=False)
    rows = np.asarray(built.index.vectors[np.sort(chosen)], np.float32)
    return Figure("recall", round(recall(built.index, moved(rows, rng), FIRST), 4), limit)


def moved(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Unit rows (N, D) float32 moved a little, as another photo of the same garment might be."""
    rows = rows + rng.normal(size=rows.shape).astype(np.float32) * np.float32(0.3 / np.sqrt(rows.shape[1]))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def of_counts(built: Built, wanted: np.ndarray, before: Published | None) -> Figure:
    """1 where index and items agree on every id, and on `wanted`, (M,) image_ids of photos with garments; else 0."""
    indexed = np.sort(built.index.ids[built.index.living])
    listed = np.sort(built.items.column("id").to_numpy())
    images, n_before = np.unique(built.items.column("image_id").to_numpy()), 0 if before is None else len(before)
    faults = {
        "an id twice": len(np.unique(listed)) != len(listed),
        f"{len(indexed)} rows in the index, {len(listed)} items": not np.array_equal(indexed, listed),
        f"garments of {len(images)} photos, {len(wanted)} wanted": not np.array_equal(images, np.sort(wanted)),
        f"no garment at all, {n_before} in the version before": bool(n_before) and not len(indexed),
    }
    notes = [note for note, is_so in faults.items() if is_so]
    counted = "1: index and items hold the same garments, each once"
    return Figure("counts", float(not notes), 1.0, note=", ".join(notes), counted=counted)


def of_rows(built: Built) -> Figure:
    bad = 0
    living = built.index.living
    for start in range(0, len(living), BLOCK):
        rows = np.asarray(built.index.vectors[living[start : start + BLOCK]], np.float32)
        lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows))
        bad += int((~(np.abs(lengths - 1) <= 0.01)).sum())  # written so that nan counts as bad
    counted = f"of {len(living)} embeddings those that are not finite or not of unit length"
    return Figure("rows", float(bad), 0.0, most=True, counted=counted)


def of_canaries(built: Built, before: Published | None, limit: float) -> Figure:
    """Share of what queries of the night before found then and that is still there, found again tonight."""
    if before is None or built.rebuilt:
        reason = "no night before to compare with" if before is None else built.rebuilt
        return Figure("canaries", None, limit, note=reason)
    assert isinstance(before, Gallery)  # one in parts cannot be extended by one part
    same = unchanged(before.items, built.items)
    if not len(same):
        return Figure("canaries", None, limit, note="nothing is as it was")
    chosen = np.sort(np.random.default_rng(SEED + 2).choice(same, min(SAMPLE, len(same)), replace=False))
    queries = before.vectors(chosen)
    return found_again(before.index.search(queries, FIRST), built.index.search(queries, FIRST), same, limit)


def unchanged(then: pa.Table, now: pa.Table) -> np.ndarray:
    """(M,) int64: ids of the garments that are in both, of photos of the same bytes; of rows of items.parquet."""
    then, now = (table.select(["id", "digest"]) for table in (then, now))
    place = places(now["id"].to_numpy(), then["id"].to_numpy())
    then, now = then.filter(pa.array(place >= 0)), now.take(pa.array(place[place >= 0]))
    same: np.ndarray = then["id"].to_numpy()[pc.equal(then["digest"], now["digest"]).to_numpy()]
    return same


def found_again(answer_then: Answer, answer_now: Answer, same: np.ndarray, limit: float) -> Figure:
    """The figure of the canaries: what they found then and find now, and the ids (M,) int64 of unchanged garments."""
    (similarity_then, then), (similarity_now, now) = answer_then, answer_now
    is_there = (then[:, :, None] == now[:, None, :]).any(axis=2)
    # a result may have been pushed out by new rows: then the last of the ten is nearer than it
    due = np.isin(then, same) & (is_there | (similarity_then > similarity_now[:, -1:] + NEARER))
    if not due.any():
        return Figure("canaries", None, limit, note="nothing is where it was")
    return Figure("canaries", round(float(is_there[due].mean()), 4), limit)


def of_share(name: str, part: int, photos: int, most: float) -> Figure:
    """A share of photos that must not be large: those that are gone, that lost something, that failed."""
    if not photos:
        return Figure(name, None, most, most=True, note="no such photos before")
    return Figure(name, round(part / photos, 6), most, most=True, note=f"{part} of {photos} photos")


def drift_advice(record: Mapping[str, Any], first: Mapping[str, Any] | None, recall: float | None, least: float) -> str:
    """Advice to train again, or "": the rows are no longer those that clusters and codes were learned from.

    `record` is of tonight's version, `first` of the one it was trained in; `recall` was measured, `least` asked for.
    """
    now, then = record.get("quantisation_error"), (first or {}).get("quantisation_error")
    if now and then and now > 1.5 * then:
        return f"quantisation error {now:.3g}, {now / then:.1f} times what it was"
    if recall is not None and recall < least:
        return f"recall {recall:.3f}, under {least:g}"
    return ""


class Searched(Protocol):
    """A version that answers questions, wherever its rows are."""

    @property
    def dims(self) -> dict[str, int]: ...
    def search(self, vectors: np.ndarray, k: int, *, category: Category | None = None) -> Answer: ...
    def lookup(self, ids: np.ndarray) -> list[dict[str, Any]]: ...


# --- copies of known photos -------------------------------------------------------------------------------------------


def choose_photos(items: pa.Table, n: int, seed: int) -> dict[int, list[float]]:
    """Photos to copy: image_id -> box of its surest garment. The seed is tonight's, so that each night takes others."""
    if not len(items) or not n:
        return {}
    score, image = items.column("score").to_numpy(), items.column("image_id").to_numpy()
    order = np.lexsort((-score, image))
    best = order[np.r_[True, image[order][1:] != image[order][:-1]]]  # of each photo
    rows = np.sort(np.random.default_rng([SEED, seed]).choice(best, min(n, len(best)), replace=False))
    return {int(image[row]): items.column("bbox")[int(row)].as_py() for row in rows}


def copied_photos(
    images: ImageSet, photos: pa.Table, boxes: Mapping[int, Sequence[float]], max_pixels: int
) -> Iterator[Photo]:
    """The photos that `boxes` (of `choose_photos`) names, as they might come back, one shard in memory at a time."""
    chosen = photos.filter(pc.is_in(photos.column("image_id"), value_set=pa.array(list(boxes), pa.int64())))
    for shard in pc.unique(chosen.column("shard")).to_pylist():
        rows = chosen.filter(pc.equal(chosen.column("shard"), shard))
        table = images.read(shard, columns=["image_id", "image"]).take(rows.column("row"))
        for image_id, data in zip(table.column("image_id").to_pylist(), table.column("image"), strict=True):
            copy = copy_of(data.as_py(), boxes[image_id], max_pixels)
            height, width = decode(copy, max_pixels=max_pixels).shape[:2]
            yield Photo(image_id, copy, width, height, "shop", 0, "", f"{image_id}.jpg", False, tuple[Item, ...]())


def copy_of(data: bytes, bbox: Sequence[float], max_pixels: int) -> bytes:
    """A photo as it might come back: cropped a little, but not into the garment, and encoded again."""
    pixels = decode(data, max_pixels=max_pixels)
    height, width = pixels.shape[:2]
    left, top = min(CROP * width, max(0.0, bbox[0])), min(CROP * height, max(0.0, bbox[1]))
    right, bottom = max((1 - CROP) * width, min(width, bbox[2])), max((1 - CROP) * height, min(height, bbox[3]))
    crop = pixels[int(top) : int(np.ceil(bottom)), int(left) : int(np.ceil(right))]
    encoded = io.BytesIO()
    Image.fromarray(crop).save(encoded, "JPEG", quality=QUALITY)
    return encoded.getvalue()


def of_copies(gallery: Searched, photos: pa.Table, garments: Mapping[int, pa.Table], limit: float) -> Figure:
    """Share of the copied photos that find themselves, or another photo of the same bytes.

    `photos`: image_id and digest of those that were copied. `garments`: image_id -> what was found in the photo's copy,
    with the columns of `PhotoResults.schema`.
    """
    if not len(photos):
        return Figure("copies", None, limit, note="no photo to copy")
    columns = (photos.column(name).to_pylist() for name in ("image_id", "digest"))
    digests, n_found = dict(zip(*columns, strict=True)), 0
    for image_id, queries in garments.items():
        if not len(queries):
            continue
        rows = [tables.rows_of(queries.column(name)) for name in gallery.dims]
        vectors = np.ascontiguousarray(np.concatenate(rows, axis=1), np.float32)
        _, ids = gallery.search(vectors, FIRST, category=read_hypotheses(queries))
        n_found += any(item.get("digest") == digests[image_id] for item in gallery.lookup(ids.reshape(-1)))
    return Figure("copies", round(n_found / len(photos), 4), limit, note=f"{len(photos)} photos")
