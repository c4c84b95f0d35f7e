"""MVC (Liu, Chen, Chen: a dataset for view-invariant clothing retrieval, ICMR 2016): its folder in, rows out.

    DIR/mvc_info.json          [{"category", "productId", "image_url_4x", …}], an entry for each photo
    DIR/attribute_labels.json  [{"filename", "itemN", …}], the same photos in the same order
    DIR/images/FILENAME.jpg    or under the last part of image_url_4x

The authors publish these lists, with image_links.json (addresses only, not read here), and ask to be cited. No licence
is stated, and the photos belong to the shops: use it for research only. The 264 attributes are left out. images/ is
made by whoever downloads the pictures.

An item is one garment in four or more views: pair_id is made from itemN, and style is 1; product_id is the shop's
productId. All are studio photos of a shop, so all are `shop` and there are no queries. There is no box, so it is the
whole photo, hence `weak_box`. `category` is a department of the shop, in double quotes; it does not tell sleeves.
Departments without one of the 13 categories, such as swimwear or socks, are skipped and counted by name. No split is
published: "all" is the only one.
"""

from pathlib import Path
from typing import Any

from sources import folder
from sources.files import read_json
from sources.listing import Entry, ListedGarment, Listing

SPLITS = ("all",)
LISTS = ("mvc_info.json", "attribute_labels.json")
CATEGORY_IDS = {
    "shirts & tops": 1,
    "sweaters": 2,
    "hoodies & sweatshirts": 2,
    "coats & outerwear": 4,
    "shorts": 7,
    "jeans": 8,
    "pants": 8,
    "skirts": 9,
    "dresses": 10,
}
_KEYS = {"category", "productId", "image_url_4x", "filename", "itemN"}


def listing(directory: str | Path, split: str = "all") -> Listing:
    """The photos in the order of the lists; image_id is `folder.image_id` of FILENAME. Bad entries are failures.

    Raises ValueError for another layout, lists of different lengths, no such split, or two ids that collide.
    """
    directory = Path(directory)
    if split not in SPLITS:
        raise ValueError(f"split {split!r}: no split of MVC is published, want all")
    info, labels = (_load(directory / name) for name in LISTS)
    if len(info) != len(labels):
        raise ValueError(f"{LISTS[0]} has {len(info)} entries, {LISTS[1]} {len(labels)}: want the same photos in both")
    photos = Listing(directory)
    pictures = {path.name for path in (directory / "images").iterdir()} if (directory / "images").is_dir() else set()
    products: dict[int, set[str]] = {}
    for number, (facts, label) in enumerate(zip(info, labels, strict=True), 1):
        if not isinstance(facts, dict) or not isinstance(label, dict):
            photos.fail(f"entry {number}", "want an object in both lists")
            continue
        entry = facts | label
        missing = sorted(key for key in _KEYS if entry.get(key) in (None, ""))
        category = str(entry.get("category")).strip('"').strip()
        if missing:
            photos.fail(f"entry {number}", f"no {', '.join(missing)}")
        elif category.casefold() not in CATEGORY_IDS:
            photos.skipped[f"photos of {category}"] += 1
        else:
            row = _entry(photos, entry, CATEGORY_IDS[category.casefold()], pictures)
            photos.add(row)
            products.setdefault(row.pair_id, set()).add(row.product_id)
    mixed = sum(len(ids) > 1 for ids in products.values())
    if mixed:
        photos.remarks.append(f"{mixed:,} of {len(products):,} items have photos of more than one productId")
    return photos


def _load(path: Path) -> list[Any]:
    """The list, with the keys that are used and no others: 264 attributes to a photo would fill gigabytes."""
    try:
        entries = read_json(path, object_hook=lambda entry: {key: entry.get(key) for key in _KEYS & set(entry)})
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}; want MVC's {' and '.join(LISTS)}") from error
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path} is not a list of photos")
    return entries


def _entry(photos: Listing, entry: dict[str, Any], category_id: int, pictures: set[str]) -> Entry:
    named = f"{str(entry['filename']).removesuffix('.jpg')}.jpg"
    linked = str(entry["image_url_4x"]).rpartition("/")[2]
    name = linked if linked in pictures and named not in pictures else named
    pair, product = photos.pair_id(_text(entry["itemN"])), _text(entry["productId"])
    return Entry(folder.image_id(named), f"images/{name}", "shop", pair, product, (ListedGarment(category_id),))


def _text(value: Any) -> str:
    """A number as its digits, whether the list has it as 7, 7.0 or "7"."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
