"""Rankings as CSV, a row a result: photos, garments, products, attributes, whether it is right; for spreadsheets too.

In: OUTPUT/rankings/ of a finished run, its image set. Out: `rankings-BOXES-MODEL.csv`: UTF-8 without a byte order mark,
separated by commas, quoted as in RFC 4180, boxes in pixels of the upright photo, columns as in COLUMNS and then one for
every attribute of the shop photos. `right` is 1 or 0, and empty where it is not known: no true garment belongs to the
query, or without any true boxes neither pair_id nor product_id is known of its photo.

File names, products and attributes are strangers' words, and a spreadsheet takes a cell that begins with = + - @, a tab
or a line's end for a formula. Such text has an apostrophe in front of it, and so has text that begins with one. A
program gets the text back by taking one apostrophe away from the front. Image ids have up to 19 digits: a spreadsheet
must import their columns as text, for its numbers hold 15.
"""

import csv
import functools
import re
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.exports.files import Writer
from jobs.exports.truth import BlockTruth
from jobs.runs.finished import FinishedRun
from jobs.runs.reader import ranking_blocks, read_photos
from postproc.hypotheses import Hypotheses
from retrieval.rankings import Rankings
from retrieval.truth import truth_of
from store.categories import category_name

BLOCK = 500  # queries in memory at a time
QUERY = (
    "query_file_name", "query_image_id", "query_item", "query_x1", "query_y1", "query_x2", "query_y2", "query_score",
    "query_category", "query_hypotheses", "query_product_id",
)  # fmt: skip
RESULT = (
    "rank", "similarity", "shop_file_name", "shop_image_id", "shop_item", "shop_x1", "shop_y1", "shop_x2", "shop_y2",
    "shop_product_id", "right",
)  # fmt: skip
COLUMNS = QUERY + RESULT
PHOTO = ("image_id", "source", "product_id", "file_name", "attributes")
_NUMBER = re.compile(r"[+-]?[0-9]+([.,][0-9]+)?")


def files(run: FinishedRun, boxes: str | None = None, model: str | None = None) -> dict[str, Writer]:
    """The files of this export by name; of one kind of boxes or one model alone where these are given."""
    rankings = run.rankings(boxes, model)
    photos = KnownPhotos(read_photos(run.images, run.selected.shards, PHOTO))
    truth = BlockTruth(truth_of(run.truth(), whole_photos=not run.detectors))
    return {
        f"rankings-{kind}-{name}.csv": functools.partial(write_rankings, run, photos, truth, place)
        for kind, name, place in rankings
    }


def write_rankings(run: FinishedRun, photos: "KnownPhotos", truth: BlockTruth, place: str, file: TextIO) -> int:
    """Write rankings/PLACE.parquet as CSV; returns the number of results."""
    writer, n_rows = csv.writer(file, lineterminator="\n"), 0
    writer.writerow([*COLUMNS, *(safe(name) for name in column_names(photos.attributes))])
    for block in ranking_blocks(run.store, place, BLOCK):
        for row in _rows(block, truth, photos, run.categories):
            writer.writerow(row)
            n_rows += 1
    return n_rows


def safe(text: str) -> str:
    """Text that no spreadsheet takes for a formula; a number stays as it is.

    >>> safe("=HYPERLINK(A1)"), safe("-5.50"), safe("'quoted'"), safe("red")
    ("'=HYPERLINK(A1)", '-5.50', "''quoted'", 'red')
    """
    if text[:1] in ("=", "+", "-", "@", "\t", "\r", "\n", "'") and not _NUMBER.fullmatch(text):
        return f"'{text}"
    return text


def column_names(attributes: Sequence[str]) -> list[str]:
    """The columns of these attributes; a name that is taken gets `attribute_` in front, again until it is free.

    >>> column_names(["price", "rank"])
    ['price', 'attribute_rank']
    """
    taken, names = {name.casefold() for name in COLUMNS}, []  # to DuckDB and others Rank and rank are one
    for name in attributes:
        while name.casefold() in taken:
            name = f"attribute_{name}"
        taken.add(name.casefold())
        names.append(name)
    return names


class KnownPhotos:
    """What is known of the run's photos, found by image id."""

    def __init__(self, table: pa.Table) -> None:
        """`table`: the columns PHOTO of all photos that the run took."""
        table = table.sort_by("image_id")
        self.image_id = table.column("image_id").to_numpy()
        self.table = table
        shops = table.filter(pc.equal(table["source"], "shop")).column("attributes").combine_chunks()
        self.attributes: list[str] = sorted(pc.unique(shops.keys).to_pylist())  # of the shop photos

    def find(self, image_id: np.ndarray) -> tuple[list[dict[str, Any]], np.ndarray]:
        """What is known of each distinct photo, and for each of (N,) image ids its number in that list, (N,)."""
        wanted, number = np.unique(image_id, return_inverse=True)
        rows = np.searchsorted(self.image_id, wanted)
        return self.table.take(pa.array(rows)).to_pylist(maps_as_pydicts="strict"), number


def _rows(rankings: Rankings, truth: BlockTruth, photos: KnownPhotos, categories: Sequence[str]) -> Iterator[list]:
    results = rankings.results
    listed = np.arange(results.gallery_image_id.shape[1]) < results.gallery_count[:, None]
    right, known = truth.right(results)
    queries = list(_query_cells(rankings, photos, categories))
    shops, number = photos.find(results.gallery_image_id[listed])
    attributes = [[safe(shop["attributes"].get(name, "")) for name in photos.attributes] for shop in shops]
    row, place = np.nonzero(listed)
    columns = [row, place + 1, number, known[row], right[listed], rankings.gallery_item[listed]]
    numbers = [column.tolist() for column in columns]
    measured = [_shortest(values[listed]) for values in (rankings.similarity, results.gallery_bbox)]
    for i, rank, shop_number, judged, hit, item, similarity, box in zip(*numbers, *measured, strict=True):
        shop = shops[shop_number]
        yield [
            *queries[i], rank, similarity, safe(shop["file_name"]), shop["image_id"], item, *box,
            safe(shop["product_id"]), int(hit) if judged else "", *attributes[shop_number],
        ]  # fmt: skip


def _query_cells(rankings: Rankings, photos: KnownPhotos, categories: Sequence[str]) -> Iterator[list]:
    results = rankings.results
    own, number = photos.find(results.query_image_id)
    columns = (number, rankings.query_item, results.query_cls)
    measured = _shortest(results.query_bbox), _shortest(results.query_score)
    hypotheses = results.hypotheses or Hypotheses.own(results.query_cls, results.query_score)
    rows = zip(
        *(column.tolist() for column in columns), *measured, hypotheses.category_id, hypotheses.score, strict=True
    )
    for i, item, category_id, box, score, ids, scores in rows:
        photo, category = own[i], safe(category_name(categories, category_id))
        pairs = zip(ids[ids > 0].tolist(), _shortest(scores[ids > 0]), strict=True)
        may_be = safe("; ".join(f"{category_name(categories, other)} {value}" for other, value in pairs))
        asked = [safe(photo["file_name"]), photo["image_id"], item, *box, score, category, may_be]
        yield [*asked, safe(photo["product_id"])]


def _shortest(numbers: np.ndarray) -> list:
    """float32 numbers as the shortest text that gives them back."""
    return numbers.astype(np.float32).astype(str).tolist()
