"""The report of a run: report/index.html and the pages beside it, for a browser, a folder, a bucket or an archive.

In: OUTPUT's contract files (metrics.json, run.json, failures.parquet, detections/, fused/, items/, rankings/,
ablation.parquet, logs/) and the image set. What does not exist yet is left out, and the pages say so. Out: static pages
with relative links; NAME.html is made by NAME.py and templates/NAME.html.j2. Their data is in report/data/*.js,
pictures in report/pictures/; nothing is fetched.
"""

import json
from dataclasses import dataclass, field
from typing import Any

from jobs.reports import (
    ablation,
    certainty,
    detection,
    expected,
    figures,
    index,
    pages,
    pictures,
    retrieval,
    run,
    standings,
    truth,
)
from jobs.reports.ablation import Study
from jobs.reports.charts import Chart
from jobs.reports.detection import Detection
from jobs.reports.index import Comparison
from jobs.reports.pictures import Shots, Wanted
from jobs.reports.queries import NOWHERE, QueryList
from jobs.reports.standings import Standings
from jobs.reports.truth import GroundTruth, Sources
from jobs.runs.reader import read_judged
from jobs.runs.run_record import read_record
from retrieval.rankings import Rankings
from retrieval.truth import PhotoTruth
from store.categories import DEEPFASHION2, recorded
from store.decode import MAX_PIXELS
from store.imageset import ImageSet
from store.objects import ObjectStore, open_store

PAGES = ("detection", "retrieval", "queries", "ablation", "run", "index")  # as they are written
LINKED = {
    "metrics.json": "figures (JSON)",
    "run.json": "settings and models (JSON)",
    "submission.json": "submission (JSON)",
    "failures.parquet": "failures (Parquet)",
    "ablation.parquet": "ablation (Parquet)",
    "rankings/detected.parquet": "rankings with detected boxes (Parquet)",
    "rankings/true.parquet": "rankings with true boxes (Parquet)",
}


@dataclass
class Contents:
    """What the pages say, gathered before any is written."""

    metrics: dict[str, Any]  # metrics.json and run.json, {} where they do not exist
    run: dict[str, Any]
    truth: GroundTruth
    boxes: str | None = None  # the kind of boxes whose queries are listed; None without rankings
    queries: QueryList | None = None
    drawn: int = 0  # number of queries with pictures
    detection: Detection | None = None  # None where there is nothing to judge
    studies: list[Study] = field(default_factory=list)
    comparison: Comparison | None = None  # with an earlier run; None where none was given
    failures: dict[str, Any] | None = None  # of `run.failures`
    sources: Sources = field(default_factory=dict)
    shots: Shots = field(default_factory=dict)
    charts: dict[str, list[Chart]] = field(default_factory=dict)  # by page
    finals: dict[str, tuple[Rankings, Standings]] = field(default_factory=dict)  # by boxes: the judged final lists
    sure: dict[tuple[str, str], str] = field(default_factory=dict)  # owner and measure -> interval, level of chance

    def photo_called(self, image_id: int) -> str:
        return self.sources.get(image_id, NOWHERE).name or f"photo {image_id}"

    def shop_called(self, image_id: int) -> str:
        return self.sources.get(image_id, NOWHERE).sold_as or f"photo {image_id}"

    @property
    def settings(self) -> dict[str, Any]:
        return self.run.get("settings") or {}

    @property
    def categories(self) -> tuple[str, ...]:
        return recorded(self.metrics | self.run)


