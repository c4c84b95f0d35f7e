"""What a seller's CSV says about the photos of a folder, and which photo each of its rows means.

In: a CSV in UTF-8 with a header, and the names of the pictures, relative to their folder. Columns:

    file_name               which picture
    product_id, pair_id     the seller's product; a number that photos of one garment share. Either may be absent
    category                a garment on it, by the name of its category; several rows of one photo are its garments
    x1, y1, x2, y2          the garment's box, pixels of the upright picture; absent or empty: the whole picture
    any other               an attribute of the photo, kept as text: price, title, url, colour …

Spaces around names and values are taken off, and rows without a value are passed over. Out: facts of each picture. The
CSV is read strictly: a row that can be read in two ways is refused with its line.
"""

import csv
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from store.categories import name_problem
from store.files import hasher

MOST_MISSING = 0.01  # share of rows that may name no picture
MOST_SHARE = 1.5  # boxes that all end before it are shares of the sides, some a little over the edge
# What programs write for a value that is missing. Taken for a product, it would make one garment of all such photos.
NO_VALUES = ("nan", "none", "null", "<na>", "#n/a")
BOX = ("x1", "y1", "x2", "y2")
OURS = ("file_name", "product_id", "pair_id", "category", *BOX)
SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}  # of files that only look like ours
NO_CSV = {b"PK\x03\x04": "it is an Excel workbook", b"\xff\xfe": "it is UTF-16", b"\xfe\xff": "it is UTF-16"}
Box = tuple[float, float, float, float]


class Garment(NamedTuple):
    """Of a category by name; `box` is x1 y1 x2 y2 in pixels of the upright picture, None: the whole picture."""

    category: str
    box: Box | None = None


class Facts(NamedTuple):
    """Of one photo; empty, and 0 where the CSV says nothing."""

    product_id: str = ""
    pair_id: int = 0
    attributes: tuple[tuple[str, str], ...] = ()
    garments: tuple[Garment, ...] = ()

    @property
    def digest(self) -> bytes:
        """BLAKE2b-128 of attributes and garments, boxes as float32; empty where there are neither."""
        if not self.attributes and not self.garments:
            return b""
        boxes = [None if box is None else np.array(box, np.float32).tolist() for _, box in self.garments]
        names = [category for category, _ in self.garments]
        return hasher(json.dumps([sorted(self.attributes), names, boxes]).encode()).digest()


def read_metadata(path: Path) -> dict[str, Facts]:
    """file_name as it is written -> facts.

    Raises:
        ValueError: the file cannot be read, is no CSV of such columns, has no rows, or its boxes are no pixels; with
            the line where it is one row's fault.
    """
    facts: dict[str, Facts] = {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file, strict=True)
            header = [name.strip() for name in next(rows, [])]
            _check_header(path, header)
            for cells in rows:
                if any(map(str.strip, cells)):  # spreadsheets end with rows of commas alone
                    line = f"{path}, line {rows.line_num}"
                    name, row = _row(line, header, cells)
                    facts[name] = _joined(line, name, facts[name], row) if name in facts else row
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        with open(path, "rb") as raw:
            start = raw.read(4)
        kind = next((kind for begin, kind in NO_CSV.items() if start.startswith(begin)), str(error))
        raise ValueError(f'{path} is not a UTF-8 CSV: {kind}; save it as "CSV UTF-8"') from error
    except csv.Error as error:
        raise ValueError(f"{path}, line {rows.line_num}: {error}; is a quote left open before it?") from error
    if not facts:
        raise ValueError(f"{path}: no rows below its header; leave out --metadata where nothing is known")
    if reason := shares_problem([one.box for row in facts.values() for one in row.garments if one.box is not None]):
        raise ValueError(f"{path}: {reason}")
    return facts


def shares_problem(boxes: Sequence[Box]) -> str | None:
    """Why boxes x1 y1 x2 y2 cannot be pixels: all end within the first pixels of their pictures; or None.

    >>> shares_problem([(0.1, 0.2, 0.5, 1.0)])
    'all 1 boxes end within 1.5 x 1.5 pixels; want pixels, not shares of the width and height'
    >>> shares_problem([(0.1, 0.2, 0.5, 1.0), (0, 0, 20, 40)]), shares_problem([])
    (None, None)
    """
    if not boxes or not all(x2 <= MOST_SHARE and y2 <= MOST_SHARE for _, _, x2, y2 in boxes):
        return None
    return (
        f"all {len(boxes):,} boxes end within {MOST_SHARE} x {MOST_SHARE} pixels; "
        "want pixels, not shares of the width and height"
    )


def _check_header(path: Path, header: Sequence[str]) -> None:
    if not any(header):
        raise ValueError(f"{path} is empty, or its first line is; want the names of its columns there")
    if header[0].lower().startswith("sep="):
        raise ValueError(f"{path}: its first line is {header[0]!r}; take it away, and separate the cells with commas")
    if "file_name" not in header:
        if words := [words for letter, words in SEPARATORS.items() if any(letter in name for name in header)]:
            raise ValueError(f"{path}: its cells are separated by {words[0]}; save it with commas")
        raise ValueError(f"{path}: no column file_name in its first line{_meant(header, 'file_name')}")
    if not (kinds := {"product_id", "pair_id", "category"}) & set(header):
        meant = _meant(header, *kinds)
        raise ValueError(f"{path}: its first line names none of product_id, pair_id and category{meant}")
    if repeated := [name for name, count in Counter(header).items() if count > 1 and name]:
        raise ValueError(f"{path}: its first line names column {repeated[0]!r} more than once")
    if (boxes := set(BOX) & set(header)) and not {*BOX, "category"} <= set(header):
        have = ", ".join(sorted(boxes))
        raise ValueError(f"{path}: a box needs the columns category, x1, y1, x2 and y2; there is {have}")


