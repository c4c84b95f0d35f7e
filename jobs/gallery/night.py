"""One night of a gallery, start to end: what changed, what is new through the models, the next version, the gate, the publication.

    GALLERY/results/    what photos gave, by digest            `results.py`
    GALLERY/work/       the run over tonight's new photos; a killed one is taken over, nothing it finished is done again
    GALLERY/copies/     the gate's: known photos seen again, where every node can read them; gone when the night ends
    GALLERY/versions/ CURRENT                                  `versions.py`
    GALLERY/nights/     one JSON a night that changed something: the summary

Kill it anywhere and start the same line again: what was detected stays, and CURRENT points to a whole version at any time.
"""

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs import config, models, tables
from jobs.cli import UserError
from jobs.config import Settings
from jobs.gallery import gate as gates
from jobs.gallery import versions
from jobs.gallery.build import Built, Wanted, build, described, planned, refused
from jobs.gallery.look import recorded
from jobs.gallery.results import FOLDER, Results, fingerprint_of, harvest
from jobs.ledger import Opened, as_json, read_json
from jobs.models import Catalogue, Model
from retrieval import steps
from retrieval.ann_plan import Plan
from retrieval.gallery import RECORD, VERSIONS, Gallery, GalleryError, digest_of, read_record
from store.decode import decode
from store.imageset import ImageSet, Item, Photo, open_imageset, write_imageset
from store.objects import ObjectStore, open_store

WORK, COPIES, NIGHTS = "work", "copies", "nights"
PHOTO_COLUMNS = ("image_id", "source", "product_id", "file_name", "digest")
PART_ITEMS = 20_000  # garments of a part of the results, at least: what is held in memory at once
PHOTOS_OF_WORK = "photos.parquet"  # shard, image_id, digest of the photos in work/
PHOTOS_OF_VERSION = (
    "photos.parquet"  # image_id, product_id, file_name, digest of every photo, those without garments too
)
FILES = ("vectors.npy", "ids.npy", "index.faiss", "dead.npy", "items.parquet", "steps.safetensors", PHOTOS_OF_VERSION)


