"""Cuts of drawn garments: what a product is, how a body stands, and the polygons of the one on the other.

In: a `DrawnGarment` (cut, colours, texture, print: what carries identity) and a `Pose`; out: `GarmentPart` polygons and
`Line` details, back to front. NumPy only; `sources.drawn.drawing` gives them pixels. Source: our own.

Body frame: 1 unit is the height of a standing figure, x to the right with the body's axis at 0, y down, crown at 0,
soles at 1. Colours are RGB, 0 to 255.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

Colour = tuple[int, int, int]
Points = np.ndarray  # (N, 2) float64, body frame unless said otherwise
Point = Sequence[float] | np.ndarray  # x y

# category ids by the place on the body
TOPS, OUTWEAR, BOTTOMS, DRESSES = (1, 2, 5, 6), (3, 4), (7, 8, 9), (10, 11, 12, 13)
SLEEVES = {
    1: "short", 2: "long", 3: "short", 4: "long", 5: "none", 6: "strap",
    10: "short", 11: "long", 12: "none", 13: "strap",
}  # fmt: skip

NECK, SHOULDER, ARMPIT, WAIST, CROTCH, KNEE, ANKLE = 0.165, 0.185, 0.275, 0.395, 0.535, 0.735, 0.945

TEXTURES = ("plain", "knit", "denim", "rib", "fleece", "pleats")
PRINTS = (
    "plain", "hstripes", "vstripes", "diagonal", "checks", "dots",
    "floral", "spots", "blocks", "sides", "gradient", "graphic",
)  # fmt: skip


@dataclass(frozen=True)
class DrawnGarment:
    """One article; equal fields mean the same product. Lengths in body units, eases as shares of the body's width."""

    category_id: int
    seed: int  # of what has no field: where flowers grow, what the graphic shows
    colours: tuple[Colour, Colour, Colour]
    texture: str  # one of TEXTURES
    print: str  # one of PRINTS
    period: int  # repeats of the print per half body height
    hem: float  # y of the lower edge
    ease: float  # wider than the body by this factor
    flare: float  # added half width at the hem
    sleeve: float  # share of the arm (short: of the upper arm) that the sleeve covers
    sleeve_ease: float
    neckline: str  # round, v, boat, square, high
    neck_depth: float
    neck_width: float
    opening: float  # half gap of an open front; 0 is closed
    closure: str  # none, buttons, zip
    collar: str  # none, lapel, shirt, hood
    pockets: bool
    trim: bool  # hems, cuffs and waist in the second colour
    strap: float  # width


@dataclass(frozen=True)
class Pose:
    """Limbs in degrees from hanging down, positive outward: (upper arm, forearm) and (thigh, shin), left then right."""

    arms: tuple[tuple[float, float], tuple[float, float]] = ((12.0, 6.0), (12.0, 6.0))
    legs: tuple[tuple[float, float], tuple[float, float]] = ((3.0, 1.0), (3.0, 1.0))
    width: float = 1.0  # of the body against the usual


@dataclass(frozen=True)
class GarmentPart:
    """A polygon of a garment; `origin` and `turn` (degrees) lay the cloth along a limb."""

    polygon: Points
    stage: str = "torso"  # torso or sleeve: sleeves come after the arms
    paint: str = "cloth"  # cloth, trim (second colour), lining (dark)
    origin: tuple[float, float] = (0.0, 0.0)
    turn: float = 0.0


@dataclass(frozen=True)
class Line:
    """A seam, zip or row of buttons on a garment."""

    points: Points
    kind: str = "seam"  # seam, zip, buttons
    stage: str = "torso"


def rgb(values: Iterable[float]) -> Colour:
    """Three numbers, cut off to whole ones, as a colour."""
    r, g, b = (int(value) for value in values)
    return r, g, b


# -------------------------------------------------------------------------------------------------------------- shapes
def curve(start: Point, control: Point, end: Point, n: int = 8) -> Points:
    """Quadratic Bezier, n points with both ends."""
    t = np.linspace(0, 1, n)[:, None]
    return (1 - t) ** 2 * np.array(start) + 2 * t * (1 - t) * np.array(control) + t**2 * np.array(end)


def limb(joints: Points, widths: Sequence[float]) -> Points:
    """Outline of a bent tube through `joints` (N, 2) with a full width at each."""
    steps = np.diff(joints, axis=0)
    steps /= np.linalg.norm(steps, axis=1, keepdims=True) + 1e-9
    along = np.vstack([steps[:1], (steps[:-1] + steps[1:]) / 2, steps[-1:]])
    side = np.stack((-along[:, 1], along[:, 0]), 1) * (np.asarray(widths, float) / 2)[:, None]
    return np.vstack([joints + side, (joints - side)[::-1]])


