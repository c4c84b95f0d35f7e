"""One night of a gallery from start to end: changes, models, the next version, the gate, publication.

    GALLERY/results/             what the models gave for each photo, by digest     `results.py`
    GALLERY/work/                the run over tonight's new photos; after a kill the next night continues it
    GALLERY/copies/              the gate's copies of known photos, where every node can read them, until the night ends
    GALLERY/versions/ CURRENT                                                       `versions.py`
    GALLERY/nights/              the summary of each night that changed something, JSON

Kill it anywhere and start the same line again: finished photos stay finished, and CURRENT always names a whole version.
"""

import json
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.cli import one_line
from jobs.gallery import gate, parts_gate, versions
from jobs.gallery.build import Wanted, build, reason_to_rebuild, refusal
from jobs.gallery.built import Built, Published
from jobs.gallery.built_parts import BuiltParts, published
from jobs.gallery.changes import GalleryChanges, compare, photos_with_garments
from jobs.gallery.parts import build_parts
from jobs.gallery.results import FOLDER, PhotoResults, fingerprint_of, harvest, keep_results
from jobs.gallery.versions import NIGHTS, WORK
from jobs.runs import tables
from jobs.runs.catalogue import choose_models
from jobs.runs.categories import remarks, resolve
from jobs.runs.lock import Lock
from jobs.runs.marks import as_json, read_json
from jobs.runs.models import Catalogue, Model, executed
from jobs.runs.places import refuse_other_kinds
from jobs.runs.planning import run_stage
from jobs.runs.progress import say
from jobs.runs.run import open_run, with_fusion_weights
from jobs.runs.run_classifier import RunClassifier
from jobs.runs.settings import Settings, record
from jobs.stages import detect, embed, fuse
from jobs.stages.classify import classifier_for
from retrieval import steps
from retrieval.gallery_files import PHOTO_COLUMNS, PHOTOS_FILE, SCHEMA, VERSIONS
from store.errors import UserError
from store.imageset import ImageSet, open_imageset
from store.imageset_write import write_imageset
from store.joined import open_imagesets
from store.objects import ObjectStore, open_store

COPIES = "copies"
WORK_RECORD = "night.json"  # what the run in work/ is about
WORK_PHOTOS = "photos.parquet"  # shard, image_id, digest of the photos in work/
FEWEST_TIMED = 20  # photos through the models above which a night tells how long one takes
GARMENTS_A_PHOTO = 1.3  # while no version says it
Candidate = Built | BuiltParts  # tonight's version before it is one
MODEL_STAGES = {"detect": detect, "fuse": fuse, "embed": embed}


@dataclass
class Night:
    """The gallery, tonight's image sets as one and the settings; made by `open`."""

    settings: Settings
    catalogue: Catalogue
    store: ObjectStore
    images: ImageSet
    detectors: tuple[Model, ...]
    embedders: tuple[Model, ...]
    categories: tuple[str, ...]  # names of the category ids, id 1 first
    classifier: RunClassifier
    retry_failed: bool
    retrain: str
    started: float = field(default_factory=time.time)

    @classmethod
    def open(
        cls, settings: Settings, catalogue: Catalogue, gallery: str, *,
        write: bool = True, retry_failed: bool = False, retrain: str = "never",
    ) -> "Night":  # fmt: skip
        """Everything but the lock.

        `write`: try at once whether the gallery can be written, which makes a folder of it. `retry_failed`: put photos
        through the models again that failed on an earlier night. `retrain`: never, auto or now.
        """
        endpoint = settings.storage.endpoint_url
        store = open_store(gallery, endpoint_url=endpoint)
        refuse_other_kinds(store, "a gallery")
        if write:
            store.probe(write=True)
        detectors, embedders = choose_models(settings, catalogue)
        settings = with_fusion_weights(settings, detectors)
        images = open_imagesets(settings.imageset, endpoint_url=endpoint)
        images.check_ids()
        categories, detectors = resolve(images, detectors)
        classifier = classifier_for(settings, detectors, embedders, categories)
        models = detectors, embedders, categories, classifier
        night = cls(settings, catalogue, store, images, *models, retry_failed, retrain)
        if reason := refusal(night.wanted.steps, settings.gallery.parts):
            raise UserError(f"search.steps: {reason}")
        return night

    @property
    def results(self) -> PhotoResults:
        store = self.store.sub(f"{FOLDER}/{fingerprint_of(self.settings, (*self.detectors, *self.embedders))}")
        dims = {model.name: model.spec.dim for model in self.embedders}
        return PhotoResults(store, dims, self.settings.embed.dtype, self.classifier)

    @property
    def wanted(self) -> Wanted:
        names = tuple(model.name for model in self.embedders)
        advice = versions.newest_advice(self.store) if self.retrain == "auto" else ""
        return Wanted(self.settings, names, self.categories, self.retrain, advice)

    def changes(self, before: Published | None) -> GalleryChanges:
        return compare(self.images, self.results, self.store, before, retry_failed=self.retry_failed)


