"""From results to the files of one version: embeddings, ids, the index over them, the rows of items.parquet.

In: results by digest, the photos of tonight, the version before. Out: a local folder with every file that version.json
will name. Where only photos changed, their rows are put in and taken out (`AnnIndex.with_changes`); else all is built.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.gallery.results import PhotoResults
from jobs.runs import cluster
from jobs.runs.progress import say
from jobs.runs.settings import Settings, record
from postproc import dba
from retrieval import ann_build, steps
from retrieval.ann import AnnIndex
from retrieval.ann_plan import IndexPlan, plan
from retrieval.ann_tune import quantisation_error, tune
from retrieval.gallery import Gallery
from retrieval.gallery_files import ITEMS
from retrieval.step_kinds import Embeddings
from retrieval.steps import FittedSearch, Step
from store.categories import recorded
from store.errors import UserError

SAMPLE = 400  # rows that recall and drift are measured with
# Share of the way from the recall asked for to 1 that is added to the target, because a sample flatters the parameters
# chosen by it: 0.95 is tuned to 0.97, lest a sound index fall below 0.95 by chance and be advised to train again.
MARGIN = 0.4
SEED = 0
OUTGROWN = 2.0  # times the rows an index was planned for: then it is planned anew
LOCAL_ROWS = 200_000  # rows that this process puts into an index itself: a Ray task would cost more than it saves


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


@dataclass(frozen=True)
class Built:
    """A version's files in a local folder, opened, and how they came to be."""

    folder: Path
    index: AnnIndex
    parameters: Mapping[str, Any]  # that the index is searched by
    items: pa.Table
    added: int  # garments
    removed: int
    rebuilt: str  # why all was built anew, "" where the version before was extended
    error: float  # quantisation error of a sample of tonight's rows; nan where there are none

    def record(self) -> dict[str, Any]:
        """The entries of version.json that building knows."""
        return {
            # readers of earlier releases may look for the forecast of seconds that was here
            "index": asdict(self.index.plan) | {"build_s": 0.0},
            "parameters": dict(self.parameters),
            "rows": self.index.rows,
            "dead_share": self.index.dead_share,
            "quantisation_error": None if np.isnan(self.error) else self.error,
        }


def build(wanted: Wanted, results: PhotoResults, photos: pa.Table, before: Gallery | None, folder: Path) -> Built:
    """Write a version's files into an empty local folder; `before`, the current version, is extended if possible.

    Raises:
        UserError: an index of that kind does not fit so many garments or the budget, or misses the recall.
    """
    reason = "the first version" if before is None else reason_to_rebuild(wanted, results, before)
    if before is not None and not reason:
        return _extend(wanted, results, photos, before, folder)
    fitted, items = _fit_and_write(wanted, results, photos, folder)
    dim = np.load(folder / "vectors.npy", mmap_mode="r").shape[1]
    chosen = wanted.plan(len(items), dim)
    ann_build.build(chosen, folder, seed=SEED, fill_parts=partial(fill_parts, wanted.settings))
    index = AnnIndex.open(folder, chosen)
    parameters = tuned(index, wanted.settings.gallery.recall) if index.rows else {}
    index = AnnIndex.open(folder, chosen, parameters=parameters)
    _write_rest(folder, items, fitted)
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


def reason_to_rebuild(wanted: Wanted, results: PhotoResults, before: Gallery) -> str:
    """Why the version before cannot be extended; "" where it can."""
    before_record, own, index = before.record, wanted.settings.gallery, before.index.plan
    if before_record["results"] != results.fingerprint:
        return "models, weights or settings changed"
    if before_record["search"] != record(wanted.settings.search):
        return "the search's steps changed"
    named = recorded(before_record)
    if wanted.categories[: len(named)] != named:  # new ones after them change nothing
        return "categories have other names"
    if wanted.retrain == "now":
        return "asked to train again"
    if not len(before):
        return "there were no garments to go on from"
    if before_record["wanted_kind"] != own.index or before_record["budget_mb"] != own.memory_mb:
        return "another kind of index or budget"
    if index.kind != "flat":
        if before_record.get("tuned_to", own.recall) != own.recall:
            return "another recall to tune to"
        if len(before) >= OUTGROWN * max(index.rows, 1):
            return "the gallery outgrew its index"
    elif own.index == "auto":
        kind = wanted.plan(len(before), index.dim, "auto").kind
        if kind != "flat":
            return f"the gallery outgrew exact search: {kind}"
    if wanted.retrain == "auto" and (advice := before_record.get("advice") or wanted.advice):
        return f"trained again: {advice}"
    return "dba moves every row" if any(step.name == "dba" for step in wanted.steps) else ""


