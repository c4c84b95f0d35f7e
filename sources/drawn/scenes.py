"""What stands around the garments of a drawn picture: body, street, room, backdrop, things in the way, camera, light.

In: a random generator and sizes in pixels; out: RGB pixels, cameras (body frame of `sources.drawn.garments` to
pixels) or strokes on a `Canvas`. Used by `sources.drawn.source`. Source: our own.
"""

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

from sources.drawn import garments
from sources.drawn.drawing import Canvas, fill
from sources.drawn.garments import BOTTOMS, NECK, SHOULDER, Colour, Pose, arm, curve, half_width, leg, limb, rgb

SKINS: tuple[Colour, ...] = (
    (244, 214, 190), (231, 190, 160), (205, 158, 122), (160, 112, 80), (112, 76, 54), (80, 54, 42),
)  # fmt: skip
HAIRS: tuple[Colour, ...] = (
    (34, 28, 26), (62, 42, 30), (104, 70, 42), (176, 136, 84), (214, 186, 130), (128, 54, 34), (150, 150, 150),
)  # fmt: skip


@dataclass(frozen=True)
class Person:
    """Someone, or a shop's dummy, to wear things."""

    skin: Colour
    hair: Colour
    hair_length: float  # body units below the crown; 0 has no head at all (a dummy)
    shoes: Colour
    glasses: bool = False


def person(rng: np.random.Generator) -> Person:
    shoes = rgb(rng.integers(20, 235, 3)) if rng.random() < 0.4 else (35, 32, 34)
    length = float(rng.choice([0.06, 0.13, 0.19, 0.25]))
    skin, hair = SKINS[rng.integers(len(SKINS))], HAIRS[rng.integers(len(HAIRS))]
    return Person(skin, hair, length, shoes, bool(rng.random() < 0.25))


def dummy(rng: np.random.Generator) -> Person:
    tone = ((214, 212, 210), (190, 188, 186), (226, 214, 196))[int(rng.integers(3))]
    return Person(tone, tone, 0.0, tone)


def standing(rng: np.random.Generator, calm: bool = False) -> Pose:
    """Someone on their feet; calm: a dummy or a model before a backdrop."""
    if calm:
        a = rng.uniform(8, 22, 2)
        return Pose(((a[0], a[0] - 6), (a[1], a[1] - 6)), ((3.0, 1.0), (3.0, 1.0)), float(rng.uniform(0.94, 1.06)))
    arms, legs = [], []
    for _ in range(2):
        kind = rng.random()
        upper = rng.uniform(6, 24)
        if kind < 0.55:
            arms.append((upper, upper + rng.uniform(-14, 10)))
        elif kind < 0.75:
            arms.append((rng.uniform(28, 45), rng.uniform(-60, -35)))  # hand on the hip
        elif kind < 0.92:
            arms.append((rng.uniform(10, 22), rng.uniform(-115, -70)))  # before the belly
        else:
            arms.append((rng.uniform(25, 50), rng.uniform(140, 175)))  # raised
        thigh = rng.uniform(0, 9)
        legs.append((thigh, thigh + rng.uniform(-9, 2)))
    return Pose((arms[0], arms[1]), (legs[0], legs[1]), float(rng.uniform(0.88, 1.14)))


def laid(rng: np.random.Generator) -> Pose:
    """Spread out on a table."""
    a, b, leg_ = rng.uniform(14, 48), rng.uniform(-4, 10), rng.uniform(2, 7)
    left, right = a + rng.uniform(-3, 3, 2)
    width = float(rng.uniform(0.96, 1.08))
    return Pose(((left, a + b), (right, a + b)), ((leg_, leg_ - 1), (leg_, leg_ - 1)), width)


