"""Rank: for every consumer item the most similar shop items; FAISS is used here and torch is not.

`jobs/rank.py` lists what is read and written; the steps are in `retrieval.steps`. The gallery are the items of shop
photos, the queries those of consumer photos. Without further steps similarity is the inner product of embeddings of
unit length, exact; equal similarities are ordered by gallery row, that is by photo in the set's order and item. The
embeddings of both sides are in memory (items x D x 4 bytes, twice while a step changes them).
"""

import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.runs import tables
from jobs.runs.marks import CODES, WHOLE, Outcome, Unit, as_json
from jobs.runs.progress import say
from jobs.runs.reader import EmbeddedItems, facts_of, read_photos, read_sides
from jobs.runs.run import Run
from jobs.runs.settings import record
from jobs.stages.classify import classifier_of
from retrieval import steps
from retrieval.hypotheses import read_hypotheses
from retrieval.search_plan import SearchPlan

SUBMITTED = 20  # results of a query in the benchmark's format


def units(run: Run) -> list[Unit]:
    """One for each kind of boxes, over all shards."""
    settings = {"search": record(run.settings.search), "embedders": [model.name for model in run.embedders]}
    taken = {shard.name: shard.basis() for shard in run.selected.shards}
    plan, units, classifier = run.search_plan, [], classifier_of(run).sha256
    for kind in run.box_kinds:
        embedded = [unit for path, unit in run.units["embed"].items() if path.startswith(f"embed/{kind}/")]
        embeddings = run.digests(embedded)
        items = run.digests(run.units["fuse"].values(), below=f"items/{kind}/")
        inputs: dict[str, Any] = {"shards": taken, "items": items, "embeddings": embeddings}
        if kind == "detected" and classifier:
            inputs["classifier"] = classifier
        basis = None if None in (items, embeddings) else {"code": CODES["rank"], "settings": settings, "inputs": inputs}
        outputs = [f"index/{kind}/{name}" for name in (*plan.index_files, "ids.parquet", "index.json")]
        outputs += [f"rankings/{kind}.parquet", *(f"rankings/{kind}/{name}.parquet" for name in plan.beside)]
        outputs += ["submission.json"] if kind == "detected" else []
        units.append(Unit(f"rank/{kind}/{WHOLE}", tuple(outputs), basis, run.selected.images))
    return units


def run_unfinished(run: Run) -> None:
    for kind in run.box_kinds:
        unit = run.units["rank"][f"rank/{kind}/{WHOLE}"]
        if run.reason(unit):
            outcome = rank(run, kind)
            run.finish(unit, outcome)
            seconds = sum(outcome.seconds.values())
            say(f"rank: {kind} boxes, {outcome.rows} garments of consumers' photos searched for in {seconds:.1f} s")


def rank(run: Run, kind: str) -> Outcome:
    """Search with one kind of boxes, and write the index and the rankings."""
    start = time.perf_counter()
    plan, search = run.search_plan, run.settings.search
    photos = read_photos(run.images, run.selected.shards, ("image_id", "source", "product_id"))
    queries, gallery = read_sides(run.store, kind, run.selected.names, plan.models, photos)
    if kind == "detected":
        classifier = classifier_of(run)
        queries, gallery = (side.classified(classifier) for side in (queries, gallery))
    read = time.perf_counter()

    rankings = {f"{kind}/{name}": _rank_plainly(run, [name], queries, gallery, None) for name in plan.models}
    if "concat" in plan.beside:
        weights = search.weights if plan.joined == plan.own_models else None
        rankings[f"{kind}/concat"] = _rank_plainly(run, plan.own_models, queries, gallery, weights)
    fitted = steps.fit(plan.steps, gallery.embeddings, search.weights)
    facts = facts_of(gallery, photos)
    lists = fitted.rank(queries.embeddings, queries.hypotheses, facts, top_k=search.top_k, pool=search.pool)
    rankings[kind] = _rankings(queries, gallery, *lists)
    searched = time.perf_counter()

    keys = {f"rankings/{name}.parquet": table for name, table in rankings.items()}
    outputs = {key: tables.write(run.store, key, table) for key, table in keys.items()}
    outputs |= _write_index(run, kind, plan, fitted, gallery)
    if kind == "detected":
        outputs["submission.json"] = tables.publish(run.store, "submission.json", submission(rankings[kind]))
    seconds = {"read": read - start, "infer": searched - read, "write": time.perf_counter() - searched}
    spent = {f"{i} {step.name}": round(fitted.seconds.get(i, 0.0), 3) for i, step in enumerate(plan.steps)}
    return Outcome(outputs, len(queries), seconds, notes={"steps": spent})


