"""What the models gave for each photo, kept from night to night by the digest of its bytes.

    GALLERY/results/FINGERPRINT/part-00000.photos.parquet    digest, number of items, reason where the photo failed
    GALLERY/results/FINGERPRINT/part-00000.items.parquet     digest, bbox, score, category_id, votes, hypotheses; of
                                                             each model a column of embeddings

FINGERPRINT covers models, weights and the settings that decide the numbers, so another model starts another folder and
the old one stays usable until it is pruned. A part's items are written before its photos, so that those of every photo
listed are there.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.runs import tables
from jobs.runs.marks import CODES, fingerprint, read_marks
from jobs.runs.models import Model
from jobs.runs.reader import read_items
from jobs.runs.run_classifier import RunClassifier
from jobs.runs.settings import Settings, record
from postproc.places import places, spans
from retrieval.gallery_files import ITEMS
from retrieval.hypotheses import HYPOTHESES, as_column, read_hypotheses
from retrieval.step_kinds import Embeddings
from store.decode import VERSION as DECODER
from store.objects import ObjectStore

FOLDER = "results"
PHOTOS = pa.schema([("digest", pa.binary(16)), ("items", pa.int32()), ("reason", pa.string())])
FUSE_BEFORE = 2  # the last code of fuse without hypotheses
PART_ITEMS = 20_000  # garments of a part, at least: they are held in memory at once


def fingerprint_of(settings: Settings, models: Sequence[Model], *, hypotheses: bool = True) -> str:
    """Of all that decides what is kept of a photo besides its bytes; `models`: detectors, then embedders.

    Without `hypotheses` it is that of a version from before there were any, whose boxes and embeddings are the same.
    """
    codes = {stage: CODES[stage] for stage in ("detect", "fuse", "embed")}
    items = record(settings.items)
    del items["query_score_threshold"]  # of consumers' photos
    if not hypotheses:
        codes["fuse"] = FUSE_BEFORE
        items = {name: value for name, value in items.items() if not name.startswith("hypothes")}
    basis = {
        "code": list(codes.values()),
        "decoder": DECODER,
        "detect": {name: value for name, value in record(settings.detect).items() if name != "actors"},
        "fusion": record(settings.fusion),
        "items": items,
        "max_pixels": settings.max_pixels,
        "engine": settings.engine,
        "dtype": settings.embed.dtype,
        "models": [model.basis for model in models],
    }
    return fingerprint(basis)


@dataclass
class PhotoResults:
    """The results of one fingerprint, in its folder; `models`: embedder -> width of its rows, float16 or float32.

    They keep the hypotheses of the fused boxes. The classifier's are computed whenever a version is built, so that
    another one needs no model.
    """

    store: ObjectStore
    models: Mapping[str, int]
    dtype: str = "float32"
    classifier: RunClassifier = field(default_factory=RunClassifier)

    @property
    def fingerprint(self) -> str:
        return self.store.uri.rpartition("/")[2]

    @property
    def schema(self) -> pa.Schema:
        number = pa.type_for_alias(self.dtype)
        return pa.schema(
            [
                ("digest", pa.binary(16)), ("bbox", tables.BOX), ("score", pa.float32()), ("category_id", pa.int16()),
                ("votes", pa.int8()), ("hypotheses", HYPOTHESES),
                *((name, pa.list_(number, dim)) for name, dim in self.models.items()),
            ]
        )  # fmt: skip

    def parts(self) -> list[str]:
        """Names of the parts that are whole, in order."""
        end = ".photos.parquet"
        return [info.key.removesuffix(end) for info in self.store.list() if info.key.endswith(end)]

    def photos(self) -> pa.Table:
        """Every photo with results: digest, items, reason; the newest of several with one digest."""
        parts = (tables.read(self.store, f"{part}.photos.parquet") for part in self.parts())
        photos = pa.concat_tables([PHOTOS.empty_table(), *parts])
        newest_first = comparable(photos.column("digest"))[::-1]
        last = len(photos) - 1 - np.unique(newest_first, return_index=True)[1]
        return photos.take(pa.array(np.sort(last)))

    def dated(self, photos: pa.Table) -> pa.Table:
        """Photos by digest, with what their newest result says.

        Two columns more, int32: `items`, the number of boxes, 0 without a result, and `part`, the number of the part
        that lists it, -1 without one.
        """
        names = self.parts()
        listed = [tables.read(self.store, f"{name}.photos.parquet", ["digest", "items"]) for name in names]
        found = pa.concat_tables([PHOTOS.empty_table().select(["digest", "items"]), *listed][::-1])
        part = np.full(len(found) + 1, -1)
        part[:-1] = np.repeat([*map(_number, names[::-1])], np.array([*map(len, listed[::-1])], np.int64))
        # the newest part comes first, and of several places the first is found
        place = places(comparable(found.column("digest")), comparable(photos.column("digest")))
        items = np.append(found.column("items").to_numpy(), 0)[place]
        photos = photos.append_column("items", pa.array(items, pa.int32()))
        return photos.append_column("part", pa.array(part[place], pa.int32()))

    @property
    def next_part(self) -> int:
        """The number of the part that `add` writes next."""
        return max(map(_number, self.parts()), default=-1) + 1

    def failed(self, photos: pa.Table) -> int:
        """Number of these photos, by digest, of which there is no result."""
        processed = self.photos()
        bad = processed.filter(pc.not_equal(processed.column("reason"), "")).column("digest").combine_chunks()
        return int(pc.sum(pc.is_in(photos.column("digest"), value_set=bad)).as_py() or 0)

    def add(self, photos: pa.Table, items: pa.Table) -> None:
        """Keep the results of some photos; items first, so that a photo is never listed without them."""
        part = f"part-{self.next_part:05d}"
        tables.write(self.store, f"{part}.items.parquet", items.cast(self.schema))
        tables.write(self.store, f"{part}.photos.parquet", photos.cast(PHOTOS))

    def items(self, digests: pa.Array) -> Iterator[pa.Table]:
        """The items of photos with these distinct digests, the newest part first; of a photo in several its last."""
        keys, parts = comparable(digests), self.parts()
        order, part_of = np.argsort(keys), np.full(len(keys), -1)
        for number, part in enumerate(parts):
            listed = tables.read(self.store, f"{part}.photos.parquet", ["digest"])
            place = places(keys, comparable(listed.column("digest")), order)
            part_of[place[place >= 0]] = number
        by_part = np.argsort(part_of, kind="stable")
        edges = np.searchsorted(part_of[by_part], np.arange(len(parts) + 1))
        for number in reversed(range(len(parts))):
            wanted = by_part[edges[number] : edges[number + 1]]
            if len(wanted):
                table = tables.read(self.store, f"{parts[number]}.items.parquet")
                yield table.filter(pc.is_in(table.column("digest"), value_set=digests.take(pa.array(wanted))))

    def classified(self, items: pa.Table) -> pa.Table:
        """Items with columns as in `schema`, with the classifier's hypotheses and the likeliest as their category."""
        if self.classifier.classifier is None:
            return items
        rows = {name: tables.rows_of(items.column(name)) for name in self.models}
        found = self.classifier.hypotheses(read_hypotheses(items), rows, items.column("score").to_numpy())
        columns = {"category_id": pa.array(found.category_id[:, 0], pa.int16()), "hypotheses": as_column(found)}
        for name, column in columns.items():
            items = items.set_column(items.column_names.index(name), name, column)
        return items

    def garments(self, photos: pa.Table) -> Iterator[tuple[pa.Table, Embeddings]]:
        """Every garment of some photos: its row of items.parquet and its embeddings, a part of the results at a time.

        Categories and hypotheses are the classifier's, where there is one. `photos` has image_id, digest, product_id,
        file_name; several may have the same bytes. ValueError, at the end: two garments have one id.
        """
        digests = comparable(photos.column("digest"))
        order = np.argsort(digests, kind="stable")
        ordered, ids = digests[order], [np.zeros(0, np.int64)]
        for table in self.items(pc.unique(photos.column("digest"))):
            table = self.classified(table)
            # an item stands once for each photo of these bytes
            item, place = spans(ordered, comparable(table.column("digest")))
            kept, items = _item_rows(table, photos, item, order[place])
            ids.append(items.column("id").to_numpy())
            yield items, {name: tables.rows_of(table.column(name))[kept].astype(np.float32) for name in self.models}
        distinct, counts = np.unique(np.concatenate(ids), return_counts=True)
        if (counts > 1).any():
            reason = f"two garments have id {distinct[counts > 1][0]}; 63 bits met by chance"
            raise ValueError(f"gallery: {reason}, change the name of one photo")


