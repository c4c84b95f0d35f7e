"""Pixels of the drawn data set: cloth from a garment's colours and print, and a canvas that polygons are painted on.

In: garments, parts and lines of `sources.drawn.garments`, in its body frame; out: RGB pixels, and for every pixel
whose it is. NumPy and OpenCV only. Used by `sources.drawn.scenes` and `.drawn`. Source: our own.
"""

from dataclasses import dataclass, field
from functools import cache, lru_cache
from itertools import product

import cv2
import numpy as np

from sources.drawn.garments import TEXTURES, Colour, DrawnGarment, GarmentPart, Line, Points

TILE = 256  # pixels, side of a cloth tile
SHIFT = 4  # OpenCV draws in 1/16 pixels


@dataclass
class Canvas:
    """A picture in the making.

    pixels (H, W, 3) uint8 RGB; camera (2, 3) body frame to pixels; owner (H, W) uint8: 0 background, 255 body or thing,
    else the number of the garment seen there; whole: by garment, (H, W) bool, what it covers with nothing in front.
    """

    pixels: np.ndarray
    camera: np.ndarray
    rng: np.random.Generator
    owner: np.ndarray = field(init=False)
    whole: dict[int, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.owner = np.zeros(self.pixels.shape[:2], np.uint8)

    def to_pixels(self, points: Points) -> np.ndarray:
        return np.asarray(points, float) @ self.camera[:, :2].T + self.camera[:, 2]

    @property
    def scale(self) -> float:
        """Pixels per body height."""
        return float(np.sqrt(abs(np.linalg.det(self.camera[:, :2]))))


# ---------------------------------------------------------------------------------------------------------------- cloth
@cache
def _texture(name: str) -> np.ndarray:
    """Brightness of a weave, (TILE, TILE, 3) uint8 around 128; seamless in both directions."""
    rng = np.random.default_rng(TEXTURES.index(name))
    y, x = np.mgrid[0:TILE, 0:TILE] * (2 * np.pi / TILE)
    noise = rng.normal(0, 1, (TILE, TILE))
    soft = cv2.resize(rng.normal(0, 1, (TILE // 4, TILE // 4)), (TILE, TILE), interpolation=cv2.INTER_CUBIC)
    light = {
        "plain": 4 * noise,
        "knit": 16 * np.sin(32 * y + 3.0 * np.abs(np.sin(16 * x))) + 6 * np.sin(32 * x) + 4 * noise,
        "denim": 10 * np.sin(48 * (x + y)) + 8 * noise + 6 * soft,
        "rib": 20 * np.sin(32 * x) + 3 * noise,
        "fleece": 9 * soft + 8 * noise,
        "pleats": 26 * ((x * 14 / (2 * np.pi)) % 1 - 0.5) * 2 + 3 * noise,
    }[name]
    return np.repeat(np.clip(128 + light, 40, 215).astype(np.uint8)[..., None], 3, axis=2)


@cache
def _folds() -> np.ndarray:
    """Soft vertical creases, (1024, 1024) uint8 around 128; a garment's light is a window of it."""
    rng = np.random.default_rng(77)
    coarse = cv2.resize(rng.normal(0, 1, (8, 50)), (1024, 1024), interpolation=cv2.INTER_CUBIC)
    fine = cv2.resize(rng.normal(0, 1, (24, 130)), (1024, 1024), interpolation=cv2.INTER_CUBIC)
    return np.clip(128 + 13 * coarse + 8 * fine, 70, 186).astype(np.uint8)


@lru_cache(maxsize=16)
def cloth(garment: DrawnGarment) -> tuple[np.ndarray, float]:
    """The garment's fabric: (TILE, TILE, 3) uint8 RGB tile, and its pixels per body unit; repeat it in both directions.

    Kept for a few garments, since a picture asks twice: do not write into the tile.
    """
    rng = np.random.default_rng(garment.seed)
    a, b, c = (np.array(colour, float) for colour in garment.colours)
    n, step = garment.period, TILE / garment.period
    t = np.arange(TILE)
    index = np.zeros((TILE, TILE), np.uint8)
    palette = np.zeros((256, 3))
    palette[:4] = a, b, c, (a + b) / 2
    per_unit = 2.0 * TILE
    band = (t % step < step * rng.uniform(0.25, 0.6)) * 1 + (t % step > step * 0.88) * 2 * (garment.seed % 2)
    band = band.clip(0, 2)
    match garment.print:
        case "hstripes":
            index[:] = band[:, None]
        case "vstripes":
            index[:] = band[None, :]
        case "diagonal":
            index[:] = band[(t[:, None] + t[None, :]) % TILE]
        case "checks":
            on = (band == 1).astype(np.uint8)
            index[:] = np.array([0, 3, 1], np.uint8)[on[:, None] + on[None, :]]
            index[band == 2] = index[:, band == 2] = 2
        case "dots":
            radius = step * rng.uniform(0.18, 0.34)
            for row, column in np.ndindex(n + 1, n + 1):
                _disc(index, ((column + 0.5 * (row % 2)) * step, row * step), radius, 1)
        case "floral":
            for x, y in rng.uniform(0, TILE, (3 * n, 2)):
                size, turn = step * rng.uniform(0.3, 0.5), rng.uniform(0, 6.3)
                for angle in turn + np.arange(5) * 2 * np.pi / 5:
                    _disc(index, (x + size * 0.62 * np.cos(angle), y + size * 0.62 * np.sin(angle)), size * 0.45, 1)
                _disc(index, (x, y), size * 0.38, 2)
        case "spots":
            for x, y in rng.uniform(0, TILE, (6 * n, 2)):
                axes = tuple(int(16 * v) for v in step * rng.uniform(0.12, 0.4, 2))
                centre = int(16 * x), int(16 * y)
                cv2.ellipse(index, centre, axes, rng.uniform(0, 180), 0, 360, 1, -1, cv2.LINE_8, SHIFT)
        case "blocks":
            per_unit = 1.0 * TILE
            cuts = np.sort(rng.uniform(0.06, 0.42, 2)) * per_unit
            index[:] = ((t > cuts[0]) * 1 + (t > cuts[1]) * 1)[:, None]
        case "sides":
            per_unit = 1.0 * TILE
            index[:] = ((t > TILE / 2 + 6) * 1)[None, :]
        case "gradient":
            per_unit = 1.0 * TILE
            index[:] = t[:, None]
            share = np.clip((np.arange(256) / per_unit - 0.05) / rng.uniform(0.25, 0.5), 0, 1)[:, None]
            palette = a * (1 - share) + b * share
    tile = cv2.LUT(cv2.merge([index, index, index]), palette.astype(np.uint8).reshape(1, 256, 3))
    return cv2.multiply(tile, _texture(garment.texture), scale=1 / 128), per_unit


def _disc(index: np.ndarray, centre: tuple[float, float], radius: float, value: int) -> None:
    """A filled circle, in tile pixels; drawn again at the far side where it crosses the tile's edge."""
    for dx, dy in product((-TILE, 0, TILE), repeat=2):
        x, y = centre[0] + dx, centre[1] + dy
        if -radius < x < TILE + radius and -radius < y < TILE + radius:
            cv2.circle(index, (int(16 * x), int(16 * y)), int(16 * radius), value, -1, cv2.LINE_8, SHIFT)


def graphic(garment: DrawnGarment) -> np.ndarray:
    """The print on the chest: (96, 96, 4) uint8 RGBA."""
    rng = np.random.default_rng([garment.seed, 1])
    patch = np.zeros((96, 96, 4), np.uint8)
    colours = [(*colour, 255) for colour in (*garment.colours[1:], (245, 245, 240), (25, 25, 30))]
    ink, other = (colours[i] for i in rng.permutation(4)[:2])
    match int(rng.integers(5)):
        case 0:
            cv2.circle(patch, (48, 48), int(rng.integers(28, 44)), ink, -1)
            cv2.circle(patch, (48, 48), int(rng.integers(10, 24)), other, -1)
        case 1:
            angles = np.arange(10) * np.pi / 5 + rng.uniform(0, 6)
            radii = np.where(np.arange(10) % 2, rng.uniform(14, 26), 44)
            star = np.c_[np.cos(angles), np.sin(angles)] * radii[:, None] + 48
            cv2.fillPoly(patch, [star.astype(np.int32)], ink)
        case 2:
            cv2.rectangle(patch, (8, 16), (88, 80), ink, -1)
            for y in range(24, 80, int(rng.integers(10, 18))):
                cv2.line(patch, (14, y), (82, y), other, 4)
        case 3:
            for _ in range(5):
                centre, axes = (tuple(rng.integers(low, high, 2).tolist()) for low, high in ((24, 72), (8, 24)))
                turn, colour = float(rng.uniform(0, 180)), colours[int(rng.integers(4))]
                cv2.ellipse(patch, centre, axes, turn, 0, 360, colour, -1)
        case _:
            cv2.fillPoly(patch, [rng.uniform(4, 92, (3, 2)).astype(np.int32)], other)
    if rng.random() < 0.6:
        text = "".join(chr(65 + int(v)) for v in rng.integers(0, 26, 3))
        contrast = colours[2 if sum(ink[:3]) < 380 else 3]
        cv2.putText(patch, text, (4, int(rng.integers(40, 88))), cv2.FONT_HERSHEY_DUPLEX, 1.4, contrast, 5)
    return patch


# ------------------------------------------------------------------------------------------------------------- painting
def fill(canvas: Canvas, polygon: Points, colour: Colour, owner: int = 255) -> None:
    """Paint a flat polygon (body frame), antialiased."""
    points = _fixed(canvas.to_pixels(polygon))
    cv2.fillPoly(canvas.pixels, [points], colour, cv2.LINE_AA, SHIFT)
    cv2.fillPoly(canvas.owner, [points], owner, cv2.LINE_8, SHIFT)


def fill_cloth(
    canvas: Canvas, part: GarmentPart, tile: np.ndarray, per_unit: float, owner: int, crease: float = 1.0
) -> None:
    """Paint a part of a garment: cloth laid along it, creases, darker towards its edge."""
    points = canvas.to_pixels(part.polygon)
    height, width = canvas.owner.shape
    x1, y1 = np.maximum(np.floor(points.min(0)).astype(int) - 2, 0)
    x2, y2 = np.minimum(np.ceil(points.max(0)).astype(int) + 3, (width, height))
    if x2 - x1 < 2 or y2 - y1 < 2:
        return
    size = int(x2 - x1), int(y2 - y1)
    mask = np.zeros(size[::-1], np.uint8)
    cv2.fillPoly(mask, [_fixed(points - (x1, y1))], 255, cv2.LINE_AA, SHIFT)
    matrix = _pixels_to_tile(canvas, part, per_unit, (x1, y1))
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    fabric = cv2.warpAffine(tile, matrix, size, flags=flags, borderMode=cv2.BORDER_WRAP)
    soft = max(3, int(0.035 * canvas.scale)) | 1
    rim = cv2.convertScaleAbs(cv2.blur(mask, (soft, soft), borderType=cv2.BORDER_REPLICATE), alpha=64 / 255, beta=64)
    light = cv2.multiply(rim, _creases(canvas, size, crease), scale=1 / 128)
    shaded = cv2.multiply(fabric, cv2.merge([light, light, light]), scale=1 / 128)
    alpha = mask.astype(np.float32) * np.float32(1 / 255)
    ground = canvas.pixels[y1:y2, x1:x2]
    ground[:] = cv2.blendLinear(shaded, np.ascontiguousarray(ground), alpha, 1 - alpha)
    hit = mask > 127
    canvas.owner[y1:y2, x1:x2][hit] = owner
    canvas.whole.setdefault(owner, np.zeros((height, width), bool))[y1:y2, x1:x2] |= hit


def _creases(canvas: Canvas, size: tuple[int, int], strength: float) -> np.ndarray:
    """Light of a window of `size` (width, height), uint8 around 128; creases keep their size on the body."""
    folds, step = _folds(), canvas.scale / 420
    wide, tall = (min(-(-int(v) // step), 620) for v in size)
    x, y = (int(v) for v in canvas.rng.integers(0, 400, 2))
    window = cv2.resize(folds[y : y + int(tall) + 1, x : x + int(wide) + 1], size, interpolation=cv2.INTER_LINEAR)
    return cv2.convertScaleAbs(window, alpha=strength, beta=128 * (1 - strength))


def stamp(canvas: Canvas, patch: np.ndarray, centre: tuple[float, float], size: float, owner: int) -> None:
    """Lay an RGBA patch, `size` body units wide, on the pixels that `owner` shows."""
    n = patch.shape[0]
    corners = canvas.to_pixels(np.array([[-0.5, -0.5], [0.5, -0.5], [-0.5, 0.5]]) * size + centre)
    matrix = cv2.getAffineTransform(np.array([[0, 0], [n, 0], [0, n]], np.float32), corners.astype(np.float32))
    height, width = canvas.owner.shape
    middle, reach = canvas.to_pixels(np.array([centre]))[0], size * canvas.scale
    x1, y1 = np.clip((middle - reach).astype(int), 0, (width, height))
    x2, y2 = np.clip((middle + reach).astype(int) + 1, 0, (width, height))
    if x2 - x1 < 2 or y2 - y1 < 2:
        return
    matrix[:, 2] -= x1, y1
    laid = cv2.warpAffine(patch, matrix, (int(x2 - x1), int(y2 - y1)), flags=cv2.INTER_LINEAR)
    alpha = laid[..., 3:].astype(np.float32) / 255 * (canvas.owner[y1:y2, x1:x2] == owner)[..., None] * 0.93
    ground = canvas.pixels[y1:y2, x1:x2]
    ground[:] = ground + (laid[..., :3] - ground.astype(np.float32)) * alpha


def _pixels_to_tile(canvas: Canvas, part: GarmentPart, per_unit: float, offset: tuple[int, int]) -> np.ndarray:
    """(2, 3) affine from a pixel of the window at `offset` to a pixel of the cloth tile."""
    inverse = cv2.invertAffineTransform(canvas.camera)
    cos, sin = np.cos(np.radians(part.turn)), np.sin(np.radians(part.turn))
    turn = np.array([[cos, sin], [-sin, cos]]) * per_unit
    linear = turn @ inverse[:, :2]
    shift = turn @ (inverse[:, 2] + inverse[:, :2] @ np.array(offset, float) - part.origin) + (TILE / 2, 0)
    return np.column_stack((linear, shift))


def _fixed(points: np.ndarray) -> np.ndarray:
    return np.round(np.clip(points, -4000, 4000) * 2**SHIFT).astype(np.int32)


def draw_line(canvas: Canvas, line: Line, garment: DrawnGarment, owner: int) -> None:
    """Seam, zip or buttons, on pixels that the garment shows (its own number)."""
    points = canvas.to_pixels(line.points)
    if line.kind == "buttons":
        light = garment.colours[2] if abs(sum(garment.colours[2]) - sum(garment.colours[0])) > 120 else (215, 205, 180)
        height, width = canvas.owner.shape
        radius = int(16 * max(1.2, canvas.scale * 0.0055))
        for x, y in np.linspace(points[0], points[-1], 3 + garment.seed % 4):
            row, column = int(y), int(x)
            if 0 <= row < height and 0 <= column < width and canvas.owner[row, column] == owner:
                cv2.circle(canvas.pixels, (int(16 * x), int(16 * y)), radius, light, -1, cv2.LINE_AA, SHIFT)
        return
    zipped = line.kind == "zip"
    colour = (190, 190, 195) if zipped else tuple(int(v * 0.55) for v in garment.colours[0])
    thick = max(1, round(canvas.scale * 0.003)) + zipped
    cv2.polylines(canvas.pixels, [_fixed(points)], False, colour, thick, cv2.LINE_AA, SHIFT)
