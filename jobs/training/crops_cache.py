"""Garments cut once and kept on disk: the many trainings of a comparison decode each photo once, and share the memory.

In: photos of image sets, in order. Out: of each, its garments' canvases, or None where it cannot be decoded. FOLDER/KEY.arrow
holds one row per garment and is mapped, not read, so that trainings beside each other on one machine hold it once. KEY is the
digest of everything a canvas depends on: the photos' bytes, their boxes, the size, and how canvases are cut and kept.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from retrieval import training_crops
from store import decode

if TYPE_CHECKING:
    import pyarrow as pa

    from jobs.training.data import LearningPhoto

CUT = 1  # raised when `training_crops.cut` or `packed` would give other pixels


class Piece(NamedTuple):
    """What `retrieval.training_crops.cut` gives of one box; `canvas` perhaps as JPEG."""

    canvas: np.ndarray
    box: tuple[float, float, float, float]
    extent: tuple[int, int]


def pieces(
    photos: "Sequence[LearningPhoto]", size: int, as_jpeg: bool, folder: str = ""
) -> Iterator[list[Piece] | None]:
    """The garments of each photo, in its items' order; None where it cannot be decoded.

    Args:
        size: side of the crops in pixels.
        as_jpeg: keep canvases as JPEG.
        folder: where cut garments are kept and looked for; "" keeps nothing.
    """
    if not folder:
        return (cut(photo, size, as_jpeg) for photo in photos)
    path = Path(folder) / f"{_key(photos, size, as_jpeg)}.arrow"
    table = _opened(path)
    if table is None:
        _write(path, photos, size, as_jpeg)
        table = _opened(path)
    return _grouped(photos, table, size, as_jpeg)


def cut(photo: "LearningPhoto", size: int, as_jpeg: bool = False) -> list[Piece] | None:
    """The garments of one photo; None where it cannot be decoded."""
    row = photo.read()
    try:
        pixels = decode.decode(row["image"])
    except decode.DecodeError:
        return None
    found = (training_crops.cut(pixels, np.array(item["bbox"]), size) for item in row["items"])
    return [Piece(training_crops.packed(canvas) if as_jpeg else canvas, box, extent) for canvas, box, extent in found]


def _key(photos: "Sequence[LearningPhoto]", size: int, as_jpeg: bool) -> str:
    digest = hashlib.sha256(json.dumps([CUT, training_crops.CONTEXT, size, as_jpeg]).encode())
    for photo in photos:
        boxes = [item["bbox"] for item in photo.items()]
        digest.update(json.dumps([photo.about["digest"].hex(), boxes]).encode())
    return digest.hexdigest()[:32]


def _schema() -> "pa.Schema":
    import pyarrow as pa

    return pa.schema({
        "photo": pa.int32(), "canvas": pa.binary(), "box": pa.list_(pa.float64(), 4), "extent": pa.list_(pa.int32(), 2),
    })  # fmt: skip


def _write(path: Path, photos: "Sequence[LearningPhoto]", size: int, as_jpeg: bool) -> None:
    """The whole file or none: two trainings that begin together write the same, and the later one stays."""
    import pyarrow as pa

    path.parent.mkdir(parents=True, exist_ok=True)
    own = path.with_suffix(f".{os.getpid()}.part")
    try:
        with pa.OSFile(str(own), "wb") as sink, pa.ipc.new_file(sink, _schema()) as writer:
            for number, photo in enumerate(photos):
                rows = [
                    {"photo": number, "canvas": p.canvas.tobytes(), "box": p.box, "extent": p.extent}
                    for p in cut(photo, size, as_jpeg) or ()
                ]
                if rows:
                    writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=_schema()))
        os.replace(own, path)
    finally:
        own.unlink(missing_ok=True)


def _opened(path: Path) -> "pa.Table | None":
    """The file, mapped; None where there is none or it is not whole."""
    import pyarrow as pa

    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except FileNotFoundError:
        return None
    except pa.ArrowInvalid as error:
        print(f"{path} cannot be read ({error}); cutting anew", flush=True)
        return None


def _grouped(
    photos: "Sequence[LearningPhoto]", table: "pa.Table", size: int, as_jpeg: bool
) -> Iterator[list[Piece] | None]:
    side = training_crops.canvas_side(size)
    batches = {batch["photo"][0].as_py(): batch for batch in table.to_batches()}
    for number, photo in enumerate(photos):
        batch = batches.get(number)
        if batch is None:
            yield None if photo.about["n_items"] else []
            continue
        yield [
            Piece(_canvas(canvas, None if as_jpeg else side), tuple(box.as_py()), tuple(extent.as_py()))
            for canvas, box, extent in zip(batch["canvas"], batch["box"], batch["extent"], strict=True)
        ]


def _canvas(scalar: Any, side: int | None) -> np.ndarray:
    """A view of the mapped file."""
    pixels = np.frombuffer(scalar.as_buffer(), np.uint8)
    return pixels if side is None else pixels.reshape(side, side, 3)
