"""Cropped garments kept on disk: the trainings of a comparison decode each photo once, and share the memory.

In: photos of image sets, in order. Out: of each, its garments' canvases, or None where it cannot be decoded.
FOLDER/KEY.arrow holds one row per garment and is mapped, not read, so that trainings beside each other on one machine
hold it once. KEY is the digest of everything a canvas depends on: the photos' bytes, their boxes, the size, and how
canvases are cut and kept.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from jobs.runs.places import refuse_other_kinds
from jobs.training.data import LearningPhoto
from retrieval import training_crops
from store import decode
from store.errors import UserError
from store.files import publish_file
from store.objects import open_store

CUT = 1  # raised when `training_crops.cut` or `packed` would give other pixels
SCHEMA = pa.schema({
    "photo": pa.int32(), "canvas": pa.binary(), "box": pa.list_(pa.float64(), 4), "extent": pa.list_(pa.int32(), 2),
})  # fmt: skip


class Piece(NamedTuple):
    """What `retrieval.training_crops.cut` gives of one box; `canvas` perhaps as JPEG."""

    canvas: np.ndarray
    box: tuple[float, float, float, float]
    extent: tuple[int, int]


def pieces(photos: Sequence[LearningPhoto], size: int, as_jpeg: bool, folder: str = "") -> Iterator[list[Piece] | None]:
    """The garments of each photo, in its items' order, cropped to `size` px; None where it cannot be decoded.

    `as_jpeg` keeps canvases as JPEG. Cropped garments are kept in `folder`; "" keeps nothing.
    """
    if not folder:
        return (cut(photo, size, as_jpeg) for photo in photos)
    store = open_store(folder)
    if store.local_path is None:
        raise UserError(f"--crops {folder}: want a local folder, as cropped garments are mapped into memory")
    refuse_other_kinds(store, "cropped garments")
    path = store.local_path / f"{_key(photos, size, as_jpeg)}.arrow"
    if (table := _opened(path)) is None:
        _write(path, photos, size, as_jpeg)
        table = _opened(path)
    return _grouped(photos, table, size, as_jpeg)


def cut(photo: LearningPhoto, size: int, as_jpeg: bool = False) -> list[Piece] | None:
    """The garments of one photo; None where it cannot be decoded."""
    row = photo.read()
    try:
        pixels = decode.decode(row["image"])
    except decode.DecodeError:
        return None
    pieces = (training_crops.cut(pixels, np.array(item["bbox"]), size) for item in row["items"])
    return [Piece(training_crops.packed(canvas) if as_jpeg else canvas, box, extent) for canvas, box, extent in pieces]


def _key(photos: Sequence[LearningPhoto], size: int, as_jpeg: bool) -> str:
    digest = hashlib.sha256(json.dumps([CUT, training_crops.CONTEXT, size, as_jpeg, decode.VERSION]).encode())
    for photo in photos:
        boxes = [item["bbox"] for item in photo.items()]
        digest.update(json.dumps([photo.facts["digest"].hex(), boxes]).encode())
    return digest.hexdigest()[:32]


def _write(path: Path, photos: Sequence[LearningPhoto], size: int, as_jpeg: bool) -> None:
    """Write the whole file or none; of two trainings that begin together, the later one's equal file stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with publish_file(path) as part, part.open("wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        for number, photo in enumerate(photos):
            if garments := cut(photo, size, as_jpeg):
                rows = [{**piece._asdict(), "photo": number, "canvas": piece.canvas.tobytes()} for piece in garments]
                writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=SCHEMA))


def _opened(path: Path) -> pa.Table | None:
    """The file, mapped; None where it is missing or damaged."""
    try:
        return pa.ipc.open_file(pa.memory_map(os.fsencode(path))).read_all()
    except FileNotFoundError:
        return None
    except pa.ArrowInvalid as error:
        print(f"{path} cannot be read ({error}); cropping again", flush=True)
        return None


def _grouped(
    photos: Sequence[LearningPhoto], table: pa.Table, size: int, as_jpeg: bool
) -> Iterator[list[Piece] | None]:
    """What `pieces` gives; the canvases are views of the mapped file."""
    side = training_crops.canvas_side(size)
    batches = {batch["photo"][0].as_py(): batch for batch in table.to_batches()}
    for number, photo in enumerate(photos):
        if (batch := batches.get(number)) is None:
            yield None if photo.facts["n_items"] else []
            continue
        canvases = (np.frombuffer(canvas.as_buffer(), np.uint8) for canvas in batch["canvas"])
        yield [
            Piece(canvas if as_jpeg else canvas.reshape(side, side, 3), tuple(box.as_py()), tuple(extent.as_py()))
            for canvas, box, extent in zip(canvases, batch["box"], batch["extent"], strict=True)
        ]