# ---------------------------------------------------------------------------------------------------------------- body
def draw_body(canvas: Canvas, pose: Pose, who: Person) -> None:
    """Hair behind, legs, shoes, trunk, neck."""
    if who.hair_length > 0.09:
        w = 0.062 + 0.02 * (who.hair_length > 0.16)
        tips = [[w, who.hair_length], [-w, who.hair_length]]
        fill(canvas, np.vstack([ellipse((0, 0.07), (0.055, 0.07), 16)[8:], tips]), who.hair)
    for side in (-1, 1):
        bones = leg(pose, side)
        _shaded(canvas, limb(bones, [0.088 * pose.width, 0.06, 0.036]), who.skin)
        heel, arch, toe = bones[-1] + ((-0.022, -0.004), (-0.03 + 0.02 * side, 0.055), (side * 0.03, 0.052))
        front, instep, ankle = bones[-1] + ((side * 0.034, 0.03), (0.022, 0.01), (0.02, -0.006))
        fill(canvas, np.vstack([curve(heel, arch, toe, 6), curve(front, instep, ankle, 5)]), who.shoes)
    y = np.linspace(SHOULDER, 0.55, 12)
    neck = [[0.028, 0.13], [0.03, NECK - 0.008], [0.07, NECK + 0.006]]
    right = np.vstack([neck, np.c_[half_width(y, pose), y]])
    _shaded(canvas, np.vstack([right, right[::-1] * (-1, 1)]), who.skin)
    fill(canvas, np.vstack([curve((-0.027, 0.14), (0, 0.168), (0.027, 0.14)), [[0, 0.135]]]), _darker(who.skin, 0.8))


def draw_arms(canvas: Canvas, pose: Pose, who: Person) -> None:
    for side in (-1, 1):
        bones = arm(pose, side)
        _shaded(canvas, limb(bones, [0.044, 0.036, 0.026]), who.skin)
        _shaded(canvas, ellipse(bones[0] + (-0.006 * side, 0.002), (0.026, 0.024), 12), who.skin)


def draw_hands(canvas: Canvas, pose: Pose, who: Person) -> None:
    for side in (-1, 1):
        _, elbow, wrist = arm(pose, side)
        ahead = (wrist - elbow) / np.linalg.norm(wrist - elbow)
        joints = np.array([wrist - 0.004 * ahead, wrist + 0.02 * ahead, wrist + 0.042 * ahead])
        fill(canvas, limb(joints, [0.026, 0.032, 0.014]), who.skin)


def draw_head(canvas: Canvas, pose: Pose, who: Person) -> None:
    """Face and the hair before it; long hair falls over the shoulders."""
    if who.hair_length <= 0:
        _shaded(canvas, ellipse((0, 0.132), (0.028, 0.012), 16), _darker(who.skin, 0.9))
        return
    _shaded(canvas, ellipse((0, 0.078), (0.042, 0.06)), who.skin)
    left = curve((-0.05, 0.085), (-0.055, 0.0), (0, 0.004), 8)
    right = curve((0, 0.004), (0.055, 0.0), (0.05, 0.085), 8)
    fringe = curve((0.04, 0.07), (0.02, 0.03), (-0.005, 0.042), 5)
    fill(canvas, np.vstack([left, right, fringe, [[-0.04, 0.07]]]), who.hair)
    if who.hair_length > 0.16:
        for side in (-1, 1):
            outer = curve((0.04, 0.05), (0.065, 0.1), (0.062, who.hair_length), 6)
            strand = np.vstack([outer, [[0.04, who.hair_length + 0.01], [0.037, 0.11]]])
            fill(canvas, strand * (side, 1), _darker(who.hair, 0.92))
    eye = (30, 26, 26)
    for side in (-1, 1):
        fill(canvas, ellipse((side * 0.017, 0.075), (0.012, 0.009) if who.glasses else (0.006, 0.0035), 10), eye)
    fill(canvas, ellipse((0, 0.114), (0.012, 0.0035), 10), (170, 80, 80))


def ellipse(centre: garments.Point, radii: garments.Point, n: int = 24) -> np.ndarray:
    angles = np.arange(n) * 2 * np.pi / n
    return np.stack((np.cos(angles), np.sin(angles)), 1) * radii + centre


def _shaded(canvas: Canvas, polygon: np.ndarray, colour: Colour) -> None:
    """Flat with a darker rim."""
    fill(canvas, polygon, _darker(colour, 0.86))
    fill(canvas, polygon * (0.9, 1) + polygon.mean(0) * (0.1, 0), colour)


