"""Evaluate: average precision of the boxes and accuracy of the rankings, against what the image set knows is right.

In: OUTPUT/detections/, fused/, rankings/, the image set. Out: OUTPUT/metrics.json, OUTPUT/failures.parquet. Figures are
fractions in [0, 1]; null where there is nothing to measure, with a sentence under `summary.notes` that says what is
missing.
"""

import functools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from detection.average_precision import JudgedBoxes
from detection.matching import TrueBoxes
from detection.metrics import judged_ids, true_masks, truth_arrays
from jobs.runs import tables
from jobs.runs.labels import true_categories
from jobs.runs.marks import CODES, STAGES, WHOLE, Outcome, Unit, as_json, fingerprint
from jobs.runs.reader import (
    TRUTH,
    consumers,
    matching_rows,
    read_boxes,
    read_categories,
    read_photos,
    read_rankings,
    read_table,
)
from jobs.runs.run import Run
from jobs.stages.classify import classifier_of
from postproc.calibration import reliability
from retrieval import lookbench
from retrieval.metrics import KS, TOPS
from retrieval.photo_lists import identities
from retrieval.truth import Truth, truth_of
from store.categories import DEEPFASHION2

LONGEST = max(KS)  # list that figures are measured at
BY_LENGTH = (*TOPS, "ndcg", "recall")  # parts of the figures: length of list -> figure


def units(run: Run) -> list[Unit]:
    """One, over the whole run."""
    earlier = earlier_units(run)
    outputs, basis = run.digests(earlier), None
    if outputs is not None:
        names = [[model.name for model in models] for models in (run.detectors, run.embedders)]
        failures = {str(i): str(row) for i, row in enumerate(run.failures(earlier))}
        taken = {shard.name: shard.basis() for shard in run.selected.shards}
        inputs: dict[str, Any] = {"imageset": run.images.digest, "outputs": fingerprint(outputs)}
        inputs |= {"failures": fingerprint(failures), "shards": taken}
        settings = {"models": names, "boxes": list(run.box_kinds)}
        if run.categories != DEEPFASHION2:  # runs from before categories were data stay done
            settings["categories"] = list(run.categories)
        if note := classifier_of(run).note:
            settings["classifier"] = note
        if run.settings.search.top_k < LONGEST:  # runs with longer lists from before `as_ranked` stay done
            settings["top_k"] = run.settings.search.top_k
        basis = {"code": CODES["evaluate"], "settings": settings, "inputs": inputs}
    return [Unit(f"evaluate/{WHOLE}", ("metrics.json", "failures.parquet"), basis, run.selected.images)]


def earlier_units(run: Run) -> list[Unit]:
    """Those of all stages before, in order."""
    return [unit for stage in STAGES[: STAGES.index("evaluate")] for unit in run.units[stage].values()]


def run_unfinished(run: Run) -> None:
    (unit,) = run.units["evaluate"].values()
    start, earlier = time.perf_counter(), earlier_units(run)
    photos = read_photos(run.images, run.selected.shards, (*TRUTH, "attributes"))
    truth = truth_of(photos, whole_photos=not run.detectors)
    failures = run.failures(earlier)
    detection = _detection(run, photos)
    retrieval = {kind: _retrieval(run, kind, truth, photos) for kind in run.box_kinds}
    n_failed = len({row["image_id"] for row in failures})
    metrics = {
        "schema": 1,
        "categories": list(run.categories),
        "summary": _summary(run.categories, detection, retrieval) | {"notes": _notes(run, truth, photos, retrieval)},
        "detection": detection,
        "retrieval": retrieval,
        "item_categories": _item_categories(run, photos),
        "images": {"total": run.selected.images, "done": run.selected.images - n_failed, "failed": n_failed},
        "queries_per_photo": _queries_per_photo(run),
        "seconds": _seconds(run, earlier, time.perf_counter() - start),
    }
    columns = {name: [row[name] for row in failures] for name in tables.FAILURES.names}
    outputs = {
        "failures.parquet": tables.write(run.store, "failures.parquet", tables.table(tables.FAILURES, columns)),
        "metrics.json": tables.publish(run.store, "metrics.json", as_json(metrics)),
    }
    run.finish(unit, Outcome(outputs, len(failures), {"infer": time.perf_counter() - start}))