def _bones(start: tuple[float, float], angles: tuple[float, float], lengths: tuple[float, float], side: int) -> Points:
    """(3, 2): the ends of two bones that hang from `start`; side -1 is left in the picture, +1 right."""
    points = [np.array(start) * (side, 1)]
    for angle, length in zip(angles, lengths, strict=True):
        points.append(points[-1] + length * np.array([side * np.sin(np.radians(angle)), np.cos(np.radians(angle))]))
    return np.array(points)


def arm(pose: Pose, side: int) -> Points:
    """Shoulder, elbow, wrist."""
    return _bones((0.098 * pose.width, SHOULDER + 0.014), pose.arms[side > 0], (0.16, 0.15), side)


def leg(pose: Pose, side: int) -> Points:
    """Hip, knee, ankle."""
    return _bones((0.05 * pose.width, CROTCH - 0.03), pose.legs[side > 0], (KNEE - CROTCH + 0.03, ANKLE - KNEE), side)


def along(joints: Points, share: float) -> Points:
    """The first `share` of a bent line."""
    lengths = np.linalg.norm(np.diff(joints, axis=0), axis=1)
    rest, kept = share * lengths.sum(), [joints[0]]
    for start, end, length in zip(joints[:-1], joints[1:], lengths, strict=True):
        if rest <= length:
            return np.array([*kept, start + (end - start) * max(rest / length, 1e-3)])
        kept.append(end)
        rest -= length
    return joints


def band(top: float, y_top: float, bottom: float, y_bottom: float) -> Points:
    """A trapezoid across the body, by half its width above and below."""
    return np.array([[-top, y_top], [top, y_top], [bottom, y_bottom], [-bottom, y_bottom]])


def half_width(y: np.ndarray | float, pose: Pose) -> np.ndarray:
    """Half the body's width at a height."""
    at, half = [SHOULDER, ARMPIT, WAIST, 0.49, 0.6], [0.108, 0.097, 0.08, 0.099, 0.1]
    return pose.width * np.asarray(np.interp(y, at, half))


# ------------------------------------------------------------------------------------------------------------ garments
def cut(garment: DrawnGarment, pose: Pose) -> tuple[list[GarmentPart], list[Line]]:
    """The pieces of a garment on a body, back to front; without a body they are the flat lay."""
    if garment.category_id in (7, 8):
        return _trousers(garment, pose)
    if garment.category_id == 9:
        return _skirt(garment, pose)
    return _upper(garment, pose)


def _sides(garment: DrawnGarment, pose: Pose, top: float) -> Points:
    """Right edge of a garment from `top` to its hem."""
    y = np.linspace(top, garment.hem, 14)
    loose = np.clip((y - WAIST) / max(garment.hem - WAIST, 0.05), 0, 1)
    body = half_width(y, pose) * (1 + garment.ease)
    if garment.ease > 0.16:  # loose clothes do not follow the waist
        body = np.maximum(body, half_width(ARMPIT, pose) * (1 + 0.8 * garment.ease))
    return np.c_[body + garment.flare * loose**1.2, y]


def _neckline(garment: DrawnGarment) -> Points:
    """From left to right along the neck's opening."""
    w, y, d = garment.neck_width, NECK, garment.neck_depth
    match garment.neckline:
        case "v":
            return np.array([[-w, y], [0, y + 1.5 * d], [w, y]])
        case "square":
            return np.array([[-w, y], [-0.85 * w, y + d], [0.85 * w, y + d], [w, y]])
        case "boat":
            return curve((-w - 0.012, y + 0.004), (0, y + 0.03), (w + 0.012, y + 0.004))
        case "high":
            return np.array([[-0.034, y - 0.002], [-0.031, y - 0.03], [0.031, y - 0.03], [0.034, y - 0.002]])
        case _:
            return curve((-w, y), (0, y + 2 * d), (w, y))