def run(night: Night, lock: Lock) -> dict[str, Any]:
    """The whole night, by the holder of the gallery's lock; returns the summary."""
    started = time.monotonic()
    versions.sweep(night.store)  # what a killed night was building is as large as the gallery
    pointer = versions.pointer(night.store)
    before = published(night.store, pointer[0]) if pointer else None
    changes = take_over(night, before)
    say(str(changes))
    if before is not None and changes.nothing:
        reason = reason_to_rebuild(night.wanted, night.results, before.record)
        if not reason or reason.startswith("dba"):
            outcome = {"version": before.version, "rows": len(before), "failed": night.results.failed(changes.photos)}
            return _summary(changes, before, started, {"status": "unchanged", **outcome})

    say_forecast(night, changes, before)
    models_s = detect_and_embed(night, changes)
    failed = night.results.failed(changes.photos)
    name = versions.next_name(night.store)
    with new_version(night, changes, before, name) as built:
        lock.check()
        first = versions.training_record(night.store, None if built.rebuilt or before is None else before.record)
        record = version_record(night, built, name, changes, before, models_s)
        figures = gate_figures(night, built, record, changes, before, failed)
        record["trained_in"] = first["name"] if first else name
        if all(figure.good for figure in figures):
            figures.insert(1, copies_figure(night, built, record, changes))
        record["gate"] = {figure.name: figure.as_json() for figure in figures}
        record["advice"] = advice = gate.drift_advice(record, first, figures[0].value, night.settings.gallery.recall)
        built.write(night.store, record)

    for figure in figures:
        say(f"gate: {figure}{'' if figure.good else ' - REFUSED'}")
    refused = [figure.name for figure in figures if not figure.good]
    if not refused:
        lock.check()
        versions.point_to(night.store, name, pointer[1] if pointer else None, why="published")
    if advice:
        say(f"advice: train again (--retrain now): {advice}")

    serving, rows = (None, 0) if before is None else (before.version, len(before))
    status = "failed" if refused == ["failed"] else "refused"
    if not refused:
        serving, rows, status = name, record["rows"], "published"
    summary = _summary(changes, before, started, {
        "status": status, "version": serving, "refused": refused, "failed": failed, "rows": rows,
        "garments_added": built.added, "garments_removed": built.removed, "rebuilt": built.rebuilt,
        "index": record["index"]["kind"], "advice": advice, "gate": {figure.name: figure.value for figure in figures},
        "photos_per_s": round(changes.new / models_s, 3) if changes.new and models_s else None,
    })  # fmt: skip
    with report_unwritten(f"{night.store.uri}/{NIGHTS}/{name}.json"):
        night.store.write(f"{NIGHTS}/{name}.json", as_json(summary))
    return summary


def _summary(
    changes: GalleryChanges, before: Published | None, started: float, outcome: Mapping[str, Any]
) -> dict[str, Any]:
    """The JSON object that ends a night."""
    age_s = None if before is None else round(time.time() - float(before.record["created"]), 1)
    return {
        "added": changes.added, "changed": changes.changed, "removed": changes.removed, "unchanged": changes.unchanged,
        "photos": len(changes.photos), "detected": changes.new,
        "before": before.version if before is not None else None,
        **outcome, "seconds": round(time.monotonic() - started, 1),
        "age_s": 0.0 if outcome["status"] == "published" else age_s,
    }  # fmt: skip


# --- what changed, and what it takes ----------------------------------------------------------------------------------


def forecast(night: Night) -> None:
    """Say what changed and what a night would take; writes nothing."""
    pointer = versions.pointer(night.store)
    before = published(night.store, pointer[0], check=False) if pointer else None
    changes = night.changes(before)
    say(str(changes))
    say_forecast(night, changes, before)


def say_forecast(night: Night, changes: GalleryChanges, before: Published | None) -> None:
    """What the detectors leave out, the index to be with its memory and disk, and the time in the models at the pace of
    an earlier night.

    UserError: an index of that kind does not fit so many garments or the budget.
    """
    a_photo = GARMENTS_A_PHOTO if before is None else len(before) / max(1, before.record["photos"])
    remarks_ = (*executed((*night.detectors, *night.embedders)), *remarks(night.detectors, night.categories))
    width = steps.width(night.wanted.steps, night.results.models)
    index = night.wanted.forecast(int(len(changes.photos) * a_photo), width)
    for remark in (*remarks_, *night.classifier.notes, index):
        say(remark)
    if before is not None and changes.new and (photo_s := before.record.get("photo_s")):
        seconds = changes.new * photo_s
        say(f"models: {changes.new:,} photos, about {seconds:,.0f} s at the pace of an earlier night")


