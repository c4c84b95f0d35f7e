"""A run's tables read back as arrays: boxes, items with their embeddings, rankings; and the photos they are of.

In: the store of OUTPUT and names of shards (`Selected.names`); for photos the image set. Out: arrays in the order of
the shards, and within a shard in the order of its table. Nothing is written here, and neither torch nor FAISS nor Ray
is imported.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.runs import tables
from jobs.runs.run_classifier import RunClassifier
from jobs.runs.selection import ShardTaken
from postproc.hypotheses import Hypotheses
from postproc.places import places
from retrieval.hypotheses import read_hypotheses
from retrieval.limit import without_unjudged
from retrieval.rankings import Rankings
from retrieval.results import Results
from retrieval.step_kinds import GalleryFacts
from retrieval.truth import Truth
from store.errors import UserError
from store.imageset import ImageSet
from store.objects import ObjectMissing, ObjectStore

TRUTH = ("image_id", "width", "height", "source", "pair_id", "product_id", "weak_box", "items")


@dataclass(frozen=True)
class EmbeddedItems:
    """Items that every model has embedded, rows in the order of the items' tables.

    Attributes:
        image_id: (N,) int64. item: (N,) int32, number of the item within its photo.
        bbox: (N, 4) float32, px x1 y1 x2 y2. score: (N,) float32. category_id: (N,) int16. votes: (N,) int8.
        hypotheses: the categories that each may have, its own first.
        embeddings: model -> (N, D) float32, unit length.
    """

    image_id: np.ndarray
    item: np.ndarray
    bbox: np.ndarray
    score: np.ndarray
    category_id: np.ndarray
    votes: np.ndarray
    hypotheses: Hypotheses
    embeddings: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.image_id)

    def split(self, chosen: np.ndarray) -> tuple["EmbeddedItems", "EmbeddedItems"]:
        """The items that `chosen`, (N,) bool, names, and the others.

        The embeddings leave this record, one model after the other: they are most of the memory of a search.
        """
        sides = [self._without_embeddings(rows) for rows in (chosen, ~chosen)]
        for name in list(self.embeddings):
            matrix = self.embeddings.pop(name)
            for side, rows in zip(sides, (chosen, ~chosen), strict=True):
                side.embeddings[name] = matrix[rows]
        return sides[0], sides[1]

    def with_hypotheses(self, hypotheses: Hypotheses) -> "EmbeddedItems":
        """The items with other hypotheses, the first of them as their own category."""
        first = hypotheses.category_id[:, 0]
        own = np.where(first > 0, first, self.category_id).astype(np.int16)
        return replace(self, hypotheses=hypotheses, category_id=own)

    def classified(self, classifier: RunClassifier) -> "EmbeddedItems":
        """Detected items with the classifier's hypotheses, the likeliest as their own category."""
        if classifier.classifier is None:
            return self
        return self.with_hypotheses(classifier.hypotheses(self.hypotheses, self.embeddings, self.score))

    def _without_embeddings(self, rows: np.ndarray) -> "EmbeddedItems":
        columns = {field.name: getattr(self, field.name)[rows] for field in fields(self) if field.name != "embeddings"}
        return EmbeddedItems(**columns, embeddings={})


def read_table(
    store: ObjectStore, folder: str, shards: Iterable[str], columns: Sequence[str] | None = None
) -> pa.Table:
    """All shards of one of the run's tables.

    Args:
        folder: below OUTPUT: detections/DETECTOR, fused, items/BOXES or embeddings/BOXES/MODEL.
        columns: those to read; None: all.

    Raises:
        UserError: the table of a shard does not exist.
    """
    parts = []
    for shard in shards:
        try:
            parts.append(tables.read(store, f"{folder}/{shard}.parquet", None if columns is None else list(columns)))
        except ObjectMissing:
            raise UserError(
                f"{store.uri}: {folder}/{shard}.parquet does not exist; finish the run with jobs/full_eval.py first"
            ) from None
    return pa.concat_tables(parts, promote_options="default")  # a replaced table may lack a column


def read_boxes(store: ObjectStore, folder: str, shards: Iterable[str]) -> dict[str, np.ndarray]:
    """Detections or fused boxes as `detection.metrics` takes them.

    Args:
        folder: detections/DETECTOR or fused.

    Returns:
        image_id (N,) int64, bbox (N, 4) float64 px x1 y1 x2 y2, score (N,) float32, category_id (N,) int16.
    """
    table = read_table(store, folder, shards, ("image_id", "bbox", "score", "category_id"))
    plain = {name: table.column(name).to_numpy() for name in ("image_id", "score", "category_id")}
    return plain | {"bbox": tables.rows_of(table.column("bbox")).astype(np.float64)}