def build(
    output: ObjectStore, imageset: ImageSet, *, queries: int = 500, top: int = 10, compare: str | None = None
) -> str:
    """Write the report of a run, then remove what an earlier one left; returns the first page's URI or path.

    Args:
        output: the run's folder.
        imageset: the image sets it ran on, as one.
        queries: how many queries get pictures, 0 for none; up to `queries.MOST_LISTED` are listed.
        top: shop results shown per query.
        compare: folder or bucket of an earlier run to compare the figures with.

    Raises:
        ValueError: ablation.parquet lacks a column.
    """
    contents = _gather(output, imageset, queries, top, compare)
    written = _publish_data(output, contents)
    written |= pages.publish_assets(output, plotly=any(contents.charts.values()))
    names = [name for name in PAGES if name != "ablation" or contents.studies]
    env = pages.environment(contents.categories, {"photo": contents.photo_called, "shop": contents.shop_called})
    values = _values(output, imageset, contents) | {"pages": names}
    for name in names:
        text = env.get_template(f"{name}.html.j2").render(values, page=name)
        written.add(pages.publish_page(output, name, text))
    _remove_stale(output, written)
    return pages.address(output)


# ---- gathering -----------------------------------------------------------------------------------------------------


def _gather(output: ObjectStore, imageset: ImageSet, n: int, top: int, compare: str | None) -> Contents:
    """Read the run, and write its pictures."""
    metrics, run_record = index.read_json(output, "metrics.json"), read_record(output)
    whole_photos = run_record.get("detectors") == []
    known = truth.read_truth(imageset, run_record.get("selected"), whole_photos=whole_photos)
    contents = Contents(metrics, run_record, known)
    if compare:
        endpoint = (contents.settings.get("storage") or {}).get("endpoint_url")
        contents.comparison = index.compare(metrics, run_record, open_store(compare, endpoint_url=endpoint))
    contents.studies = ablation.read_studies(output)
    wanted: Wanted = {}
    contents.boxes = next((name for name in figures.BOXES if output.exists(f"rankings/{name}.parquet")), None)
    if contents.boxes:
        contents.queries = QueryList(output, contents.boxes, contents.truth, top)
        chosen = standings.pick(contents.queries.standings, n).tolist()
        asked = contents.queries.unanswered(chosen)
        found = expected.find(output, imageset, contents.boxes, contents.truth, asked)
        contents.queries.expected, contents.queries.gallery_size = found
        contents.sources = truth.read_sources(imageset, contents.truth, contents.queries.image_ids())
        contents.queries.want(chosen, wanted)
        contents.drawn = len(chosen)
    if figures.detectors(metrics):
        contents.detection = detection.examine(
            output, imageset, contents.truth, list(metrics["detection"]), contents.categories
        )
    if contents.detection and n > 0:
        detection.want_pictures(contents.detection, wanted)
    contents.failures = run.failures(output)
    failed = {row["image_id"] for row in contents.failures["rows"]} if contents.failures else set()
    named = (wanted.keys() | failed) - contents.sources.keys()
    contents.sources |= truth.read_sources(imageset, contents.truth, named)
    max_pixels = contents.settings.get("max_pixels") or MAX_PIXELS
    contents.shots = pictures.write_pictures(output, imageset, contents.truth, wanted, contents.sources, max_pixels)
    _gather_finals(output, contents)
    _gather_charts(output, contents)
    return contents


def _gather_finals(output: ObjectStore, contents: Contents) -> None:
    """The final lists of both kinds of boxes, and how sure the main figures are."""
    known = contents.truth.rankings
    intervals = contents.detection.intervals if contents.detection else {}
    contents.sure = {("fused", measure): f"95 %: {pages.interval(one)}" for measure, one in intervals.items()}
    for boxes in figures.BOXES if known.kind else ():
        if boxes == contents.boxes and contents.queries:
            final = contents.queries.rankings, contents.queries.every
        elif output.exists(f"rankings/{boxes}.parquet"):
            lists = read_judged(output, boxes, known, standings.LIST_LENGTH)
            final = lists, standings.judge(lists, contents.truth)
        else:
            continue
        contents.finals[boxes] = final
        if (k := figures.main_length(figures.judged_models(contents.metrics, boxes))) is None:
            continue
        ended = final[1]
        interval = certainty.accuracy_interval(ended.first, known.photo[ended.truth_row], int(k))
        size = len(known.shops) if isinstance(known, PhotoTruth) else _index_rows(output, boxes)
        chance = certainty.accuracy_by_chance(ended.relevant, ended.row >= 0, size, int(k))
        words = [f"95 %: {pages.interval(interval)}"] * bool(interval)
        words += [f"by chance {pages.percent(chance)}"] * (chance is not None)
        contents.sure[figures.final_list(boxes), f"Acc@{k}"] = ", ".join(words)