# --- the models -------------------------------------------------------------------------------------------------------


def take_over(night: Night, before: Published | None) -> GalleryChanges:
    """Keep what a killed night finished in work/, and compare; a run over tonight's very photos is left to continue."""
    empty(night.store.sub(COPIES))
    changes, work = night.changes(before), night.store.sub(WORK)
    left = read_json(work, WORK_RECORD)
    if left == _work_record(night, changes):
        return changes
    if left is not None:
        _keep(night, left)
    empty(work)
    return changes if left is None else night.changes(before)


def detect_and_embed(night: Night, changes: GalleryChanges) -> float:
    """Put new photos through the models, continuing the run in work/, and keep the results; returns seconds."""
    started, work = time.monotonic(), night.store.sub(WORK)
    if changes.rows:
        about = _work_record(night, changes)
        if read_json(work, WORK_RECORD) is None:
            chosen = {(shard, row) for shard, rows in changes.rows.items() for row in rows}
            places = zip(*(changes.photos.column(name).to_pylist() for name in ("shard", "row")), strict=True)
            photos = changes.photos.select(["shard", "image_id", "digest"])
            tables.write(work, WORK_PHOTOS, photos.filter(pa.array([place in chosen for place in places])))
            work.write(WORK_RECORD, as_json(about))
        run_models(night, night.settings.replace(output=f"{night.store.uri}/{WORK}"), changes.rows)
        _keep(night, about)
        empty(work)
    return time.monotonic() - started


def run_models(night: Night, settings: Settings, rows: Mapping[str, list[int]] | None) -> None:
    """Detect, fuse and embed; `rows`: shard -> rows of tonight's set, None: all photos of the settings' set."""
    settings = settings.replace(boxes=("detected",), limit=None)
    images, models = None if rows is None else night.images, (night.detectors, night.embedders)
    retry = night.retry_failed
    with open_run(settings, night.catalogue, models, rows=rows, images=images, retry_failed=retry) as work:
        for stage in MODEL_STAGES:
            run_stage(work, MODEL_STAGES, stage)


def _work_record(night: Night, changes: GalleryChanges) -> dict[str, Any]:
    """What a run in work/ is about: over the same photos, set and models it can be continued."""
    results = night.results
    return {
        "results": results.fingerprint, "digest": night.images.digest,
        "rows": {shard: list(rows) for shard, rows in sorted(changes.rows.items())},
        "dims": dict(results.models), "dtype": results.dtype,
    }  # fmt: skip


def _keep(night: Night, about: Mapping[str, Any]) -> None:
    """Add what the run in work/ finished to the results of its models."""
    work = night.store.sub(WORK)
    if work.exists(WORK_PHOTOS):
        results = PhotoResults(night.store.sub(f"{FOLDER}/{about['results']}"), about["dims"], about["dtype"])
        keep_results(work, tables.read(work, WORK_PHOTOS), results)


def empty(work: ObjectStore) -> None:
    """Delete everything below; by the holder of the gallery's lock, because a lock found here is a dead run's.

    WORK_RECORD goes first, so that a half-deleted folder is never mistaken for a run to continue.
    """
    for key in sorted((info.key for info in work.list()), key=lambda key: key != WORK_RECORD):
        work.delete(key)
    folder = work.local_path
    if folder is not None and folder.exists() and not any(path.is_file() for path in folder.rglob("*")):
        shutil.rmtree(folder, ignore_errors=True)


# --- the version ------------------------------------------------------------------------------------------------------


@contextmanager
def new_version(night: Night, changes: GalleryChanges, before: Published | None, name: str) -> Iterator[Candidate]:
    """Tonight's version in a temporary local folder, which is versions/NAME/ of a gallery that nobody else reads.

    Parts, where there are several, are stored at once: nobody reads them before version.json is there.
    """
    if night.settings.gallery.parts > 1:
        with build_parts(night.wanted, night.results, changes.photos, before, night.store, name) as parts:
            yield parts
        return
    with versions.passing(night.store) as gallery:
        folder = gallery / VERSIONS / name
        folder.mkdir(parents=True)
        built = build(night.wanted, night.results, changes.photos, before, folder)
        tables.write(open_store(folder), PHOTOS_FILE, changes.photos.select(PHOTO_COLUMNS))
        yield built


