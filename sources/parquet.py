"""Parquet files that hold the pictures themselves: rows in, rows of an image set out.

    image               struct {bytes, path}, which is Hugging Face's Image feature, or plain bytes (--image)
    file_name           its name; where there is no such column `path` of the struct, else FILE.parquet/00000012 by row
    product_id          the seller's product (--product-id)
    pair_id             whole number; equal ones show one product
    category            of the whole photo, as text, where there are no objects: an item as large as it, `weak_box`
    objects             struct of lists or list of structs with bbox (x y width height, pixels) and category: true items
    any other column    single values are attributes; lists, structs and bytes are counted under the column's name

Whole numbers of Hugging Face's ClassLabel features stand for the names in the file's metadata; the names of `category`
and `objects` are the set's categories, used or not. Files are local, file://
or s3://, and are read in batches of BATCH_ROWS rows, whatever their row groups are. Source: `datasets`' own layout.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sources.attributes import text_of
from sources.folder import Origin, add_origin_arguments
from sources.photo_facts import PhotoFacts, box_of, category_id_of, each_once, facts_of, failure_of, item_of, rows_of
from sources.places import open_file, split_uri
from sources.reading import Reading
from store.arrow import numpy_dtype
from store.categories import CategoryList
from store.imageset import Failure, Photo
from store.objects import ObjectMissing, StorageError

ARGUMENTS = ("files", "source", "prefix", "image", "product_id")
READS_BUCKETS = True
IMAGE, PRODUCT = "image", "product_id"
BATCH_ROWS = 16
_PAGE_BYTES = 1 << 20  # read ahead; without it Arrow reads all pictures of a row group at once
_BOXES, _LABELS = ("bbox", "bboxes"), ("category", "categories", "label", "labels")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE", help="parquet files: local, file:// or s3://")
    add_origin_arguments(parser)
    add("--image", default=IMAGE, metavar="COLUMN", help=f"the pictures (default {IMAGE})")
    add("--product-id", default=PRODUCT, metavar="COLUMN", help=f"the products (default {PRODUCT})")


def read(
    files: Sequence[str | Path],
    source: str,
    image: str = IMAGE,
    product_id: str = PRODUCT,
    endpoint_url: str | None = None,
    prefix: str = "",
) -> Reading:
    """Rows file by file, in the order of the files' rows.

    One batch is in memory, and some 60 bytes a photo. A row without a picture, with a value that cannot be taken or
    with a name that an earlier one has is a failure; so is the rest of a file that is damaged. Raises ValueError for a
    file that is missing or no parquet file, for one without the columns asked for and for two columns of one name.
    """
    tables = [PhotoTable(file, image, endpoint_url) for file in files]
    for table in tables:
        if product_id != PRODUCT:
            table.want(product_id)
    categories = CategoryList([name.strip() for table in tables for name in table.categories()])
    skipped: Counter[str] = Counter()
    origin = Origin(source, prefix)
    rows = (row for table in tables for row in _photos(table, origin, product_id, categories, skipped))
    return Reading(each_once(rows), categories, skipped)


class PhotoTable:
    """One parquet file with a column of pictures.

    Raises ValueError where it is missing, no parquet file, or `image` is no column of pictures.
    """

    def __init__(self, uri: str | Path, image: str, endpoint_url: str | None = None) -> None:
        self.uri, self.image, self.endpoint_url = uri, image, endpoint_url
        self.name = split_uri(uri)[1]
        try:
            with self._open() as file:
                self.schema = file.schema_arrow
        except ObjectMissing as error:
            raise ValueError(f"no file {uri}") from error
        except StorageError:
            raise
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{uri} is no parquet file: {' '.join(str(error).split())[:200]}") from error
        if twice := [name for name, count in Counter(self.schema.names).items() if count > 1]:
            raise ValueError(f"{uri} has two columns {twice[0]!r}; write it again with one")
        self.want(image)
        kind = self.schema.field(image).type
        if not _is_bytes(kind.field("bytes").type if _has_bytes(kind) else kind):
            raise ValueError(
                f"{uri}: column {image!r} is {str(kind)[:80]}; want pictures, as struct<bytes, path> or bytes"
            )
        self.class_names = _class_names(self.schema)

    def want(self, column: str) -> None:
        if column not in self.schema.names:
            raise ValueError(f"{self.uri} has no column {column!r}; it has {', '.join(self.schema.names)[:300]}")

    def categories(self) -> list[str]:
        """Names of the ClassLabel of `category` and of `objects`, where these are such features."""
        objects = self.class_names.get("objects", {})
        return [*self.class_names.get("category", ()), *(_first(objects, _LABELS) or ())]

    def rows(self) -> Iterator[tuple[int, dict[str, Any]] | Failure]:
        """Number from 0 and values of each row; a failure in the place of what cannot be read."""
        number = 0
        try:
            with self._open() as file:
                for batch in file.iter_batches(BATCH_ROWS, use_threads=False):
                    for row in self._values(batch):
                        yield number, row
                        number += 1
        except StorageError:
            raise
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            reason = f"row {number} and those after it cannot be read: {' '.join(str(error).split())[:200]}"
            yield Failure(-1, self.name, reason)

    def picture(self, row: dict[str, Any]) -> tuple[bytes, str]:
        """Bytes and path of a row's picture. Raises ValueError where there are no bytes."""
        value = row[self.image]
        data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
        path = path if isinstance(path, str) else ""
        if data is None and path:
            advice = "write the pictures into the file, as Dataset.push_to_hub does, or ingest their folder"
            raise ValueError(f"the file holds the path {path[:100]!r} and no picture; {advice}")
        if data is None:
            raise ValueError("no picture in this row")
        return data, path

    @contextmanager
    def _open(self) -> Iterator[pq.ParquetFile]:
        with open_file(self.uri, self.endpoint_url) as file:
            yield pq.ParquetFile(file, pre_buffer=False, buffer_size=_PAGE_BYTES)

    def _values(self, batch: pa.RecordBatch) -> Iterable[dict[str, Any]]:
        columns = {}
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            values = column.to_pylist()
            if pa.types.is_float32(column.type) or pa.types.is_float16(column.type):
                number = numpy_dtype(column.type).type
                values = [None if value is None else number(value) for value in values]
            elif name in self.class_names:
                values = [_named(value, self.class_names[name]) for value in values]
            columns[name] = values
        return (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))