def _detection(run: Run, photos: pa.Table) -> dict[str, Any]:
    """AP of every detector and of the fused boxes: of boxes, on consumers' photos alone, and of masks if any."""
    shards, categories = _true_shards(run, photos), run.categories
    every, consumers = judged_ids(photos), judged_ids(photos, "user")
    if not run.detectors:  # nothing is detected, so nothing is judged
        every, consumers = every[:0], consumers[:0]
    folders = {model.name: f"detections/{model.name}" for model in run.detectors} | {"fused": "fused"}
    figures = {}
    for name, folder in folders.items():
        boxes, masks = _judge(run, folder, shards)
        figures[name] = boxes.figures(every, categories) | {
            "consumers": _without_categories(boxes.figures(consumers, categories)),
            "masks": _without_categories(masks.figures(every, categories) if masks else None),
        }
    return figures


def _without_categories(figures: dict[str, Any] | None) -> dict[str, Any] | None:
    return figures and {name: value for name, value in figures.items() if name != "per_category"}


@dataclass(frozen=True)
class _TrueShard:
    """What is right in one shard, without its photos of loose boxes."""

    name: str
    photos: pa.Table  # those of loose boxes included
    true: dict[str, np.ndarray]  # as `truth_arrays` gives it
    boxes: TrueBoxes

    @property
    def has_polygons(self) -> bool:
        items = self._judging.column("items").combine_chunks().flatten()
        return bool(pc.any(pc.greater(pc.list_value_length(items.field("segmentation")), 0)).as_py())

    @functools.cached_property
    def masks(self) -> list[Any]:
        """Of each item of `true`."""
        photos = self._judging.select(["image_id", "height", "width", "items"]).to_pylist()
        polygons = [item["segmentation"] for photo in photos for item in photo["items"]]
        return true_masks(
            self.true, polygons, {photo["image_id"]: (photo["height"], photo["width"]) for photo in photos}
        )

    @property
    def _judging(self) -> pa.Table:
        return self.photos.filter(pc.invert(self.photos["weak_box"]))


def _true_shards(run: Run, photos: pa.Table) -> list[_TrueShard]:
    """`photos` are those of all shards, in order."""
    shards, start = [], 0
    for taken in run.selected.shards:
        part = photos.slice(start, taken.images)
        start += taken.images
        true = truth_arrays(part)
        judged = true.pop("judged")[: None if run.detectors else 0]
        shards.append(_TrueShard(taken.name, part, true, TrueBoxes(true, judged, len(run.categories))))
    return shards


def _judge(run: Run, folder: str, shards: Sequence[_TrueShard]) -> tuple[JudgedBoxes, JudgedBoxes | None]:
    """Boxes and masks of one detector, a shard in memory at a time; None where it has no masks or no item a polygon."""
    boxes, masks, n_masks = JudgedBoxes(), JudgedBoxes(), 0
    have_polygons = any(shard.has_polygons for shard in shards)
    for shard in shards:
        boxes.add_boxes(shard.boxes, shard.true, read_boxes(run.store, folder, [shard.name]))
        if have_polygons:
            plain = ["image_id", "score", "category_id"]
            table = read_table(run.store, folder, [shard.name], [*plain, "mask"])
            table = table.filter(pc.is_valid(table.column("mask")))
            found = {name: table.column(name).to_numpy() for name in plain} | {"mask": table.column("mask").to_pylist()}
            masks.add_boxes(shard.boxes, shard.true, found, shard.masks if len(table) else ())
            n_masks += len(table)
    return boxes, masks if n_masks else None