def _extend(wanted: Wanted, results: PhotoResults, photos: pa.Table, before: Gallery, folder: Path) -> Built:
    """The version before with tonight's garments put in and those that left taken out."""
    old = set(_garment_keys(before.items))
    item_parts, new_parts = [ITEMS.empty_table()], [ITEMS.empty_table()]
    vector_parts = [np.zeros((0, before.index.plan.dim), np.float32)]
    for items, rows in results.garments(photos):
        item_parts.append(items)
        is_new = np.array([key not in old for key in _garment_keys(items)], bool)
        if is_new.any():
            new_parts.append(items.filter(pa.array(is_new)))
            vector_parts += before.fitted.project({name: matrix[is_new] for name, matrix in rows.items()}).values()
    items, vectors = pa.concat_tables(item_parts), np.concatenate(vector_parts)
    added = pa.concat_tables(new_parts).column("id").to_numpy()
    removed = np.array(sorted(id_ for id_, _ in old - set(_garment_keys(items))), np.int64)
    passing = folder / "index"  # `with_changes` wants an empty folder
    plan_ = before.index.with_changes(passing, vectors, added, removed, seed=SEED).plan
    for file in sorted(passing.iterdir()):
        file.rename(folder / file.name)
    passing.rmdir()
    parameters = dict(before.record["parameters"])
    index = AnnIndex.open(folder, plan_, parameters=parameters)
    _write_rest(folder, items, before.fitted)
    error = quantisation_error(index, vectors[:SAMPLE] if len(vectors) else _sample(index))
    return Built(folder, index, parameters, items, len(added), len(removed), "", error)


def _garment_keys(items: pa.Table) -> list[tuple[int, bytes]]:
    """A garment is the same while its id and the bytes of its photo are."""
    return list(zip(items.column("id").to_pylist(), items.column("digest").to_pylist(), strict=True))


def _fit_and_write(
    wanted: Wanted, results: PhotoResults, photos: pa.Table, folder: Path
) -> tuple[FittedSearch, pa.Table]:
    """Learn what the steps learn, block by block, and write vectors.npy and ids.npy of all garments."""

    def blocks() -> Iterator[Embeddings]:
        return (rows for _, rows in results.garments(photos))

    fitted = steps.fit_blocks(wanted.steps, blocks, wanted.settings.search.weights)
    parts: list[pa.Table] = [ITEMS.empty_table()]
    dim = sum(results.models.values())
    with (
        tempfile.NamedTemporaryFile(dir=folder, prefix=".rows-") as file,  # the number of rows is known at the end
        tempfile.NamedTemporaryFile(dir=folder, prefix=".moved-") as moved_file,
    ):
        for items, rows in results.garments(photos):
            (moved,) = fitted.project(rows).values()
            file.write(np.ascontiguousarray(moved, np.float32).tobytes())
            parts.append(items)
            dim = moved.shape[1]
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
    return fitted, items


def _write_rest(folder: Path, items: pa.Table, fitted: FittedSearch) -> None:
    with (folder / "items.parquet").open("wb") as sink:
        pq.write_table(items, sink, compression="zstd")
    if fitted.learned:
        (folder / "steps.safetensors").write_bytes(steps.save(fitted))


def _sample(index: AnnIndex) -> np.ndarray:
    """Living rows, spread over the gallery by a fixed seed."""
    rows = np.random.default_rng(SEED).choice(index.living, min(SAMPLE, len(index.living)), replace=False)
    return np.asarray(index.vectors[np.sort(rows)], np.float32)


def refusal(search_steps: Sequence[Step]) -> str:
    """Why a gallery cannot be searched by these steps; "" where it can."""
    names = [step.name for step in search_steps]
    if "rank_fusion" in names:
        return "rank_fusion wants a list of every model, and a gallery has one index; join the rows with concat"
    if "dba" in names and "concat" in names and names.index("dba") < names.index("concat"):
        return "dba before concat wants every model's rows at once; put it after concat"
    return ""