def _meant(header: Sequence[str], *columns: str) -> str:
    """For the end of a message: the name in the header that is one of the columns written in another way, else all."""
    written = {re.sub("[^a-z0-9]", "", name.lower()): name for name in header}
    found = [(written[key], column) for column in columns if (key := column.replace("_", "")) in written]
    if found:
        return f"; it has {found[0][0]!r}: call it {found[0][1]}"
    return f"; it has {', '.join(map(repr, header))[:200]}"


def _row(line: str, header: Sequence[str], cells: Sequence[str]) -> tuple[str, Facts]:
    if len(cells) != len(header):
        raise ValueError(f"{line}: {len(cells)} cells, the header has {len(header)}")
    row = {column: cell.strip() for column, cell in zip(header, cells, strict=True)}
    for column in ("file_name", "product_id", "category"):
        if any(letter in row.get(column, "") for letter in "\r\n\0"):
            raise ValueError(f"{line}: {column} {row[column][:40]!r} runs over a line's end; is a quote left open?")
    if not row["file_name"]:
        raise ValueError(f"{line}: no file_name")
    product = row.get("product_id", "")
    if product.lower() in NO_VALUES:
        raise ValueError(f"{line}: product_id {product!r}; leave the cell empty where there is none")
    pair = row.get("pair_id") or "0"
    if not pair.isascii() or not pair.isdigit() or len(pair) > 19 or int(pair) >= 2**63:
        raise ValueError(f"{line}: pair_id {pair[:40]!r} is not a whole number below 2^63")
    attributes = tuple((column, text) for column, text in row.items() if column and column not in OURS and text)
    return row["file_name"], Facts(product, int(pair), attributes, _garments(line, row))


def _garments(line: str, row: Mapping[str, str]) -> tuple[Garment, ...]:
    """The garment that a row tells of, if it does."""
    category, corners = row.get("category", ""), [row.get(name, "") for name in BOX]
    if not category:
        if any(corners):
            raise ValueError(f"{line}: a box without a category")
        return ()
    if category.lower() in NO_VALUES or (reason := name_problem(category)) is not None:
        reason = f"category {category!r}" if category.lower() in NO_VALUES else reason
        raise ValueError(f"{line}: {reason}; leave the cell empty where there is none")
    if not any(corners):
        return (Garment(category),)
    try:
        x1, y1, x2, y2 = map(float, corners)
    except ValueError:
        raise ValueError(f"{line}: box {', '.join(corners)}: want four numbers, or four empty cells") from None
    return (Garment(category, (x1, y1, x2, y2)),)


def _joined(line: str, name: str, before: Facts, row: Facts) -> Facts:
    """A photo's facts with one more garment; all of its rows say the same about the photo."""
    if not row.garments:
        several = "; of several products of a photo only one can be its product_id"
        several = several if row.product_id != before.product_id else ""
        raise ValueError(f"{line}: {name} occurs twice; a row for each of its garments needs a category{several}")
    if row.garments[0] in before.garments:
        raise ValueError(f"{line}: {name} has the same {row.garments[0].category} twice")
    then, now = ({"product_id": one.product_id, "pair_id": one.pair_id} | dict(one.attributes) for one in (before, row))
    for column in [*then, *now]:
        if then.get(column, "") != now.get(column, ""):
            values = f"{now.get(column, '')!r} here and {then.get(column, '')!r} before"
            raise ValueError(f"{line}: {name} has {column} {values}; the rows of a photo must agree")
    return before._replace(garments=before.garments + row.garments)


def match(rows: Iterable[str], pictures: Iterable[str]) -> dict[str, str]:
    """Which row means which picture: picture name -> row's name, each at most once.

    Names that are equal belong together. Of the others those that differ only in how they are written: upper and lower
    case, composed and decomposed accents, `\\` for `/`, `./` or `/` in front, or folders in front that are the same in
    all rows (a bucket's prefix, another machine's path). A name that could mean two pictures means none.
    """
    rows, pictures = list(rows), list(pictures)
    there = set(pictures)
    matched = {name: name for name in rows if name in there}
    left = _unique({name: _key(name) for name in pictures if name not in matched})
    unmatched = {row: _key(row) for row in rows if row not in matched}
    if not left or not unmatched:
        return matched
    tries = (_unique({row: "/".join(key.split("/")[n:]) for row, key in unmatched.items()}) for n in _depths(rows))
    best = max(tries, key=lambda row_of: len(row_of.keys() & left.keys()))
    return matched | {left[key]: row for key, row in best.items() if key in left}


def _key(name: str) -> str:
    plain = unicodedata.normalize("NFC", name.replace("\\", "/").casefold())
    return plain.removeprefix("./").lstrip("/")


def _unique(keys: Mapping[str, str]) -> dict[str, str]:
    """Key -> name, without keys that several names share."""
    count = Counter(keys.values())
    return {key: name for name, key in keys.items() if count[key] == 1}


def _depths(rows: Sequence[str]) -> range:
    """Numbers of folders that may be taken off the front: up to those that all rows have in common."""
    folders = [_key(row).split("/")[:-1] for row in rows]
    shared = 0
    while all(len(parts) > shared and parts[shared] == folders[0][shared] for parts in folders):
        shared += 1
    return range(shared + 1)
