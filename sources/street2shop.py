"""Street2Shop (Hadi Kiapour and others: Where to Buy It, ICCV 2015): its folder in, rows of an image set out.

    DIR/meta/json/{train,test}_pairs_CATEGORY.json
        [{"photo", "product", "bbox": {"left", "top", "width", "height"}}]: street photos
    DIR/meta/json/retrieval_CATEGORY.json
        [{"photo", "product"}]: shop photos
    DIR/images/000000001.jpg …
        by photo number, nine digits; .jpeg, .png, .webp or no ending do as well

The authors publish the lists and photos.txt, a list of addresses that is not read here; images/ is made by whoever
downloads the pictures. No licence was photos with them, and the photos belong to the shops and the users: use it for
research only.

Six of the 11 categories are taken: tops as short sleeve top, dresses as short sleeve dress, outerwear as long sleeve
outwear, pants and leggings as trousers, skirts as skirt, because the lists do not tell sleeves. The boxes are true, but
only one garment of a photo has one, hence `weak_box`. Entries of bags, belts, eyewear, footwear and hats are skipped
and counted.

A street garment may be sold as several products, and a street photo may show several garments, while a photo has only
one pair_id. So products named for one box are one garment, and garments that share a photo share its pair_id and differ
in style. Mostly pair_id is the product number and style is 1; otherwise pair_id is the lowest product number of the
group, and its garments have the styles 1, 2, … by number.

Split train: the street photos of train_pairs, and the shop photos of the products named there; others are skipped and
counted. Split test: the street photos of test_pairs, and every shop photo, since the whole gallery is searched.
"""

from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from sources.files import PICTURES, read_json
from sources.listing import Entry, ListedGarment, Listing

SPLITS = ("train", "test")
CATEGORY_IDS = {"dresses": 10, "leggings": 8, "outerwear": 4, "pants": 8, "skirts": 9, "tops": 1}
SKIPPED = ("bags", "belts", "eyewear", "footwear", "hats")

Box = tuple[float, float, float, float]
_ENDINGS = ("", *PICTURES)


class _Mention(NamedTuple):
    photo: int
    product: int
    category_id: int
    box: Box | None  # None on a shop photo


def listing(directory: str | Path, split: str = "train") -> Listing:
    """The photos of a split by number; image_id is that number. What cannot be taken is a failure with the reason.

    Raises ValueError if the folder is not laid out so, or there is no such split.
    """
    directory = Path(directory)
    if split not in SPLITS:
        raise ValueError(f"split {split!r}: Street2Shop has {' and '.join(SPLITS)}")
    for part in ("meta/json", "images"):
        if not (directory / part).is_dir():
            raise ValueError(f"{directory} has no {part}/ folder: want Street2Shop's meta/json/ and images/")
    if not any((directory / "meta" / "json").glob(f"{split}_pairs_*.json")):
        raise ValueError(f"{directory}/meta/json has no {split}_pairs_CATEGORY.json: want Street2Shop's lists")
    photos = Listing(directory)
    street = _mentions(photos, f"{split}_pairs")
    shop = _mentions(photos, "retrieval")
    wanted = {mention.product for mention in street}
    if split == "train":
        listed = {mention.photo for mention in shop}
        shop = [mention for mention in shop if mention.product in wanted]
        others = len(listed - {mention.photo for mention in shop})
        photos.skipped["shop photos of products without a street photo"] += others
    unsold = sorted(wanted - {mention.product for mention in shop})
    if unsold:
        photos.remarks.append(f"{len(unsold):,} products of {split} have no shop photo, {unsold[0]} the first")
    _add_photos(photos, street, shop)
    photos.skipped = +photos.skipped  # without the zeros
    return photos


def _mentions(photos: Listing, kind: str) -> list[_Mention]:
    """What all files `KIND_CATEGORY.json` say, category by category."""
    folder = photos.directory / "meta" / "json"
    present = {path.stem.removeprefix(f"{kind}_") for path in folder.glob(f"{kind}_*.json")}
    mentions = []
    for category in sorted(present | set(CATEGORY_IDS)):
        name = f"meta/json/{kind}_{category}.json"
        try:
            entries = read_json(photos.directory / name)
            if not isinstance(entries, list):
                raise ValueError(f"want a list, got {type(entries).__name__}")
        except FileNotFoundError:
            photos.fail(name, "missing")
            continue
        except (OSError, ValueError) as error:  # JSONDecodeError and UnicodeDecodeError among them
            photos.fail(name, f"cannot be read: {error}")
            continue
        if category not in CATEGORY_IDS:
            photos.skipped[f"entries of {category}"] += len(entries)
            if category not in SKIPPED:
                photos.remarks.append(f"{name}: {category} is no category of Street2Shop")
            continue
        for number, entry in enumerate(entries, 1):
            try:
                mentions.append(_mention(entry, CATEGORY_IDS[category], boxed=kind != "retrieval"))
            except (ValueError, OverflowError) as error:
                photos.fail(name, f"entry {number}: {error}")
    return mentions


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


def _add_photos(photos: Listing, street: list[_Mention], shop: list[_Mention]) -> None:
    pictures = sorted(path for path in (photos.directory / "images").iterdir() if path.suffix.lower() in _ENDINGS)
    names = {path.stem: path.name for path in reversed(pictures)}  # of two with one number the first by name
    identity = _identities(street + shop)
    by_photo: dict[tuple[int, str], list[_Mention]] = defaultdict(list)
    for source, mentions in (("user", street), ("shop", shop)):
        for mention in mentions:
            by_photo[mention.photo, source].append(mention)
    for (photo, source), mentions in sorted(by_photo.items(), key=lambda entry: entry[0][0]):  # street first
        products = sorted({mention.product for mention in mentions})
        garments = {ListedGarment(m.category_id, identity[m.product][1], m.box): None for m in mentions}
        name = names.get(f"{photo:09}", f"{photo:09}.jpg")
        pair = photos.pair_id(str(identity[products[0]][0]))
        photos.add(Entry(photo, f"images/{name}", source, pair, " ".join(map(str, products)), tuple(garments)))


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