def _photos(
    table: PhotoTable, origin: Origin, product_id: str, categories: CategoryList, skipped: Counter[str]
) -> Iterator[Photo | Failure]:
    for numbered in table.rows():
        if isinstance(numbered, Failure):
            yield numbered
            continue
        number, row = numbered
        name = f"{table.name}/{number:08}"
        try:
            data, path = table.picture(row)
            name = str(row.get("file_name") or path or name)
            objects = _objects(row.pop("objects", None))
            category = text_of(row.pop("category", None)) if objects is None else None
            rest = {key: value for key, value in row.items() if key not in (table.image, "file_name")}
            facts = facts_of(rest, product_id, skipped)
            if objects is not None:
                facts.drawn = True
                _add_items(facts, objects, categories)
            elif category is not None:
                _add_whole(facts, category, categories)
        except ValueError as error:
            yield failure_of(name, origin, str(error))
            continue
        yield from rows_of(name, origin, data, facts)


def _add_items(facts: PhotoFacts, objects: list[tuple[Any, Any]], categories: CategoryList) -> None:
    for number, (box, category) in enumerate(objects, 1):
        try:
            facts.items.append(item_of(categories, category, box_of(box, with_size=True)))
        except ValueError as error:
            facts.wrong.append(f"object {number} is left out: {error}")


def _add_whole(facts: PhotoFacts, category: str, categories: CategoryList) -> None:
    try:
        facts.whole_photo = category_id_of(categories, category)
    except ValueError as error:
        facts.wrong.append(f"the item is left out: {error}")


def _objects(value: Any) -> list[tuple[Any, Any]] | None:
    """Box and category of each, None where nobody looked for any. Raises ValueError for another layout."""
    if value is None:
        return None
    if isinstance(value, list) and all(isinstance(part, dict) for part in value):
        return [(_first(part, _BOXES), _first(part, _LABELS)) for part in value]
    boxes, labels = (_first(value, names) if isinstance(value, dict) else None for names in (_BOXES, _LABELS))
    if not isinstance(boxes, list) or not isinstance(labels, list) or len(boxes) != len(labels):
        raise ValueError(f"objects {str(value)[:60]} are no bbox and category of one length")
    return list(zip(boxes, labels, strict=True))


def _first(values: dict[str, Any], names: Iterable[str]) -> Any:
    return next((values[name] for name in names if name in values), None)


def _has_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _class_names(schema: pa.Schema) -> dict[str, Any]:
    """Column -> names of its ClassLabel feature, or {field: names} for the fields of a struct, where it has any."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        found = {name: _names_in(feature) for name, feature in features.items()}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):  # not written by `datasets`
        return {}
    return {name: names for name, names in found.items() if names}


def _names_in(feature: Any) -> Any:
    if isinstance(feature, list):  # [feature]: a list of them
        return _names_in(feature[0]) if feature else None
    if not isinstance(feature, dict):
        return None
    if feature.get("_type") == "ClassLabel":
        return [str(name) for name in feature["names"]]
    if "_type" in feature:
        return _names_in(feature.get("feature"))
    inner = {name: _names_in(part) for name, part in feature.items()}
    return {name: names for name, names in inner.items() if names}


def _named(value: Any, names: Any) -> Any:
    """The value with the names of its classes for their numbers; a number without a name stays."""
    if isinstance(value, list):
        return [_named(part, names) for part in value]
    if isinstance(value, dict):
        return {key: _named(part, names[key]) if key in names else part for key, part in value.items()}
    known = isinstance(names, list) and isinstance(value, int) and 0 <= value < len(names)
    return names[value] if known else value
