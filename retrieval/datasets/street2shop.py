"""Street2Shop (Hadi Kiapour, Han, Lazebnik, Berg, Berg: Where to Buy It, ICCV 2015): its folder in, rows of an image set out.

    DIR/meta/json/{train,test}_pairs_CATEGORY.json   [{"photo", "product", "bbox": {"left", "top", "width", "height"}}]: street photos
    DIR/meta/json/retrieval_CATEGORY.json            [{"photo", "product"}]: shop photos
    DIR/images/000000001.jpg …                       by photo number, nine digits; .jpeg, .png, .webp or no ending do as well

The authors publish the lists and photos.txt, a list of addresses that is not read here; whoever fetched the pictures put them
in images/. No licence was found with them, and the photos are the shops' and the users' own: take it as research only.

Of the 11 categories six are taken: tops as short sleeve top, dresses as short sleeve dress, outerwear as long sleeve outwear,
pants and leggings as trousers, skirts as skirt, since sleeves are not told; the boxes are true, but one garment to a photo,
hence `weak_box`. Entries of bags, belts, eyewear, footwear and hats are skipped and counted.

A street garment may be sold as several products, and a street photo may show several garments, while a photo has only one
pair_id. So products named for one box are one garment, and garments that share a photo share its pair_id and differ in
style: mostly pair_id is the product number and style 1, else the lowest product number of the group and 1, 2, … by number.

Split train: the street photos of train_pairs, and the shop photos of the products named there; others are skipped and counted.
Split test: the street photos of test_pairs, and every shop photo, since the whole gallery is searched.
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from retrieval.datasets.files import read_json
from retrieval.datasets.listing import Entry, Garment, Listing
from store.imageset import Failure, Photo

SPLITS = ("train", "test")
CATEGORY_IDS = {"dresses": 10, "leggings": 8, "outerwear": 4, "pants": 8, "skirts": 9, "tops": 1}
SKIPPED = ("bags", "belts", "eyewear", "footwear", "hats")

Box = tuple[float, float, float, float]
_ENDINGS = ("", ".jpg", ".jpeg", ".png", ".webp")


class _Mention(NamedTuple):
    photo: int
    product: int
    category_id: int
    box: Box | None  # None on a shop photo


def read(directory: str | Path, split: str = "train") -> Iterator[Photo | Failure]:
    """Rows by photo number; image_id is that number. What cannot be taken is a failure with the reason.

    Raises:
        ValueError: the folder is not laid out so, or there is no such split.
    """
    return listing(directory, split).rows()


def check(directory: str | Path, split: str = "train") -> list[str]:
    """What is missing or strange, a line each; no picture is opened. Raises as `read`."""
    found = listing(directory, split)
    return found.remarks + found.missing()


def listing(directory: str | Path, split: str = "train") -> Listing:
    """The lists of a split, and which picture is whose. Raises as `read`."""
    directory = Path(directory)
    if split not in SPLITS:
        raise ValueError(f"split {split!r}: Street2Shop has {' and '.join(SPLITS)}")
    for part in ("meta/json", "images"):
        if not (directory / part).is_dir():
            raise ValueError(f"{directory} has no {part}/ folder: want Street2Shop's meta/json/ and images/")
    if not any((directory / "meta" / "json").glob(f"{split}_pairs_*.json")):
        raise ValueError(f"{directory}/meta/json has no {split}_pairs_CATEGORY.json: want Street2Shop's lists")
    found = Listing(directory)
    street = _mentions(found, f"{split}_pairs")
    shop = _mentions(found, "retrieval")
    wanted = {mention.product for mention in street}
    if split == "train":
        others = {mention.photo for mention in shop if mention.product not in wanted}
        shop = [mention for mention in shop if mention.product in wanted]
        found.skipped["shop photos of products without a street photo"] += len(others - {one.photo for one in shop})
    unsold = sorted(wanted - {mention.product for mention in shop})
    if unsold:
        found.remarks.append(f"{len(unsold):,} products of {split} have no shop photo, {unsold[0]} the first")
    _add_photos(found, street, shop)
    found.skipped = +found.skipped  # without the zeros
    return found


def _mentions(found: Listing, kind: str) -> list[_Mention]:
    """What all files `KIND_CATEGORY.json` say, category by category."""
    folder = found.directory / "meta" / "json"
    present = {path.stem.removeprefix(f"{kind}_") for path in folder.glob(f"{kind}_*.json")}
    mentions = []
    for category in sorted(present | set(CATEGORY_IDS)):
        name = f"meta/json/{kind}_{category}.json"
        try:
            entries = _load(found.directory / name)
        except FileNotFoundError:
            found.fail(name, "missing")
            continue
        except (OSError, ValueError) as error:  # JSONDecodeError and UnicodeDecodeError among them
            found.fail(name, f"cannot be read: {error}")
            continue
        if category not in CATEGORY_IDS:
            found.skipped[f"entries of {category}"] += len(entries)
            if category not in SKIPPED:
                found.remarks.append(f"{name}: {category} is no category of Street2Shop")
            continue
        for number, entry in enumerate(entries, 1):
            try:
                mentions.append(_mention(entry, CATEGORY_IDS[category], boxed=kind != "retrieval"))
            except (ValueError, OverflowError) as error:
                found.fail(name, f"entry {number}: {error}")
    return mentions


def _load(path: Path) -> list[Any]:
    entries = read_json(path)
    if not isinstance(entries, list):
        raise ValueError(f"want a list, got {type(entries).__name__}")
    return entries


def _mention(entry: Any, category_id: int, boxed: bool) -> _Mention:
    if not isinstance(entry, dict):
        raise ValueError(f"want an object, got {type(entry).__name__}")
    for key in ("photo", "product"):
        if type(entry.get(key)) is not int or not 0 < entry[key] < 2**63:
            raise ValueError(f"{key} is {entry.get(key)!r}, want a whole number above 0")
    return _Mention(entry["photo"], entry["product"], category_id, _box(entry.get("bbox")) if boxed else None)


def _box(bbox: Any) -> Box:
    keys = ("left", "top", "width", "height")
    if not isinstance(bbox, dict) or not all(type(bbox.get(key)) in (int, float) for key in keys):
        raise ValueError(f"bbox is {bbox!r}, want numbers left, top, width, height")
    left, top, width, height = (float(bbox[key]) for key in keys)
    return left, top, left + width, top + height


def _add_photos(found: Listing, street: list[_Mention], shop: list[_Mention]) -> None:
    pictures = sorted(path for path in (found.directory / "images").iterdir() if path.suffix.lower() in _ENDINGS)
    names = {path.stem: path.name for path in reversed(pictures)}  # of two with one number the first by name
    identity = _identities(street + shop)
    by_photo: dict[tuple[int, str], list[_Mention]] = defaultdict(list)
    for source, mentions in (("user", street), ("shop", shop)):
        for mention in mentions:
            by_photo[mention.photo, source].append(mention)
    for (photo, source), mentions in sorted(by_photo.items(), key=lambda one: one[0][0]):  # of one number: street first
        products = sorted({mention.product for mention in mentions})
        garments = {Garment(one.category_id, identity[one.product][1], one.box): None for one in mentions}
        name = names.get(f"{photo:09}", f"{photo:09}.jpg")
        pair = found.pair_id(str(identity[products[0]][0]))
        found.add(Entry(photo, f"images/{name}", source, pair, " ".join(map(str, products)), tuple(garments)))


def _identities(mentions: list[_Mention]) -> dict[int, tuple[int, int]]:
    """product -> (lowest product that shares a photo with it, directly or through others; style among those)."""
    same: dict[int, int] = {}
    together: dict[int, int] = {}
    first_of_garment: dict[tuple[int, int, Box | None], int] = {}
    first_of_photo: dict[int, int] = {}
    for photo, product, category_id, box in mentions:
        _tie(same, first_of_garment.setdefault((photo, category_id, box), product), product)
        _tie(together, first_of_photo.setdefault(photo, product), product)
    styles: dict[int, dict[int, int]] = defaultdict(dict)
    identity = {}
    for product in sorted(same):
        group, garment = _lowest(together, product), _lowest(same, product)
        identity[product] = group, styles[group].setdefault(garment, len(styles[group]) + 1)
    return identity


def _tie(parent: dict[int, int], a: int, b: int) -> None:
    a, b = sorted((_lowest(parent, a), _lowest(parent, b)))
    parent[b] = a


def _lowest(parent: dict[int, int], product: int) -> int:
    """The lowest of all that are tied to it: the root of its tree, whose branches are shortened on the way."""
    while parent.setdefault(product, product) != product:
        parent[product] = product = parent[parent[product]]
    return product