def _upper(garment: DrawnGarment, pose: Pose) -> tuple[list[GarmentPart], list[Line]]:
    """Tops, outwear, dresses."""
    sleeve, neck = SLEEVES[garment.category_id], _neckline(garment)
    outer, dress = garment.category_id in OUTWEAR, garment.category_id in DRESSES
    parts = _strap_body(garment, pose) if sleeve == "strap" else _body(garment, pose, sleeve, neck)
    if sleeve in ("short", "long"):
        parts += [part for side in (-1, 1) for part in _sleeve(garment, pose, sleeve, side)]
    if garment.trim and not outer:
        parts.append(_hem_trim(garment, pose))
        if sleeve != "strap" and garment.neckline != "high":
            parts.append(GarmentPart(limb(neck, [0.012] * len(neck)), paint="trim"))
    lines = list[Line]()
    waist = float(half_width(WAIST, pose)) * (1 + garment.ease)
    if dress and garment.trim:
        parts.append(GarmentPart(band(waist, WAIST - 0.01, waist, WAIST + 0.012), paint="trim"))
    elif dress:
        x = waist * 0.96
        lines.append(Line(curve((-x, WAIST), (0, WAIST + 0.01), (x, WAIST))))
    lines += _closure(garment, float(neck[:, 1].max()))
    if garment.collar == "shirt":
        parts += [_shirt_collar(garment.neck_width, side) for side in (-1, 1)]
    if garment.pockets and garment.hem - WAIST > 0.08:
        for side in (-1, 1):
            x, y = side * (0.055 + 0.4 * garment.opening), min(garment.hem - 0.055, 0.47)
            left, right, bottom = x - 0.022, x + 0.022, y + 0.045
            lines.append(Line(np.array([[left, y], [right, y], [right, bottom], [left, bottom], [left, y]])))
    return parts, lines


def _strap_body(garment: DrawnGarment, pose: Pose) -> list[GarmentPart]:
    """Two straps, then what hangs from them."""
    top, origin = ARMPIT - 0.035, (0.0, SHOULDER)
    bust = float(half_width(ARMPIT, pose)) * (1 + 0.5 * garment.ease)
    dip = 0.03 if garment.neckline in ("v", "round") else 0.004
    chest = curve((0, top + dip), (0.35 * bust, top + 0.2 * dip), (0.78 * bust, top), 5)
    arm_hole = curve((0.78 * bust, top), (0.86 * bust, ARMPIT), (bust, ARMPIT + 0.02), 5)
    right = np.vstack([chest, arm_hole, _sides(garment, pose, ARMPIT + 0.03)])
    lines = (np.array([[side * 0.66 * bust, top + 0.006], [side * 0.048, NECK + 0.006]]) for side in (-1, 1))
    straps = [GarmentPart(limb(line, [garment.strap, garment.strap]), origin=origin) for line in lines]
    return [*straps, GarmentPart(np.vstack([right, right[::-1] * (-1, 1)]), origin=origin)]


def _body(garment: DrawnGarment, pose: Pose, sleeve: str, neck: Points) -> list[GarmentPart]:
    """From the shoulders to the hem, without the sleeves."""
    bust = float(half_width(ARMPIT, pose)) * (1 + garment.ease)
    if sleeve == "none":
        tip = (garment.neck_width + garment.strap + 0.012, NECK + 0.012)
        arm_hole = curve(tip, (tip[0], ARMPIT - 0.01), (bust, ARMPIT + 0.015), 8)
    else:
        arm_hole = np.array([[0.106 * pose.width * (1 + 0.25 * garment.ease), SHOULDER], [bust, ARMPIT]])
    right = np.vstack([arm_hole, _sides(garment, pose, ARMPIT + 0.02)])
    if garment.category_id in OUTWEAR:
        return _front(garment, right)
    hem = curve(right[-1], (0, garment.hem + 0.016), right[-1] * (-1, 1))
    return [GarmentPart(np.vstack([neck, right, hem[1:-1], right[::-1] * (-1, 1)]), origin=(0.0, SHOULDER))]


def _hem_trim(garment: DrawnGarment, pose: Pose) -> GarmentPart:
    border = _sides(garment, pose, ARMPIT)
    y = garment.hem - 0.018
    x = float(np.interp(y, border[:, 1], border[:, 0]))
    lower = curve(border[-1], (0, garment.hem + 0.016), border[-1] * (-1, 1))
    return GarmentPart(np.vstack([[[x, y], border[-1]], lower, curve((-x, y), (0, y + 0.016), (x, y))]), paint="trim")


def _shirt_collar(w: float, side: int) -> GarmentPart:
    shape = [
        [side * (w + 0.006), NECK - 0.014], [side * (w + 0.018), NECK + 0.02],
        [side * 0.4 * w, NECK + 0.055], [side * 0.1 * w, NECK + 0.028],
    ]  # fmt: skip
    return GarmentPart(np.array(shape), origin=(0.0, SHOULDER), turn=30.0 * side)


