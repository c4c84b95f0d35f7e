"""The figures of a run, from its tables and the set's ground truth: metrics.json as the contract has it, and failures.parquet.

Fractions in [0, 1]; null where there is nothing to measure, with a sentence under `summary.notes` that says what is missing.
"""

import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from detection.categories import CATEGORIES
from detection.metrics import evaluate_boxes, evaluate_masks, truth_arrays
from jobs import tables
from jobs.ledger import STAGES, Outcome, Run, Unit, as_json
from jobs.rank import Search
from retrieval.metrics import Results, evaluate, ground_truth
from store.objects import ObjectStore


def score(run: Run, units: Sequence[Unit]) -> Outcome:
    """Write metrics.json and failures.parquet; `units` is all the work before."""
    start = time.perf_counter()
    truth = _truth(run)
    failures = run.failures(units)
    detection = _detection(run, truth)
    retrieval = {kind: _retrieval(run, kind, truth) for kind in run.box_kinds}
    n_failed = len({row["image_id"] for row in failures})
    metrics = {
        "schema": 1,
        "summary": _summary(detection, retrieval) | {"notes": _notes(run)},
        "detection": detection,
        "retrieval": retrieval,
        "images": {"total": run.selected.images, "done": run.selected.images - n_failed, "failed": n_failed},
        "queries_per_photo": _queries_per_photo(run),
        "seconds": _seconds(run, units, time.perf_counter() - start),
    }
    columns = {name: [row[name] for row in failures] for name in tables.FAILURES.names}
    outputs = {
        "failures.parquet": tables.write(run.store, "failures.parquet", tables.table(tables.FAILURES, columns)),
        "metrics.json": tables.publish(run.store, "metrics.json", as_json(metrics)),
    }
    return Outcome(outputs, len(failures), {"infer": time.perf_counter() - start})


def _truth(run: Run) -> pa.Table:
    """Ids, sources and ground truth of the photos the run takes."""
    columns = ["image_id", "width", "height", "source", "pair_id", "weak_box", "items"]
    parts = []
    for shard in run.selected.shards:
        rows = run.images.read(shard.name, columns=columns)
        parts.append(rows if shard.rows is None else rows.take(pa.array(shard.rows, pa.int64())))
    return pa.concat_tables(parts)


def _detection(run: Run, truth: pa.Table) -> dict[str, Any]:
    """AP of every detector and of the fused boxes: of boxes, of consumers' photos alone, and of masks where there are any."""
    true, consumers = truth_arrays(truth), truth_arrays(truth, "user")
    judged, asked = true.pop("judged"), consumers.pop("judged")
    places = {model.name: f"detections/{model.name}" for model in run.detectors} | {"fused": "fused"}
    figures = {}
    for name, place in places.items():
        boxes = _boxes(run, place)
        figures[name] = evaluate_boxes(true, boxes, judged) | {
            "consumers": _few(evaluate_boxes(consumers, boxes, asked)),
            "masks": _few(_masks(run, place, truth, true, judged)),
        }
    return figures


def _few(figures: dict[str, Any] | None) -> dict[str, Any] | None:
    """Without the figures of each category."""
    return figures and {name: value for name, value in figures.items() if name != "per_category"}


def _masks(
    run: Run, place: str, truth: pa.Table, true: dict[str, np.ndarray], judged: np.ndarray
) -> dict[str, Any] | None:
    """Mask AP; None where this detector gives no masks or no true item has a polygon."""
    names = ["image_id", "score", "category_id", "mask"]
    parts = [tables.read(run.store, f"{place}/{shard.name}.parquet", names) for shard in run.selected.shards]
    found = pa.concat_tables(parts)
    found = found.filter(pc.is_valid(found.column("mask")))
    photos = truth.filter(pc.invert(truth["weak_box"]))
    polygons = [item["segmentation"] for items in photos["items"].to_pylist() for item in items]
    if not len(found) or not any(polygons):
        return None
    sizes = dict(
        zip(
            photos["image_id"].to_pylist(),
            zip(photos["height"].to_pylist(), photos["width"].to_pylist(), strict=True),
            strict=True,
        )
    )
    columns = {name: found.column(name).to_numpy() for name in names if name != "mask"}
    return evaluate_masks(
        true | {"segmentation": polygons}, columns | {"mask": found.column("mask").to_pylist()}, judged, sizes
    )


def boxes(store: ObjectStore, keys: Iterable[str]) -> dict[str, np.ndarray]:
    """Boxes of some shards' tables, detections or fused, as `detection.metrics` takes them."""
    names = ["image_id", "bbox", "score", "category_id"]
    table = pa.concat_tables([tables.read(store, key, names) for key in keys])
    plain = {name: table.column(name).to_numpy() for name in names if name != "bbox"}
    return plain | {"bbox": tables.rows_of(table.column("bbox")).astype(np.float64)}


