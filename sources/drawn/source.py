"""A synthetic clothes data set of any size, in DeepFashion2's terms: photos with all 13 categories, and their truth.

In: how many consumer and shop images, and a seed. Out: `store.imageset.Photo` rows, consumers first, made one by one.
A garment's cut, colours, texture and print carry its identity; the consumer meets it worn, among clutter, in bad light,
partly covered; the shop shows it clean. Nothing is downloaded: for demos, load tests and benchmarks.
Source: our own drawing (`garments` cuts, `drawing` paints, `scenes` surrounds); the format is DeepFashion2's,
arXiv:1901.07973.
"""

import argparse
from dataclasses import dataclass
from itertools import chain

import cv2
import numpy as np

from sources.arguments import whole
from sources.drawn import drawing, garments, scenes
from sources.drawn.drawing import Canvas
from sources.drawn.garments import BOTTOMS, DRESSES, OUTWEAR, SLEEVES, TOPS, Colour, DrawnGarment, Pose
from sources.reading import Reading
from store.imageset import Item, Photo

FAMILIES: tuple[Colour, ...] = (
    (30, 30, 33), (232, 231, 226), (128, 130, 132), (32, 42, 82), (74, 104, 148), (150, 183, 212),
    (178, 38, 46), (102, 28, 44), (222, 150, 165), (203, 184, 154), (108, 76, 52), (94, 100, 62),
    (42, 110, 76), (224, 186, 66), (208, 110, 54), (106, 74, 132), (238, 226, 198), (34, 114, 120),
)  # fmt: skip
"""RGB colours that clothes come in; many products share each, so that colour alone does not tell them apart."""

HEMS = {
    1: (0.45, 0.56), 2: (0.46, 0.58), 3: (0.45, 0.58), 4: (0.46, 0.8), 5: (0.43, 0.55), 6: (0.42, 0.54),
    7: (0.585, 0.69), 8: (0.83, 0.965), 9: (0.58, 0.88),
    10: (0.62, 0.88), 11: (0.62, 0.9), 12: (0.62, 0.88), 13: (0.62, 0.88),
}  # fmt: skip
FLARES = {
    7: (0.0, 0.03), 8: (-0.008, 0.055), 9: (-0.01, 0.13),
    10: (0.0, 0.11), 11: (0.0, 0.11), 12: (0.0, 0.11), 13: (0.0, 0.12),
}  # fmt: skip
"""By category: lowest and highest `hem` and `flare` of a garment, body units; other flares are -0.01 to 0.035."""

VIEWS = 4  # shop pictures of a look at most, before distractors begin
MIN_VISIBLE = 0.10  # share of a garment in the frame that must be seen for it to be an item
MIN_PIXELS = 60  # likewise, at 384 px; grows with the picture's area
CONSUMER, SHOP, LOOK = 1, 2, 3  # streams of random numbers
SHOPS_ALONE = 2**40  # more than there can be consumers
ARGUMENTS = ("users", "shops", "seed")
Pieces = tuple[list[garments.GarmentPart], list[garments.Line]]  # of one garment, from `garments.cut`


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--users", required=True, type=whole(0, 2**40), metavar="N", help="consumer images")
    parser.add_argument("--shops", required=True, type=whole(0, 2**40), metavar="M", help="shop images")
    parser.add_argument(
        "--seed", required=True, type=whole(0, 2**63), metavar="S", help="the same seed draws the same images"
    )