def _retrieval(run: Run, kind: str, truth: Truth, photos: pa.Table) -> dict[str, Any]:
    """Figures of every embedder, of all concatenated where there are several, and after further steps.

    Acc@k, mAP, MRR and nDCG by the run's truth; LookBench's `coarse` and `fine` where photos have graded attributes.
    """
    figures = {}
    for name, place in run.search_plan.judged.items():
        rankings = read_rankings(run.store, place.replace("BOXES", kind))
        judged = truth.figures(rankings, run.categories) | lookbench.graded_figures(rankings, photos)
        figures[name] = as_ranked(judged, run.settings.search.top_k)
    return figures


def as_ranked(figures: dict[str, Any], top_k: int) -> dict[str, Any]:
    """Figures of a ranking, with None for those of lists longer than `top_k`: nobody knows what would come there.

    >>> as_ranked({"top": {"1": 0.5, "5": 0.8, "10": 0.8}, "map": 0.6}, 5)
    {'top': {'1': 0.5, '5': 0.8, '10': None}, 'map': 0.6}
    """
    known: dict[str, Any] = {}
    for name, part in figures.items():
        if name in BY_LENGTH and all(map(str.isdigit, part)):  # a category too may be called "top"
            known[name] = {k: value if int(k) <= top_k else None for k, value in part.items()}
        else:
            known[name] = as_ranked(part, top_k) if isinstance(part, dict) else part
    return known


def _item_categories(run: Run, photos: pa.Table) -> dict[str, Any] | None:
    """How well the categories of detected garments are known, where true boxes tell: of boxes that are right.

    Returns boxes, how many overlap a true box at least by half; top_1, the share of those whose first hypothesis is the
    true box's category; top_1_fused, the same by the category of the fused box alone; calibration_error, the expected
    one of the first hypothesis's share of all; bins, rising confidence: {above, boxes, confidence, accuracy}. None
    where there is nothing to judge.
    """
    if "detected" not in run.box_kinds or not run.selected.items or not run.detectors:
        return None
    found, confidence, image_id, item, bbox = read_categories(run.store)
    items = read_table(run.store, "items/detected", run.selected.names, ["image_id", "item", "category_id"])
    fused = items.column("category_id").to_numpy()[matching_rows(pa.table({"image_id": image_id, "item": item}), items)]
    label = true_categories(image_id, bbox, photos)
    known = label > 0
    if not known.any():
        return None
    table = reliability(confidence[known], (found == label)[known])
    lows = np.linspace(0, 1, len(table.count), endpoint=False).round(6).tolist()
    names = ("above", "boxes", "confidence", "accuracy")
    columns = (lows, table.count.tolist(), table.confidence.round(4).tolist(), table.accuracy.round(4).tolist())
    return {
        "boxes": int(known.sum()), "top_1": float((found == label)[known].mean()),
        "top_1_fused": float((fused == label)[known].mean()), "calibration_error": table.error,
        "bins": [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)],
    }  # fmt: skip


def _summary(categories: Sequence[str], detection: dict[str, Any], retrieval: dict[str, Any]) -> dict[str, Any]:
    """The few figures a person wants. The best detector is that of the best AP10, or AP where AP10 means nothing.

    `acc@K_BOXES` is with all hypotheses of a query; with detected boxes it also comes with its own category alone and
    whatever the category, as `retrieval.metrics.evaluate` says.
    """
    singles = {name: of for name, of in detection.items() if name != "fused"}
    measure = "AP10" if categories == DEEPFASHION2 else "AP"
    measured = {name: of[measure] for name, of in singles.items() if of[measure] is not None}
    best = max(measured, key=measured.__getitem__, default="")
    figures = {f"fused_{name}": detection["fused"][name] for name in ("AP", "AP10", "AP10_50", "AP50")}
    figures |= {"best_detector": best or None, "best_detector_AP10": singles[best]["AP10"] if best else None}
    for kind, models in retrieval.items():
        judged = models.get("steps") or models.get("concat") or next(iter(models.values()))
        figures[f"acc@1_{kind}"], figures[f"acc@10_{kind}"] = judged["top"]["1"], judged["top"]["10"]
        for name in ("one_category", "any_category") if kind == "detected" else ():
            if top := judged.get(f"top_{name}"):  # not where photos are judged
                figures |= {f"acc@{k}_{kind}_{name}": top[k] for k in ("1", "10")}
    return figures