def gate_figures(
    night: Night, built: Candidate, record: Mapping[str, Any], changes: GalleryChanges, before: Published | None,
    failed: int,
) -> list[gate.Figure]:  # fmt: skip
    """Every figure but that of the copies, which costs most."""
    own = night.settings.gallery
    found = photos_with_garments(night.results.photos(), changes.photos)
    shown = np.zeros(0, np.int64) if before is None else before.items.column("image_id").to_numpy()
    had = np.intersect1d(shown, changes.photos.column("image_id").to_numpy())
    return [
        *parts_gate.figures(built, record, found, before, own),
        gate.of_share("gone", changes.removed, changes.removed + changes.changed + changes.unchanged, own.most_gone),
        gate.of_share("products_lost", changes.products_lost, changes.had_products, own.most_lost),
        gate.of_share("garments_lost", len(np.setdiff1d(had, found)), len(had), own.most_lost),
        gate.of_share("failed", failed, len(changes.photos), night.settings.max_failed_share),
    ]


def copies_figure(night: Night, built: Candidate, record: Mapping[str, Any], changes: GalleryChanges) -> gate.Figure:
    """Known photos, cropped and encoded again, through the models and the new version."""
    own, gallery = night.settings.gallery, built.open(record)
    boxes = parts_gate.choose_photos(gallery, own.copies, int(night.started) // 86_400)
    is_copied = pc.is_in(changes.photos.column("image_id"), value_set=pa.array(list(boxes), pa.int64()))
    garments: dict[int, pa.Table] = {}
    if boxes:
        empty(night.store.sub(COPIES))
        uri, endpoint = f"{night.store.uri}/{COPIES}", night.settings.storage.endpoint_url
        copies = gate.copied_photos(night.images, changes.photos, boxes, night.settings.max_pixels)
        how: dict[str, Any] = {"endpoint_url": endpoint, "categories": night.categories}
        say(f"gate: copies of {len(boxes)} known photos go through the models")
        write_imageset(copies, f"{uri}/imageset", source={"adapter": "copies"}, **how)
        run_models(night, night.settings.replace(imageset=(f"{uri}/imageset",), output=f"{uri}/run"), None)
        photos = open_imageset(f"{uri}/imageset", endpoint_url=endpoint).photos(("image_id", "digest"))
        parts = harvest(night.store.sub(f"{COPIES}/run"), photos, list(night.results.models))
        schema = night.results.schema
        items = pa.concat_tables([schema.empty_table(), *(part.cast(schema) for _, part in parts)])
        items = night.results.classified(items)
        for photo in photos.to_pylist():
            garments[photo["image_id"]] = items.filter(pc.equal(items.column("digest"), photo["digest"]))
        empty(night.store.sub(COPIES))
    return gate.of_copies(gallery, changes.photos.filter(is_copied), garments, own.least_copies)


def version_record(
    night: Night,
    built: Candidate,
    name: str,
    changes: GalleryChanges,
    before: Published | None,
    models_s: float,
) -> dict[str, Any]:
    """version.json, but for `trained_in`, `gate` and `advice`."""
    own, before_record = night.settings.gallery, before.record if before is not None else {}
    return {
        "schema": SCHEMA, "name": name, "created": round(time.time(), 3),
        "files": built.files(),
        "models": [
            {"name": model.name, "dim": model.spec.dim, "weights": model.weights, "basis": model.basis}
            for model in night.embedders
        ],
        "detectors": [model.basis for model in night.detectors], "search": record(night.settings.search),
        "results": night.results.fingerprint, "results_parts": night.results.next_part,
        "wanted_kind": own.index, "budget_mb": own.memory_mb,
        "categories": list(night.categories), "classifier": night.classifier.basis,
        "tuned_to": own.recall, "profile": night.settings.profile,
        "imagesets": [{"uri": part.uri, "digest": part.digest} for part in night.images.sets],
        "settings": versions.settings_record(night.settings),
        **built.record(), "photos": len(changes.photos),
        "photo_s": models_s / changes.new if changes.new > FEWEST_TIMED else before_record.get("photo_s"),
        "before": before.version if before is not None else None, "rebuilt": built.rebuilt,
    }  # fmt: skip


@contextmanager
def report_unwritten(name: str) -> Iterator[None]:
    """Once CURRENT is written, a summary or metrics that cannot be written change nothing about how the night ended."""
    try:
        yield
    except OSError as error:
        print(f"reindex_gallery.py: {name} is not written: {one_line(str(error))}", file=sys.stderr, flush=True)


def summary_line(summary: Mapping[str, Any]) -> str:
    """One line of JSON, for monitoring."""
    return json.dumps(summary, sort_keys=True, ensure_ascii=True)