@dataclass(frozen=True)
class Changes:
    """Tonight's photos beside those of the current version, by image_id and digest.

    Attributes:
        photos: image_id, product_id, file_name, digest, shard, row of every shop photo.
        new: digests that no result is known of. rows: shard -> row numbers of one photo of each of them.
        relabelled: photos whose bytes are as they were and whose product or name is another.
        unshown: photos as they were whose garments are known and not in the current version: a night that tried them again was killed.
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


@dataclass
class Night:
    """The gallery, tonight's image set and the settings."""

    settings: Settings
    catalogue: Catalogue
    store: ObjectStore
    images: ImageSet
    detectors: tuple[Model, ...]
    embedders: tuple[Model, ...]
    retry_failed: bool = False
    retrain: str = "never"
    started: float = field(default_factory=time.time)

    @classmethod
    def open(cls, settings: Settings, catalogue: Catalogue, gallery: str, *, write: bool = True, **how: Any) -> "Night":
        """Everything but the lock. `write`: try at once whether the gallery can be written, which makes a folder of it."""
        endpoint = settings.storage.endpoint_url
        store = open_store(gallery, endpoint_url=endpoint)
        if write:
            store.probe(write=True)
        detectors, embedders = models.chosen(settings, catalogue)
        settings = models.with_fusion_weights(settings, detectors)
        night = cls(
            settings,
            catalogue,
            store,
            open_imageset(settings.imageset, endpoint_url=endpoint),
            detectors,
            embedders,
            **how,
        )
        if reason := refused(night.plan):
            raise UserError(f"search.steps: {reason}")
        return night

    @property
    def plan(self) -> tuple[steps.Step, ...]:
        return steps.parse(self.settings.search.steps, [model.name for model in self.embedders])

    @property
    def results(self) -> Results:
        mark = fingerprint_of(self.settings, (*self.detectors, *self.embedders))
        dims = {model.name: model.spec.dim for model in self.embedders}
        return Results(self.store.sub(f"{FOLDER}/{mark}"), dims, self.settings.embed.dtype)

    @property
    def wanted(self) -> Wanted:
        own = self.settings.gallery
        return Wanted(
            own.index, own.memory_mb, own.recall, self.plan, config.record(self.settings.search), self.retrain,
            self.settings.threads_per_actor, self._advice() if self.retrain == "auto" else "",
        )  # fmt: skip

    def _advice(self) -> str:
        """To train again, as a version newer than the current one says that the gate refused: the current one knows nothing of it."""
        now, known = versions.pointer_or_none(self.store), versions.names(self.store)
        if not known or (now and known[-1] <= now[0]):
            return ""
        try:
            return str(read_record(self.store, known[-1]).get("advice") or "")
        except GalleryError:
            return ""

    # --- what changed -------------------------------------------------------------------------------------------------

    def changes(self, before: Gallery | None) -> Changes:
        """Tonight's photos beside the current version's and beside what is known.

        Raises:
            UserError: the set has no shop photos.
        """
        listed = self.images.photos(PHOTO_COLUMNS)
        photos = listed.filter(pc.equal(listed.column("source"), "shop"))
        if not len(photos):
            raise UserError(
                f"{self.images.uri}: no shop photos; a gallery is made of those (jobs/ingest.py … --source shop)"
            )
        known = self.results.photos()
        if self.retry_failed:
            known = known.filter(pc.equal(known.column("reason"), ""))
        new = pc.invert(pc.is_in(photos.column("digest"), value_set=known.column("digest").combine_chunks()))
        unknown = photos.filter(new)
        rows: dict[str, list[int]] = {}
        seen: set[bytes] = set()
        for shard, row, digest in zip(
            *(unknown.column(name).to_pylist() for name in ("shard", "row", "digest")), strict=True
        ):
            if digest not in seen:  # the same bytes twice are looked at once
                seen.add(digest)
                rows.setdefault(shard, []).append(row)
        old = {} if before is None else photos_of(self.store, before)
        now = {
            image_id: (digest, product, name)
            for image_id, digest, product, name in zip(
                *(photos.column(name).to_pylist() for name in ("image_id", "digest", "product_id", "file_name")),
                strict=True,
            )
        }
        both = [image_id for image_id in now if image_id in old]
        same = [image_id for image_id in both if old[image_id][0] == now[image_id][0]]
        shown = set() if before is None else set(before.items.column("image_id").to_pylist())
        return Changes(
            photos, len(now) - len(both), len(both) - len(same), len(old) - len(both), len(same),
            sum(old[image_id] != now[image_id] for image_id in same), len(_with_garments(known, photos).intersection(same) - shown),
            rows, len(seen),
        )  # fmt: skip

    def take_over(self, before: Gallery | None) -> Changes:
        """`changes`, after what a killed night left in work/ was kept; where it was about the same photos it stays, to be gone on with."""
        clear(self.store.sub(COPIES))
        changes, work = self.changes(before), self.store.sub(WORK)
        left = read_json(work, "night.json")
        if left == self._about(changes.rows):
            return changes
        if left is not None:
            self._keep(work, left)
        clear(work)
        return changes if left is None else self.changes(before)

    # --- the models ---------------------------------------------------------------------------------------------------

    def detect_and_embed(self, rows: Mapping[str, list[int]], photos: pa.Table) -> float:
        """Put new photos through the models and keep what they gave; returns seconds. What `take_over` left is gone on with."""
        start, work, about = time.monotonic(), self.store.sub(WORK), self._about(rows)
        if not rows:
            return time.monotonic() - start
        if read_json(work, "night.json") is None:
            chosen = {(shard, row) for shard, some in rows.items() for row in some}
            taken = [
                pair in chosen
                for pair in zip(photos.column("shard").to_pylist(), photos.column("row").to_pylist(), strict=True)
            ]
            tables.write(work, PHOTOS_OF_WORK, photos.select(["shard", "image_id", "digest"]).filter(pa.array(taken)))
            work.write("night.json", as_json(about))
        self._run(replace(self._work_settings(), output=f"{self.store.uri}/{WORK}"), rows)
        self._keep(work, about)
        clear(work)
        return time.monotonic() - start

    def _about(self, rows: Mapping[str, list[int]]) -> dict[str, Any]:
        """What a run in work/ is about: with the same photos, set and models it can be gone on with."""
        return {
            "results": self.results.store.uri.rpartition("/")[2], "digest": self.images.digest,
            "rows": {shard: list(some) for shard, some in sorted(rows.items())}, "dims": dict(self.results.models),
            "dtype": self.settings.embed.dtype,
        }  # fmt: skip

    def _work_settings(self) -> Settings:
        return replace(self.settings, boxes=("detected",), limit=None)

    def _run(self, settings: Settings, rows: Mapping[str, list[int]] | None) -> None:
        from jobs import stages

        images = None if rows is None else self.images
        with Opened(settings, self.catalogue, rows=rows, images=images, retry_failed=self.retry_failed) as run:
            for name in ("detect", "fuse", "embed"):
                stages.carry_out(run, name)

    def _keep(self, work: ObjectStore, about: Mapping[str, Any]) -> None:
        """Add to the results what the work's finished shards gave and is not known yet, some thousand garments a part."""
        if not work.exists(PHOTOS_OF_WORK):
            return
        results = Results(self.store.sub(f"{FOLDER}/{about['results']}"), about["dims"], about["dtype"])
        known = results.photos()
        known = known.filter(pc.equal(known.column("reason"), ""))  # what failed may have been tried again
        done = known.column("digest").combine_chunks()
        held: list[tuple[pa.Table, pa.Table]] = []
        for photos, items in harvest(work, tables.read(work, PHOTOS_OF_WORK), list(about["dims"])):
            photos = photos.filter(pc.invert(pc.is_in(photos.column("digest"), value_set=done)))
            mine = pc.is_in(items.column("digest"), value_set=photos.column("digest").combine_chunks())
            held.append((photos, items.filter(mine).cast(results.schema)))
            if sum(len(items) for _, items in held) >= PART_ITEMS:
                results.add(*(pa.concat_tables(tables_) for tables_ in zip(*held, strict=True)))
                held = []
        if any(len(photos) for photos, _ in held):
            results.add(*(pa.concat_tables(tables_) for tables_ in zip(*held, strict=True)))

    # --- the version --------------------------------------------------------------------------------------------------

    def estimate(self, n_rows: int) -> Plan:
        """The index as it would be built for so many garments."""
        dim = _width(self.plan, self.results.models)
        own = self.settings.gallery
        return planned(own.index, n_rows, dim, own.memory_mb, self.settings.threads_per_actor)

    @contextmanager
    def built(self, changes: Changes, before: Gallery | None, name: str) -> Iterator[Built]:
        """Tonight's version in a passing local folder, versions/NAME/ of a gallery that nobody else reads."""
        with versions.passing(self.store) as passing:
            folder = passing / VERSIONS / name
            folder.mkdir(parents=True)
            built = build(self.wanted, self.results, changes.photos, before, folder, self._fill)
            keep = ["image_id", "product_id", "file_name", "digest"]
            tables.write(open_store(folder), PHOTOS_OF_VERSION, changes.photos.select(keep))
            yield built

    def _fill(self, made: Plan, folder: Path) -> None:
        from jobs.gallery.fill import fill

        fill(made, folder, self.settings)

    def gate(self, built: Built, changes: Changes, before: Gallery | None, failed: int) -> list[gates.Figure]:
        """Every figure but that of the copies, which wants the version opened."""
        own = self.settings.gallery
        return [
            gates.of_index(built, own.least_recall),
            gates.of_counts(built, _with_garments(self.results.photos(), changes.photos), before),
            gates.of_rows(built),
            gates.of_canaries(built, before, own.least_canaries),
            gates.of_gone(changes.removed, changes.changed + changes.unchanged, own.most_gone),
            gates.of_failures(failed, len(changes.photos), self.settings.max_failed_share),
        ]

    def copies(self, built: Built, record: Mapping[str, Any], changes: Changes) -> gates.Figure:
        """Known photos, cropped and encoded again, through the models and the new version, opened where it was built."""
        own = self.settings.gallery
        place = open_store(built.folder.parents[1])
        place.write(f"{VERSIONS}/{record['name']}/{RECORD}", as_json(record))
        gallery = Gallery(place, record["name"], check=False)
        chosen = gates.chosen_photos(gallery.items, own.copies, int(self.started) // 86_400)
        if not chosen:
            return gates.of_copies(gallery, [], {}, own.least_copies)
        folder = self.store.sub(COPIES)
        clear(folder)
        uri = f"{self.store.uri}/{COPIES}"
        write_imageset(
            self._copied(chosen, changes.photos), f"{uri}/imageset", source={"adapter": "copies"},
            endpoint_url=self.settings.storage.endpoint_url,
        )  # fmt: skip
        settings = replace(self._work_settings(), imageset=f"{uri}/imageset", output=f"{uri}/run")
        self._run(settings, None)
        photos = open_imageset(settings.imageset, endpoint_url=self.settings.storage.endpoint_url).photos(
            ("image_id", "digest")
        )
        parts = [items for _, items in harvest(folder.sub("run"), photos, list(self.results.models))]
        items = pa.concat_tables([self.results.schema.empty_table(), *(one.cast(self.results.schema) for one in parts)])
        found: dict[int, pa.Table] = {}
        for image_id, digest in zip(*(photos.column(name).to_pylist() for name in ("image_id", "digest")), strict=True):
            found[image_id] = items.filter(pc.equal(items.column("digest"), digest))
        clear(folder)
        return gates.of_copies(gallery, [image_id for image_id, _ in chosen], found, own.least_copies)

    def _copied(self, chosen: Sequence[tuple[int, list[float]]], photos: pa.Table) -> Iterator[Photo]:
        """The chosen photos as they might come back, one shard in memory at a time."""
        boxes = dict(chosen)
        mine = photos.filter(pc.is_in(photos.column("image_id"), value_set=pa.array(list(boxes), pa.int64())))
        for shard in pc.unique(mine.column("shard")).to_pylist():
            rows = mine.filter(pc.equal(mine.column("shard"), shard))
            table = self.images.read(shard, columns=["image_id", "image"]).take(rows.column("row"))
            for image_id, data in zip(table.column("image_id").to_pylist(), table.column("image"), strict=True):
                copy = gates.copy_of(data.as_py(), boxes[image_id], self.settings.max_pixels)
                height, width = decode(copy).shape[:2]
                yield Photo(image_id, copy, width, height, "shop", 0, "", f"{image_id}.jpg", False, tuple[Item, ...]())

    def record(self, built: Built, name: str, more: Mapping[str, Any]) -> dict[str, Any]:
        """version.json, as far as it is known before the gate."""
        return {
            "schema": 1, "name": name, "created": round(time.time(), 3),
            "files": {file: digest_of(built.folder / file) for file in FILES if (built.folder / file).exists()},
            "models": [{"name": model.name, "dim": model.spec.dim, "weights": model.weights, "basis": model.basis} for model in self.embedders],
            "detectors": [model.basis for model in self.detectors], "search": config.record(self.settings.search),
            "results": self.results.store.uri.rpartition("/")[2], "wanted_kind": self.settings.gallery.index,
            "budget_mb": self.settings.gallery.memory_mb, "tuned_to": self.settings.gallery.recall, "profile": self.settings.profile,
            "imageset": {"uri": self.images.uri, "digest": self.images.digest}, "settings": recorded(self.settings),
        } | described(built) | dict(more)  # fmt: skip

    def write(self, built: Built, record: Mapping[str, Any]) -> None:
        """Put the files of a version under its name; version.json, which makes it one, last and once."""
        for file in record["files"]:
            self.store.write_file(f"{VERSIONS}/{record['name']}/{file}", built.folder / file)
        self.store.write(f"{VERSIONS}/{record['name']}/{RECORD}", as_json(record))


def photos_of(store: ObjectStore, before: Gallery) -> dict[int, tuple[bytes, str, str]]:
    """image_id -> digest, product_id, file_name of every photo the version was made of, those without garments too."""
    table = tables.read(store, f"{VERSIONS}/{before.version}/{PHOTOS_OF_VERSION}")
    columns = (table.column(name).to_pylist() for name in ("image_id", "digest", "product_id", "file_name"))
    return {image_id: (digest, product, name) for image_id, digest, product, name in zip(*columns, strict=True)}


def _with_garments(known: pa.Table, photos: pa.Table) -> set[int]:
    """image_ids of the photos that garments were found on, by the results that are known."""
    some = known.filter(pc.greater(known.column("items"), 0)).column("digest").combine_chunks()
    return set(photos.filter(pc.is_in(photos.column("digest"), value_set=some)).column("image_id").to_pylist())


def clear(work: ObjectStore) -> None:
    """Remove everything below; what says what it is about goes first: half of what is left says too little of what it was.

    For who holds the gallery's lock: a lock that lies here is a dead run's.
    """
    keys = sorted((info.key for info in work.list()), key=lambda key: key != "night.json")
    for key in keys:
        work.delete(key)
    if (
        work.local_path is not None
        and work.local_path.exists()
        and not any(path.is_file() for path in work.local_path.rglob("*"))
    ):
        shutil.rmtree(work.local_path, ignore_errors=True)


def _width(plan_: Sequence[steps.Step], dims: Mapping[str, int]) -> int:
    """Numbers of a row after the steps, at most."""
    names = steps.bases(dims) if any(step.name == "views" for step in plan_) else list(dims)
    widths = {
        name: dims.get(name) or next(dim for view, dim in dims.items() if view.startswith(f"{name}@")) for name in names
    }
    for step in plan_:
        if step.name in ("pca", "whiten") and step.options["dim"]:
            widths = {name: min(dim, step.options["dim"]) for name, dim in widths.items()}
        if step.name == "concat":
            widths = {"": sum(widths.values())}
    return sum(widths.values())


def drifted(record: Mapping[str, Any], first: Mapping[str, Any] | None, recall: float | None, least: float) -> str:
    """Advice to train again, or "": the rows are no longer those that clusters and codes were learned from."""
    now, then = record.get("quantisation_error"), (first or {}).get("quantisation_error")
    if now and then and now > 1.5 * then:
        return f"quantisation error {now:.3g}, {now / then:.1f} times what it was"
    if recall is not None and recall < least:
        return f"recall {recall:.3f}, under {least:g}"
    return ""


def summary_line(summary: Mapping[str, Any]) -> str:
    """One line of JSON for whoever watches."""
    return json.dumps(summary, sort_keys=True, ensure_ascii=True)
