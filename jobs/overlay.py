"""Small pictures for people: photos with their boxes drawn, and crops of garments.

In: upright RGB pixels and boxes in pixels of that image. Out: JPEG bytes made from the pixels alone, so no EXIF, no place,
no camera goes along. Nothing here knows runs or storage.
"""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from detection.categories import CATEGORIES

PHOTO_PX = 360  # longest side of a photo with boxes
CROP_PX = 160  # longest side of a shop crop
CROP_MARGIN = 0.06  # of the box's longer side, on every side of a crop: people judge better with a little around it
JPEG_QUALITY = 85

# One colour per category id 1..13, dark enough for white digits and readable on white and on near-black pages.
CATEGORY_COLOURS = (
    "#2f6fdb", "#1d4fa0", "#0e8a8a", "#0b6468", "#7a52d1", "#a64ac9", "#c2410c",
    "#8a4b16", "#d0307a", "#b7791f", "#a8201a", "#4d7c0f", "#be123c",
)  # fmt: skip


@dataclass(frozen=True)
class Mark:
    """One box to draw: a solid outline with a number; strong ones stand out, dashed ones are ground truth."""

    bbox: tuple[float, float, float, float]  # px x1 y1 x2 y2 of the full-size image
    category_id: int
    label: str = ""
    strong: bool = False
    dashed: bool = False


@dataclass(frozen=True)
class Picture:
    jpeg: bytes
    width: int
    height: int


def colour_of(category_id: int) -> str:
    """The outline's colour as #rrggbb; grey for an id outside 1..13."""
    return CATEGORY_COLOURS[category_id - 1] if 1 <= category_id <= len(CATEGORIES) else "#6b7280"


def photo_with_marks(image: np.ndarray, marks: list[Mark], *, longest_px: int = PHOTO_PX) -> Picture:
    """Shrink a photo and draw boxes on it.

    Args:
        image: (H, W, 3) uint8 upright RGB.
        marks: boxes in pixels of `image`; strong ones are drawn last, over the others.
        longest_px: the longer side of the result at most; photos are never enlarged.
    """
    small = _fit(Image.fromarray(image), longest_px)
    scale = small.width / image.shape[1], small.height / image.shape[0]
    draw = ImageDraw.Draw(small)
    for mark in sorted(marks, key=lambda m: m.strong):
        _draw_mark(draw, mark, scale, small.size)
    return _encode(small)


def crop(image: np.ndarray, bbox: tuple[float, float, float, float], *, longest_px: int = CROP_PX) -> Picture:
    """Cut a garment out with a small margin, clipped to the image, at least one pixel each way.

    Args:
        image: (H, W, 3) uint8 upright RGB.
        bbox: px x1 y1 x2 y2 of `image`; may reach past its edges.
        longest_px: the longer side of the result at most; never enlarged.
    """
    height, width = image.shape[:2]
    x1, y1, x2, y2 = bbox
    margin = CROP_MARGIN * max(x2 - x1, y2 - y1)
    left, top = (int(np.clip(v - margin, 0, size - 1)) for v, size in ((x1, width), (y1, height)))
    right, bottom = (int(np.clip(np.ceil(v + margin), 1, size)) for v, size in ((x2, width), (y2, height)))
    cut = image[top : max(bottom, top + 1), left : max(right, left + 1)]
    return _encode(_fit(Image.fromarray(np.ascontiguousarray(cut)), longest_px))


def _draw_mark(draw: ImageDraw.ImageDraw, mark: Mark, scale: tuple[float, float], size: tuple[int, int]) -> None:
    """An outline with a white rim inside and out, so that it shows on any cloth, and the label in its upper left corner."""
    x1, x2 = (float(np.clip(v * scale[0], 0, size[0] - 1)) for v in mark.bbox[0::2])
    y1, y2 = (float(np.clip(v * scale[1], 0, size[1] - 1)) for v in mark.bbox[1::2])
    x2, y2 = max(x1, x2), max(y1, y2)
    colour, line = colour_of(mark.category_id), 5 if mark.strong else 3
    if mark.dashed:
        _dashed_box(draw, (x1, y1, x2, y2), colour)
    else:
        draw.rectangle((x1, y1, x2, y2), outline="white", width=line + 2 if mark.strong else line + 1)
        draw.rectangle((x1, y1, x2, y2), outline=colour, width=line)
    if mark.label:
        _badge(draw, mark.label, (x1, y1), colour, size, large=mark.strong)


def _dashed_box(draw: ImageDraw.ImageDraw, box: tuple[float, ...], colour: str, dash: int = 7, gap: int = 5) -> None:
    x1, y1, x2, y2 = box
    for start in np.arange(x1, x2, dash + gap):
        for y in (y1, y2):
            _dash(draw, (start, y, min(start + dash, x2), y), colour)
    for start in np.arange(y1, y2, dash + gap):
        for x in (x1, x2):
            _dash(draw, (x, start, x, min(start + dash, y2)), colour)


def _dash(draw: ImageDraw.ImageDraw, line: tuple[float, ...], colour: str) -> None:
    draw.line(line, fill="white", width=5)
    draw.line(line, fill=colour, width=3)


def _badge(
    draw: ImageDraw.ImageDraw,
    text: str,
    corner: tuple[float, float],
    colour: str,
    size: tuple[int, int],
    *,
    large: bool,
) -> None:
    font = ImageFont.load_default(15 if large else 12)
    left, top, right, bottom = font.getbbox(text)
    width, height = right - left + 8, bottom - top + 7
    x, y = (
        float(np.clip(v, 0, max(0, room - part))) for v, room, part in zip(corner, size, (width, height), strict=True)
    )
    draw.rectangle((x, y, x + width, y + height), fill=colour)
    draw.text((x + 4 - left, y + 4 - top), text, fill="white", font=font)


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