def read_items(store: ObjectStore, kind: str, shards: Sequence[str], models: Sequence[str]) -> EmbeddedItems:
    """The items of one kind of boxes (`detected` or `true`) that all of these models have embedded."""
    items = read_table(store, f"items/{kind}", shards)
    embeddings: dict[str, np.ndarray] = {}
    complete = np.ones(len(items), bool)
    for name in models:
        table = read_table(store, f"embeddings/{kind}/{name}", shards)
        rows = matching_rows(items, table)
        complete &= rows >= 0
        stored = tables.rows_of(table.column("embedding"))
        embeddings[name] = np.zeros((len(items), stored.shape[1]), np.float32)
        embeddings[name][rows >= 0] = stored[rows[rows >= 0]]
    columns = {name: items.column(name).to_numpy() for name in ("image_id", "item", "score", "category_id", "votes")}
    boxes, hypotheses = tables.rows_of(items.column("bbox")), read_hypotheses(items)
    found = EmbeddedItems(**columns, bbox=boxes, hypotheses=hypotheses, embeddings=embeddings)
    return found if complete.all() else found.split(complete)[0]


def read_sides(
    store: ObjectStore, kind: str, shards: Sequence[str], models: Sequence[str], photos: pa.Table
) -> tuple[EmbeddedItems, EmbeddedItems]:
    """Queries and gallery: the embedded items of consumers' photos, and those of shops' photos.

    Args:
        photos: `read_photos` of the same shards, with image_id and source.
    """
    items = read_items(store, kind, shards, models)
    return items.split(np.isin(items.image_id, consumers(photos)))


def read_photos(images: ImageSet, shards: Iterable[ShardTaken], columns: Sequence[str] = TRUTH) -> pa.Table:
    """Columns of the photos that a run takes of the image set, ground truth (`items`) included.

    Queries that are not judged (`ShardTaken.unjudged`) show no truth.
    """
    parts = []
    for shard in shards:
        photos = images.read(shard.name, columns=list(columns))
        photos = photos if shard.rows is None else photos.take(pa.array(shard.rows, pa.int64()))
        parts.append(without_unjudged(photos, shard.row_numbers, shard.unjudged))
    return pa.concat_tables(parts)


def consumers(photos: pa.Table) -> np.ndarray:
    """(C,) int64: ids of the consumers' photos among those of `read_photos`."""
    return photos.column("image_id").to_numpy()[photos.column("source").to_numpy() == "user"]


def facts_of(gallery: EmbeddedItems, photos: pa.Table) -> GalleryFacts:
    """What the steps of a search need of gallery items: photos and products numbered, -1 without a product id.

    Args:
        photos: `read_photos` with image_id and product_id; those of the gallery among them.
    """
    photo = places(photos.column("image_id").to_numpy(), gallery.image_id)
    if (photo < 0).any():
        raise UserError(f"items of photo {gallery.image_id[photo.argmin()]}, which the run lacks; use another --output")
    products, number = np.unique(photos.column("product_id").to_numpy().astype(str)[photo], return_inverse=True)
    number = np.where(products[number] == "", -1, number) if len(number) else number
    return GalleryFacts(gallery.hypotheses, gallery.score, photo, number.astype(np.int64))


def ranked_hypotheses(store: ObjectStore, kind: str, queries: EmbeddedItems) -> Hypotheses:
    """The hypotheses that the rankings have of these queries, by which the run's figures were made."""
    columns = ["query_image_id", "query_item", "query_category_id", "query_score", "query_hypotheses"]
    ranked = tables.read(store, f"rankings/{kind}.parquet", columns)
    ranked = ranked.rename_columns([name.removeprefix("query_") for name in ranked.column_names])
    return _hypotheses_in(ranked, queries, f"{store.uri}: rankings/{kind}.parquet")


def indexed_hypotheses(store: ObjectStore, kind: str, gallery: EmbeddedItems) -> Hypotheses:
    """The hypotheses that the index has of these shop items; in older runs those of the items."""
    key = f"index/{kind}/ids.parquet"
    indexed = tables.read(store, key)
    if "hypotheses" not in indexed.column_names:
        return gallery.hypotheses
    return _hypotheses_in(indexed, gallery, f"{store.uri}: {key}")