def _index_rows(output: ObjectStore, boxes: str) -> int:
    """How many shop items were ranked; 0 where the run has no index."""
    return int(index.read_json(output, f"index/{boxes}/index.json").get("rows") or 0)


def _gather_charts(output: ObjectStore, contents: Contents) -> None:
    colours = figures.colours(contents.metrics)
    if contents.detection:
        contents.charts["detection"] = [
            detection.precision_recall_chart(contents.detection, colours),
            detection.confusion_chart(contents.detection),
        ]
    contents.charts["retrieval"] = [
        chart for boxes in figures.BOXES for chart in _retrieval_charts(output, contents, boxes, colours)
    ]
    contents.charts["ablation"] = [ablation.cost_chart(study, n) for n, study in enumerate(contents.studies)]
    contents.charts["run"] = run.speed_chart(run.stage_times(contents.metrics))


def _retrieval_charts(output: ObjectStore, contents: Contents, boxes: str, colours: dict[str, int]) -> list[Chart]:
    models = figures.judged_models(contents.metrics, boxes)
    if not models:
        return []
    drawn: list[Chart | None] = []
    top_k = (contents.settings.get("search") or {}).get("top_k") or standings.LIST_LENGTH
    if curves := retrieval.accuracy_curves(output, boxes, list(models), contents.truth, top_k):
        drawn.append(retrieval.accuracy_chart(curves, boxes, colours))
    drawn.append(retrieval.parts_chart(models, boxes, colours, contents.categories))
    if boxes in contents.finals and (histogram := retrieval.similarity_histogram(*contents.finals[boxes])):
        drawn.append(retrieval.similarity_chart(histogram, boxes))
    return [chart for chart in drawn if chart]


# ---- writing -------------------------------------------------------------------------------------------------------


def _publish_data(output: ObjectStore, contents: Contents) -> set[str]:
    """Write the data files of the pages' scripts; returns their keys."""
    data: dict[str, Any] = {f"charts-{page}": drawn for page, drawn in contents.charts.items() if drawn}
    written = {pages.publish_data(output, name, content) for name, content in data.items()}
    listed = contents.queries
    if listed and len(listed.standings):
        written.add(
            pages.publish_data(output, "queries", listed.index(contents.sources, contents.shots, contents.categories))
        )
        chunks = listed.chunks(contents.sources, contents.shots, contents.categories)
        for number, chunk in enumerate(chunks):
            written.add(pages.publish_data(output, f"queries-{number:04d}", chunk))
    return written


def _remove_stale(output: ObjectStore, kept: set[str]) -> None:
    """Remove what an earlier report left in our folders, pictures aside; what users put beside the pages stays."""
    ours = (*(f"{pages.FOLDER}{name}.html" for name in PAGES), "report/data/", "report/assets/")
    for key in sorted(entry.key for entry in output.list(pages.FOLDER)):
        if key.startswith(ours) and key not in kept:
            output.delete(key)


# ---- values of the templates ---------------------------------------------------------------------------------------