def _front(garment: DrawnGarment, right: Points) -> list[GarmentPart]:
    """Outwear: the lining seen at the neck, two panels, collar."""
    w, gap, hem = garment.neck_width, garment.opening, garment.hem
    low = 0.3 + 0.4 * gap  # where the lapels meet the front edge
    parts = [GarmentPart(band(w + 0.004, NECK - 0.004, w, NECK + 0.03), paint="lining")]
    for side in (-1, 1):
        inner = np.array([[gap * 1.25 + 0.002, hem + 0.004], [gap + 0.001, low], [w, NECK - 0.006]])
        parts.append(GarmentPart(np.vstack([right, inner]) * (side, 1), origin=(0.0, SHOULDER)))
    for side in (-1, 1):
        if garment.collar == "lapel":
            shape = [
                [w - 0.004, NECK - 0.014], [w + 0.026, NECK + 0.03], [w + 0.03, NECK + 0.075],
                [gap + 0.001, low + 0.02], [gap - 0.004, low - 0.02],
            ]  # fmt: skip
            parts.append(GarmentPart(np.array(shape) * (side, 1), origin=(0.0, SHOULDER), turn=22.0 * side))
        elif garment.collar == "hood":
            outer = curve((w + 0.03, NECK + 0.012), (w + 0.036, NECK - 0.05), (0.0, NECK - 0.052), 6)
            inner = curve((0.0, NECK - 0.02), (w + 0.008, NECK - 0.012), (max(gap, 0.6 * w), NECK + 0.06), 6)
            parts.append(GarmentPart(np.vstack([outer, inner]) * (side, 1), origin=(0.0, SHOULDER), turn=40.0 * side))
    if garment.trim:
        x = right[-1, 0]
        border = np.array([[gap * 1.2, hem - 0.022], [x, hem - 0.022], [x, hem + 0.002], [gap * 1.25, hem + 0.004]])
        parts += [GarmentPart(border * (side, 1), paint="trim") for side in (-1, 1)]
    return parts


def _sleeve(garment: DrawnGarment, pose: Pose, kind: str, side: int) -> list[GarmentPart]:
    bones, loose = arm(pose, side), 1 + garment.sleeve_ease
    if kind == "short":
        line = along(bones[:2], garment.sleeve)
        widths = [0.054 * (1 + 0.3 * garment.sleeve_ease), 0.054 * loose]
    else:
        line = along(bones, garment.sleeve)
        widths = [0.052 * (1 + 0.3 * garment.sleeve_ease), 0.045 * loose, 0.036 * loose][: len(line)]
    origin, turn = (float(bones[0, 0]), float(bones[0, 1])), -side * pose.arms[side > 0][0]
    line = line.copy()
    line[0] += (-0.014 * side, 0.004 + 0.006 * garment.sleeve_ease)
    tube = GarmentPart(_rounded(limb(line, widths), line[0], widths[0] / 2), "sleeve", origin=origin, turn=turn)
    if not garment.trim:
        return [tube]
    tail = line[-1] - line[-2]
    tail = tail / (np.linalg.norm(tail) + 1e-9) * 0.018
    cuff = limb(np.array([line[-1] - tail, line[-1]]), [widths[-1] * 1.04] * 2)
    return [tube, GarmentPart(cuff, "sleeve", "trim")]


def _rounded(tube: Points, centre: Points, radius: float) -> Points:
    """Put a round cap on the start of a tube made by `limb`."""
    first, last = tube[0] - centre, tube[-1] - centre
    start, end = np.arctan2(last[1], last[0]), np.arctan2(first[1], first[0])
    turn = (end - start) % (2 * np.pi)
    if abs(turn - np.pi) > 0.2:
        return tube
    away = np.linspace(start, start + turn, 7)
    middle = np.c_[np.cos(away), np.sin(away)]
    if (middle[3] @ (tube[1] - tube[0])) > 0:
        middle = np.c_[np.cos(start - (away - start)), np.sin(start - (away - start))]
    return np.vstack([tube, centre + radius * middle])


def _closure(garment: DrawnGarment, top: float) -> list[Line]:
    if garment.closure == "none":
        return []
    x = 0.0 if garment.category_id not in OUTWEAR or garment.opening < 0.005 else garment.opening * 1.1 + 0.006
    start = max(top, 0.31 if garment.category_id in OUTWEAR else NECK + 0.01) + 0.006
    end = garment.hem - 0.01 if garment.category_id not in DRESSES else WAIST
    rail = np.array([[x, start], [x, end]])
    if garment.closure == "zip":
        return [Line(rail, "zip")]
    return [Line(rail, "buttons"), Line(rail + np.array([0.009, 0]))]


