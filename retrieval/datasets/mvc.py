"""MVC (Liu, Chen, Chen: a dataset for view-invariant clothing retrieval, ICMR 2016): its folder in, rows of an image set out.

    DIR/mvc_info.json          [{"category", "productId", "image_url_4x", …}], an entry for each photo
    DIR/attribute_labels.json  [{"filename", "itemN", …}], the same photos in the same order
    DIR/images/FILENAME.jpg    or under the last part of image_url_4x

The authors publish these lists, with image_links.json (addresses only, not read here), and ask to be cited; no licence is
stated, and the photos are the shops' own: take it as research only. The 264 attributes are left out. Whoever fetched the
pictures put them in images/.

An item is one garment in four or more views: pair_id from itemN, style 1; product_id is the shop's productId. All are studio
photos of a shop, so all are `shop` and there are no queries. There is no box: it is the whole photo, hence `weak_box`.
`category` is a department of the shop, in double quotes; sleeves are not told. Departments without one of the 13 categories,
such as swimwear or socks, are skipped and counted, each by its name. No split is published: "all" is the only one.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from retrieval.datasets import folder
from retrieval.datasets.files import read_json
from retrieval.datasets.listing import Entry, Garment, Listing
from store.imageset import Failure, Photo

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


def read(directory: str | Path, split: str = "all") -> Iterator[Photo | Failure]:
    """Rows in the order of the lists; image_id is `folder.image_id` of FILENAME. Bad entries are failures.

    Raises:
        ValueError: the folder is not laid out so, the lists are out of step, there is no such split, or two ids collide.
    """
    return listing(directory, split).rows()


def check(directory: str | Path, split: str = "all") -> list[str]:
    """What is missing or strange, a line each; no picture is opened. Raises as `read`."""
    found = listing(directory, split)
    return found.remarks + found.missing()


def listing(directory: str | Path, split: str = "all") -> Listing:
    """Both lists, and which picture is whose. Raises as `read`."""
    directory = Path(directory)
    if split not in SPLITS:
        raise ValueError(f"split {split!r}: no split of MVC is published, want all")
    info, labels = (_load(directory / name) for name in LISTS)
    if len(info) != len(labels):
        raise ValueError(f"{LISTS[0]} has {len(info)} entries, {LISTS[1]} {len(labels)}: want the same photos in both")
    found = Listing(directory)
    pictures = {path.name for path in (directory / "images").iterdir()} if (directory / "images").is_dir() else set()
    products: dict[int, set[str]] = {}
    for number, (one, other) in enumerate(zip(info, labels, strict=True), 1):
        if not isinstance(one, dict) or not isinstance(other, dict):
            found.fail(f"entry {number}", "want an object in both lists")
            continue
        entry = one | other
        missing = sorted(key for key in _KEYS if entry.get(key) in (None, ""))
        category = str(entry.get("category")).strip('"').strip()
        if missing:
            found.fail(f"entry {number}", f"no {', '.join(missing)}")
        elif category.casefold() not in CATEGORY_IDS:
            found.skipped[f"photos of {category}"] += 1
        else:
            row = _entry(found, entry, CATEGORY_IDS[category.casefold()], pictures)
            found.add(row)
            products.setdefault(row.pair_id, set()).add(row.product_id)
    mixed = sum(len(several) > 1 for several in products.values())
    if mixed:
        found.remarks.append(f"{mixed:,} of {len(products):,} items have photos of more than one productId")
    return found


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


def _entry(found: Listing, entry: dict[str, Any], category_id: int, pictures: set[str]) -> Entry:
    named = f"{str(entry['filename']).removesuffix('.jpg')}.jpg"
    linked = str(entry["image_url_4x"]).rpartition("/")[2]
    name = linked if linked in pictures and named not in pictures else named
    pair = found.pair_id(_text(entry["itemN"]))
    return Entry(
        folder.image_id(named), f"images/{name}", "shop", pair, _text(entry["productId"]), (Garment(category_id),)
    )


def _text(value: Any) -> str:
    """A number as its digits, whether the list has it as 7, 7.0 or "7"."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
