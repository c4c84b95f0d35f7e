"""From what photos gave to the files of one version: rows, ids, the index over them, what each garment is.

In: results by digest, the photos of tonight, the version before. Out: a local folder with every file that version.json will name. Where
nothing but photos changed, only their rows are put in and taken out (`AnnIndex.with_changes`); otherwise all is built anew.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs import tables
from jobs.cli import UserError
from jobs.gallery.results import Results
from postproc import dba
from retrieval import ann_build, steps
from retrieval.ann import AnnIndex, quantisation_error, tune
from retrieval.ann_plan import Plan, plan
from retrieval.gallery import ITEMS, Gallery
from retrieval.steps import KINDS, Rows, Step

SAMPLE = 400  # rows that recall is looked at with
# Of what recall wants to be perfect, aimed at besides: a sample flatters what was chosen by it, and 0.95 asked for is then 0.97 on it, so
# that no night of a sound index falls under 0.95 by chance and is advised to train again.
MARGIN = 0.4
SEED = 0
OUTGROWN = 2.0  # times the rows an index was planned for: then it is planned anew


@dataclass(frozen=True)
class Wanted:
    """What a version is to be, besides its photos.

    Attributes:
        kind: of index, or auto. budget_mb: of memory while searching and in each step of building.
        recall: recall@10 that an approximate index is to keep. plan: parsed `search.steps`. search: the settings' record.
        retrain: auto, now or never: whether projections and clusters are learned again. advice: to do so, of a version that the gate
            refused, "" for none.
    """

    kind: str
    budget_mb: float
    recall: float
    plan: tuple[Step, ...]
    search: Mapping[str, Any]
    retrain: str
    threads: int = 1
    advice: str = ""


@dataclass(frozen=True)
class Built:
    """A version's files in a local folder, opened, and how they came to be.

    Attributes:
        learned: what the search's steps learned. added, removed: garments. rebuilt: why all was built anew, "" where it was extended.
    """

    folder: Path
    index: AnnIndex
    parameters: Mapping[str, Any]
    items: pa.Table
    fitted: steps.Fitted
    added: int
    removed: int
    rebuilt: str
    error: float  # quantisation error of a sample of tonight's rows


def ids_of(images: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """63 bits of BLAKE2b of the image id and the box in whole pixels: the same garment has the same id every night.

    Args:
        images: (N,) int64 image ids. boxes: (N, 4) float32, finite, pixels.

    Returns:
        (N,) int64, not negative.

    >>> a, b = ids_of(np.array([5, 5]), np.array([[1.2, 2.0, 3.4, 4.0], [0.9, 2.0, 3.0, 4.4]])).tolist()
    >>> a == b
    True
    """
    edges = np.rint(boxes).astype(np.int64)
    texts = map("{} {} {} {} {}".format, images.tolist(), *edges.T.tolist())
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return (np.frombuffer(digests, ">u8") >> np.uint64(1)).astype(np.int64)


# ---------------------------------------------------------------------------------------------------------------------
# Tonight's garments.


def garments(results: Results, photos: pa.Table) -> Iterator[tuple[pa.Table, Rows]]:
    """Every garment of tonight's photos: its line of items.parquet and its rows, a part of the results at a time.

    Args:
        photos: image_id, digest, product_id, file_name; several may have the same bytes.

    Raises:
        ValueError: two garments of one id.
    """
    digests = photos.column("digest").to_numpy(zero_copy_only=False).astype("S16")  # to compare, never to be read back
    order = np.argsort(digests, kind="stable")
    seen: set[int] = set()
    for table in results.items(pa.array(sorted(set(photos.column("digest").to_pylist())), pa.binary(16))):
        of_item = table.column("digest").to_numpy(zero_copy_only=False).astype("S16")
        low, high = (np.searchsorted(digests[order], of_item, side) for side in ("left", "right"))
        item = np.repeat(np.arange(len(table)), high - low)  # once for each photo that has these bytes
        photo = order[
            np.concatenate([np.zeros(0, np.int64), *(np.arange(a, b) for a, b in zip(low, high, strict=True))]).astype(
                np.int64
            )
        ]
        kept, line = _lines(table, photos, item, photo)
        twice = [one for one in line.column("id").to_pylist() if one in seen]
        if twice:
            raise ValueError(
                f"gallery: two garments have id {twice[0]}; 63 bits met by chance, change the name of one photo"
            )
        seen.update(line.column("id").to_pylist())
        yield line, {name: tables.rows_of(table.column(name))[kept].astype(np.float32) for name in results.models}


def _lines(table: pa.Table, photos: pa.Table, item: np.ndarray, photo: np.ndarray) -> tuple[np.ndarray, pa.Table]:
    """Of a photo's boxes with the same whole pixels the best stays: they are one garment."""
    images, boxes = photos.column("image_id").to_numpy()[photo], tables.rows_of(table.column("bbox"))[item]
    ids = ids_of(images, boxes)
    _, first = np.unique(ids, return_index=True)
    first = np.sort(first)
    columns = {
        "id": ids[first], "image_id": images[first], "bbox": boxes[first],
        "category_id": table.column("category_id").to_numpy()[item[first]], "score": table.column("score").to_numpy()[item[first]],
        **{name: photos.column(name).take(pa.array(photo[first])).combine_chunks() for name in ("product_id", "file_name", "digest")},
    }  # fmt: skip
    return item[first], tables.table(ITEMS, columns)


