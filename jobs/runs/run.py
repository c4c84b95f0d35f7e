"""An open run: its folder, settings, models and marks; what is finished, what is to do and why, what failed.

The folder OUTPUT is the only truth about a run. `open_run` takes its lock, reads run.json and the marks, and yields a
`Run`.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jobs.runs.categories import resolve
from jobs.runs.events import RunLog
from jobs.runs.lock import Lock
from jobs.runs.marks import (
    COPIES,
    EMBEDDED,
    STAGES,
    Outcome,
    Unit,
    as_json,
    expected,
    mark_of,
    now,
    numbered,
    read_listing,
    read_marks,
    what_changed,
    write_mark,
)  # fmt: skip
from jobs.runs.models import Catalogue, Model, describe
from jobs.runs.places import nothing_left, refuse_other_kinds
from jobs.runs.replaced import take_replaced
from jobs.runs.run_record import SCHEMA, check_sets, is_over, read_record
from jobs.runs.selection import Selected, choose, select
from jobs.runs.settings import Settings, record
from jobs.runs.versions import versions
from retrieval.search_plan import SearchPlan
from store.copies import Copies
from store.errors import UserError
from store.imageset import ImageSet
from store.joined import open_imagesets
from store.objects import ObjectStore, open_store


@dataclass
class Run:
    """An open run.

    Attributes:
        categories: names of the category ids, id 1 first.
        selected: the photos it takes.
        retry_failed: whether units with failed images are done again, once.
        marks: unit path -> mark. present: key -> stamp of the outputs that exist.
        versions: node -> versions of its packages.
        units: stage -> unit path -> unit, of the stages that are planned (`jobs.runs.planning.plan`).
        retried: paths of the units finished since the start.
    """

    settings: Settings
    store: ObjectStore
    images: ImageSet
    catalogue: Catalogue
    detectors: tuple[Model, ...]
    embedders: tuple[Model, ...]
    categories: tuple[str, ...]
    selected: Selected
    lock: Lock
    retry_failed: bool = False
    marks: dict[str, dict] = field(default_factory=dict)
    present: dict[str, str] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)
    units: dict[str, dict[str, Unit]] = field(default_factory=dict)
    retried: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.log = RunLog(self.store)
        self.copies = Copies(self.store, COPIES)

    @property
    def box_kinds(self) -> tuple[str, ...]:
        return self.selected.box_kinds(self.settings.boxes)

    @property
    def search_plan(self) -> SearchPlan:
        return SearchPlan.of(record(self.settings.search)["steps"], [model.name for model in self.embedders])

    def reason(self, unit: Unit) -> str:
        """Why the unit is to be done; "" when it is finished."""
        mark = self.marks.get(unit.path)
        if unit.basis is None:
            return "after what comes before it"
        if mark is None:
            return "first time"
        if mark.get("fingerprint") != unit.fingerprint:
            return what_changed(mark.get("basis") or {}, unit.basis)
        for key in unit.outputs:
            if key not in self.present:
                return f"output gone: {key}"
        if self.retry_failed and mark.get("failures") and unit.path not in self.retried:
            return "failed images, again"
        return ""

    def digests(self, units: Iterable[Unit], *, below: str = "") -> dict[str, str] | None:
        """Key -> digest of the units' outputs below a folder; None when a unit is unfinished."""
        digests: dict[str, str] = {}
        for unit in units:
            if self.reason(unit):
                return None
            outputs = self.marks[unit.path]["outputs"]
            digests |= {key: digest for key, digest in outputs.items() if key.startswith(below)}
        return digests

    def embedded_digests(self, unit: Unit, *, below: str) -> dict[str, str] | None:
        """Key -> digest of what embedding reads of the items that a unit wrote; None when the unit is unfinished."""
        if (digests := self.digests([unit], below=below)) is None:
            return None
        mark = self.marks[unit.path]
        own, replaced = mark.get("notes", {}).get(EMBEDDED, {}), mark.get("replaced", ())  # who replaces may move boxes
        return {key: digest if key in replaced else own.get(key, digest) for key, digest in digests.items()}

    def finish(self, unit: Unit, outcome: Outcome) -> None:
        """Write the mark of a unit whose output is safe. Units of later stages follow from it and are planned again."""
        if unit.basis is None:
            raise RuntimeError(f"{unit.path}: marked done before its inputs were")
        self.lock.check()
        stamps = {key: self.store.info(key).stamp for key in outcome.outputs}
        mark = mark_of(unit, outcome, stamps)
        write_mark(self.store, unit.path, mark, self.copies)
        self.marks[unit.path] = mark
        self.retried.add(unit.path)
        self.present.update(stamps)
        for later in STAGES[STAGES.index(unit.stage) + 1 :]:
            self.units.pop(later, None)

    def failures(self, units: Iterable[Unit]) -> list[dict[str, Any]]:
        """Failures rows of these units, by image; a reason that occurs in several stages counts once, in the first."""
        first: dict[tuple[int, str], tuple[int, str]] = {}  # image_id, reason -> number of the stage, shard
        for unit in units:
            for failure in self.marks.get(unit.path, {}).get("failures", ()):
                key, place = (failure["image_id"], failure["reason"]), (STAGES.index(unit.stage), unit.shard)
                first[key] = min(first.get(key, place), place)
        return [
            {"image_id": image_id, "shard": shard, "stage": STAGES[stage], "reason": reason}
            for (image_id, reason), (stage, shard) in sorted(first.items())
        ]

    def record(self) -> None:
        """Write run.json."""
        self.store.write("run.json", as_json(self.description()))

    def description(self) -> dict[str, Any]:
        """The content of run.json."""
        return {
            "schema": SCHEMA,
            "imagesets": self._sets(),
            "selected": self.selected.as_json(),
            "settings": record(self.settings),
            "detectors": [describe(model) for model in self.detectors],
            "embedders": [describe(model) for model in self.embedders],
            "boxes": list(self.box_kinds),
            "categories": list(self.categories),
            "versions": self.versions,
            "recorded": now(),
        }

    def _sets(self) -> list[dict[str, Any]]:
        """The image sets as the settings name them, and how much the run takes of each."""
        parts = zip(self.settings.imageset, self.images.sets, self.selected.by_set(self.images), strict=True)
        sets = []
        for i, (uri, part, taken) in enumerate(parts):
            of: dict[str, Any] = {"uri": uri, "digest": part.digest}
            of |= {"images": sum(shard.images for shard in taken), "shards": len(taken)}
            names = [shard.name for shard in taken]
            # An update leaves gaps in the numbers of a set's shards. A set without gaps needs no list of 100,000 names.
            sets.append(of if names == numbered(i, len(names)) else of | {"names": names})
        return sets


