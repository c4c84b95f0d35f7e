"""Rows of all items in, rankings out, for one kind of boxes.

Gallery: items of shop photos. Queries: items of consumer photos. Without further steps similarity is the inner product of unit rows,
exact; equal similarities are ordered by gallery row, that is by photo in the set's order and item. Both sides' rows are in memory
(items x D x 4 bytes, twice while a step changes them).
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from jobs import tables
from jobs.ledger import Outcome, Run, as_json
from jobs.rank import Search
from retrieval import index, steps

SUBMITTED = 20  # results a query has in the benchmark's format


@dataclass(frozen=True)
class Side:
    """Queries or gallery: what their items are, in the order of their rows.

    Attributes:
        image_id (N,), item (N,), bbox (N, 4) px, score (N,), category_id (N,).
        place: (N,) rows of these items in the table of all items.
    """

    image_id: np.ndarray
    item: np.ndarray
    bbox: np.ndarray
    score: np.ndarray
    category_id: np.ndarray
    place: np.ndarray


def rank(run: Run, kind: str) -> Outcome:
    """Search, and write everything `jobs.rank` names for one kind of boxes."""
    start = time.perf_counter()
    plan = Search.of(run)
    items = _concat(run, [f"items/{kind}/{shard.name}.parquet" for shard in run.selected.shards], None)
    embedded = {
        name: _concat(run, [f"embeddings/{kind}/{name}/{shard.name}.parquet" for shard in run.selected.shards], None)
        for name in plan.models
    }
    places = {name: places_of(items, table) for name, table in embedded.items()}
    there = np.logical_and.reduce([place >= 0 for place in places.values()])
    photos = _photos(run)
    is_user = np.isin(items.column("image_id").to_numpy(), photos["image_id"][photos["source"] == "user"])
    queries, gallery = side_of(items, there & is_user), side_of(items, there & ~is_user)
    asking, answering = (
        {name: rows_at(table, places[name][side.place]) for name, table in embedded.items()}
        for side in (queries, gallery)
    )
    del embedded
    read = time.perf_counter()

    found: dict[str, pa.Table] = {}
    for name in plan.models:
        found[f"{kind}/{name}"] = _plainly([name], asking, answering, queries, gallery, None, run)
    if "concat" in plan.beside:
        weights = run.settings.search.weights if plan.joined == plan.plainly else None
        found[f"{kind}/concat"] = _plainly(plan.plainly, asking, answering, queries, gallery, weights, run)
    fitted = steps.fit(plan.steps, answering, run.settings.search.weights)
    lists = fitted.ask(
        asking,
        queries.category_id,
        facts_of(gallery, photos),
        top_k=run.settings.search.top_k,
        pool=run.settings.search.pool,
    )
    found[kind] = _rankings(queries, gallery, *lists)
    searched = time.perf_counter()

    outputs = {
        f"rankings/{name}.parquet": tables.write(run.store, f"rankings/{name}.parquet", table)
        for name, table in found.items()
    }
    outputs |= _write_index(run, kind, fitted, gallery)
    if kind == "detected":
        outputs["submission.json"] = tables.publish(run.store, "submission.json", submission(found[kind]))
    seconds = {"read": read - start, "infer": searched - read, "write": time.perf_counter() - searched}
    spent = {f"{i} {step.name}": round(fitted.seconds.get(i, 0.0), 3) for i, step in enumerate(plan.steps)}
    return Outcome(outputs, len(queries.image_id), seconds, notes={"steps": spent})


def _plainly(
    names: Sequence[str],
    asking: steps.Rows,
    answering: steps.Rows,
    queries: Side,
    gallery: Side,
    weights: Sequence[float] | None,
    run: Run,
) -> pa.Table:
    """The ranking by one model, or by several concatenated, and nothing else."""
    concat = steps.parse([{"step": "concat"}], names)
    fitted = steps.fit(concat, {name: answering[name] for name in names}, weights)
    nothing = np.zeros(len(gallery.place), np.int64)
    top_k, facts = run.settings.search.top_k, steps.Facts(gallery.category_id, gallery.score, nothing, nothing)
    lists = fitted.ask({name: asking[name] for name in names}, queries.category_id, facts, top_k=top_k, pool=top_k)
    return _rankings(queries, gallery, *lists)


def _concat(run: Run, keys: list[str], columns: list[str] | None) -> pa.Table:
    return pa.concat_tables([tables.read(run.store, key, columns) for key in keys])


def places_of(items: pa.Table, table: pa.Table) -> np.ndarray:
    """(N,) int64: for each item the row of another table with the same image_id and item, -1 where it has none."""
    images = [part.column("image_id").to_numpy() for part in (items, table)]
    numbers = [part.column("item").to_numpy().astype(np.int64) for part in (items, table)]
    _, photo = np.unique(np.concatenate(images), return_inverse=True)
    keys = photo * (int(max([0, *(part.max(initial=0) for part in numbers)])) + 1) + np.concatenate(numbers)
    wanted, held = keys[: len(items)], keys[len(items) :]
    order = np.argsort(held, kind="stable")
    found = np.searchsorted(held[order], wanted)
    there = found < len(held)
    there[there] = held[order[found[there]]] == wanted[there]
    return np.where(there, order[np.minimum(found, len(held) - 1)] if len(held) else -1, -1)


def rows_at(embedded: pa.Table, places: np.ndarray) -> np.ndarray:
    """The embeddings in these rows of a table, (len(places), D) float32."""
    return tables.rows_of(embedded.column("embedding"))[places].astype(np.float32)


def _photos(run: Run) -> dict[str, np.ndarray]:
    """image_id, source and product_id of every photo of the run's shards, in the set's order."""
    names = ["image_id", "source", "product_id"]
    photos = pa.concat_tables([run.images.read(shard.name, columns=names) for shard in run.selected.shards])
    return {name: photos.column(name).to_numpy() for name in names}


def facts_of(gallery: Side, photos: Mapping[str, np.ndarray]) -> steps.Facts:
    """What steps on lists want to know: photos and products numbered; a photo without product id is none."""
    order = np.argsort(photos["image_id"], kind="stable")
    photo = order[np.searchsorted(photos["image_id"], gallery.image_id, sorter=order)]
    products, number = np.unique(photos["product_id"].astype(str)[photo], return_inverse=True)
    number = np.where(products[number] == "", -1, number) if len(number) else number
    return steps.Facts(gallery.category_id, gallery.score, photo, number.astype(np.int64))


def side_of(items: pa.Table, chosen: np.ndarray) -> Side:
    place = np.flatnonzero(chosen)
    names = ("image_id", "item", "score", "category_id")
    columns = {name: items.column(name).to_numpy()[place] for name in names}
    return Side(bbox=tables.rows_of(items.column("bbox"))[place], place=place, **columns)


def _rankings(queries: Side, gallery: Side, found: np.ndarray, similarity: np.ndarray) -> pa.Table:
    """One row a query; lists hold what was found, at most top_k. A row of -1 is no result."""
    real = found >= 0
    flat = found[real]
    offsets = pa.array(np.r_[0, np.cumsum(real.sum(axis=1))], pa.int32())
    boxes = pa.FixedSizeListArray.from_arrays(pa.array(gallery.bbox[flat].reshape(-1), pa.float32()), 4)
    columns = {
        "query_image_id": queries.image_id, "query_item": queries.item, "query_bbox": queries.bbox,
        "query_score": queries.score, "query_category_id": queries.category_id,
        "gallery_image_id": pa.ListArray.from_arrays(offsets, pa.array(gallery.image_id[flat], pa.int64())),
        "gallery_item": pa.ListArray.from_arrays(offsets, pa.array(gallery.item[flat], pa.int32())),
        "gallery_bbox": pa.ListArray.from_arrays(offsets, boxes),
        "similarity": pa.ListArray.from_arrays(offsets, pa.array(similarity[real], pa.float32())),
    }  # fmt: skip
    return tables.table(tables.RANKINGS, columns)


def _write_index(run: Run, kind: str, fitted: steps.Fitted, gallery: Side) -> dict[str, str]:
    """The rows the ranking was made with, what the steps learned, and what the rows are."""
    folder = f"index/{kind}"
    files = {"index.faiss" if len(fitted.rows) == 1 else f"{name}.faiss": rows for name, rows in fitted.rows.items()}
    models = [{"name": model.name, "weights": model.weights} for model in run.embedders]
    about = {"schema": 2, "rows": len(gallery.place), "dim": {name: rows.shape[1] for name, rows in files.items()},
             "metric": "inner product", "models": models, "weights": run.settings.search.weights,
             "steps": [step.as_json() for step in fitted.steps]}  # fmt: skip
    ids = tables.table(tables.INDEX_IDS, {"image_id": gallery.image_id, "item": gallery.item, "bbox": gallery.bbox})
    outputs = {
        f"{folder}/{name}": tables.publish(run.store, f"{folder}/{name}", index.save(index.build(rows)))
        for name, rows in files.items()
    }
    if "steps.safetensors" in Search.of(run).index_files:
        outputs[f"{folder}/steps.safetensors"] = tables.publish(
            run.store, f"{folder}/steps.safetensors", steps.save(fitted)
        )
    outputs[f"{folder}/ids.parquet"] = tables.write(run.store, f"{folder}/ids.parquet", ids)
    outputs[f"{folder}/index.json"] = tables.publish(run.store, f"{folder}/index.json", as_json(about))
    return outputs


def submission(rankings: pa.Table) -> bytes:
    """The rankings in the benchmark's format, JSON: the first 20 results, or as many as there are."""
    entries = [
        {
            "query_image_id": row["query_image_id"],
            "query_bbox": row["query_bbox"],
            "query_cls": row["query_category_id"],
            "query_score": row["query_score"],
            "gallery_image_id": row["gallery_image_id"][:SUBMITTED],
            "gallery_bbox": row["gallery_bbox"][:SUBMITTED],
        }
        for row in rankings.to_pylist()
    ]
    return (json.dumps(entries) + "\n").encode()