def _boxes(run: Run, folder: str) -> dict[str, np.ndarray]:
    return boxes(run.store, [f"{folder}/{shard.name}.parquet" for shard in run.selected.shards])


def _retrieval(run: Run, kind: str, truth: pa.Table) -> dict[str, Any]:
    """Accuracy of every embedder, of all concatenated where there are several, and of what further steps make of them."""
    query_gt, gallery_gt = ground_truth(truth)
    figures = {}
    for name, place in Search.of(run).judged.items():
        results = results_of(tables.read(run.store, f"rankings/{place.replace('BOXES', kind)}.parquet"))
        figures[name] = evaluate(results, query_gt, gallery_gt, category_names=CATEGORIES)
        if not figures[name]["queries"]:
            figures[name]["top"] = dict.fromkeys(figures[name]["top"])
    return figures


def results_of(rankings: pa.Table) -> Results:
    """The rankings as the metric wants them: lists padded to one length."""
    counts = np.diff(np.r_[0, np.cumsum([len(row) for row in rankings.column("gallery_image_id").to_pylist()])]).astype(
        np.int64
    )
    filled = np.arange(max([*counts.tolist(), 1])) < counts[:, None]
    image_id, bbox = np.zeros(filled.shape, np.int64), np.zeros((*filled.shape, 4))
    gallery_ids = rankings.column("gallery_image_id").combine_chunks()
    boxes = rankings.column("gallery_bbox").combine_chunks()
    image_id[filled] = gallery_ids.flatten().to_numpy(zero_copy_only=False)
    bbox[filled] = boxes.flatten().flatten().to_numpy(zero_copy_only=False).reshape(-1, 4)
    return Results(
        query_image_id=rankings.column("query_image_id").to_numpy(),
        query_bbox=tables.rows_of(rankings.column("query_bbox")).astype(np.float64),
        query_cls=rankings.column("query_category_id").to_numpy().astype(np.int64),
        query_score=rankings.column("query_score").to_numpy().astype(np.float64),
        gallery_image_id=image_id, gallery_bbox=bbox, gallery_count=counts,
    )  # fmt: skip


def _summary(detection: dict[str, Any], retrieval: dict[str, Any]) -> dict[str, Any]:
    """The few figures a person wants."""
    single = {
        name: figures["AP10"] for name, figures in detection.items() if name != "fused" and figures["AP10"] is not None
    }
    best = max(single, key=lambda name: single[name]) if single else None
    fused = detection["fused"]
    figures: dict[str, Any] = {
        "fused_AP": fused["AP"], "fused_AP10": fused["AP10"], "fused_AP10_50": fused["AP10_50"], "fused_AP50": fused["AP50"],
        "best_detector": best, "best_detector_AP10": single.get(best) if best else None,
    }  # fmt: skip
    for kind, models in retrieval.items():
        judged = models.get("steps") or models.get("concat") or next(iter(models.values()))
        figures[f"acc@1_{kind}"], figures[f"acc@10_{kind}"] = judged["top"]["1"], judged["top"]["10"]
    return figures


def _notes(run: Run) -> list[str]:
    """What could not be measured, and why."""
    has = run.selected
    notes = []
    if not has.items:
        notes.append("no ground truth: boxes and rankings are written, nothing is judged")
    elif "true" not in run.box_kinds:
        notes.append("true boxes were not asked for (setting `boxes`)")
    if not has.users:
        notes.append("no consumer photos: there is an index and there are no queries")
    if not has.shops:
        notes.append("no shop photos: the gallery is empty, so queries have no results")
    refused = getattr(run.images.manifest, "failures", 0)
    if refused:
        notes.append(
            f"{refused} photos were refused at ingestion and are in no figure; see failures.parquet of the image set"
        )
    return notes


def _queries_per_photo(run: Run) -> float | None:
    """Queries asked for each consumer photo, by detected boxes where there are some."""
    if not run.selected.users:
        return None
    kind = "detected" if "detected" in run.box_kinds else run.box_kinds[0]
    return len(tables.read(run.store, f"rankings/{kind}.parquet", ["query_item"])) / run.selected.users


def _seconds(run: Run, units: Iterable[Unit], evaluating: float) -> dict[str, float]:
    """Worker seconds of each stage, from the marks: every shard once, however often the run was stopped."""
    spent = dict.fromkeys(STAGES[:-1], 0.0)
    for unit in units:
        spent[unit.stage] += sum(run.marks[unit.path]["seconds"].values())
    spent["evaluate"] = evaluating
    return {stage: round(seconds, 2) for stage, seconds in spent.items()}