# ---------------------------------------------------------------------------------------------------------------------
# Opening.


@contextlib.contextmanager
def open_run(
    settings: Settings,
    catalogue: Catalogue,
    models: tuple[tuple[Model, ...], tuple[Model, ...]],
    *,
    retry_failed: bool = False,
    rows: Mapping[str, Sequence[int]] | None = None,
    images: ImageSet | None = None,
    write: bool = True,
) -> Iterator[Run]:
    """Hold the lock of OUTPUT, with the run's marks read.

    Args:
        models: the detectors and the embedders, as `jobs.runs.catalogue.choose_models` returns them.
        rows: shard -> row numbers of the photos to take; None: as `settings.limit` says.
        images: the image sets that `rows` are of, which may change meanwhile; None: the settings' sets as they are now.
        write: False only looks: nothing is written, no lock is taken, and no stage may be run.

    Raises:
        UserError: another run holds the lock, OUTPUT holds a run over other image sets or something else, or a detector
            finds none of the sets' categories.
    """
    endpoint = settings.storage.endpoint_url
    refuse_no_comparison(settings)
    images = images or open_imagesets(settings.imageset, endpoint_url=endpoint)
    store = open_store(settings.output, endpoint_url=endpoint)
    refuse_other_kinds(store, "a run")
    lock = Lock(store)
    if not write:
        if store.local_path is None:
            store.probe(write=False)
        yield _read_run(settings, catalogue, models, images, store, lock, retry_failed, rows, write)
        return
    with nothing_left(store):
        store.probe(write=True)
        lock.take()
        try:
            run = _read_run(settings, catalogue, models, images, store, lock, retry_failed, rows, write)
            try:
                yield run
            finally:
                run.log.publish()
        finally:
            lock.release()


def _read_run(
    settings: Settings,
    catalogue: Catalogue,
    models: tuple[tuple[Model, ...], tuple[Model, ...]],
    images: ImageSet,
    store: ObjectStore,
    lock: Lock,
    retry_failed: bool,
    rows: Mapping[str, Sequence[int]] | None,
    write: bool,
) -> Run:
    before = earlier_record(settings, store, images)
    categories, detectors = resolve(images, models[0])
    embedders = models[1]
    settings = with_fusion_weights(settings, detectors)
    known = before.get("selected") if is_over(before, images) else None
    selected = select(images, settings.limit, known) if rows is None else choose(images, rows)
    run = Run(settings, store, images, catalogue, detectors, embedders, categories, selected, lock, retry_failed)
    run.versions = before.get("versions", {}) | {"driver": versions()}
    description = run.description()
    late = write and not lock.is_listed()
    unlisted = {path for paths in expected(description).values() for path in paths} if before and late else ()
    run.marks = read_marks(store, unlisted, run.copies if write else None)
    run.present = read_listing(store, run.marks, late=late)
    take_replaced(store, run.marks, run.present, run.copies if write else None)
    if write and before | {"recorded": None} != description | {"recorded": None}:
        run.record()
    return run


def refuse_no_comparison(settings: Settings) -> None:
    """Raise a UserError where the figures of another run are asked for, and there are none."""
    place = settings.report.compare
    if place and not open_store(place, endpoint_url=settings.storage.endpoint_url).exists("metrics.json"):
        raise UserError(f"--compare {place}: no metrics.json there; want the --output of a finished jobs/full_eval.py")


def earlier_record(settings: Settings, store: ObjectStore, images: ImageSet) -> dict[str, Any]:
    """run.json of the run in OUTPUT, {} without one; a UserError where it is no record, or of other image sets."""
    before = read_record(store)
    check_sets(before, images, settings.imageset, settings.output)
    return before


def with_fusion_weights(settings: Settings, detectors: tuple[Model, ...]) -> Settings:
    """The settings with `fusion.weights` filled in from the detectors' specs, unless the user set them or all are 1."""
    weights = tuple(float(getattr(model.spec, "fusion_weight", 1.0)) for model in detectors)
    if settings.fusion.weights is not None or set(weights) <= {1.0}:
        return settings
    return settings.replace(fusion=settings.fusion.replace(weights=weights))
