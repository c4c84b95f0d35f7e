"""The pictures of the pages: photos with boxes drawn on them and crops of garments, small, and how a report keeps them.

Drawing: upright RGB pixels and boxes in pixels of that image in, JPEG bytes out, made from the pixels alone: no EXIF,
no place and no camera goes along. Keeping: `write_pictures` writes what a report needs under report/pictures/ and
records in report/pictures.json what each picture was made from, so that a report that is built again draws only what is
new and removes what no page shows any more.
"""

import hashlib
import io
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jobs.reports.truth import Box, GroundTruth, Source, Sources, of_photos
from store.decode import DecodeError, decode
from store.imageset import ImageSet
from store.objects import ObjectMissing, ObjectStore

FOLDER = "report/pictures/"
LEDGER = "report/pictures.json"
DRAWING_VERSION = 2  # raise it when the same marks on the same photo look different
# Longest sides of a photo with boxes and of a shop crop: about twice what the pages show, for they also open large.
PHOTO_PX, CROP_PX = 640, 320
CROP_MARGIN = 0.06  # of the box's longer side, on every side of a crop: people judge better with some surroundings
JPEG_QUALITY = 80
LINE_PX = 360  # longest side of a picture at which outlines and labels have their plain width

# Of category ids in turn: dark enough for white digits and readable on white and on near-black pages.
CATEGORY_COLOURS = (
    "#2f6fdb", "#1d4fa0", "#0e8a8a", "#0b6468", "#7a52d1", "#a64ac9", "#c2410c",
    "#8a4b16", "#d0307a", "#b7791f", "#a8201a", "#4d7c0f", "#be123c",
)  # fmt: skip


@dataclass(frozen=True)
class Mark:
    """One box to draw, in px x1 y1 x2 y2 of the full-size image; strong ones stand out, dashed ones are true.

    Its colour is its category's where no other, #rrggbb, is given.
    """

    bbox: Box
    category_id: int
    label: str = ""
    strong: bool = False
    dashed: bool = False
    own_colour: str = ""

    @property
    def colour(self) -> str:
        return self.own_colour or colour_of(self.category_id)


@dataclass(frozen=True)
class Picture:
    """An encoded picture and its size in pixels."""

    jpeg: bytes
    width: int
    height: int


def colour_of(category_id: int) -> str:
    """The outline's colour as #rrggbb; a fourteenth category has that of the first. Grey for an id below 1."""
    return CATEGORY_COLOURS[(category_id - 1) % len(CATEGORY_COLOURS)] if category_id >= 1 else "#6b7280"


def photo_with_marks(image: np.ndarray, marks: list[Mark], *, longest_px: int = PHOTO_PX) -> Picture:
    """Shrink an upright (H, W, 3) uint8 RGB photo to at most `longest_px` on its longer side, and draw boxes on it.

    Photos are never enlarged. Strong marks are drawn after the others, and labels last, none upon another.
    """
    small = _fit(Image.fromarray(image), longest_px)
    scale = small.width / image.shape[1], small.height / image.shape[0]
    draw, unit = ImageDraw.Draw(small), max(1.0, max(small.size) / LINE_PX)
    corners = {}
    for number in sorted(range(len(marks)), key=lambda number: marks[number].strong):
        corners[number] = _draw_outline(draw, marks[number], scale, small.size, unit)
    taken: list[tuple[float, float, float, float]] = []
    for number, mark in enumerate(marks):
        if mark.label:
            taken.append(_draw_label(draw, mark, corners[number], small.size, unit, taken))
    return _encode(small)


def crop_garment(image: np.ndarray, bbox: Box) -> Picture:
    """Cut a garment out of an upright (H, W, 3) uint8 RGB photo, with a small margin, shrunk to at most CROP_PX.

    The box, px x1 y1 x2 y2 of `image`, may reach past its edges; what is cut is clipped to the image and has at least
    one pixel each way. Small crops are not enlarged.
    """
    height, width = image.shape[:2]
    x1, y1, x2, y2 = bbox
    margin = CROP_MARGIN * max(x2 - x1, y2 - y1)
    left, top = (int(np.clip(v - margin, 0, size - 1)) for v, size in ((x1, width), (y1, height)))
    right, bottom = (int(np.clip(np.ceil(v + margin), 1, size)) for v, size in ((x2, width), (y2, height)))
    cut = image[top : max(bottom, top + 1), left : max(right, left + 1)]
    return _encode(_fit(Image.fromarray(np.ascontiguousarray(cut)), CROP_PX))


