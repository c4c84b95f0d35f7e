"""A finished run as the ablation reads it: its record, its tables as arrays, the truth; nothing is written here.

In: OUTPUT with run.json, items/, embeddings/, detections/, and the image set it is of. Out: `Folder`, and for each kind of boxes
a `Data` that a task elsewhere can judge a search on.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from jobs import tables
from jobs.cli import UserError
from jobs.ledger import WHOLE, fingerprint, read_json
from retrieval.metrics import ground_truth
from retrieval.steps import Facts
from store.imageset import ImageSet, open_imageset
from store.objects import ObjectMissing, ObjectStore, open_store


@dataclass(frozen=True)
class Data:
    """Everything a search is judged with, for one kind of boxes. Rows of a model are float32, unit length.

    Attributes:
        gallery, queries: model -> (N, D), (Q, D).
        facts: of the gallery's items.
        query_image (Q,), query_item (Q,), query_bbox (Q, 4) px, query_score (Q,), query_category (Q,).
        gallery_image (N,), gallery_bbox (N, 4) px.
        query_gt, gallery_gt: the truth, as `retrieval.metrics` takes it.
    """

    gallery: dict[str, np.ndarray]
    queries: dict[str, np.ndarray]
    facts: Facts
    query_image: np.ndarray
    query_item: np.ndarray
    query_bbox: np.ndarray
    query_score: np.ndarray
    query_category: np.ndarray
    gallery_image: np.ndarray
    gallery_bbox: np.ndarray
    query_gt: list[dict[str, Any]]
    gallery_gt: list[dict[str, Any]]

    @property
    def asked(self) -> np.ndarray:
        """(A,) rows of `query_gt` that the benchmark asks for: style above 0."""
        return np.flatnonzero(np.array([entry["style"] for entry in self.query_gt], np.int64) > 0)

    @property
    def photo(self) -> np.ndarray:
        """(A,) the consumer photo of each."""
        return np.array([self.query_gt[row]["query_image_id"] for row in self.asked], np.int64)


@dataclass(frozen=True)
class Folder:
    """A run's folder, opened to be read.

    Attributes:
        record: run.json.
        shards: names of those the run took, in order; rows: of each that it took, None for all.
    """

    store: ObjectStore
    images: ImageSet
    record: Mapping[str, Any]
    shards: tuple[str, ...]
    rows: Mapping[str, list[int]] | None

    @property
    def models(self) -> list[str]:
        return [model["name"] for model in self.record["embedders"]]

    @property
    def search(self) -> Mapping[str, Any]:
        return self.record["settings"]["search"]

    @property
    def kinds(self) -> list[str]:
        return list(self.record["boxes"])

    def fingerprint(self) -> str:
        """Of everything the run has stored that an ablation reads: the marks' own digests."""
        parts = {}
        for stage in ("detect", "fuse", "embed"):
            for info in self.store.list(f"done/{stage}/"):
                mark = read_json(self.store, info.key) or {}
                parts[info.key] = mark.get("outputs")
        settings = self.record.get("settings", {})
        kept = {name: settings.get(name) for name in ("items", "fusion")}
        return fingerprint({"imageset": self.images.digest, "outputs": parts, "settings": kept})

    def truth(self) -> pa.Table:
        """image_id, source, pair_id, product_id, items … of the photos the run took."""
        columns = ["image_id", "width", "height", "source", "pair_id", "product_id", "weak_box", "items"]
        parts = []
        for shard in self.shards:
            table = self.images.read(shard, columns=columns)
            parts.append(table if self.rows is None else table.take(pa.array(self.rows[shard], pa.int64())))
        return pa.concat_tables(parts)

    def table(self, place: str) -> pa.Table:
        """All shards of one of the run's tables, in order.

        Raises:
            UserError: a shard of it is not there.
        """
        parts = []
        for shard in self.shards:
            try:
                parts.append(tables.read(self.store, f"{place}/{shard}.parquet"))
            except ObjectMissing:
                raise UserError(
                    f"{self.store.uri}: {place}/{shard}.parquet is not there; finish the run with jobs/full_eval.py first"
                ) from None
        return pa.concat_tables(parts)

    def data(self, kind: str) -> Data:
        """The rows, items and truth of one kind of boxes; items without a row of every model are left out, as in `rank`."""
        from jobs.rank_items import facts_of, places_of, rows_at, side_of

        truth = self.truth()
        photos = {name: truth.column(name).to_numpy() for name in ("image_id", "source", "product_id")}
        items = self.table(f"items/{kind}")
        embedded = {name: self.table(f"embeddings/{kind}/{name}") for name in self.models}
        places = {name: places_of(items, table) for name, table in embedded.items()}
        there = np.logical_and.reduce([place >= 0 for place in places.values()])
        is_user = np.isin(items.column("image_id").to_numpy(), photos["image_id"][photos["source"] == "user"])
        queries, gallery = side_of(items, there & is_user), side_of(items, there & ~is_user)
        asking, answering = {}, {}
        for name in self.models:  # a model's table goes as soon as its rows are taken: they are most of the memory
            table = embedded.pop(name)
            asking[name] = rows_at(table, places[name][queries.place])
            answering[name] = rows_at(table, places[name][gallery.place])
        query_gt, gallery_gt = ground_truth(truth)
        return Data(
            answering, asking,
            facts_of(gallery, photos),
            queries.image_id, queries.item, queries.bbox.astype(np.float64), queries.score.astype(np.float64),
            queries.category_id.astype(np.int64), gallery.image_id, gallery.bbox.astype(np.float64),
            query_gt, [entry for entry in gallery_gt if entry["style"] > 0],
        )  # fmt: skip


def open_folder(output: str, imageset: str | None = None, endpoint_url: str | None = None) -> Folder:
    """Open a run to read it.

    Args:
        output: the run's OUTPUT.
        imageset: where its image set is now; None: where it was.

    Raises:
        UserError: no run there, one that has not embedded everything, another image set than the run's.
    """
    store = open_store(output, endpoint_url=endpoint_url)
    record = read_json(store, "run.json")
    if record is None:
        raise UserError(f"{output}: no run.json; want the --output of a finished jobs/full_eval.py")
    known = record["imageset"]
    images = open_imageset(
        imageset or known["uri"], endpoint_url=endpoint_url or record["settings"]["storage"]["endpoint_url"]
    )
    if images.digest != known["digest"]:
        raise UserError(
            f"{images.uri}: digest {images.digest}, the run is over one of {known['digest']} ({known['uri']}); "
            "say where that one is with --imageset"
        )
    rows = known["selected"]["rows"]
    shards = tuple(shard.name for shard in images.shards if rows is None or rows.get(shard.name))
    folder = Folder(store, images, record, shards, rows)
    for kind in folder.kinds:
        if not store.exists(f"done/rank/{kind}/{WHOLE}.json"):
            raise UserError(
                f"{output}: its {kind} boxes are not ranked yet; finish the run with jobs/full_eval.py first"
            )
    return folder
