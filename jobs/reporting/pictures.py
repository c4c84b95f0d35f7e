"""The pictures of a report: photos with boxes drawn on them and crops of shop garments, small, under report/pictures/.

In: what is wanted of each photo, the image set. Out: JPEG files, and where each lies. What a picture was made from is written down in
report/pictures.json, so a report that is built again draws and writes only what is new; files that nothing shows any more are removed.
"""

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs import overlay
from jobs.reporting.queries import Box, Source, Truth
from store.decode import DecodeError, decode
from store.imageset import ImageSet
from store.objects import ObjectMissing, ObjectStore

FOLDER = "report/pictures/"
LEDGER = "report/pictures.json"
DRAWN = 1  # raise it when the same marks on the same photo look different


@dataclass(frozen=True)
class Shot:
    """A picture beside the pages; path relative to them, size in pixels."""

    path: str
    width: int
    height: int


@dataclass(frozen=True)
class Marked:
    """A whole photo with boxes on it."""

    marks: tuple[overlay.Mark, ...]

    def draw(self, image: np.ndarray) -> overlay.Picture:
        return overlay.photo_with_marks(image, list(self.marks))


@dataclass(frozen=True)
class Crop:
    """One garment cut out; the box in pixels of the upright photo."""

    bbox: Box

    def draw(self, image: np.ndarray) -> overlay.Picture:
        return overlay.crop(image, self.bbox)


Wanted = dict[int, dict[str, Marked | Crop]]  # image id -> name of the picture -> what it shows of that photo


def write_pictures(
    output: ObjectStore,
    imageset: ImageSet,
    truth: Truth,
    wanted: Wanted,
    sources: Mapping[int, Source],
    max_pixels: int,
) -> dict[str, Shot | None]:
    """Write what is wanted and not there yet, one shard's photos in memory at a time; remove what is not wanted.

    Args:
        sources: of every wanted photo that the set has; others get no picture.
        max_pixels: larger photos are not decoded.

    Returns:
        name of the picture -> where it lies; None where its photo does not decode. Photos that are not in the set are absent.
    """
    before = _read_ledger(output)
    there = {entry.key for entry in output.list(FOLDER)}
    shots: dict[str, Shot | None] = {}
    made: dict[str, str] = {}
    missing: Wanted = {}
    for image_id, parts in wanted.items():
        for name, part in parts.items() if image_id in sources else ():
            made[name] = _made_from(sources[image_id], part)
            if name in before and before[name][0] == made[name] and (not before[name][1] or _key(name) in there):
                shots[name] = _shot(name, *before[name][1:])
            else:
                missing.setdefault(image_id, {})[name] = part
    shots |= _draw(output, imageset, truth, missing, max_pixels)
    sizes = {name: (shot.width, shot.height) if shot else (0, 0) for name, shot in shots.items()}
    output.write(LEDGER, json.dumps({n: (made[n], *sizes[n]) for n in sorted(shots)}, indent=0).encode())
    for key in sorted(there - {_key(name) for name, shot in shots.items() if shot}):
        output.delete(key)
    return shots


def _draw(
    output: ObjectStore, imageset: ImageSet, truth: Truth, missing: Wanted, max_pixels: int
) -> dict[str, Shot | None]:
    shots: dict[str, Shot | None] = {}
    n_threads = 4 if output.local_path is None else 1  # a bucket answers slowly, a disk does not
    with ThreadPoolExecutor(n_threads) as threads:
        for shard, ids in truth.shards_of(missing).items():
            table = imageset.read(shard, columns=["image_id", "image"])
            rows = table.filter(pc.is_in(table["image_id"], value_set=pa.array(ids, pa.int64()))).to_pylist()
            work = [threads.submit(_write, output, row["image"], missing[row["image_id"]], max_pixels) for row in rows]
            for photo in work:
                shots |= photo.result()
    return shots


def _write(
    output: ObjectStore, data: bytes, parts: Mapping[str, Marked | Crop], max_pixels: int
) -> dict[str, Shot | None]:
    """Decode one photo and write what is wanted of it."""
    try:
        image = decode(data, max_pixels=max_pixels)
    except DecodeError:
        return dict.fromkeys(parts)
    shots: dict[str, Shot | None] = {}
    for name, part in parts.items():
        picture = part.draw(image)
        output.write(_key(name), picture.jpeg)
        shots[name] = _shot(name, picture.width, picture.height)
    return shots


def _made_from(source: Source, part: Marked | Crop) -> str:
    """What decides how a picture looks, in a few letters."""
    told = f"{DRAWN} {overlay.PHOTO_PX} {overlay.CROP_PX} {overlay.CROP_MARGIN} {overlay.JPEG_QUALITY} {source.digest} {part!r}"
    return hashlib.blake2b(told.encode(), digest_size=8).hexdigest()


def _read_ledger(output: ObjectStore) -> dict[str, tuple[str, int, int]]:
    """Name -> made from, width, height (0: does not decode); nothing where an earlier report left none, or rubbish."""
    try:
        return {name: (str(made), int(w), int(h)) for name, (made, w, h) in json.loads(output.read(LEDGER)).items()}
    except (ObjectMissing, ValueError, TypeError, AttributeError):
        return {}


def _key(name: str) -> str:
    return f"{FOLDER}{name}.jpg"


def _shot(name: str, width: int, height: int) -> Shot | None:
    return Shot(f"pictures/{name}.jpg", width, height) if width else None