def _values(output: ObjectStore, imageset: ImageSet, contents: Contents) -> dict[str, Any]:
    """What the templates are filled with: first what several pages show, then page by page."""
    metrics = contents.metrics
    charts = [chart for drawn in contents.charts.values() for chart in drawn]
    return {
        "title": " + ".join(pages.title_of(part.uri) for part in imageset.sets),
        "profile": contents.settings.get("profile"),
        "recorded": contents.run.get("recorded"),
        "imageset": imageset,
        "n_images": sum(map(len, contents.truth.shard_ids.values())),
        "colours": figures.colours(metrics),
        "n_colours": figures.N_COLOURS,
        "boxes": contents.boxes,
        "drawn": contents.drawn,
        "shots": contents.shots,
        "truth": contents.truth.rankings.kind,
        "chart_names": {page: [chart["id"] for chart in drawn] for page, drawn in contents.charts.items()},
        "chart_titles": {chart["id"]: chart["title"] for chart in charts},
        "detection": figures.ap_table(metrics),
        "no_detection": _no_detection(contents),
        "retrieval": figures.accuracy_tables(metrics),
        "other_tops": [title for boxes in figures.BOXES for title in figures.other_tops(metrics, boxes)],
        "links": [(key, words) for key, words in LINKED.items() if output.exists(key)],
        **_of_index(contents),
        **_of_detection_and_retrieval(contents),
        **_of_queries_and_ablation(contents),
        **_of_run(output, contents),
    }


def _no_detection(contents: Contents) -> str:
    """Why there are no detection figures."""
    if not contents.metrics:
        return "evaluation has not run"
    return "the run has no detectors" if contents.run.get("detectors") == [] else "no photo has true boxes to judge by"


def _of_index(contents: Contents) -> dict[str, Any]:
    metrics, queries, comparison = contents.metrics, contents.queries, contents.comparison
    shown = index.tiles(metrics, contents.sure)
    final = {boxes: figures.final_name(figures.judged_models(metrics, boxes)) for boxes in figures.BOXES}
    return {
        "tiles": [(tile, comparison and comparison.difference(tile.owner, tile.measure)) for tile in shown],
        "sure_shown": any("95 %" in words for words in contents.sure.values()),
        "chance_shown": any("chance" in words for words in contents.sure.values()),
        "better_alone": figures.better_alone(metrics, final),
        "comparison": comparison,
        "notes": (metrics.get("summary") or {}).get("notes") or [],
        "mistakes": queries.mistakes(contents.shots) if queries else [],
    }


def _of_detection_and_retrieval(contents: Contents) -> dict[str, Any]:
    metrics = contents.metrics
    parts = ((boxes, figures.accuracy_parts(metrics, boxes)) for boxes in figures.BOXES)
    return {
        "categories": figures.ap_categories(metrics),
        "has_ten": contents.categories == DEEPFASHION2,
        "images": figures.judged_images(metrics),
        "item_categories": metrics.get("item_categories"),
        "result": contents.detection,
        "min_score": detection.MIN_SCORE,
        "picture_name": detection.picture_name,
        "graded": figures.graded_tables(metrics),
        "parts": {boxes: tables for boxes, tables in parts if tables},
        "sure": {
            boxes: f"{measure} of the final list, {words}"
            for boxes in figures.BOXES
            for (owner, measure), words in contents.sure.items()
            if words and owner == figures.final_list(boxes)
        },
        "queries_per_photo": metrics.get("queries_per_photo"),
    }


def _of_queries_and_ablation(contents: Contents) -> dict[str, Any]:
    queries = contents.queries
    return {
        "n_queries": len(queries.every) if queries else 0,
        "n_listed": len(queries.standings) if queries else 0,
        "top": queries.top if queries else 0,
        "confident_share": standings.CONFIDENT_SHARE,
        "studies": contents.studies,
        "moved": ablation.moved,
        "steps_in_words": ablation.steps_in_words,
    }


def _of_run(output: ObjectStore, contents: Contents) -> dict[str, Any]:
    logs = run.log_keys(output)
    settings = json.dumps(contents.run, indent=2, sort_keys=True, ensure_ascii=False) if contents.run else ""
    return {
        "times": run.stage_times(contents.metrics),
        "logs": logs,
        "log_rows": run.stage_logs(output, logs),
        "failures": contents.failures,
        "versions": run.versions(contents.run),
        "settings": settings,
    }