# ---------------------------------------------------------------------------------------------------------------------
# The version.


def build(
    wanted: Wanted,
    results: Results,
    photos: pa.Table,
    before: Gallery | None,
    folder: Path,
    fill: "Callable[[Plan, Path], None] | None" = None,
) -> Built:
    """Write a version's files into an empty local folder.

    Args:
        before: the version that is current; None for the first. Extended where it can be.
        fill: (plan, folder) -> None: writes index.faiss of the folder's vectors.npy; None: in this process.

    Raises:
        UserError: an index of that kind does not fit so many garments or the budget, or misses the recall.
    """
    reason = "the first version" if before is None else why_anew(wanted, results, photos, before)
    if not reason:
        assert before is not None
        return extend(wanted, results, photos, before, folder)
    fitted, items = _fit_and_write(wanted, results, photos, folder)
    vectors = np.load(folder / "vectors.npy", mmap_mode="r")
    made = planned(wanted.kind, len(items), vectors.shape[1], wanted.budget_mb, wanted.threads)
    if made.kind != "flat":
        (fill or (lambda made, folder: ann_build.build(made, folder, seed=SEED)))(made, folder)
    index = AnnIndex.open(folder, made)
    parameters = tuned(index, wanted.recall) if index.rows else {}
    index = AnnIndex.open(folder, made, parameters=parameters)
    _write_rest(folder, items, fitted)
    return Built(
        folder, index, parameters, items, fitted, len(items), 0, reason, quantisation_error(index, _sample(index))
    )


def planned(kind: str, rows: int, dim: int, budget_mb: float, threads: int) -> Plan:
    """`retrieval.ann_plan.plan` of the settings.

    Raises:
        UserError: an index of that kind does not fit so many garments or the budget.
    """
    try:
        return plan(kind, rows, dim, budget_mb=budget_mb, threads=threads)
    except ValueError as error:
        raise UserError(f"gallery.index, gallery.memory_mb: {error}") from None


def tuned(index: AnnIndex, recall: float) -> dict[str, Any]:
    """`retrieval.ann.tune` on stored rows, towards MARGIN more than this recall, or as much as there is.

    Raises:
        UserError: the best setting misses it.
    """
    sample = _sample(index)
    for target in (recall + MARGIN * (1 - recall), recall):  # the margin may be out of reach
        try:
            return tune(index, sample, target)
        except ValueError as error:
            missed = error
    raise UserError(f"gallery.recall {recall:g}: {missed}; or ask for less, or for another gallery.index")


def why_anew(wanted: Wanted, results: Results, photos: pa.Table, before: Gallery) -> str:
    """Why the version before cannot be extended; "" where it can."""
    record = before.record
    if record["results"] != results.store.uri.rpartition("/")[2]:
        return "models, weights or settings changed"
    if record["search"] != json.loads(json.dumps(wanted.search)):
        return "the search's steps changed"
    if wanted.retrain == "now":
        return "asked to train again"
    if not len(before):
        return "there were no garments to go on from"
    if record["wanted_kind"] != wanted.kind or record["budget_mb"] != wanted.budget_mb:
        return "another kind of index or budget"
    index = before.index.plan
    if index.kind != "flat" and record.get("tuned_to", wanted.recall) != wanted.recall:
        return "another recall to tune to"
    if index.kind == "flat" and wanted.kind == "auto":
        now = plan("auto", len(before), index.dim, budget_mb=wanted.budget_mb, threads=wanted.threads, timed=False)
        if now.kind != "flat":
            return f"the gallery outgrew exact search: {now.kind}"
    if index.kind != "flat" and not len(before) < OUTGROWN * max(index.rows, 1):
        return "the gallery outgrew its index"
    if wanted.retrain == "auto" and (advice := record.get("advice") or wanted.advice):
        return f"trained again: {advice}"
    if any(step.name == "dba" for step in wanted.plan):
        return "dba moves every row"
    return ""