def _darker(colour: Colour, by: float) -> Colour:
    return rgb(v * by for v in colour)


# -------------------------------------------------------------------------------------------------------------- cameras
def portrait(rng: np.random.Generator, size_px: int) -> tuple[int, int]:
    """Width and height of an upright picture, pixels."""
    return round(size_px * float(rng.choice([0.6, 0.667, 0.75, 0.75, 0.8]))), size_px


def camera(rng: np.random.Generator, width: int, height: int, categories: list[int]) -> np.ndarray:
    """(2, 3) body frame to pixels: the whole figure, or nearer at the upper or the lower half."""
    kind = rng.random()
    if kind < 0.5:
        scale, middle = rng.uniform(0.78, 0.97), 0.5
    elif kind < 0.65:
        scale, middle = rng.uniform(0.5, 0.75), rng.uniform(0.4, 0.6)
    elif kind < 0.9 or not set(categories) & set(BOTTOMS):
        scale, middle = rng.uniform(1.15, 1.7), rng.uniform(0.34, 0.42)
    else:
        scale, middle = rng.uniform(1.15, 1.6), rng.uniform(0.56, 0.68)
    slack = max(0.0, 0.5 - 0.24 * scale * height / width)
    centre = np.array([0.5 + rng.uniform(-0.7, 0.7) * slack, 0.5 + rng.uniform(-0.03, 0.03) * (scale < 1)])
    turn, shear, wide = rng.normal(0, 4), rng.normal(0, 0.03), rng.uniform(0.93, 1.08)
    return _affine(scale * height, centre * (width, height), np.array([0.0, middle]), turn, shear, wide)


def framed(
    rng: np.random.Generator, width: float, height: float, parts: list[garments.GarmentPart], left: float = 0.0
) -> np.ndarray:
    """(2, 3) so that the garments fill most of a window that starts at column `left`."""
    points = np.vstack([part.polygon for part in parts])
    low, high = points.min(0), points.max(0)
    scale = rng.uniform(0.66, 0.92) * min(width / (high[0] - low[0]), height / (high[1] - low[1]))
    spare = (np.array([width, height]) - (high - low) * scale) / 2
    centre = np.array([left + width / 2, height / 2]) + rng.uniform(-0.5, 0.5, 2) * spare * (0.5, 0.8)
    return _affine(scale, centre, (low + high) / 2, turn=rng.normal(0, 1.6), shear=0.0, wide=1.0)


def _affine(scale: float, to: np.ndarray, at: np.ndarray, turn: float, shear: float, wide: float) -> np.ndarray:
    cos, sin = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    linear = scale * np.array([[cos, -sin], [sin, cos]]) @ np.array([[wide, shear], [0, 1]])
    return np.c_[linear, to - linear @ at]


