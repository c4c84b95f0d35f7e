"""The page index.html: the main figures, what changed since an earlier run, the most confident mistakes.

Two runs are compared by their metrics.json, figure by figure; only where they judged the same photos.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from detection.average_precision import AP10_IDS
from jobs.reports.figures import BOXES, accuracy_at, final_list, final_name, judged_models, main_length, other_tops
from jobs.reports.pages import count, duration, percent, title_of
from jobs.runs.run_record import digests, read_record
from store.categories import DEEPFASHION2, recorded
from store.objects import ObjectMissing, ObjectStore

DETECTION = ("AP", "AP50", "AP10", "AP10_50")
RETRIEVAL = {"Acc@1": "1", "Acc@10": "10", "Acc@20": "20"}
OWN_CATEGORY = {"Acc@1, own category": "1", "Acc@10, own category": "10"}  # of detected boxes, without other hypotheses


@dataclass(frozen=True)
class Tile:
    """One of the main figures; `owner` and `measure` name it in a `Comparison`, empty where it is not compared.

    `sure` is its 95 % interval, and for an accuracy the level of chance.
    """

    name: str
    value: str
    note: str
    owner: str = ""
    measure: str = ""
    sure: str = ""


@dataclass(frozen=True)
class Change:
    """One figure of both runs, a fraction in [0, 1]; None where a run did not measure it.

    `owner` is a detector, "fused", boxes and model, or boxes and their final list, which the two runs may make of
    different models.
    """

    owner: str
    measure: str
    now: float | None
    then: float | None

    @property
    def difference(self) -> float | None:
        return None if self.now is None or self.then is None else self.now - self.then


@dataclass(frozen=True)
class Comparison:
    """This run's figures beside those of an earlier one."""

    uri: str  # the earlier run's folder
    recorded: str  # when it was started, empty when unknown
    problem: str  # why nothing is compared, else empty
    changes: tuple[Change, ...] = ()  # the figures that at least one of them measured

    @property
    def title(self) -> str:
        return title_of(self.uri)

    def difference(self, owner: str, measure: str) -> float | None:
        return next((c.difference for c in self.changes if (c.owner, c.measure) == (owner, measure)), None)

    def tables(self) -> list[tuple[list[str], list[tuple[str, list[Change | None]]]]]:
        """Detection, then retrieval: names of the measures, and for each owner its changes in that order."""
        tables = []
        for measures in (list(DETECTION), [*RETRIEVAL, *OWN_CATEGORY]):
            cells = {(change.owner, change.measure): change for change in self.changes if change.measure in measures}
            owners = dict.fromkeys(owner for owner, _ in cells)
            measures = [measure for measure in measures if any(measure == name for _, name in cells)]
            if owners:
                tables.append((measures, [(o, [cells.get((o, measure)) for measure in measures]) for o in owners]))
        return tables


def tiles(metrics: dict[str, Any], sure: Mapping[tuple[str, str], str]) -> list[Tile]:
    """The main figures of metrics.json, for the top of the page, without those that there was nothing to measure for.

    `sure` has what is known of how sure a figure is, by its owner and measure.
    """
    if not metrics:
        return []
    fused = (metrics.get("detection") or {}).get("fused") or {}
    categories = recorded(metrics)
    notes = {"AP50": f"average precision at IoU 0.5, {len(categories):,} categories"}
    if categories == DEEPFASHION2:
        # AP10_50 is AP50 over the categories of AP10
        notes["AP10_50"] = f"the same over the {len(AP10_IDS)} frequent categories"
    else:
        notes["AP"] = "the mean over IoU 0.50 to 0.95"
    main = [
        Tile(f"{measure}, fused", percent(fused.get(measure)), note, "fused", measure, sure.get(("fused", measure), ""))
        for measure, note in notes.items()
        if fused.get(measure) is not None
    ]
    for boxes in BOXES:
        models = judged_models(metrics, boxes)
        name, k = final_name(models), main_length(models)
        if name is None or k is None:
            continue
        figures: dict[str, Any] = models[name]
        others = [f"{title} {percent(figures[key].get(k))}" for title, key in other_tops(metrics, boxes).items()]
        note = ", ".join([f"{name}, {count(figures.get('queries'))} queries", *others])
        value, owner, measure = percent(accuracy_at(figures, k)), final_list(boxes), f"Acc@{k}"
        main.append(Tile(f"{measure}, {boxes} boxes", value, note, owner, measure, sure.get((owner, measure), "")))
    images = metrics.get("images") or {}
    note = f"of {count(images.get('total'))}, {count(images.get('failed'))} failed"
    seconds = [s for s in (metrics.get("seconds") or {}).values() if s is not None]
    main.append(Tile("images done", count(images.get("done")), note))
    main.append(Tile("worker time", duration(sum(seconds) if seconds else None), "all stages, all workers"))
    return main


