"""What each photo gave, kept by the digest of its bytes: boxes and rows, from night to night, whatever shard the photo is in.

    GALLERY/results/FINGERPRINT/part-00000.photos.parquet    digest, items found, reason where the photo failed
    GALLERY/results/FINGERPRINT/part-00000.items.parquet     digest, bbox, score, category_id, votes, a column of rows a model

FINGERPRINT covers models, weights and the settings that decide the numbers, so another model starts another folder and the old one
stays usable until it is pruned. A part's items are written before its photos: a photo that is listed has its items.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs import tables
from jobs.config import Settings
from jobs.ledger import fingerprint, read_marks
from jobs.models import Model
from jobs.rank_items import places_of
from store.objects import ObjectStore

FOLDER = "results"
DIGEST = pa.binary(16)
PHOTOS = pa.schema([("digest", DIGEST), ("items", pa.int32()), ("reason", pa.string())])


def fingerprint_of(settings: Settings, models: Sequence[Model]) -> str:
    """Of everything a photo's boxes and rows follow from besides its bytes; `models`: detectors, then embedders."""
    from jobs import config, detect, embed, fuse

    detecting = config.record(settings.detect)
    del detecting["actors"]
    return fingerprint(
        {
            "code": [detect.CODE, fuse.CODE, embed.CODE],
            "detect": detecting, "max_pixels": settings.max_pixels, "fusion": config.record(settings.fusion),
            "items": config.record(settings.items), "dtype": settings.embed.dtype,
            "models": [model.basis for model in models],
        }
    )  # fmt: skip


@dataclass
class Results:
    """The results of one fingerprint.

    Attributes:
        store: the folder's. models: embedder -> numbers a row.
    """

    store: ObjectStore
    models: Mapping[str, int]
    dtype: str = "float32"

    @property
    def schema(self) -> pa.Schema:
        number = {"float16": pa.float16(), "float32": pa.float32()}[self.dtype]
        fields = [
            ("digest", DIGEST), ("bbox", tables.BOX), ("score", pa.float32()), ("category_id", pa.int8()), ("votes", pa.int8()),
        ]  # fmt: skip
        return pa.schema([*fields, *((name, pa.list_(number, dim)) for name, dim in self.models.items())])

    def parts(self) -> list[str]:
        """Names of the parts that are whole, in order."""
        end = ".photos.parquet"
        return [info.key.removesuffix(end) for info in self.store.list() if info.key.endswith(end)]

    def photos(self) -> pa.Table:
        """Every photo known: digest, items, reason; the newest of several with one digest."""
        parts = [tables.read(self.store, f"{part}.photos.parquet") for part in self.parts()]
        found = pa.concat_tables([PHOTOS.empty_table(), *parts])
        digests = found.column("digest").to_numpy(zero_copy_only=False)
        _, last = np.unique(digests[::-1].astype("S16") if len(digests) else digests, return_index=True)
        return found.take(pa.array(np.sort(len(found) - 1 - last)))

    def add(self, photos: pa.Table, items: pa.Table) -> None:
        """Keep what some photos gave; written so that a photo is never known without its items."""
        number = max([int(part.partition("-")[2]) for part in self.parts()], default=-1) + 1
        tables.write(self.store, f"part-{number:05d}.items.parquet", items.cast(self.schema))
        tables.write(self.store, f"part-{number:05d}.photos.parquet", photos.cast(PHOTOS))

    def items(self, wanted: pa.Array) -> Iterator[pa.Table]:
        """The items of photos with these digests, part by part; of a photo in several parts the newest's.

        Args:
            wanted: digests, each once.
        """
        taken: set[bytes] = set()
        for part in reversed(self.parts()):
            here = set(tables.read(self.store, f"{part}.photos.parquet", ["digest"]).column("digest").to_pylist())
            mine = pa.array([one for one in wanted.to_pylist() if one in here and one not in taken], DIGEST)
            taken |= here
            if len(mine):
                table = tables.read(self.store, f"{part}.items.parquet")
                yield table.filter(pc.is_in(table.column("digest"), value_set=mine))


def harvest(work: ObjectStore, photos: pa.Table, models: Sequence[str]) -> Iterator[tuple[pa.Table, pa.Table]]:
    """What each shard that a run has finished gave: photos and items tables, from its marks alone.

    The image set need not be there any more: a run that was killed last night is harvested although the set has changed since.

    Args:
        work: the run's folder. photos: shard, image_id, digest of those it took. models: the embedders.
    """
    marks = read_marks(work)
    for shard in pc.unique(photos.column("shard")).to_pylist():
        if not all(f"embed/detected/{name}/{shard}" in marks for name in models):
            continue
        taken = photos.filter(pc.equal(photos.column("shard"), shard))
        digests = dict(zip(taken.column("image_id").to_pylist(), taken.column("digest").to_pylist(), strict=True))
        table = _items_of(work, shard, digests, models)
        counts = Counter(table.column("digest").to_pylist())
        reasons = {
            row["image_id"]: row["reason"]
            for path, mark in marks.items()
            if path.endswith(f"/{shard}")
            for row in mark.get("failures", ())
        }
        known = [
            {"digest": digest, "items": counts[digest], "reason": reasons.get(image_id, "")}
            for image_id, digest in digests.items()
        ]
        yield pa.Table.from_pylist(known, PHOTOS), table


def _items_of(work: ObjectStore, shard: str, digests: Mapping[int, bytes], models: Sequence[str]) -> pa.Table:
    """One shard's items that every model has a row of."""
    items = tables.read(work, f"items/detected/{shard}.parquet")
    known = np.ones(len(items), bool)
    rows: dict[str, Any] = {}
    for name in models:
        table = tables.read(work, f"embeddings/detected/{name}/{shard}.parquet")
        place = places_of(items, table)
        known &= place >= 0
        rows[name] = table.column("embedding"), place
    kept = np.flatnonzero(known)
    columns: dict[str, Any] = {
        "digest": pa.array([digests[one] for one in items.column("image_id").take(pa.array(kept)).to_pylist()], DIGEST)
    }
    columns |= {name: items.column(name).take(pa.array(kept)) for name in ("bbox", "score", "category_id", "votes")}
    columns |= {name: column.take(pa.array(place[kept])) for name, (column, place) in rows.items()}
    return pa.table(columns)