def _draw_outline(
    draw: ImageDraw.ImageDraw, mark: Mark, scale: tuple[float, float], size: tuple[int, int], unit: float
) -> tuple[float, float]:
    """An outline with a white rim inside and out, visible on any cloth; returns its upper left corner."""
    x1, x2 = (float(np.clip(v * scale[0], 0, size[0] - 1)) for v in mark.bbox[0::2])
    y1, y2 = (float(np.clip(v * scale[1], 0, size[1] - 1)) for v in mark.bbox[1::2])
    x2, y2 = max(x1, x2), max(y1, y2)
    line = 5 if mark.strong else 3
    if mark.dashed:
        _dashed_box(draw, (x1, y1, x2, y2), mark.colour, unit)
    else:
        rim = line + (2 if mark.strong else 1)
        draw.rectangle((x1, y1, x2, y2), outline="white", width=round(rim * unit))
        draw.rectangle((x1, y1, x2, y2), outline=mark.colour, width=round(line * unit))
    return x1, y1


def _dashed_box(draw: ImageDraw.ImageDraw, box: tuple[float, ...], colour: str, unit: float) -> None:
    x1, y1, x2, y2 = box
    dash, step = 7 * unit, 12 * unit
    across = [(start, y, min(start + dash, x2), y) for start in np.arange(x1, x2, step) for y in (y1, y2)]
    down = [(x, start, x, min(start + dash, y2)) for start in np.arange(y1, y2, step) for x in (x1, x2)]
    for line in across + down:
        draw.line(line, fill="white", width=round(5 * unit))
        draw.line(line, fill=colour, width=round(3 * unit))


def _draw_label(
    draw: ImageDraw.ImageDraw,
    mark: Mark,
    corner: tuple[float, float],
    size: tuple[int, int],
    unit: float,
    taken: list[tuple[float, float, float, float]],
) -> tuple[float, float, float, float]:
    """The label on a filled rectangle at the outline's corner, inside the picture, below the labels that are `taken`.

    Returns the rectangle, px x1 y1 x2 y2 of the picture.
    """
    font = ImageFont.load_default(round((15 if mark.strong else 12) * unit))
    left, top, right, bottom = font.getbbox(mark.label)
    width, height = right - left + 8 * unit, bottom - top + 7 * unit
    x = float(np.clip(corner[0], 0, max(0, size[0] - width)))
    y = float(np.clip(corner[1], 0, max(0, size[1] - height)))
    for x1, y1, x2, y2 in sorted(taken, key=lambda other: other[1]):
        if x < x2 and x1 < x + width and y < y2 and y1 < y + height and y2 + height <= size[1]:
            y = y2
    draw.rectangle((x, y, x + width, y + height), fill=mark.colour)
    draw.text((x + 4 * unit - left, y + 4 * unit - top), mark.label, fill="white", font=font)
    return x, y, x + width, y + height


