"""What the report needs to know of an image set's photos, read one shard at a time and without the pictures."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retrieval.limit import without_unjudged
from retrieval.truth import COLUMNS, Truth, truth_of
from store.imageset import SCHEMA, ImageSet

# Attributes that a shop's export calls by one of these names, whatever their case
TITLES = ("title", "name", "product_title", "product_name")
MOST_ATTRIBUTES, LONGEST_TEXT = 12, 200  # of a photo; letters
Box = tuple[float, float, float, float]  # px x1 y1 x2 y2 of the upright photo


@dataclass(frozen=True)
class GroundTruth:
    """Ids of the photos, and what rankings are judged by."""

    shard_ids: Mapping[str, np.ndarray]  # shard name -> ids of the photos that the run took from it
    rankings: Truth

    def shards_of(self, image_ids: Iterable[int]) -> dict[str, list[int]]:
        """Group photo ids by the shard that holds them, in the set's order, without ids that the run did not take."""
        wanted = np.unique(np.fromiter(image_ids, np.int64))
        held = {name: ids[np.isin(ids, wanted)].tolist() for name, ids in self.shard_ids.items()}
        return {name: ids for name, ids in held.items() if ids}


@dataclass(frozen=True)
class Source:
    """What the image set says about one photo; `digest` of its bytes, hex; `attributes` as `shown` picks them."""

    file_name: str
    product_id: str
    digest: str
    attributes: Sequence[tuple[str, str]] = ()

    @property
    def name(self) -> str:
        """What people call the photo: its file name, else its product; "" where it has neither."""
        return self.file_name or self.product_id

    @property
    def sold_as(self) -> str:
        """What people call the garment that a shop photo sells: its title, product or file name."""
        return attribute(self.attributes, TITLES) or self.product_id or self.file_name


Sources = dict[int, Source]  # by image id


def read_truth(
    imageset: ImageSet, selected: Mapping[str, Any] | None = None, *, whole_photos: bool = False
) -> GroundTruth:
    """Read ids and true items of the photos that the run took, `selected` of its run.json; None: of all.

    `whole_photos`: the run had no detectors, see `truth_of`.
    """
    shard_ids: dict[str, np.ndarray] = {}
    rows, unjudged = (selected or {}).get("rows"), (selected or {}).get("unjudged") or {}
    parts: list[pa.Table] = []
    for shard in imageset.shards:
        if rows is None or rows.get(shard.name):
            table = imageset.read(shard.name, columns=list(COLUMNS))
            if rows is not None:
                table = table.take(pa.array(rows[shard.name], pa.int64()))
                table = without_unjudged(table, rows[shard.name], unjudged.get(shard.name, ()))
            parts.append(table)
            shard_ids[shard.name] = table["image_id"].to_numpy()
    photos = pa.concat_tables(parts) if parts else pa.schema([SCHEMA.field(name) for name in COLUMNS]).empty_table()
    return GroundTruth(shard_ids, truth_of(photos, whole_photos=whole_photos))


def read_sources(imageset: ImageSet, truth: GroundTruth, image_ids: Iterable[int]) -> Sources:
    """What the set says about some photos."""
    sources: Sources = {}
    for shard, ids in truth.shards_of(image_ids).items():
        table = imageset.read(shard, columns=["image_id", "file_name", "product_id", "digest", "attributes"])
        for row in of_photos(table, ids).to_pylist():
            about = row["file_name"], row["product_id"], row["digest"].hex()
            sources[row["image_id"]] = Source(*about, shown(row["attributes"]))
    return sources


def shown(attributes: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The first attributes of a photo as a page shows them, names and texts, long ones cut."""
    return [(_cut(name), _cut(text)) for name, text in itertools.islice(attributes, MOST_ATTRIBUTES)]


def attribute(attributes: Iterable[tuple[str, str]], names: Sequence[str]) -> str:
    """The first attribute that has one of these names, in the names' order; "" where none has.

    >>> attribute([("colour", "red"), ("Title", "Midi skirt")], TITLES)
    'Midi skirt'
    """
    texts = {plain_name(name): text for name, text in attributes if text}
    return next((texts[name] for name in names if name in texts), "")


def plain_name(name: str) -> str:
    """An attribute's name as it is compared.

    >>> plain_name("Product Title")
    'product_title'
    """
    return name.strip().casefold().replace(" ", "_")


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 1]}…"


def of_photos(table: pa.Table, image_ids: Sequence[int] | np.ndarray) -> pa.Table:
    """The rows of some photos, in the table's order."""
    return table.filter(pc.is_in(table["image_id"], value_set=pa.array(image_ids, pa.int64())))


def as_box(values: Iterable[float]) -> Box:
    """Four numbers as a tuple of Python floats."""
    x1, y1, x2, y2 = (float(value) for value in values)
    return x1, y1, x2, y2
