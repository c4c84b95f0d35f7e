"""The report of a run: report/index.html and the pages beside it, for a browser, a folder, a bucket or an archive.

In: OUTPUT's contract files (metrics.json, run.json, failures.parquet, detections/, fused/, items/, rankings/,
ablation.parquet, logs/) and the image set. What does not exist yet is left out, and the pages say so. Out: static pages
with relative links; NAME.html is made by NAME.py and templates/NAME.html.j2. Their data is in report/data/*.js,
pictures in report/pictures/; nothing is fetched.
"""

import json
from dataclasses import dataclass, field
from typing import Any

from jobs.reports import ablation, detection, figures, index, pages, pictures, retrieval, run, standings, truth
from jobs.reports.ablation import Study
from jobs.reports.charts import Chart
from jobs.reports.detection import Detection
from jobs.reports.index import Comparison
from jobs.reports.pictures import Shots, Wanted
from jobs.reports.queries import QueryList
from jobs.reports.truth import GroundTruth, Sources
from jobs.runs.reader import read_judged
from jobs.runs.run_record import read_record
from store.categories import DEEPFASHION2, recorded
from store.decode import MAX_PIXELS
from store.imageset import ImageSet
from store.objects import ObjectStore, open_store

PAGES = ("detection", "retrieval", "queries", "ablation", "run", "index")  # as they are written
LINKED = (
    "metrics.json",
    "run.json",
    "submission.json",
    "failures.parquet",
    "ablation.parquet",
    "rankings/detected.parquet",
    "rankings/true.parquet",
)


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
    sources: Sources = field(default_factory=dict)
    shots: Shots = field(default_factory=dict)
    charts: dict[str, list[Chart]] = field(default_factory=dict)  # by page

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
        queries: how many queries get pictures, 0 for none; all are listed.
        top: shop results shown per query.
        compare: folder or bucket of an earlier run to compare the figures with.

    Raises:
        ValueError: ablation.parquet lacks a column.
    """
    contents = _gather(output, imageset, queries, top, compare)
    written = _publish_data(output, contents)
    written |= pages.publish_assets(output, plotly=any(contents.charts.values()))
    names = [name for name in PAGES if name != "ablation" or contents.studies]
    env = pages.environment(contents.categories)
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
        contents.sources = truth.read_sources(imageset, contents.truth, contents.queries.image_ids())
        chosen = standings.pick(contents.queries.standings, n).tolist()
        contents.queries.want(chosen, wanted)
        contents.drawn = len(chosen)
    if figures.detectors(metrics):
        contents.detection = detection.examine(
            output, imageset, contents.truth, list(metrics["detection"]), contents.categories
        )
    if contents.detection and n > 0:
        detection.want_pictures(contents.detection, wanted)
    contents.sources |= truth.read_sources(imageset, contents.truth, wanted.keys() - contents.sources.keys())
    max_pixels = contents.settings.get("max_pixels") or MAX_PIXELS
    contents.shots = pictures.write_pictures(output, imageset, contents.truth, wanted, contents.sources, max_pixels)
    _gather_charts(output, contents)
    return contents


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
    if curves := retrieval.accuracy_curves(output, boxes, list(models), contents.truth):
        drawn.append(retrieval.accuracy_chart(curves, boxes, colours))
    drawn.append(retrieval.parts_chart(models, boxes, colours, contents.categories))
    if histogram := _histogram(output, contents, boxes):
        drawn.append(retrieval.similarity_chart(histogram, boxes))
    return [chart for chart in drawn if chart]


def _histogram(output: ObjectStore, contents: Contents, boxes: str) -> retrieval.Histogram | None:
    if boxes == contents.boxes and contents.queries:
        return retrieval.similarity_histogram(contents.queries.rankings, contents.queries.standings)
    if not output.exists(f"rankings/{boxes}.parquet"):
        return None
    rankings = read_judged(output, boxes, contents.truth.rankings, standings.LIST_LENGTH)
    return retrieval.similarity_histogram(rankings, standings.judge(rankings, contents.truth))


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
        for number, chunk in enumerate(listed.chunks(contents.sources, contents.shots)):
            written.add(pages.publish_data(output, f"queries-{number:04d}", chunk))
    return written


def _remove_stale(output: ObjectStore, kept: set[str]) -> None:
    """Remove what an earlier report left in our folders, pictures aside; what users put beside the pages stays."""
    ours = (*(f"{pages.FOLDER}{name}.html" for name in PAGES), "report/data/", "report/assets/")
    for key in sorted(entry.key for entry in output.list(pages.FOLDER)):
        if key.startswith(ours) and key not in kept:
            output.delete(key)


# ---- values of the templates ---------------------------------------------------------------------------------------


def _short(uri: str) -> str:
    """The last two parts of an address."""
    return "/".join([part for part in uri.split("/") if part][-2:]) or "image set"


def _values(output: ObjectStore, imageset: ImageSet, contents: Contents) -> dict[str, Any]:
    """What the templates are filled with: first what several pages show, then page by page."""
    metrics, queries, comparison = contents.metrics, contents.queries, contents.comparison
    charts = [chart for drawn in contents.charts.values() for chart in drawn]
    parts = ((boxes, figures.accuracy_parts(metrics, boxes)) for boxes in figures.BOXES)
    tiles = [(tile, comparison and comparison.difference(tile.owner, tile.measure)) for tile in index.tiles(metrics)]
    logs = run.log_keys(output)
    settings = json.dumps(contents.run, indent=2, sort_keys=True, ensure_ascii=False) if contents.run else ""
    return {
        "title": " + ".join(_short(part.uri) for part in imageset.sets),
        "profile": contents.settings.get("profile"),
        "recorded": contents.run.get("recorded"),
        "imageset": imageset,
        "n_images": sum(map(len, contents.truth.shard_ids.values())),
        "colours": figures.colours(metrics),
        "n_colours": figures.N_COLOURS,
        "boxes": contents.boxes,
        "drawn": contents.drawn,
        "shots": contents.shots,
        "sources": contents.sources,
        "chart_names": {page: [chart["id"] for chart in drawn] for page, drawn in contents.charts.items()},
        "chart_titles": {chart["id"]: chart["title"] for chart in charts},
        "detection": figures.ap_table(metrics),
        "retrieval": figures.accuracy_tables(metrics),
        "links": [name for name in LINKED if output.exists(name)],
        # index
        "tiles": tiles,
        "comparison": comparison,
        "notes": (metrics.get("summary") or {}).get("notes") or [],
        "mistakes": queries.mistakes(contents.shots) if queries else [],
        # detection
        "categories": figures.ap_categories(metrics),
        "has_ten": contents.categories == DEEPFASHION2,
        "images": figures.judged_images(metrics),
        "item_categories": metrics.get("item_categories"),
        "result": contents.detection,
        "min_score": detection.MIN_SCORE,
        "picture_name": detection.picture_name,
        # retrieval
        "graded": figures.graded_tables(metrics),
        "parts": {boxes: tables for boxes, tables in parts if tables},
        "queries_per_photo": metrics.get("queries_per_photo"),
        # queries
        "n_queries": len(queries.standings) if queries else 0,
        "truth": contents.truth.rankings.kind,
        "top": queries.top if queries else 0,
        "confident_share": standings.CONFIDENT_SHARE,
        # ablation
        "studies": contents.studies,
        "moved": ablation.moved,
        "steps_in_words": ablation.steps_in_words,
        # run
        "times": run.stage_times(metrics),
        "logs": logs,
        "log_rows": run.stage_logs(output, logs),
        "failures": run.failures(output),
        "versions": run.versions(contents.run),
        "settings": settings,
    }