def _number(part: str) -> int:
    return int(part.partition("-")[2])


def _item_rows(table: pa.Table, photos: pa.Table, item: np.ndarray, photo: np.ndarray) -> tuple[np.ndarray, pa.Table]:
    """Rows of the results that are kept, and their rows of items.parquet.

    Boxes of one photo that are equal in whole pixels are one garment: the best stays.
    """
    images, boxes = photos.column("image_id").to_numpy()[photo], tables.rows_of(table.column("bbox"))[item]
    ids = ids_of(images, boxes)
    first = np.sort(np.unique(ids, return_index=True)[1])
    kept = item[first]
    columns = {"id": ids[first], "image_id": images[first], "bbox": boxes[first]}
    columns |= {name: table.column(name).to_numpy()[kept] for name in ("category_id", "score")}
    columns["hypotheses"] = read_hypotheses(table)[kept]
    names = ("product_id", "file_name", "digest")
    columns |= {name: photos.column(name).take(pa.array(photo[first])).combine_chunks() for name in names}
    return kept, tables.table(ITEMS, columns)


def comparable(digests: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """(N,) S16 that NumPy compares and sorts without an object for each; it drops trailing zeros, so never read these
    back. `digests` are binary(16)."""
    array = digests.combine_chunks() if isinstance(digests, pa.ChunkedArray) else digests
    if not len(array):
        return np.zeros(0, "S16")
    return np.frombuffer(array.buffers()[1], "S16")[array.offset : array.offset + len(array)]


def ids_of(images: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """63 bits of BLAKE2b of the image id and the box in whole pixels: the same garment has the same id every night.

    From (N,) int64 image ids and (N, 4) float32 boxes, finite, in px: (N,) int64, not negative.

    >>> a, b = ids_of(np.array([5, 5]), np.array([[1.2, 2.0, 3.4, 4.0], [0.9, 2.0, 3.0, 4.4]])).tolist()
    >>> a == b
    True
    """
    edges = np.rint(boxes).astype(np.int64)
    texts = map("{} {} {} {} {}".format, images.tolist(), *edges.T.tolist())
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return (np.frombuffer(digests, ">u8") >> np.uint64(1)).astype(np.int64)


# --- from a run to results --------------------------------------------------------------------------------------------


def harvest(work: ObjectStore, photos: pa.Table, models: Sequence[str]) -> Iterator[tuple[pa.Table, pa.Table]]:
    """The results of each shard that a run has finished: photos and items tables, from its marks alone.

    The image set need not exist any more: the work of a killed night is kept even if the set has changed since. `work`
    is the run's folder; `photos` has shard, image_id, digest of the photos it took; `models` are the embedders.
    """
    marks = read_marks(work)
    for shard in pc.unique(photos.column("shard")).to_pylist():
        if not all(f"embed/detected/{name}/{shard}" in marks for name in models):
            continue
        taken = photos.filter(pc.equal(photos.column("shard"), shard))
        digests = dict(zip(taken.column("image_id").to_pylist(), taken.column("digest").to_pylist(), strict=True))
        items = read_items(work, "detected", [shard], models)
        columns = {
            "digest": pa.array([digests[image_id] for image_id in items.image_id.tolist()], pa.binary(16)),
            "bbox": pa.FixedSizeListArray.from_arrays(items.bbox.reshape(-1), 4),
        }
        columns |= {name: pa.array(getattr(items, name)) for name in ("score", "category_id", "votes")}
        columns["hypotheses"] = as_column(items.hypotheses)
        for name, rows in items.embeddings.items():
            columns[name] = pa.FixedSizeListArray.from_arrays(rows.reshape(-1), rows.shape[1])
        reasons = {
            failure["image_id"]: failure["reason"]
            for path, mark in marks.items()
            if path.endswith(f"/{shard}")
            for failure in mark.get("failures", ())
        }
        counts = Counter(items.image_id.tolist())
        photo_rows = [
            {"digest": digest, "items": counts[image_id], "reason": reasons.get(image_id, "")}
            for image_id, digest in digests.items()
        ]
        yield pa.Table.from_pylist(photo_rows, PHOTOS), pa.table(columns)


def keep_results(work: ObjectStore, photos: pa.Table, results: PhotoResults) -> None:
    """Add a run's finished shards to the results, PART_ITEMS garments a part; photos with results stay as they are.

    `work` and `photos` as in `harvest`.
    """
    processed = results.photos()
    processed = processed.filter(pc.equal(processed.column("reason"), ""))  # failed photos may have been tried again
    done = processed.column("digest").combine_chunks()
    held: list[tuple[pa.Table, pa.Table]] = []
    for listed, items in harvest(work, photos, list(results.models)):
        listed = listed.filter(pc.invert(pc.is_in(listed.column("digest"), value_set=done)))
        is_new = pc.is_in(items.column("digest"), value_set=listed.column("digest").combine_chunks())
        held.append((listed, items.filter(is_new).cast(results.schema)))
        if sum(len(items) for _, items in held) >= PART_ITEMS:
            results.add(*(pa.concat_tables(tables_) for tables_ in zip(*held, strict=True)))
            held = []
    if any(len(listed) for listed, _ in held):
        results.add(*(pa.concat_tables(tables_) for tables_ in zip(*held, strict=True)))
