"""LookBench (Gao and others, arXiv:2601.14706): its folder in, rows of an image set out.

    DIR/SUBSET/query.parquet      consumers' photos
    DIR/SUBSET/gallery.parquet    shop photos; a subset of distractors, `noise`, has these alone

Each row has `image` {bytes, path}, `item_ID`, `category`, `main_attribute`, `other_attributes`, `task`, `difficulty`;
on Hugging Face the set is srpone/look-bench, DIR is its folder of a version. A photo's name is SUBSET/query/00000012 or
SUBSET/gallery/00000012, by row, so that ids of subsets do not collide.

Every column but the picture is kept as an attribute of the same name, `subset` is added, and a list is kept as JSON.
The benchmark judges within a subset: the right answers of a query are its subset's gallery photos, by `item_ID` in the
package look-bench, by `category` (coarse) or by category and attributes (fine) in the paper. So product_id is
SUBSET/item_ID. The categories are no items: nothing says where the garment is.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sources.folder import Origin
from sources.parquet import IMAGE, PhotoTable
from sources.photo_facts import each_once, facts_of, failure_of, rows_of
from sources.reading import Reading
from store.imageset import Failure, Photo

ARGUMENTS = ("directory",)
SIDES = {"query": "user", "gallery": "shop"}
SUBSET, ITEM = "subset", "item_ID"  # attributes: which subset a photo is of, and which garment it shows there
CATEGORY, MAIN, OTHERS = "category", "main_attribute", "other_attributes"  # and what fine and coarse are judged by


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", help="the folder with SUBSET/query.parquet and gallery.parquet")


def read(directory: str | Path) -> Reading:
    """Subsets by name, of each the queries, then the gallery, in the order of their rows.

    Memory and failures are as in `parquet.read`. Raises ValueError where the folder is not laid out so, a subset has
    queries and no gallery, or a file has no pictures.
    """
    directory = Path(directory)
    files = [(path, side) for side in SIDES for path in directory.glob(f"*/{side}.parquet")]
    subsets = {side: {path.parent.name for path, its_side in files if its_side == side} for side in SIDES}
    if not subsets["query"]:
        raise ValueError(f"{directory}: no SUBSET/query.parquet; want LookBench's folder of one version")
    if lone := subsets["query"] - subsets["gallery"]:
        raise ValueError(f"{directory}/{min(lone)} has query.parquet and no gallery.parquet; is the download complete?")
    order = sorted(files, key=lambda entry: (entry[0].parent.name, [*SIDES].index(entry[1])))
    tables = [(PhotoTable(path, IMAGE), path.parent.name, side) for path, side in order]
    skipped: Counter[str] = Counter()
    rows = (row for table, subset, side in tables for row in _photos(table, subset, side, skipped))
    return Reading(each_once(rows), (), skipped)


def _photos(table: PhotoTable, subset: str, side: str, skipped: Counter[str]) -> Iterator[Photo | Failure]:
    for numbered in table.rows():
        if isinstance(numbered, Failure):
            yield Failure(-1, f"{subset}/{numbered.file_name}", numbered.reason)
            continue
        number, row = numbered
        name, origin = f"{subset}/{side}/{number:08}", Origin(SIDES[side])
        try:
            data, _ = table.picture(row)
            values = {key: _flat(value) for key, value in row.items() if key != table.image} | {SUBSET: subset}
            facts = facts_of(values, "", skipped)
        except ValueError as error:
            yield failure_of(name, origin, str(error))
            continue
        item = facts.attributes.get(ITEM, "")
        facts.product_id = f"{subset}/{item}" if item else ""
        yield from rows_of(name, origin, data, facts)


def _flat(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value