@dataclass(frozen=True)
class LookPlan:
    """Which pictures show which look. Looks count from 1 and are the pair ids."""

    users: int
    shops: int

    @property
    def looks(self) -> int:
        """Looks that consumers wear: three for four photos, so that some are photographed twice."""
        return self.consumer_look(self.users - 1) if self.users else 0

    @property
    def views(self) -> int:
        """Shop pictures of each consumer look."""
        return min(max(self.shops // self.looks, 1), VIEWS) if self.looks else 0

    def consumer_look(self, index: int) -> int:
        return 1 + index * 3 // 4

    def shop_look(self, index: int) -> tuple[int, int | None]:
        """The look of shop picture `index` and which view of it; None: a distractor, worn by no consumer."""
        covered = self.looks * self.views
        if index < covered:
            return 1 + index % self.looks, index // self.looks
        return 1 + self.looks + index - covered, None


def read(users: int, shops: int, seed: int, size_px: int = 384) -> Reading:
    """Draw the set, one picture at a time; memory does not grow with it.

    Consumer photos have image_id 1 to users, shop pictures follow. Without consumers their ids begin at SHOPS_ALONE, so
    that a set of consumers and one of shops, drawn with one seed, go together: shop picture i shows look i.

    A look (`pair_id`) is an outfit of 1 to 3 garments whose `style` is 1, 2, 3. Four consumer photos in a row show
    three looks. Shop pictures: each consumer look gets v = shops // looks of them, at least 1 and at most 4, over which
    its garments are dealt out (v = 1: one picture shows them all), so that with users <= shops every consumer garment
    has a shop picture; a picture beyond those needed is a second view. With shops < looks only the first looks have
    one. What is left of `shops` are distractors, each of a look of its own.

    Boxes and polygons enclose the *visible* garment inside the frame: what another garment, an arm or a thing covers
    does not count, as in our real photos' annotations. x1, y1, x2, y2 are pixel edges, so x2 is exclusive; polygons run
    through the centres of the outermost pixels, within a pixel. A garment of which under 10 % shows is no item.

        scale      1, 2, 3   the box is under 10 %, under 40 %, or more of the picture
        occlusion  1, 2, 3   under 10 %, under 40 %, or more of what lies in the frame is covered
        zoom_in    1, 2, 3   the box touches no, one, or more edges of the picture
        viewpoint  1, 2      not worn; worn, from the front

    Counts and seed are 0 or more, and `size_px`, the longer side, is 64 to 4096 pixels; else the call, not the first
    picture, raises ValueError. The same arguments give the same bytes with the same NumPy and OpenCV; consumer photo i
    depends on seed, size_px and i only; a shop picture on users and v too.
    """
    limits = {"users": (0, 2**40), "shops": (0, 2**40), "seed": (0, 2**63), "size_px": (64, 4096)}
    for (name, (low, high)), value in zip(limits.items(), (users, shops, seed, size_px), strict=True):
        if not low <= value <= high:
            raise ValueError(f"drawn pictures: {name} is {value}; give a whole number from {low} to {high}")
    if users == shops == 0:
        raise ValueError("drawn pictures: 0 users and 0 shops; want one of them above 0")
    plan = LookPlan(users, shops)
    consumers = (consumer(plan, i, seed, size_px) for i in range(users))
    return Reading(chain(consumers, (shop(plan, i, seed, size_px) for i in range(shops))))


def consumer(plan: LookPlan, index: int, seed: int, size_px: int) -> Photo:
    """Consumer photo number `index`, from 0: a person in the street or a room wearing the look."""
    rng = np.random.default_rng([seed, CONSUMER, index])
    pair_id = plan.consumer_look(index)
    outfit = dict(enumerate(look(seed, pair_id), start=1))
    width, height = scenes.portrait(rng, size_px)
    pose = scenes.standing(rng)
    camera = scenes.camera(rng, width, height, [g.category_id for g in outfit.values()])
    canvas = Canvas(scenes.surroundings(rng, width, height), camera, rng)
    person = scenes.person(rng)
    wear(canvas, outfit, pose, person)
    scenes.cover(canvas, pose, person)
    pixels = scenes.photograph(canvas.pixels, rng)
    return _photo(index + 1, "user", pair_id, pixels, _items(canvas, outfit, viewpoints=dict.fromkeys(outfit, 2)), rng)


def shop(plan: LookPlan, index: int, seed: int, size_px: int) -> Photo:
    """Shop picture number `index`, from 0: laid flat, on a dummy or on a model, before a clean backdrop."""
    rng = np.random.default_rng([seed, SHOP, index])
    pair_id, view = plan.shop_look(index)
    shown = _dealt(dict(enumerate(look(seed, pair_id), start=1)), view, plan.views, rng)
    width, height = scenes.portrait(rng, size_px) if rng.random() < 0.4 and len(shown) == 1 else (size_px, size_px)
    canvas = Canvas(scenes.backdrop(rng, width, height), np.eye(2, 3), rng)
    worn = rng.random() < 0.45 and not any(g.category_id in OUTWEAR for g in shown.values() if len(shown) > 1)
    if worn:
        pose = scenes.standing(rng, calm=True)
        parts = [part for g in shown.values() for part in garments.cut(g, pose)[0]]
        canvas.camera = scenes.framed(rng, width, height, parts)
        covered = len(shown) > 1 or next(iter(shown.values())).category_id in DRESSES
        wear(canvas, shown, pose, scenes.person(rng) if covered and rng.random() < 0.7 else scenes.dummy(rng))
    else:
        order = sorted(shown, key=lambda number: (shown[number].category_id in BOTTOMS, number))
        share = width / len(order)
        for slot, number in enumerate(order):
            pose = scenes.laid(rng)
            parts = garments.cut(shown[number], pose)[0]
            canvas.camera = scenes.framed(rng, share, height, parts, left=slot * share)
            wear(canvas, {number: shown[number]}, pose, None)
    scenes.soft_shadow(canvas)
    pixels = scenes.photograph(canvas.pixels, rng, calm=True)
    items = _items(canvas, shown, dict.fromkeys(shown, 2 if worn else 1))
    return _photo((plan.users or SHOPS_ALONE) + index + 1, "shop", pair_id, pixels, items, rng)


def _dealt(
    outfit: dict[int, DrawnGarment], view: int | None, views: int, rng: np.random.Generator
) -> dict[int, DrawnGarment]:
    """The garments of a look, by style, that one shop picture shows."""
    if view is None:
        few = rng.permutation(list(outfit))[: 1 + (rng.random() < 0.25)]
        return {int(style): outfit[int(style)] for style in sorted(few)}
    if view < len(outfit):
        return {style: g for style, g in outfit.items() if (style - 1) % views == view}
    second = 1 + (view + 1) % len(outfit)
    return {second: outfit[second]}


# -------------------------------------------------------------------------------------------------------------- looks
def look(seed: int, pair_id: int) -> list[DrawnGarment]:
    """The outfit of a pair id: top and bottom, a dress, or either under outwear; item k has style k + 1."""
    rng = np.random.default_rng([seed, LOOK, pair_id])
    dress = rng.random() < 0.36
    categories = [int(rng.choice(DRESSES))] if dress else [int(rng.choice(TOPS)), int(rng.choice(BOTTOMS))]
    if rng.random() < 0.36:
        categories.append(int(rng.choice(OUTWEAR)))
    return [garment(category_id, rng) for category_id in categories]


def garment(category_id: int, rng: np.random.Generator) -> DrawnGarment:
    """One random product of a category."""
    sleeve = SLEEVES.get(category_id, "")
    colours = [_near(FAMILIES[i], rng) for i in rng.permutation(len(FAMILIES))[:3]]
    lower, outer = category_id in (7, 8), category_id in OUTWEAR
    textures, prints = list(garments.TEXTURES[:5]), list(garments.PRINTS)
    if category_id in (9, *DRESSES):
        textures.append("pleats")
    texture = str(rng.choice(textures))
    plainness = 0.45 if lower or outer else 0.2
    print_ = "plain" if rng.random() < plainness else str(rng.choice(prints[1:]))
    if lower and rng.random() < 0.4:
        texture, print_ = "denim", "plain"
        colours[0] = _near(((74, 104, 148), (40, 56, 96), (150, 178, 205), (52, 54, 60))[int(rng.integers(4))], rng)
    buttons = 0.7 if outer else 0.2
    necklines = ["round", "round", "v", "boat", "square", *(["high"] if sleeve in ("long", "none") else [])]
    return DrawnGarment(
        category_id=category_id,
        seed=int(rng.integers(2**31)),
        colours=(colours[0], colours[1], colours[2]),
        texture=texture,
        print=print_,
        period=int(rng.choice([4, 6, 8, 10, 12, 16])),
        hem=float(rng.uniform(*HEMS[category_id])),
        ease=float(rng.uniform(0.12, 0.4) if outer else rng.uniform(0.02, 0.55) if lower else rng.uniform(0.02, 0.3)),
        flare=float(rng.uniform(*FLARES.get(category_id, (-0.01, 0.035)))),
        sleeve=float(rng.uniform(0.42, 0.85) if sleeve == "short" else rng.uniform(0.86, 1.0)),
        sleeve_ease=float(rng.uniform(0.1, 0.7)),
        neckline=str(rng.choice(necklines)),
        neck_depth=float(rng.uniform(0.015, 0.05)),
        neck_width=float(rng.uniform(0.034, 0.056)),
        opening=float(rng.choice([0.0, rng.uniform(0.012, 0.05)], p=[0.2, 0.8])) if outer else 0.0,
        closure="none" if rng.random() > buttons else str(rng.choice(["buttons", "zip"])) if outer else "buttons",
        collar=_collar(sleeve, outer, rng),
        pockets=bool(rng.random() < (0.7 if outer or lower else 0.25)),
        trim=bool(rng.random() < 0.28),
        strap=float(rng.uniform(0.007, 0.013) if sleeve == "strap" else rng.uniform(0.015, 0.032)),
    )


def _collar(sleeve: str, outer: bool, rng: np.random.Generator) -> str:
    if outer:
        return str(rng.choice(["none", "lapel", "lapel", "hood"]))
    return "shirt" if sleeve in ("short", "long") and rng.random() < 0.25 else "none"


def _near(colour: Colour, rng: np.random.Generator) -> Colour:
    return garments.rgb(np.clip(np.array(colour) + rng.integers(-9, 10) + rng.integers(-6, 7, 3), 8, 247))


# ------------------------------------------------------------------------------------------------------------- wearing
def wear(canvas: Canvas, outfit: dict[int, DrawnGarment], pose: Pose, person: scenes.Person | None) -> None:
    """Dress a person (None: lay flat) in garments by number: bottom, top or dress, outwear, arms, then the sleeves."""
    inner_first = sorted(outfit, key=lambda n: (outfit[n].category_id in OUTWEAR, outfit[n].category_id not in BOTTOMS))
    if len(outfit) > 1 and canvas.rng.random() < 0.4:  # tucked in: the bottom lies over the top
        inner_first.sort(key=lambda n: (outfit[n].category_id in OUTWEAR, outfit[n].category_id in BOTTOMS))
    long_outwear = any(g.category_id == 4 for g in outfit.values())
    if person:
        scenes.draw_body(canvas, pose, person)
    pieces = {number: garments.cut(outfit[number], pose) for number in outfit}
    for number in inner_first:
        _paint(canvas, outfit[number], pieces[number], number, "torso", worn=person is not None)
    if person:
        scenes.draw_arms(canvas, pose, person)
    for number in inner_first:
        if not long_outwear or outfit[number].category_id in OUTWEAR:
            _paint(canvas, outfit[number], pieces[number], number, "sleeve", worn=person is not None)
    if person:
        scenes.draw_hands(canvas, pose, person)
        scenes.draw_head(canvas, pose, person)


def _paint(canvas: Canvas, garment: DrawnGarment, pieces: Pieces, number: int, stage: str, worn: bool) -> None:
    """The pieces of one garment that belong to a stage of dressing."""
    tile, per_unit = drawing.cloth(garment)
    parts, lines = pieces
    if not worn and stage == "torso":
        parts = [*garments.inside(garment), *parts]
    for part in parts:
        if part.stage == stage:
            colour = garment.colours[1] if part.paint == "trim" else [int(v * 0.4 + 10) for v in garment.colours[0]]
            fabric = tile if part.paint == "cloth" else np.full((8, 8, 3), colour, np.uint8)
            drawing.fill_cloth(canvas, part, fabric, per_unit, number, crease=1.0 if worn else 0.6)
    if stage == "torso" and garment.print == "graphic":
        place = np.random.default_rng([garment.seed, 2])
        x, size = float(place.choice([0.0, 0.0, -0.045, 0.045])), float(place.uniform(0.07, 0.13))
        y = 0.3 if garment.category_id not in BOTTOMS else 0.52
        off = 0.055 if garment.category_id in (7, 8) or garment.opening > 0.005 else x
        drawing.stamp(canvas, drawing.graphic(garment), (off, y), size * (0.6 if off else 1.0), number)
    for line in lines:
        if line.stage == stage:
            drawing.draw_line(canvas, line, garment, number)


# ---------------------------------------------------------------------------------------------------------- annotation
def _items(canvas: Canvas, outfit: dict[int, DrawnGarment], viewpoints: dict[int, int]) -> tuple[Item, ...]:
    """Ground truth of what is visible, by rising style; see `read` for the rules."""
    height, width = canvas.owner.shape
    items = []
    for style, worn in sorted(outfit.items()):
        visible = (canvas.owner == style).astype(np.uint8)
        seen, area = int(visible.sum()), int(canvas.whole[style].sum()) if style in canvas.whole else 0
        enough = seen >= max(MIN_PIXELS * width * height / 384**2, MIN_VISIBLE * area, 9)
        if not enough or not (contours := _outlines(visible)):
            continue
        points = np.vstack(contours)
        (x1, y1), (x2, y2) = points.min(0), points.max(0) + 1
        share, covered = (x2 - x1) * (y2 - y1) / (width * height), 1 - seen / area
        edges = int(x1 <= 0) + int(y1 <= 0) + int(x2 >= width) + int(y2 >= height)
        items.append(
            Item(
                category_id=worn.category_id,
                style=style,
                bbox=(float(x1), float(y1), float(x2), float(y2)),
                segmentation=tuple(_simplified(contour) for contour in contours),
                scale=1 if share < 0.1 else 2 if share < 0.4 else 3,
                occlusion=1 if covered < 0.1 else 2 if covered < 0.4 else 3,
                zoom_in=min(1 + edges, 3),
                viewpoint=viewpoints[style],
            )
        )
    return tuple(items)


def _outlines(visible: np.ndarray) -> list[np.ndarray]:
    """Outer contours of a mask, (N, 2) pixels each, largest first; crumbs under 2 % of the largest are left out."""
    contours, _ = cv2.findContours(visible, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    areas = [cv2.contourArea(contour) for contour in contours]
    return [contours[i][:, 0] for i in np.argsort(areas)[::-1] if areas[i] >= max(4.0, 0.02 * max(areas))]


def _simplified(contour: np.ndarray) -> tuple[float, ...]:
    """x, y, x, y … through pixel centres, within 0.8 pixels of the contour."""
    short = cv2.approxPolyDP(contour[:, None], 0.8, True)[:, 0]
    points = short if len(short) >= 3 else contour  # fewer: a sliver
    return tuple((points.ravel() + 0.5).tolist())


def _photo(
    image_id: int, source: str, pair_id: int, pixels: np.ndarray, items: tuple[Item, ...], rng: np.random.Generator
) -> Photo:
    height, width = pixels.shape[:2]
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(80, 91))]
    done, encoded = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), quality)
    if not done:
        problem = f"OpenCV could not encode {width} x {height} pixels as JPEG; is its JPEG support built in?"
        raise OSError(f"drawn picture {image_id}: {problem}")
    return Photo(
        image_id=image_id,
        image=encoded.tobytes(),
        width=width,
        height=height,
        source=source,
        pair_id=pair_id,
        product_id=f"drawn-{pair_id}" if source == "shop" else "",
        file_name=f"{image_id:06d}.jpg",
        items=items,
    )
