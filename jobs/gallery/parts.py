"""A version in several parts: which garment is in which, and the files of each, built on the nodes of a Ray or here.

A garment belongs to a part by its photo alone, so that a night changes the parts whose photos changed and copies the
others. What the steps learn is learned once, and all parts share it. Each part is built by `PartJob.run`, which reads
the results of its photos from the gallery and writes its files to versions/NAME/part-N/; where a cluster runs, as a
task of its own that Ray starts again, on another node if need be. The same job gives the same bytes, and nothing is a
version before its version.json is written, so a half one does no harm.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.gallery import versions
from jobs.gallery.build import FillParts, Wanted, as_before, build_anew, extend, fill_parts, fit, reason_to_rebuild
from jobs.gallery.built import SEED, Published
from jobs.gallery.built_parts import BuiltParts, PartFiles, PublishedParts, part_of
from jobs.gallery.changes import differ
from jobs.gallery.part_servers import answer_of
from jobs.gallery.results import PhotoResults
from jobs.runs import cluster, tables
from jobs.runs.progress import say
from postproc.places import places
from retrieval import ann_build, steps
from retrieval.gallery import Gallery
from retrieval.gallery_files import LEARNED, PART, PHOTO_COLUMNS, PHOTOS_FILE, VERSIONS, part_folder, part_records
from retrieval.steps import FittedSearch
from store.files import digest
from store.objects import ObjectStore

FIT_PHOTOS = 1_000_000  # photos that the steps learn from, at most: more change nothing that could be measured
RETRIES = 3  # of a part whose process or node died


# --- one part ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PartJob:
    """All that building a part takes; it pickles."""

    part: int
    name: str  # of the version
    wanted: Wanted
    results: PhotoResults
    photos: pa.Table  # of this part alone
    store: ObjectStore  # the gallery's
    before: str  # the version that is extended, where there is no reason to rebuild
    fitted: FittedSearch | None  # None: that of the version before
    reason: str  # to build all anew

    def run(self, fill: FillParts = ann_build.fill_parts) -> PartFiles:
        """Build the part and write its files; UserError as `jobs.gallery.build.build`."""
        if self.store.local_path is None:
            versions.sweep_here()  # what a killed job left on this machine
        with versions.passing(self.store) as folder:
            if self.fitted is None:
                before = Gallery(self.store, self.before, parts=[self.part])
                built = extend(self.results, self.photos, before, folder)
            else:
                built = build_anew(self.wanted, self.results, self.photos, self.fitted, folder, self.reason, fill)
            files = built.files()
            for file in files:
                self.store.write_file(f"{VERSIONS}/{self.name}/{PART}{self.part}/{file}", folder / file)
            return PartFiles(built.record(), files, built.added, built.removed)


def run_on_ray(jobs: list[PartJob], wanted: Wanted) -> dict[int, PartFiles]:
    """Each job as a task, on as many nodes as there are."""
    import ray  # heavy: a gallery of one part does without

    cluster.start_ray(wanted.settings)
    options: dict[str, Any] = {"num_cpus": wanted.settings.threads_per_actor, "max_retries": RETRIES}
    task: Any = ray.remote(scheduling_strategy="SPREAD", runtime_env=cluster.our_code(), **options)(PartJob.run)
    left, done = {task.remote(job): job for job in jobs}, {}
    while left:
        (call, *_), _ = ray.wait(list(left))
        job = left.pop(call)
        done[job.part] = answer_of(call)
        say(f"index: part {job.part} written, {len(left)} of {len(jobs)} left")
    return done


# --- all parts --------------------------------------------------------------------------------------------------------


@contextmanager
def build_parts(
    wanted: Wanted,
    results: PhotoResults,
    photos: pa.Table,
    before: Published | None,
    store: ObjectStore,
    name: str,
) -> Iterator[BuiltParts]:
    """Every part of version `name`, stored; what the gate opens of it is closed in the end.

    `photos` are tonight's, `before` is the current version.
    Raises UserError as `jobs.gallery.build.build`, for any part.
    """
    reason = "the first version" if before is None else reason_to_rebuild(wanted, results, before.record)
    parts, old, folder = wanted.settings.gallery.parts, "", f"{VERSIONS}/{name}"
    photos, fitted = photos.select(PHOTO_COLUMNS), None
    dated = results.dated(photos)
    kept: dict[int, PartFiles] = {}
    shared = {PHOTOS_FILE: tables.write(store, f"{folder}/{PHOTOS_FILE}", photos)}
    if reason:
        fitted = fit(wanted, results, fitting_photos(photos))
        if fitted.learned:
            store.write(f"{folder}/{LEARNED}", data := steps.save(fitted))
            shared[LEARNED] = digest(data)
    else:
        assert isinstance(before, PublishedParts)  # another number of parts is a reason
        old = before.version
        if LEARNED in before.record["files"]:
            store.copy(f"{VERSIONS}/{old}/{LEARNED}", f"{folder}/{LEARNED}")
            shared[LEARNED] = before.record["files"][LEARNED]
        for part in unchanged_parts(dated, before):
            kept[part] = copied(before, part, name)
            say(f"index: part {part} is as it was")
    number = part_of(photos.column("image_id").to_numpy(), parts)
    jobs = [
        PartJob(part, name, wanted, results, dated.filter(pa.array(number == part)), store, old, fitted, reason)
        for part in range(parts)
        if part not in kept
    ]
    if cluster.would_join():
        done = run_on_ray(jobs, wanted)
    else:
        done = {job.part: job.run(partial(fill_parts, wanted.settings)) for job in jobs}
    both = kept | done
    built = BuiltParts(store, name, [both[part] for part in range(parts)], shared, reason)
    try:
        yield built
    finally:
        built.close()


def fitting_photos(photos: pa.Table) -> pa.Table:
    """Those of the photos that the steps learn from: all, or FIT_PHOTOS of them drawn by a fixed seed."""
    if len(photos) <= FIT_PHOTOS:
        return photos
    drawn = np.random.default_rng(SEED).choice(len(photos), FIT_PHOTOS, replace=False)
    return photos.take(pa.array(np.sort(drawn)))


def unchanged_parts(photos: pa.Table, before: PublishedParts) -> list[int]:
    """The parts whose photos (of `PhotoResults.dated`) and their results are as they were in the version before."""
    old = tables.read(before.store, f"{VERSIONS}/{before.version}/{PHOTOS_FILE}")
    ids, old_ids = photos.column("image_id").to_numpy(), old.column("image_id").to_numpy()
    place = places(old_ids, ids)
    now, then = photos.filter(pa.array(place >= 0)), old.take(pa.array(place[place >= 0]))
    other = np.logical_or.reduce([differ(now, then, column) for column in ("product_id", "file_name", "digest")])
    photo = places(ids, before.items.column("image_id").to_numpy())
    is_same = as_before(photos, np.bincount(photo[photo >= 0], minlength=len(ids)), before.record)
    touched = [ids[(place < 0) | ~is_same], now.column("image_id").to_numpy()[other], np.setdiff1d(old_ids, ids)]
    parts = len(part_records(before.record))
    changed = part_of(np.concatenate(touched), parts)
    return sorted(set(range(parts)) - set(changed.tolist()))


def copied(before: PublishedParts, part: int, name: str) -> PartFiles:
    """A part of the version before in version `name`, byte for byte."""
    place = part_folder(before.record, part)
    files = {file: d for file, d in before.record["files"].items() if file.startswith(place)}
    for file in files:
        before.store.copy(f"{VERSIONS}/{before.version}/{file}", f"{VERSIONS}/{name}/{file}")
    return PartFiles(part_records(before.record)[part], {file.removeprefix(place): d for file, d in files.items()})