def _rank_plainly(
    run: Run, names: Sequence[str], queries: EmbeddedItems, gallery: EmbeddedItems, weights: Sequence[float] | None
) -> pa.Table:
    """The ranking by one model, or by several concatenated, without further steps."""
    sides = [{name: side.embeddings[name] for name in names} for side in (queries, gallery)]
    fitted = steps.fit(steps.parse([{"step": "concat"}], names), sides[1], weights)
    unknown, top_k = np.zeros(len(gallery), np.int64), run.settings.search.top_k
    facts = steps.GalleryFacts(gallery.hypotheses, gallery.score, unknown, unknown)
    return _rankings(queries, gallery, *fitted.rank(sides[0], queries.hypotheses, facts, top_k=top_k, pool=top_k))


def _rankings(queries: EmbeddedItems, gallery: EmbeddedItems, rows: np.ndarray, similarity: np.ndarray) -> pa.Table:
    """A table of one row a query, with lists of at most K results; `rows` (Q, K) are gallery rows, -1 for no result."""
    real = rows >= 0
    flat = rows[real]  # the results of all queries, one query after the other; `offsets` says where each begins
    offsets = pa.array(np.r_[0, np.cumsum(real.sum(axis=1))], pa.int32())
    boxes = pa.FixedSizeListArray.from_arrays(pa.array(gallery.bbox[flat].reshape(-1), pa.float32()), 4)
    columns = {
        "query_image_id": queries.image_id, "query_item": queries.item, "query_bbox": queries.bbox,
        "query_score": queries.score, "query_category_id": queries.category_id,
        "query_hypotheses": queries.hypotheses,
        "gallery_image_id": pa.ListArray.from_arrays(offsets, pa.array(gallery.image_id[flat], pa.int64())),
        "gallery_item": pa.ListArray.from_arrays(offsets, pa.array(gallery.item[flat], pa.int32())),
        "gallery_bbox": pa.ListArray.from_arrays(offsets, boxes),
        "similarity": pa.ListArray.from_arrays(offsets, pa.array(similarity[real], pa.float32())),
    }  # fmt: skip
    return tables.table(tables.RANKINGS, columns)


def _write_index(
    run: Run, kind: str, plan: SearchPlan, fitted: steps.FittedSearch, gallery: EmbeddedItems
) -> dict[str, str]:
    """Write the gallery's embeddings, their items, and what the steps learned; returns the digests by key."""
    from retrieval import index  # here: imports FAISS

    folder = f"index/{kind}"
    joined = len(fitted.gallery) == 1
    indexes = {"index.faiss" if joined else f"{name}.faiss": rows for name, rows in fitted.gallery.items()}
    about = {
        "schema": 2,
        "rows": len(gallery),
        "dim": {name: rows.shape[1] for name, rows in indexes.items()},
        "metric": "inner product",
        "models": [{"name": model.name, "weights": model.weights} for model in run.embedders],
        "weights": run.settings.search.weights,
        "steps": [step.as_json() for step in fitted.steps],
    }
    columns = {field.name: getattr(gallery, field.name) for field in tables.INDEX_IDS}
    ids = tables.table(tables.INDEX_IDS, columns)
    files = {name: index.save(index.build(rows)) for name, rows in indexes.items()}
    if "steps.safetensors" in plan.index_files:
        files["steps.safetensors"] = steps.save(fitted)
    outputs = {f"{folder}/{name}": tables.publish(run.store, f"{folder}/{name}", data) for name, data in files.items()}
    outputs[f"{folder}/ids.parquet"] = tables.write(run.store, f"{folder}/ids.parquet", ids)
    outputs[f"{folder}/index.json"] = tables.publish(run.store, f"{folder}/index.json", as_json(about))
    return outputs


def submission(rankings: pa.Table) -> bytes:
    """The rankings in the benchmark's format, JSON: an entry a hypothesis, with the first 20 results.

    The hypotheses of a query follow each other and have one list. A query whose category nobody knows has one entry, of
    category 0.
    """
    known, lists = read_hypotheses(rankings, "query_"), ["gallery_image_id", "gallery_bbox"]
    columns = ["query_image_id", "query_bbox", "query_category_id", "query_score", *lists]
    entries = []
    for row, query in enumerate(
        rankings.select(columns).rename_columns({"query_category_id": "query_cls"}).to_pylist()
    ):
        query |= {name: query[name][:SUBMITTED] for name in lists}
        real = known.real[row]
        pairs = zip(known.category_id[row, real].tolist(), known.score[row, real].tolist(), strict=True)
        entries += [query | {"query_cls": cls, "query_score": score} for cls, score in pairs] or [query]
    return (json.dumps(entries) + "\n").encode()