# ---------------------------------------------------------------------------------------------------------- backgrounds
def backdrop(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """White to light grey, a little uneven."""
    base = rng.uniform(224, 255) + rng.uniform(-4, 4, 3)
    corners = np.clip(base + rng.uniform(-10, 6, (2, 2, 1)), 205, 255).astype(np.float32)
    return cv2.resize(corners, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.uint8)


def surroundings(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Street or room, out of focus by a random amount, (height, width, 3)."""
    w, h = width // 2, height // 2
    ground = np.empty((h, w, 3), np.uint8)
    horizon = int(h * rng.uniform(0.5, 0.85))
    ground[:horizon] = _tone(rng, 90, 235)
    ground[horizon:] = _tone(rng, 60, 200)
    _street(rng, ground, horizon) if rng.random() < 0.6 else _room(rng, ground, horizon)
    sigma = rng.uniform(0.3, 2.6)
    blurred = cv2.GaussianBlur(ground, (0, 0), sigma)
    enlarged = cv2.resize(blurred, (width, height), interpolation=cv2.INTER_LINEAR)
    return _grain(rng, enlarged, 0.35 if sigma < 1.5 else 0.12)


def _street(rng: np.random.Generator, ground: np.ndarray, horizon: int) -> None:
    h, w = ground.shape[:2]
    x = int(-rng.integers(0, 30))
    while x < w:  # houses
        step = int(rng.integers(w // 6, w // 2))
        top = int(rng.integers(-h // 4, horizon // 2))
        colour = _tone(rng, 70, 220)
        cv2.rectangle(ground, (x, top), (x + step, horizon), colour, -1)
        pane, gap = _darker(colour, rng.uniform(0.35, 0.8)), int(rng.integers(14, 30))
        for wy in range(top + 8, horizon - 12, gap):
            for wx in range(x + 5, x + step - 8, int(gap * 0.8)):
                cv2.rectangle(ground, (wx, wy), (wx + gap // 3, wy + gap // 2), pane, -1)
        x += step
    for _ in range(int(rng.integers(0, 3))):  # trees and cars
        x, size = int(rng.integers(0, w)), int(rng.integers(10, 34))
        if rng.random() < 0.5:
            cv2.rectangle(ground, (x - 3, horizon - 2 * size), (x + 3, horizon + 4), (80, 62, 48), -1)
            for _ in range(6):
                at = (x + int(rng.integers(-size, size)), horizon - 2 * size + int(rng.integers(-size, size)))
                green = int(rng.integers(40, 90)), int(rng.integers(90, 140)), int(rng.integers(40, 80))
                cv2.circle(ground, at, size // 2, green, -1)
        else:
            colour = _tone(rng, 20, 230)
            rear, front = x + size // 2, x + 5 * size // 2
            cv2.rectangle(ground, (x, horizon - size), (x + 3 * size, horizon + size // 3), colour, -1)
            cv2.rectangle(ground, (rear, horizon - 3 * size // 2), (front, horizon - size), (60, 70, 80), -1)
            for wheel in (rear, front):
                cv2.circle(ground, (wheel, horizon + size // 3), size // 3, (25, 25, 25), -1)
    for _ in range(int(rng.integers(0, 4))):  # passers-by, far away
        x, tall = int(rng.integers(0, w)), int(rng.integers(h // 8, h // 4))
        feet = horizon + int(rng.integers(0, 12))
        cv2.ellipse(ground, (x, feet - tall // 2), (tall // 7, tall // 2), 0, 0, 360, _tone(rng, 20, 120), -1)
        cv2.circle(ground, (x, feet - tall), tall // 10, SKINS[int(rng.integers(len(SKINS)))], -1)
    colour = _darker(rgb(ground[h - 1, 0]), rng.uniform(0.75, 1.2))
    vanish = int(rng.integers(0, w))
    for x in range(-w, 2 * w, int(rng.integers(16, 50))):  # paving
        cv2.line(ground, (vanish, horizon), (vanish + (x - vanish) * 3, h + 40), colour, 1)
    y = float(horizon)
    while y < h:
        cv2.line(ground, (0, int(y)), (w, int(y)), colour, 1)
        y += 4 + (y - horizon) * 0.5


def _room(rng: np.random.Generator, ground: np.ndarray, horizon: int) -> None:
    h, w = ground.shape[:2]
    plank = _darker(rgb(ground[h - 1, 0]), rng.uniform(0.8, 1.1))
    for x in range(-w, 2 * w, int(rng.integers(14, 30))):
        cv2.line(ground, (x, horizon), (int(w / 2 + (x - w / 2) * 1.8), h), plank, 1)
    if rng.random() < 0.4:  # wallpaper
        paper = _darker(rgb(ground[0, 0]), rng.uniform(0.85, 1.08))
        for x in range(0, w, int(rng.integers(8, 26))):
            cv2.rectangle(ground, (x, 0), (x + 4, horizon), paper, -1)
    cv2.line(ground, (0, horizon), (w, horizon), _tone(rng, 180, 250), 3)
    for _ in range(int(rng.integers(2, 7))):  # pictures, shelves, wardrobe, bed, lamp
        x, y = int(rng.integers(-10, w)), int(rng.integers(0, horizon))
        wide, tall = int(rng.integers(10, max(11, w // 2))), int(rng.integers(10, max(11, h // 3)))
        colour = _tone(rng, 30, 235)
        if rng.random() < 0.5:
            y = horizon - tall + int(rng.integers(0, 20))
        if rng.random() < 0.75:
            cv2.rectangle(ground, (x, y), (x + wide, y + tall), colour, -1)
            cv2.rectangle(ground, (x, y), (x + wide, y + tall), _darker(colour, 0.6), int(rng.integers(1, 4)))
            for line in range(y, y + tall, int(rng.integers(6, 30))):
                cv2.line(ground, (x, line), (x + wide, line), _darker(colour, 0.75), 1)
        else:
            cv2.ellipse(ground, (x, y), (wide // 3, tall // 3), 0, 0, 360, colour, -1)


def _tone(rng: np.random.Generator, low: int, high: int) -> Colour:
    """A mostly dull colour."""
    grey = rng.uniform(low, high)
    return rgb(np.clip(grey + rng.normal(0, 9 if rng.random() < 0.75 else 38, 3), 5, 250))


# ------------------------------------------------------------------------------------------------- things and the light
def cover(canvas: Canvas, pose: Pose, who: Person) -> None:
    """Maybe put a bag, a telephone or a thing in the foreground before the person."""
    rng = canvas.rng
    kind = rng.random()
    colour = _tone(rng, 20, 220)
    side = 1 if rng.random() < 0.5 else -1
    if kind < 0.25:  # bag across the body
        hip = np.array([side * rng.uniform(0.08, 0.14), rng.uniform(0.44, 0.54)])
        fill(canvas, limb(np.array([(-side * 0.06, SHOULDER), hip]), [0.01, 0.01]), _darker(colour, 0.8))
        w, h = rng.uniform(0.04, 0.07), rng.uniform(0.035, 0.06)
        fill(canvas, np.array([[-w, -h * 0.8], [w, -h * 0.8], [w * 1.1, h], [-w * 1.1, h]]) + hip, colour)
        flap = np.array([[-w, -h * 0.8], [w, -h * 0.8], [w * 0.9, 0], [-w * 0.9, 0]])
        fill(canvas, flap + hip, _darker(colour, 0.85))
    elif kind < 0.38:  # bag in the hand
        hand = arm(pose, side)[2] + (0, 0.03)
        w, h = rng.uniform(0.035, 0.075), rng.uniform(0.05, 0.1)
        for edge in (-1, 1):
            handle = np.array([hand, np.add(hand, (edge * w * 0.6, 0.05))])
            fill(canvas, limb(handle, [0.006, 0.006]), _darker(colour, 0.7))
        fill(canvas, np.array([[-w * 0.9, 0.045], [w * 0.9, 0.045], [w, 0.045 + h], [-w, 0.045 + h]]) + hand, colour)
    elif kind < 0.48:  # telephone of a mirror picture
        at = np.array([rng.uniform(-0.04, 0.04), rng.uniform(0.1, 0.26)])
        fill(canvas, limb(np.array([(side * 0.13, 0.34), np.add(at, (side * 0.02, 0.03))]), [0.04, 0.028]), who.skin)
        fill(canvas, np.array([[-0.021, -0.045], [0.021, -0.045], [0.021, 0.045], [-0.021, 0.045]]) + at, (28, 28, 32))
        fill(canvas, ellipse(np.add(at, (side * 0.014, 0.02)), (0.018, 0.024), 14), who.skin)
    elif kind < 0.62:  # something near the camera
        height, width = canvas.owner.shape
        inverse = cv2.invertAffineTransform(canvas.camera)
        x, w, top = rng.choice([0.0, 1.0]) * width, rng.uniform(0.08, 0.3) * width, rng.uniform(0.35, 0.8) * height
        slope = rng.uniform(-0.1, 0.1) * height
        shape = np.array([[x - w, height + 9], [x - 0.8 * w, top], [x + 0.7 * w, top + slope], [x + w, height + 9]])
        fill(canvas, shape @ inverse[:, :2].T + inverse[:, 2], colour)


def soft_shadow(canvas: Canvas) -> None:
    """Darken the backdrop beside what lies on it."""
    k = max(3, round(0.03 * max(canvas.owner.shape))) | 1
    shape = cv2.blur((canvas.owner > 0).astype(np.uint8) * 255, (k, k))
    shape = cv2.warpAffine(shape, np.array([[1, 0, k // 4], [0, 1, k // 3]], np.float32), shape.shape[::-1])
    light = cv2.convertScaleAbs(shape, alpha=-0.28 * 128 / 255, beta=128)
    light[canvas.owner > 0] = 128
    canvas.pixels[:] = cv2.multiply(canvas.pixels, cv2.merge([light, light, light]), scale=1 / 128)


@cache
def _noise() -> np.ndarray:
    """(1024, 1024, 3) uint8 around 128, a little correlated."""
    rng = np.random.default_rng(5)
    fine = rng.normal(0, 26, (1024, 1024, 1)) + rng.normal(0, 10, (1024, 1024, 3))
    return np.clip(128 + cv2.GaussianBlur(fine, (0, 0), 0.6) * 1.6, 0, 255).astype(np.uint8)


def _grain(rng: np.random.Generator, pixels: np.ndarray, strength: float) -> np.ndarray:
    (height, width), noise = pixels.shape[:2], _noise()
    y, x = (int(v) for v in rng.integers(0, 400, 2))
    window = noise[y : y + height, x : x + width]
    if window.shape[:2] != (height, width):
        window = np.tile(noise, (-(-height // 1024), -(-width // 1024), 1))[:height, :width]
    return cv2.addWeighted(pixels, 1.0, np.ascontiguousarray(window), strength, -128 * strength)


def photograph(pixels: np.ndarray, rng: np.random.Generator, calm: bool = False) -> np.ndarray:
    """Light, colour temperature, contrast, vignette, a shadow, blur and noise; calm: a studio's."""
    height, width = pixels.shape[:2]
    wild = 0.25 if calm else 1.0
    warm = rng.normal(0, 0.07 * wild)
    tint = np.array([1 + warm, 1 + rng.normal(0, 0.02 * wild), 1 - warm])
    gain = tint * np.exp(rng.normal(0, 0.15 * wild) - 0.05 * wild)
    gamma, contrast = np.exp(rng.normal(0, 0.16 * wild)), 1 + rng.normal(0, 0.12 * wild)
    lift = rng.uniform(0, 18 * wild)
    ramp = (np.arange(256) / 255) ** gamma
    table = np.clip(((ramp - 0.5) * contrast + 0.5)[:, None] * gain * 255 + lift, 0, 255).astype(np.uint8)
    pixels = cv2.LUT(pixels, table.reshape(1, 256, 3))
    if not calm:
        x, y = np.meshgrid(np.linspace(-1, 1, 32), np.linspace(-1, 1, 32))
        vignette = 1 - rng.uniform(0, 0.3) * (x**2 + y**2) / 2
        light = vignette + rng.uniform(-0.15, 0.15) * x + rng.uniform(-0.12, 0.12) * y
        if rng.random() < 0.3:  # a hard shadow falls across
            angle = rng.uniform(0, 6.3)
            shaded = x * np.cos(angle) + y * np.sin(angle) > rng.uniform(-0.3, 0.5)
            light *= np.where(shaded, rng.uniform(0.55, 0.85), 1.0)
        grid = np.clip(light * 128, 0, 255).astype(np.uint8)
        field = cv2.resize(grid, (width, height), interpolation=cv2.INTER_LINEAR)
        pixels = cv2.multiply(pixels, cv2.merge([field, field, field]), scale=1 / 128)
        if rng.random() < 0.35:
            pixels = cv2.GaussianBlur(pixels, (0, 0), rng.uniform(0.4, 1.0) * max(width, height) / 384)
        elif rng.random() < 0.12:
            k = int(rng.integers(3, 6))
            pixels = cv2.blur(pixels, (k, 1) if rng.random() < 0.5 else (1, k))
    return _grain(rng, pixels, rng.uniform(0.03, 0.1) if calm else rng.uniform(0.05, 0.24))