def _notes(run: Run, truth: Truth, photos: pa.Table, retrieval: dict[str, Any]) -> list[str]:
    """What could not be measured, and why."""
    has = run.selected
    notes = classifier_of(run).notes
    if not run.detectors:
        notes.append("no detectors: the whole photo is the item, and detection is not judged")
    if not has.items and truth.kind is None and not has.n_unjudged:
        notes.append("no ground truth: boxes and rankings are written, nothing is judged")
    elif not has.items and run.detectors:
        notes.append("no true boxes: detection is not judged")
    elif has.items and "true" not in run.settings.boxes:
        notes.append("true boxes were not asked for (setting `boxes`)")
    elif has.items and "true" not in run.box_kinds:
        notes.append("true boxes are searched with only where consumers' and shops' photos have some")
    notes += _truth_notes(run, truth, photos, retrieval)
    if not has.users:
        notes.append("no consumer photos: there is an index and there are no queries")
    if not has.shops:
        notes.append("no shop photos: the gallery is empty, so queries have no results")
    if has.n_unjudged:
        notes.append(
            f"not judged, because --limit {has.limit} left out their right shop photos: {has.n_unjudged} queries"
        )
    if refused := getattr(run.images.manifest, "failures", 0):
        where = "see failures.parquet of the image set"
        notes.append(f"{refused} photos, items or polygons were refused at ingestion and are in no figure; {where}")
    return notes


def _truth_notes(run: Run, truth: Truth, photos: pa.Table, retrieval: dict[str, Any]) -> Iterator[str]:
    """What rankings are judged by, and which photos and queries that leaves out."""
    has = run.selected
    if truth.kind == "photo":
        rule = "right are shop photos of the consumer photo's pair_id, else of its product_id"
        reason = "no consumer photo has true boxes with a style: " if run.detectors else ""
        yield f"{reason}rankings are judged by photo, {rule}"
    elif truth.kind is None and has.items and has.users and not has.n_unjudged:
        yield "no consumer photo has a style, a pair_id or a product_id: rankings are written and not judged"
    elif truth.kind == "item":
        known = identities(photos)
        undrawn = pc.list_value_length(photos["items"]).to_numpy() == 0
        if n := int((known.known & undrawn & np.isin(known.image_id, consumers(photos))).sum()):
            reason = "they have no true box, and others' true boxes are what this run is judged by"
            yield f"{n} consumers' photos with a pair_id or a product_id ask nothing: {reason}"
    figures: dict[str, Any] = next((of for models in retrieval.values() for of in models.values()), {})
    if figures.get("queries") and (top_k := run.settings.search.top_k) < LONGEST:
        yield f"lists end at place {top_k} (search.top_k): figures of longer ones, such as Acc@{LONGEST}, are not known"
    if (n := figures.get("unanswered", 0)) and has.shops:
        advice = (
            "do ids of both sides agree (P1, not p1 or P1.0)?" if n == figures["queries"] else "they count as wrong"
        )
        yield f"{n} of {figures['queries']} queries have no right answer among the shop photos; {advice}"


def _queries_per_photo(run: Run) -> float | None:
    """Queries asked for each consumer photo, by detected boxes where there are some."""
    if not run.selected.users:
        return None
    kind = "detected" if "detected" in run.box_kinds else run.box_kinds[0]
    return len(tables.read(run.store, f"rankings/{kind}.parquet", ["query_item"])) / run.selected.users


def _seconds(run: Run, units: Sequence[Unit], evaluating: float) -> dict[str, float]:
    """Worker seconds of each stage, from the marks: every shard once, however often the run was stopped."""
    spent = dict.fromkeys(STAGES[:-1], 0.0)
    for unit in units:
        spent[unit.stage] += sum(run.marks[unit.path]["seconds"].values())
    spent["evaluate"] = evaluating
    return {stage: round(seconds, 2) for stage, seconds in spent.items()}