def _fit(picture: Image.Image, longest_px: int) -> Image.Image:
    ratio = longest_px / max(picture.size)
    if ratio >= 1:
        return picture.copy()
    width, height = (max(1, round(side * ratio)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3)


def _encode(picture: Image.Image) -> Picture:
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return Picture(data.getvalue(), *picture.size)


# ---- keeping -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shot:
    """A picture beside the pages; path relative to them, size in pixels."""

    path: str
    width: int
    height: int


@dataclass(frozen=True)
class Marked:
    """A whole photo with boxes on it."""

    marks: tuple[Mark, ...]

    def draw(self, image: np.ndarray) -> Picture:
        return photo_with_marks(image, list(self.marks))


@dataclass(frozen=True)
class Crop:
    """One garment cut out; the box in pixels of the upright photo."""

    bbox: Box

    def draw(self, image: np.ndarray) -> Picture:
        return crop_garment(image, self.bbox)


Wanted = dict[int, dict[str, Marked | Crop]]  # image id -> name of the picture -> what it shows of that photo
Shots = dict[str, Shot | None]  # name of the picture -> where it is; None where its photo does not decode


def write_pictures(
    output: ObjectStore, imageset: ImageSet, truth: GroundTruth, wanted: Wanted, sources: Sources, max_pixels: int
) -> Shots:
    """Draw what is wanted and does not exist yet, one shard's photos in memory at a time; remove what is not wanted.

    Photos of more than `max_pixels` are not decoded. Photos without a source are not in the set: their pictures are
    absent from the result.
    """
    before = _read_ledger(output)
    stored = {entry.key for entry in output.list(FOLDER)}
    shots: Shots = {}
    digests: dict[str, str] = {}
    missing: Wanted = {}
    for image_id, parts in wanted.items():
        for name, part in parts.items() if image_id in sources else ():
            digests[name] = _inputs_digest(sources[image_id], part)
            digest, width, height = before.get(name, ("", 0, 0))
            if digest == digests[name] and (not width or _key(name) in stored):
                shots[name] = _shot(name, width, height)
            else:
                missing.setdefault(image_id, {})[name] = part
    shots |= _draw_missing(output, imageset, truth, missing, max_pixels)
    sizes = {name: (shot.width, shot.height) if shot else (0, 0) for name, shot in shots.items()}
    output.write(LEDGER, json.dumps({n: (digests[n], *sizes[n]) for n in sorted(shots)}, indent=0).encode())
    for key in sorted(stored - {_key(name) for name, shot in shots.items() if shot}):
        output.delete(key)
    return shots


def _draw_missing(output: ObjectStore, images: ImageSet, truth: GroundTruth, missing: Wanted, max_pixels: int) -> Shots:
    shots: Shots = {}
    n_threads = 4 if output.local_path is None else 1  # a bucket answers slowly, a disk does not
    with ThreadPoolExecutor(n_threads) as threads:
        for shard, ids in truth.shards_of(missing).items():
            rows = of_photos(images.read(shard, columns=["image_id", "image"]), ids).to_pylist()
            for photo in [threads.submit(_draw, output, r["image"], missing[r["image_id"]], max_pixels) for r in rows]:
                shots |= photo.result()
    return shots


def _draw(output: ObjectStore, data: bytes, parts: Mapping[str, Marked | Crop], max_pixels: int) -> Shots:
    """Decode one photo and write what is wanted of it."""
    try:
        image = decode(data, max_pixels=max_pixels)
    except DecodeError:
        return dict.fromkeys(parts)
    shots: Shots = {}
    for name, part in parts.items():
        picture = part.draw(image)
        output.write(_key(name), picture.jpeg)
        shots[name] = _shot(name, picture.width, picture.height)
    return shots


def _inputs_digest(source: Source, part: Marked | Crop) -> str:
    """A short digest of everything that decides how a picture looks."""
    inputs = (DRAWING_VERSION, PHOTO_PX, CROP_PX, CROP_MARGIN, JPEG_QUALITY, LINE_PX, source.digest, part)
    return hashlib.blake2b(repr(inputs).encode(), digest_size=8).hexdigest()


def _read_ledger(output: ObjectStore) -> dict[str, tuple[str, int, int]]:
    """Name -> digest of its inputs, width, height (0: does not decode); {} without a ledger that can be read."""
    try:
        return {name: (str(digest), int(w), int(h)) for name, (digest, w, h) in json.loads(output.read(LEDGER)).items()}
    except (ObjectMissing, ValueError, TypeError, AttributeError):
        return {}


def _key(name: str) -> str:
    return f"{FOLDER}{name}.jpg"


def _shot(name: str, width: int, height: int) -> Shot | None:
    return Shot(f"pictures/{name}.jpg", width, height) if width else None