def read_categories(store: ObjectStore) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What a search made of the detected items' categories, queries before the gallery.

    Returns (N,) category ids; (N,) float64, the share of the first hypothesis in [0, 1]; image_id, item and bbox.
    """
    columns = ["image_id", "item", "bbox", "score", "category_id", "hypotheses"]
    ranked = tables.read(store, "rankings/detected.parquet", [f"query_{name}" for name in columns])
    indexed = tables.read(store, "index/detected/ids.parquet", columns)
    ranked = ranked.rename_columns([name.removeprefix("query_") for name in ranked.column_names])
    both = pa.concat_tables([ranked, indexed], promote_options="default")  # a replaced table may lack hypotheses
    share = read_hypotheses(both).shares[:, 0]
    image_id, item, category_id = (both.column(name).to_numpy() for name in ("image_id", "item", "category_id"))
    return category_id, share, image_id, item, tables.rows_of(both.column("bbox"))


def _hypotheses_in(table: pa.Table, items: EmbeddedItems, place: str) -> Hypotheses:
    rows = matching_rows(pa.table({"image_id": items.image_id, "item": items.item}), table)
    if (rows < 0).any():
        raise UserError(f"{place} lacks an item of photo {items.image_id[rows.argmin()]}; run jobs/rank.py again")
    return read_hypotheses(table)[rows]


def read_rankings(store: ObjectStore, name: str, length: int | None = None) -> Rankings:
    """rankings/NAME.parquet, its lists padded to one length.

    Args:
        length: results to keep of each list; None: all, and the longest list gives the length.
    """
    return _rankings_of(tables.read(store, f"rankings/{name}.parquet"), length)


def ranking_blocks(store: ObjectStore, name: str, n_queries: int) -> Iterator[Rankings]:
    """rankings/NAME.parquet from top to bottom, about `n_queries` at a time, each block padded to its longest list.

    The queries of a photo follow each other in the table, and stay together.
    """
    rest = tables.RANKINGS.empty_table()
    for block in tables.read_blocks(store, f"rankings/{name}.parquet", n_queries):
        table = pa.concat_tables([rest, block], promote_options="default")  # an older one lacks a column
        image_id = table.column("query_image_id").to_numpy()
        end = int(np.flatnonzero(image_id != image_id[-1]).max(initial=-1)) + 1
        rest = table.slice(end)
        if end:
            yield _rankings_of(table.slice(0, end), None)
    if len(rest):
        yield _rankings_of(rest, None)


def _rankings_of(table: pa.Table, length: int | None) -> Rankings:
    lengths = table.column("gallery_image_id").combine_chunks().value_lengths()
    counts = lengths.to_numpy(zero_copy_only=False).astype(np.int64)
    width = length or max([*counts.tolist(), 1])
    counts = np.minimum(counts, width)
    filled = np.arange(width) < counts[:, None]

    def padded(column: str, dtype: type, *tail: int) -> np.ndarray:
        values = pc.list_slice(table.column(column).combine_chunks(), 0, width)
        array = np.zeros((*filled.shape, *tail), dtype)
        array[filled] = pc.list_flatten(values, recursive=True).to_numpy(zero_copy_only=False).reshape(-1, *tail)
        return array

    results = Results(
        query_image_id=table.column("query_image_id").to_numpy(),
        query_bbox=tables.rows_of(table.column("query_bbox")).astype(np.float64),
        query_cls=table.column("query_category_id").to_numpy().astype(np.int64),
        query_score=table.column("query_score").to_numpy().astype(np.float64),
        hypotheses=read_hypotheses(table, "query_"),
        gallery_image_id=padded("gallery_image_id", np.int64),
        gallery_bbox=padded("gallery_bbox", np.float64, 4),
        gallery_count=counts,
    )
    item, similarity = padded("gallery_item", np.int32), padded("similarity", np.float32)
    return Rankings(results, table.column("query_item").to_numpy(), item, similarity)


def read_judged(store: ObjectStore, name: str, truth: Truth, length: int) -> Rankings:
    """rankings/NAME.parquet as it is judged, of items or joined to one list a photo, cut or padded to `length`."""
    by_photo = truth.kind == "photo"
    rankings = read_rankings(store, name, None if by_photo else length)  # what is joined is cut afterwards
    return truth.lists(rankings, length)


def matching_rows(items: pa.Table, embedded: pa.Table) -> np.ndarray:
    """(N,) int64: for each item the row of `embedded` with the same image_id and item, -1 where there is none."""
    images = [table.column("image_id").to_numpy() for table in (items, embedded)]
    numbers = [table.column("item").to_numpy().astype(np.int64) for table in (items, embedded)]
    _, photo = np.unique(np.concatenate(images), return_inverse=True)
    keys = photo * (int(max([0, *(part.max(initial=0) for part in numbers)])) + 1) + np.concatenate(numbers)
    wanted, held = keys[: len(items)], keys[len(items) :]
    return places(held, wanted)