def extend(wanted: Wanted, results: Results, photos: pa.Table, before: Gallery, folder: Path) -> Built:
    """The version before with tonight's garments put in and yesterday's taken out."""
    known = dict(zip(before.items.column("id").to_pylist(), before.items.column("digest").to_pylist(), strict=True))
    old = {(one, digest) for one, digest in known.items()}
    fresh: list[pa.Table] = []
    vectors: list[np.ndarray] = []
    kept: list[pa.Table] = []
    fitted = before.fitted
    for line, rows in garments(results, photos):
        new = np.array(
            [
                (one, digest) not in old
                for one, digest in zip(line.column("id").to_pylist(), line.column("digest").to_pylist(), strict=True)
            ],
            bool,
        )
        kept.append(line)
        if new.any():
            fresh.append(line.filter(pa.array(new)))
            vectors.append(
                _moved(wanted.plan, {name: one[new] for name, one in rows.items()}, wanted.search["weights"], fitted)
            )
    items = pa.concat_tables([ITEMS.empty_table(), *kept])
    now = {
        (one, digest)
        for one, digest in zip(items.column("id").to_pylist(), items.column("digest").to_pylist(), strict=True)
    }
    gone = np.array(sorted(one for one, digest in old if (one, digest) not in now), np.int64)
    added = pa.concat_tables([ITEMS.empty_table(), *fresh]).column("id").to_numpy()
    dim = before.index.plan.dim
    inner = folder / "index"
    index = before.index.with_changes(
        inner, np.concatenate([np.zeros((0, dim), np.float32), *vectors]), added, gone, seed=SEED
    )
    for file in sorted(inner.iterdir()):
        file.rename(folder / file.name)
    inner.rmdir()
    parameters = dict(before.record["parameters"])
    index = AnnIndex.open(folder, index.plan, parameters=parameters)
    _write_rest(folder, items, fitted)
    sample = np.concatenate([np.zeros((0, dim), np.float32), *vectors])[:SAMPLE]
    error = quantisation_error(index, sample if len(sample) else _sample(index))
    return Built(folder, index, parameters, items, fitted, len(added), len(gone), "", error)


def _fit_and_write(wanted: Wanted, results: Results, photos: pa.Table, folder: Path) -> tuple[steps.Fitted, pa.Table]:
    """Learn what the steps learn, block by block, and write vectors.npy and ids.npy of all garments."""

    def blocks() -> Iterator[Rows]:
        return (rows for _, rows in garments(results, photos))

    weights = wanted.search["weights"]
    fitted = steps.Fitted(wanted.plan, weights, {})
    fitted.learned = steps.learn_from(wanted.plan, blocks, weights)
    lines: list[pa.Table] = []
    n, dim = 0, 0
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".rows-") as file:  # the number of rows is known at the end
        for line, rows in garments(results, photos):
            moved = _moved(wanted.plan, rows, weights, fitted)
            file.write(np.ascontiguousarray(moved, np.float32).tobytes())
            lines.append(line)
            n, dim = n + len(moved), moved.shape[1]
        file.flush()
        items = pa.concat_tables([ITEMS.empty_table(), *lines])
        dim = dim or sum(results.models.values())
        whole = np.memmap(file.name, np.float32, "r", shape=(n, dim)) if n else np.zeros((0, dim), np.float32)
        augmented = next((step for step in wanted.plan if step.name == "dba"), None)
        if augmented is not None and n:
            how = {key: augmented.options[key] for key in ("weights", "alpha")}
            with tempfile.NamedTemporaryFile(dir=folder, prefix=".moved-") as other:
                out = np.memmap(other.name, np.float32, "w+", shape=(n, dim))
                ann_build.write_vectors(
                    folder, dba.augment(whole, augmented.options["k"], out=out, **how), items.column("id").to_numpy()
                )
        else:
            ann_build.write_vectors(folder, whole, items.column("id").to_numpy())
    return fitted, items


def _moved(plan_: Sequence[Step], rows: Rows, weights: Sequence[float] | None, fitted: steps.Fitted) -> np.ndarray:
    """Rows after the steps that treat each alike."""
    for i, step in enumerate(plan_):
        if KINDS[step.name].place < steps.GALLERY:
            rows = steps.on_rows(step, rows, weights, fitted.learned.get(i, {}))
    (moved,) = rows.values()
    return moved


def _write_rest(folder: Path, items: pa.Table, fitted: steps.Fitted) -> None:
    pq.write_table(items, folder / "items.parquet", compression="zstd")
    if fitted.learned:
        (folder / "steps.safetensors").write_bytes(steps.save(fitted))


def _sample(index: AnnIndex) -> np.ndarray:
    """Living rows, spread over the gallery by a fixed seed."""
    alive = np.ones(len(index.ids), bool)
    alive[index.dead] = False
    rows = np.flatnonzero(alive)
    chosen = (
        np.sort(np.random.default_rng(SEED).choice(rows, min(SAMPLE, len(rows)), replace=False)) if len(rows) else rows
    )
    return np.asarray(index.vectors[chosen], np.float32)


def described(built: Built) -> dict[str, Any]:
    """The parts of version.json that building knows."""
    return {
        "index": asdict(built.index.plan), "parameters": dict(built.parameters), "rows": built.index.rows,
        "dead_share": built.index.dead_share, "quantisation_error": None if np.isnan(built.error) else built.error,
    }  # fmt: skip


def refused(plan_: Sequence[Step]) -> str:
    """Why a gallery cannot be searched by these steps; "" where it can."""
    names = [step.name for step in plan_]
    if "rank_fusion" in names:
        return "rank_fusion wants a list of every model, and a gallery has one index; join the rows with concat"
    if "dba" in names and "concat" in names and names.index("dba") < names.index("concat"):
        return "dba before concat wants every model's rows at once; put it after concat"
    return ""
