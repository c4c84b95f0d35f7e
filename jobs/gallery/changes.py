"""What changed since the version before: tonight's photos compared with its photos, and with the results that exist."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.gallery.built import Published
from jobs.gallery.results import PhotoResults
from jobs.runs import tables
from postproc.places import places
from retrieval.gallery_files import PHOTOS_FILE, VERSIONS
from store.errors import UserError
from store.imageset import ImageSet
from store.objects import ObjectStore


@dataclass(frozen=True)
class GalleryChanges:
    """Tonight's photos beside those of the current version, by image_id and digest; the counts are of photos.

    Attributes:
        photos: image_id, product_id, file_name, digest, shard, row of every shop photo.
        relabelled: those with the same bytes and another product or name.
        unshown: unchanged ones whose garments are in the results and not in the current version: a night that tried
            them again was killed.
        rows: shard -> row numbers of one photo for each digest without results. new: number of such digests.
        had_products: those of the current version that are still there and had a product. products_lost: those of
            them that have none tonight.
    """

    photos: pa.Table
    added: int
    changed: int
    removed: int
    unchanged: int
    relabelled: int
    unshown: int
    rows: Mapping[str, list[int]]
    new: int
    had_products: int
    products_lost: int

    @property
    def nothing(self) -> bool:
        return not (self.added or self.changed or self.removed or self.relabelled or self.unshown or self.new)

    def __str__(self) -> str:
        return (
            f"added {self.added:,}, changed {self.changed:,}, removed {self.removed:,}, unchanged {self.unchanged:,}"
            + (f" ({self.relabelled:,} of them with another product or name)" if self.relabelled else "")
            + (f"; {self.unshown:,} known from a night that did not end" if self.unshown else "")
            + f"; {self.new:,} to detect and embed"
        )


def compare(
    images: ImageSet, results: PhotoResults, store: ObjectStore, before: Published | None, *, retry_failed: bool
) -> GalleryChanges:
    """Compare the set's shop photos with those of the current version, `before` (None on the first night), and with
    the results; `store` is the gallery's. With `retry_failed`, photos that failed count as photos without results.

    Raises:
        UserError: the set has no shop photos.
    """
    photos = images.photos(("image_id", "source", "product_id", "file_name", "digest"))
    photos = photos.filter(pc.equal(photos.column("source"), "shop"))
    if not len(photos):
        raise UserError(f"{images.uri}: no shop photos; a gallery is made of those (jobs/ingest.py … --source shop)")
    processed = results.photos()
    if retry_failed:
        processed = processed.filter(pc.equal(processed.column("reason"), ""))
    rows, new = _rows_without_results(photos, processed)
    old = photos.slice(0, 0)
    shown: np.ndarray | list[int] = []
    if before is not None:
        old = tables.read(store, f"{VERSIONS}/{before.version}/{PHOTOS_FILE}")
        shown = before.items.column("image_id").to_numpy()
    ids = photos.column("image_id").to_numpy()
    place = places(old.column("image_id").to_numpy(), ids)
    now, then = photos.filter(pa.array(place >= 0)), old.take(pa.array(place[place >= 0]))
    same, renamed = ~differ(now, then, "digest"), differ(now, then, "product_id") | differ(now, then, "file_name")
    had_product, has_product = (_has_product(table) for table in (then, now))
    kept = now.column("image_id").to_numpy()
    unshown = same & np.isin(kept, photos_with_garments(processed, photos)) & ~np.isin(kept, shown)
    return GalleryChanges(
        photos,
        added=len(photos) - len(now),
        changed=int((~same).sum()),
        removed=len(old) - len(now),
        unchanged=int(same.sum()),
        relabelled=int((same & renamed).sum()),
        unshown=int(unshown.sum()),
        rows=rows,
        new=new,
        had_products=int(had_product.sum()),
        products_lost=int((had_product & ~has_product).sum()),
    )


def _rows_without_results(photos: pa.Table, processed: pa.Table) -> tuple[dict[str, list[int]], int]:
    is_known = pc.is_in(photos.column("digest"), value_set=processed.column("digest").combine_chunks())
    unknown = photos.filter(pc.invert(is_known))
    rows: dict[str, list[int]] = {}
    seen: set[bytes] = set()
    columns = (unknown.column(name).to_pylist() for name in ("shard", "row", "digest"))
    for shard, row, digest in zip(*columns, strict=True):
        if digest not in seen:
            seen.add(digest)
            rows.setdefault(shard, []).append(row)
    return rows, len(seen)


def differ(now: pa.Table, then: pa.Table, name: str) -> np.ndarray:
    """(N,) bool: in which rows a column differs."""
    return pc.not_equal(now.column(name), then.column(name)).to_numpy()


def _has_product(photos: pa.Table) -> np.ndarray:
    """(N,) bool: whose product is known."""
    return pc.not_equal(photos.column("product_id"), "").to_numpy()


def photos_with_garments(processed: pa.Table, photos: pa.Table) -> np.ndarray:
    """(M,) int64: ids of the photos on which garments were found; `processed` as of `PhotoResults.photos`."""
    digests = processed.filter(pc.greater(processed.column("items"), 0)).column("digest").combine_chunks()
    return photos.filter(pc.is_in(photos.column("digest"), value_set=digests)).column("image_id").to_numpy()
