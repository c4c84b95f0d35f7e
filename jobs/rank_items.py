"""Rows of all items in, rankings out, for one kind of boxes.

Gallery: items of shop photos. Queries: items of consumer photos. Similarity is the inner product of unit rows, exact; equal
similarities are ordered by gallery row, that is by photo in the set's order and item. Queries go through in blocks; the gallery's rows
are in memory (photos x items x D x 4 bytes).
"""

import json
import time
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from jobs import tables
from jobs.ledger import Outcome, Run, as_json
from postproc.concat import concat
from retrieval import index

BLOCK = 4096  # queries searched at once
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
    items = _concat(run, [f"items/{kind}/{shard.name}.parquet" for shard in run.selected.shards], None)
    features = [_features(run, kind, model.name, items) for model in run.embedders]
    there = np.logical_and.reduce([known for _, known in features])
    is_user = _is_user(run, items.column("image_id").to_numpy())
    queries, gallery = _side(items, there & is_user), _side(items, there & ~is_user)
    read = time.perf_counter()

    found: dict[str, pa.Table] = {}
    rows = [matrix for matrix, _ in features]
    for model, matrix in zip(run.embedders, rows, strict=True):
        found[f"{kind}/{model.name}"], shop = _search(matrix, queries, gallery, run.settings.search.top_k)
    if len(rows) > 1:
        usable = np.flatnonzero(there)
        joined = np.zeros((len(items), sum(matrix.shape[1] for matrix in rows)), np.float32)
        joined[usable] = concat([matrix[usable] for matrix in rows], run.settings.search.weights)
        found[kind], shop = _search(joined, queries, gallery, run.settings.search.top_k)
    else:
        found[kind] = found[f"{kind}/{run.embedders[0].name}"]
    searched = time.perf_counter()

    outputs = {
        f"rankings/{name}.parquet": tables.write(run.store, f"rankings/{name}.parquet", table)
        for name, table in found.items()
    }
    outputs |= _write_index(run, kind, shop, gallery)
    if kind == "detected":
        outputs["submission.json"] = tables.publish(run.store, "submission.json", submission(found[kind]))
    seconds = {"read": read - start, "infer": searched - read, "write": time.perf_counter() - searched}
    return Outcome(outputs, len(queries.image_id), seconds)


def _concat(run: Run, keys: list[str], columns: list[str] | None) -> pa.Table:
    return pa.concat_tables([tables.read(run.store, key, columns) for key in keys])


def _features(run: Run, kind: str, model: str, items: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """One model's rows in the order of the items: (N, D) float32, and (N,) bool whether the item has one."""
    table = _concat(run, [f"embeddings/{kind}/{model}/{shard.name}.parquet" for shard in run.selected.shards], None)
    rows = tables.rows_of(table.column("embedding")).astype(np.float32)
    place = {key: row for row, key in enumerate(_keys(items))}
    target = np.array([place.get(key, -1) for key in _keys(table)], np.int64)
    known = np.zeros(len(items), bool)
    known[target[target >= 0]] = True
    matrix = np.zeros((len(items), rows.shape[1]), np.float32)
    matrix[target[target >= 0]] = rows[target >= 0]
    return matrix, known


def _keys(table: pa.Table) -> list[tuple[int, int]]:
    return list(zip(table.column("image_id").to_pylist(), table.column("item").to_pylist(), strict=True))


def _is_user(run: Run, image_ids: np.ndarray) -> np.ndarray:
    """Whether each image is a consumer's."""
    photos = pa.concat_tables(
        [run.images.read(shard.name, columns=["image_id", "source"]) for shard in run.selected.shards]
    )
    users = photos.column("image_id").to_numpy()[np.array(photos.column("source").to_pylist(), object) == "user"]
    return np.isin(image_ids, users)


def _side(items: pa.Table, chosen: np.ndarray) -> Side:
    place = np.flatnonzero(chosen)
    names = ("image_id", "item", "score", "category_id")
    columns = {name: items.column(name).to_numpy()[place] for name in names}
    return Side(bbox=tables.rows_of(items.column("bbox"))[place], place=place, **columns)


def _search(rows: np.ndarray, queries: Side, gallery: Side, top_k: int) -> tuple[pa.Table, "index.faiss.Index"]:
    """The rankings table of all queries, and the index over the gallery."""
    shop = index.build(np.ascontiguousarray(rows[gallery.place]))
    parts = []
    for start in range(0, len(queries.place), BLOCK):
        block = np.ascontiguousarray(rows[queries.place[start : start + BLOCK]])
        parts.append(index.search(shop, block, top_k))
    similarity = np.concatenate([np.zeros((0, top_k), np.float32), *(part[0] for part in parts)])
    found = np.concatenate([np.zeros((0, top_k), np.int64), *(part[1] for part in parts)])
    return _rankings(queries, gallery, similarity, found), shop


def _rankings(queries: Side, gallery: Side, similarity: np.ndarray, found: np.ndarray) -> pa.Table:
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


def _write_index(run: Run, kind: str, shop: "index.faiss.Index", gallery: Side) -> dict[str, str]:
    """The index the rankings were made with, and what its rows are."""
    models = [{"name": model.name, "weights": model.weights} for model in run.embedders]
    about = {"schema": 1, "rows": len(gallery.place), "dim": shop.d, "metric": "inner product", "models": models,
             "weights": run.settings.search.weights}  # fmt: skip
    ids = tables.table(tables.INDEX_IDS, {"image_id": gallery.image_id, "item": gallery.item, "bbox": gallery.bbox})
    folder = f"index/{kind}"
    return {
        f"{folder}/index.faiss": tables.publish(run.store, f"{folder}/index.faiss", index.save(shop)),
        f"{folder}/ids.parquet": tables.write(run.store, f"{folder}/ids.parquet", ids),
        f"{folder}/index.json": tables.publish(run.store, f"{folder}/index.json", as_json(about)),
    }


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