def _trousers(garment: DrawnGarment, pose: Pose) -> tuple[list[GarmentPart], list[Line]]:
    """Shorts and trousers; `hem` is the height of the lower edge of a straight leg, `flare` widens it."""
    rise = WAIST + 0.012
    parts, lines = [], list[Line]()
    share = (garment.hem - CROTCH + 0.03) / (ANKLE - CROTCH + 0.03)
    for side in (-1, 1):
        bones = along(leg(pose, side), share)
        waist, hip = half_width(rise, pose) * 1.02, half_width(0.49, pose) * (1.02 + 0.3 * garment.ease)
        thigh, knee = 0.1 * (1 + 0.5 * garment.ease), 0.07 * (1 + garment.ease)
        ankle = 0.05 * (1 + garment.ease) + garment.flare
        if len(bones) == 2:
            t = float(np.linalg.norm(bones[1] - bones[0])) / (KNEE - CROTCH + 0.03)
            widths = [thigh, thigh + (knee - thigh) * t + 0.6 * garment.flare]
        else:
            t = float(np.linalg.norm(bones[2] - bones[1])) / (ANKLE - KNEE)
            widths = [thigh, knee, knee + (ankle - knee) * t]
        left, right = np.split(limb(bones, widths), 2)
        outer, inner = (right[::-1], left) if side > 0 else (left, right[::-1])
        belt = [[0, rise], [side * float(waist), rise], [side * float(hip), 0.485]]
        crotch = [[side * 0.004, CROTCH + 0.012], [0, CROTCH]]
        outline = np.vstack([belt, outer[1:], inner[1:][::-1], crotch])
        parts.append(GarmentPart(outline, origin=(side * 0.05, rise), turn=-side * pose.legs[side > 0][0]))
        if garment.trim:
            tail = bones[-1] - bones[-2]
            tail = tail / np.linalg.norm(tail) * 0.02
            hem = limb(np.array([bones[-1] - tail, bones[-1]]), [widths[-1] * 1.03] * 2)
            parts.append(GarmentPart(hem, paint="trim"))
        if garment.pockets:
            x1, x2, x3 = side * float(waist) * 0.55, side * float(waist) * 0.75, side * float(hip) * 0.97
            lines.append(Line(curve((x1, rise + 0.02), (x2, rise + 0.05), (x3, rise + 0.055))))
    w = float(half_width(rise, pose)) * 1.03
    parts.append(_waistband(garment, band(w, rise - 0.014, w * 1.02, rise + 0.012), rise))
    lines.append(Line(np.array([[0, rise + 0.012], [0, CROTCH - 0.005]])))
    return parts, lines


def _skirt(garment: DrawnGarment, pose: Pose) -> tuple[list[GarmentPart], list[Line]]:
    top = WAIST + 0.004
    y = np.linspace(top, garment.hem, 12)
    loose = np.clip((y - top) / (garment.hem - top), 0, 1)
    x = half_width(y, pose) * (1.02 + 0.4 * garment.ease * loose) + garment.flare * loose
    right = np.c_[x, y]
    hem = curve(right[-1], (0, garment.hem + 0.02 + 0.2 * garment.flare), right[-1] * (-1, 1), 12)
    cloth = GarmentPart(np.vstack([right, hem[1:-1], right[::-1] * (-1, 1)]), origin=(0.0, top))
    w = float(x[0]) * 1.02
    return [cloth, _waistband(garment, band(w, top - 0.016, w, top + 0.01), top)], _closure(garment, top)


def _waistband(garment: DrawnGarment, outline: Points, y: float) -> GarmentPart:
    return GarmentPart(outline, paint="trim" if garment.trim else "cloth", origin=(0.0, y), turn=90.0)


def inside(garment: DrawnGarment) -> list[GarmentPart]:
    """What a garment laid flat shows of its inner back: behind the neck, between the panels of open outwear."""
    if garment.category_id in BOTTOMS or SLEEVES[garment.category_id] == "strap":
        return []
    w = garment.neck_width + (0.012 if garment.neckline == "boat" else 0)
    if garment.category_id in OUTWEAR:
        gap, low = garment.opening * 1.25 + 0.01, garment.hem - 0.012
        back = np.array([[-w, NECK], [w, NECK], [gap, 0.3], [gap, low], [-gap, low], [-gap, 0.3]])
    elif garment.neckline == "high":
        back = band(0.03, NECK - 0.034, 0.03, NECK - 0.026)
    else:
        back = np.vstack([_neckline(garment), curve((w, NECK + 0.002), (0, NECK + 0.012), (-w, NECK + 0.002))])
    return [GarmentPart(back, paint="lining")]