def compare(metrics: dict[str, Any], run: dict[str, Any], earlier: ObjectStore) -> Comparison:
    """Compare this run, its metrics.json and run.json, with the one in the folder `earlier`.

    Where that has no metrics.json, or ran over an image set with another digest or over other photos of it, there is a
    `problem` and there are no changes: differences would come from the photos, not from the models.
    """
    then, then_run = read_json(earlier, "metrics.json"), read_record(earlier)
    here, there = digests(run), digests(then_run)
    problem = ""
    if not then:
        problem = "it has no figures"
    elif here != there:
        then_set, own_set = (", ".join(str(digest)[:12] for digest in of_run) or "none" for of_run in (there, here))
        kind = "another image set" if len(there) == 1 else "other image sets"
        problem = f"it ran on {kind} (digest {then_set}, here {own_set})"
    elif (run.get("selected") or {}).get("rows") != (then_run.get("selected") or {}).get("rows"):
        problem = "it took other photos of the image set (another --limit)"
    ours, others = _figures(metrics), _figures(then)
    changes = [Change(*key, ours.get(key), others.get(key)) for key in dict.fromkeys([*ours, *others])]
    measured = tuple(change for change in changes if change.now is not None or change.then is not None)
    recorded = str(then_run.get("recorded") or "")
    return Comparison(str(earlier.uri), recorded, problem, () if problem else measured)


def read_json(output: ObjectStore, key: str) -> dict[str, Any]:
    """A JSON file of a run; {} where it does not exist yet."""
    try:
        content = json.loads(output.read(key))
    except ObjectMissing:
        return {}
    return content if isinstance(content, dict) else {}


def _figures(metrics: dict[str, Any]) -> dict[tuple[str, str], float | None]:
    """The figures that are compared, by owner and measure."""
    compared: dict[tuple[str, str], float | None] = {}
    for name, figures in (metrics.get("detection") or {}).items():
        compared |= {(name, measure): figures.get(measure) for measure in DETECTION}
    for boxes in BOXES:
        models = judged_models(metrics, boxes)
        owners = {f"{boxes} boxes, {name}": figures for name, figures in models.items()}
        if name := final_name(models):
            owners = {final_list(boxes): models[name], **owners}
        for owner, figures in owners.items():
            compared |= _accuracies(owner, figures, has_hypotheses=boxes == "detected")
    return compared


def _accuracies(owner: str, figures: dict[str, Any], *, has_hypotheses: bool) -> dict[tuple[str, str], float | None]:
    """The accuracies of one model. An earlier release judged detected boxes by their own category alone."""
    accuracies = {(owner, measure): accuracy_at(figures, k) for measure, k in RETRIEVAL.items()}
    if not has_hypotheses or figures.get("truth") == "photo":
        return accuracies
    own = figures.get("top_one_category")
    if own is None:
        own, accuracies = figures.get("top") or {}, dict.fromkeys(accuracies)
    return accuracies | {(owner, measure): own.get(k) for measure, k in OWN_CATEGORY.items()}
