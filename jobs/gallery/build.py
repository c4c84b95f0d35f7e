"""From results to the files of one version: embeddings, ids, the index over them, the rows of items.parquet.

In: results by digest, the photos of tonight, the version before. Out: a local folder with every file that version.json
will name. Where only photos changed, their rows are put in and taken out (`AnnIndex.with_changes`); else all is built.
A part of a version (`parts`) is built by the same functions, from its own photos and the part before.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.gallery.built import SEED, Built, Published
from jobs.gallery.results import PhotoResults, comparable
from jobs.runs import cluster
from jobs.runs.progress import say
from jobs.runs.settings import Settings, record
from postproc import dba
from postproc.places import places
from retrieval import ann_build, steps
from retrieval.ann import AnnIndex
from retrieval.ann_plan import IndexPlan, plan
from retrieval.ann_tune import quantisation_error, tune
from retrieval.gallery import Gallery
from retrieval.gallery_files import ITEMS, LEARNED, part_records
from retrieval.step_kinds import Embeddings, Phase
from retrieval.steps import FittedSearch, Step
from store.categories import recorded
from store.errors import UserError

SAMPLE = 400  # rows that recall and drift are measured with
# Share of the way from the recall asked for to 1 that is added to the target, because a sample flatters the parameters
# chosen by it: 0.95 is tuned to 0.97, lest a sound index fall below 0.95 by chance and be advised to train again.
MARGIN = 0.4
OUTGROWN = 2.0  # times the rows an index was planned for: then it is planned anew
LOCAL_ROWS = 200_000  # rows that this process puts into an index itself: a Ray task would cost more than it saves
FillParts = Callable[[IndexPlan, bytes, np.ndarray], Iterator[bytes]]  # as of `ann_build.build`


@dataclass(frozen=True)
class Wanted:
    """What a version is to be, besides its photos."""

    settings: Settings
    embedders: tuple[str, ...]  # names of the models, in order
    categories: tuple[str, ...]  # names of the category ids, id 1 first
    retrain: str  # auto, now or never: whether projections and clusters are learned again
    advice: str  # to train again, of a version that the gate refused; "" for none

    @property
    def steps(self) -> tuple[Step, ...]:
        return steps.parse(self.settings.search.steps, self.embedders)

    def plan(self, rows: int, dim: int, kind: str | None = None) -> IndexPlan:
        """The index for this many garments. UserError: one of that kind does not fit them or the budget."""
        own = self.settings.gallery
        try:
            return plan(kind or own.index, rows, dim, budget_mb=own.memory_mb, threads=self.settings.threads_per_actor)
        except ValueError as error:
            raise UserError(f"gallery.index, gallery.memory_mb: {error}") from None

    def forecast(self, garments: int, dim: int) -> str:
        """The index to be, with its memory and disk. UserError as `plan`."""
        parts = self.settings.gallery.parts
        index = self.plan(-(-garments // parts), dim)
        what = f"{index.kind} of about {garments:,} garments" + (f" in {parts} parts, each" if parts > 1 else ",")
        return (
            f"index: {what} {index.memory_mb:,.0f} MB while searching, {index.build_mb:,.0f} MB while building, "
            f"{index.disk_mb:,.0f} MB on disk; {index.why}"
        )


def build(wanted: Wanted, results: PhotoResults, photos: pa.Table, before: Published | None, folder: Path) -> Built:
    """Write a version's files into an empty local folder; `before`, the current version, is extended if possible.

    Raises:
        UserError: an index of that kind does not fit so many garments or the budget, or misses the recall.
    """
    reason = "the first version" if before is None else reason_to_rebuild(wanted, results, before.record)
    if before is not None and not reason:
        assert isinstance(before, Gallery)  # another number of parts is a reason
        built, fitted = extend(results, results.dated(photos), before, folder), before.fitted
    else:
        fitted = fit(wanted, results, photos)
        built = build_anew(wanted, results, photos, fitted, folder, reason, partial(fill_parts, wanted.settings))
    if fitted.learned:
        (folder / LEARNED).write_bytes(steps.save(fitted))
    return built


def build_anew(
    wanted: Wanted,
    results: PhotoResults,
    photos: pa.Table,
    fitted: FittedSearch,
    folder: Path,
    reason: str,
    fill: FillParts = ann_build.fill_parts,
) -> Built:
    """The index over every garment of these photos, after the steps of `fitted`; UserError as `build`."""
    items, dim = _write_rows(wanted, results, photos, fitted, folder)
    chosen = wanted.plan(len(items), dim)
    ann_build.build(chosen, folder, seed=SEED, fill_parts=fill)
    index = AnnIndex.open(folder, chosen)
    parameters = tuned(index, wanted.settings.gallery.recall) if index.rows else {}
    index = AnnIndex.open(folder, chosen, parameters=parameters)
    _write_items(folder, items)
    error = quantisation_error(index, _sample(index))
    return Built(folder, index, parameters, items, len(items), 0, reason, error)


def fill_parts(settings: Settings, chosen: IndexPlan, trained: bytes, vectors: np.ndarray) -> Iterator[bytes]:
    """The parts of an inverted index, the first rows first; those of a large one are filled as tasks on Ray.

    Only as many tasks run ahead as there are cores for, so memory stays bounded.
    """
    if len(vectors) <= LOCAL_ROWS:
        yield from ann_build.fill_parts(chosen, trained, vectors)
        return
    import ray  # heavy: a small gallery does without

    cluster.start_ray(settings)
    remote = ray.remote(num_cpus=chosen.threads, max_retries=3, runtime_env=cluster.our_code())
    task: Any = remote(ann_build.fill)
    at_once = max(1, int(ray.cluster_resources().get("CPU", 1)) // chosen.threads)
    shared, running = ray.put(trained), {}
    starts = list(range(0, len(vectors), ann_build.PART_ROWS))
    for place, start in enumerate(starts):
        for ahead in starts[place : place + at_once]:
            if ahead not in running:
                block = np.asarray(vectors[ahead : ahead + ann_build.PART_ROWS])
                rows = np.arange(ahead, ahead + len(block))
                running[ahead] = task.remote(shared, block, rows, threads=chosen.threads)
        yield ray.get(running.pop(start))
        say(f"index: {min(start + ann_build.PART_ROWS, len(vectors)):,} of {len(vectors):,} rows put in")


def tuned(index: AnnIndex, recall: float) -> dict[str, Any]:
    """`tune` on stored rows, towards MARGIN more than this recall, or if that is out of reach towards the recall.

    UserError: the best setting misses the recall.
    """
    sample = _sample(index)
    for target in (recall + MARGIN * (1 - recall), recall):
        try:
            return tune(index, sample, target)
        except ValueError as error:
            reason = error
    raise UserError(f"gallery.recall {recall:g}: {reason}; or ask for less, or for another gallery.index")


def reason_to_rebuild(wanted: Wanted, results: PhotoResults, before: Mapping[str, Any]) -> str:
    """Why the version whose version.json is `before` cannot be extended; "" where it can."""
    own = wanted.settings.gallery
    if before["results"] != results.fingerprint:
        return "models, weights or settings changed"
    if before.get("classifier") != results.classifier.basis:  # earlier releases had none
        return "another classifier of garments"
    place = {"classifier": None}  # of its file: what it makes of garments was compared above
    if before["search"] | place != record(wanted.settings.search) | place:
        return "the search's steps changed"
    named = recorded(before)
    if wanted.categories[: len(named)] != named:  # new ones after them change nothing
        return "categories have other names"
    if wanted.retrain == "now":
        return "asked to train again"
    if not before["rows"]:
        return "there were no garments to go on from"
    if before["wanted_kind"] != own.index or before["budget_mb"] != own.memory_mb:
        return "another kind of index or budget"
    parts = part_records(before)
    if len(parts) != own.parts:
        return "another number of parts"
    if reason := next(filter(None, (_outgrown(wanted, before, part) for part in parts)), ""):
        return reason
    if wanted.retrain == "auto" and (advice := before.get("advice") or wanted.advice):
        return f"trained again: {advice}"
    return "dba moves every row" if any(step.name == "dba" for step in wanted.steps) else ""


def _outgrown(wanted: Wanted, before: Mapping[str, Any], part: Mapping[str, Any]) -> str:
    """Why the index of one part no longer suits; "" where it does."""
    own, index, rows = wanted.settings.gallery, part["index"], part["rows"]
    if index["kind"] != "flat":
        if before.get("tuned_to", own.recall) != own.recall:
            return "another recall to tune to"
        if rows >= OUTGROWN * max(index["rows"], 1):
            return "the gallery outgrew its index"
    elif own.index == "auto":
        kind = wanted.plan(rows, index["dim"], "auto").kind
        if kind != "flat":
            return f"the gallery outgrew exact search: {kind}"
    return ""


def extend(results: PhotoResults, photos: pa.Table, before: Gallery, folder: Path) -> Built:
    """The version before, or a part of it, with tonight's garments put in and those that left taken out.

    `photos` are of `PhotoResults.dated`. A photo of the same bytes without a newer result is as it was, whatever its
    product and name: its garments are those of the version before, and only the results of the others are read.
    """
    index = before.index
    assert isinstance(index, AnnIndex)  # of one part
    then, then_ids, then_digests = before.items, before.items["id"].to_numpy(), comparable(before.items["digest"])
    photo = places(photos["image_id"].to_numpy(), then["image_id"].to_numpy())
    has_photo = (photo >= 0) & (then_digests == np.append(comparable(photos["digest"]), b"")[photo])
    n_then = np.bincount(photo[has_photo], minlength=len(photos))
    is_as_it_was = as_before(photos, n_then, before.record)
    is_kept = has_photo & np.append(is_as_it_was, False)[photo]
    kept, of_photo = then.filter(pa.array(is_kept)), pa.array(photo[is_kept])
    for name in ("product_id", "file_name"):
        kept = kept.set_column(kept.column_names.index(name), name, photos[name].take(of_photo))
    order, then_digests = np.argsort(then_ids, kind="stable"), np.append(then_digests, b"")
    item_parts, added_parts = [kept.cast(ITEMS)], [np.zeros(0, np.int64)]
    vector_parts = [np.zeros((0, index.plan.dim), np.float32)]
    for items, rows in results.garments(photos.filter(pa.array(~is_as_it_was))):
        item_parts.append(items)
        place = places(then_ids, items["id"].to_numpy(), order)
        is_new = (place < 0) | (then_digests[place] != comparable(items["digest"]))
        is_kept[place[~is_new]] = True
        added_parts.append(items["id"].to_numpy()[is_new])
        vector_parts += before.fitted.project({name: matrix[is_new] for name, matrix in rows.items()}).values()
    items, vectors = pa.concat_tables(item_parts), np.concatenate(vector_parts)
    added, removed = np.concatenate(added_parts), np.sort(then_ids[~is_kept])
    passing = folder / "index"  # `with_changes` wants an empty folder
    plan_ = index.with_changes(passing, vectors, added, removed, seed=SEED).plan
    for file in sorted(passing.iterdir()):
        file.rename(folder / file.name)
    passing.rmdir()
    (part,) = before.parts
    parameters = dict(part_records(before.record)[part]["parameters"])
    index = AnnIndex.open(folder, plan_, parameters=parameters)
    _write_items(folder, items)
    error = quantisation_error(index, vectors[:SAMPLE] if len(vectors) else _sample(index))
    return Built(folder, index, parameters, items, len(added), len(removed), "", error)


def as_before(photos: pa.Table, n_then: np.ndarray, before: Mapping[str, Any]) -> np.ndarray:
    """(N,) bool: of which photos, of `PhotoResults.dated`, the garments are those of a version, by its record `before`.

    `n_then` (N,) are the numbers of garments that it has of them. A result may not be newer than the version; versions
    of earlier releases do not say which results they knew.
    """
    n_items, part = photos["items"].to_numpy(), photos["part"].to_numpy()
    is_old = part < before.get("results_parts", 0)
    found: np.ndarray = np.where(n_then > 0, is_old, n_items == 0)
    return found


def fit(wanted: Wanted, results: PhotoResults, photos: pa.Table) -> FittedSearch:
    """Learn what the steps learn from the garments of these photos, block by block."""

    def blocks() -> Iterator[Embeddings]:
        return (rows for _, rows in results.garments(photos))

    return steps.fit_blocks(wanted.steps, blocks, wanted.settings.search.weights)


def _write_rows(
    wanted: Wanted, results: PhotoResults, photos: pa.Table, fitted: FittedSearch, folder: Path
) -> tuple[pa.Table, int]:
    """Write vectors.npy and ids.npy of all garments; returns their items and the width of a row."""
    parts: list[pa.Table] = [ITEMS.empty_table()]
    (nothing,) = fitted.project({name: np.zeros((0, dim), np.float32) for name, dim in results.models.items()}).values()
    dim = nothing.shape[1]
    with (
        tempfile.NamedTemporaryFile(dir=folder, prefix=".rows-") as file,  # the number of rows is known at the end
        tempfile.NamedTemporaryFile(dir=folder, prefix=".moved-") as moved_file,
    ):
        for items, rows in results.garments(photos):
            (moved,) = fitted.project(rows).values()
            file.write(np.ascontiguousarray(moved, np.float32).tobytes())
            parts.append(items)
        file.flush()
        items = pa.concat_tables(parts)
        vectors = np.zeros((0, dim), np.float32)
        if len(items):
            vectors = np.memmap(file.name, np.float32, "r", shape=(len(items), dim))
            for step in wanted.steps:
                if step.name == "dba":
                    out = np.memmap(moved_file.name, np.float32, "w+", shape=vectors.shape)
                    vectors = dba.augment(vectors, out=out, **step.options)
        ann_build.write_vectors(folder, vectors, items.column("id").to_numpy())
    return items, dim


def _write_items(folder: Path, items: pa.Table) -> None:
    with (folder / "items.parquet").open("wb") as sink:
        pq.write_table(items, sink, compression="zstd")


def _sample(index: AnnIndex) -> np.ndarray:
    """Living rows, spread over the gallery by a fixed seed."""
    rows = np.random.default_rng(SEED).choice(index.living, min(SAMPLE, len(index.living)), replace=False)
    return np.asarray(index.vectors[np.sort(rows)], np.float32)


def refusal(search_steps: Sequence[Step], parts: int) -> str:
    """Why a gallery of so many parts cannot be searched by these steps; "" where it can."""
    names = [step.name for step in search_steps]
    if "rank_fusion" in names:
        return "rank_fusion wants a list of every model, and a gallery has one index; join the rows with concat"
    if "dba" in names and "concat" in names and names.index("dba") < names.index("concat"):
        return "dba before concat wants every model's rows at once; put it after concat"
    whole = [step.name for step in search_steps if step.kind.phase in (Phase.GALLERY, Phase.RANKING)]
    if whole and parts > 1:
        return f"{whole[0]} compares each garment with all others, which {parts} parts cannot; set gallery.parts to 1"
    return ""
