"""The report of a run: report/index.html and the pages beside it, for a browser, a folder, a bucket or an archive.

In: OUTPUT's contract files (metrics.json, run.json, failures.parquet, detections/, fused/, items/, rankings/, ablation.parquet, logs/) and
the image set. What is not there yet is left out, and the pages say so. Out: static pages with relative links; data for their scripts
lies in report/data/*.js, pictures in report/pictures/, nothing is fetched. The first page is written last.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2

from jobs import overlay
from jobs.reporting import ablation, charts, detection, earlier, facts, figures, queries, query_data, retrieval
from jobs.reporting.pictures import Marked, Shot, Wanted, write_pictures
from jobs.reporting.script_data import as_script
from store.decode import MAX_PIXELS
from store.imageset import ImageSet
from store.objects import ObjectStore, open_store

FOLDER = "report/"
PAGE = "report/index.html"
PAGES = ("detection", "retrieval", "queries", "ablation", "run", "index")  # as they are written
TEMPLATES = Path(__file__).resolve().parents[1] / "templates"
SCRIPTS = ("report.css", "charts.js", "queries.js")
PLOTLY = "report/assets/plotly.min.js"
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
class Facts:
    """What the pages say, gathered before any is written."""

    metrics: dict[str, Any]
    run: dict[str, Any]
    truth: queries.Truth
    boxes: str | None = None  # whose queries are listed
    data: query_data.QueryData | None = None
    drawn: int = 0  # queries with pictures
    found: detection.Detection | None = None
    studies: list[ablation.Study] = field(default_factory=list)
    past: earlier.Earlier | None = None
    sources: dict[int, queries.Source] = field(default_factory=dict)
    shots: dict[str, Shot | None] = field(default_factory=dict)
    drawings: dict[str, list[charts.Chart]] = field(default_factory=dict)  # page -> its charts

    @property
    def settings(self) -> dict[str, Any]:
        return self.run.get("settings") or {}


def build(
    output: ObjectStore, imageset: ImageSet, *, queries: int = 500, top: int = 10, compare: str | None = None
) -> str:
    """Write the report of a run, then remove what an earlier one left.

    Args:
        output: the run's folder.
        imageset: the set it ran on.
        queries: how many queries get pictures, 0 for none; all are listed.
        top: shop results shown per query.
        compare: the folder or bucket of an earlier run whose figures are laid beside this one's.

    Returns:
        where the first page lies, as a URI or path.

    Raises:
        ValueError: ablation.parquet is not what it should be.
    """
    known = _gather(output, imageset, queries, top, compare)
    written = _write_data(output, known)
    written |= _write_assets(output, plotly=any(known.drawings.values()))
    environment = _environment(known, imageset)
    pages = [page for page in PAGES if page != "ablation" or known.studies]
    for page in pages:
        words = _words(output, known, imageset, page) | {"page": page, "pages": pages}
        text = environment.get_template(f"{page}.html.j2").render(words)
        output.write(f"{FOLDER}{page}.html", text.encode("utf-8", "replace"))
    _remove_stale(output, written | {f"{FOLDER}{page}.html" for page in pages})
    return f"{str(output.uri).rstrip('/')}/{PAGE}"


# ---- gathering -----------------------------------------------------------------------------------------------------


def _gather(output: ObjectStore, imageset: ImageSet, n: int, top: int, compare: str | None) -> Facts:
    """Read the run, and write its pictures."""
    metrics, run = earlier.read_json(output, "metrics.json"), earlier.read_json(output, "run.json")
    known = Facts(metrics, run, queries.read_truth(imageset, _rows_taken(run)))
    if compare:
        endpoint = (known.settings.get("storage") or {}).get("endpoint_url")
        known.past = earlier.compare(metrics, run, open_store(compare, endpoint_url=endpoint))
    known.studies = ablation.read_studies(output)
    wanted: Wanted = {}
    _gather_queries(output, imageset, known, wanted, n, top)
    if figures.detectors(metrics):
        known.found = detection.examine(output, imageset, known.truth, list(metrics["detection"]))
    if known.found and n > 0:
        _want_mistakes(known.found, wanted)
    known.sources |= queries.read_sources(imageset, known.truth, wanted.keys() - known.sources.keys())
    max_pixels = known.settings.get("max_pixels") or MAX_PIXELS
    known.shots = write_pictures(output, imageset, known.truth, wanted, known.sources, max_pixels)
    _gather_charts(output, known)
    return known


def _gather_queries(output: ObjectStore, imageset: ImageSet, known: Facts, wanted: Wanted, n: int, top: int) -> None:
    boxes = next((name for name in figures.BOXES if output.exists(f"rankings/{name}.parquet")), None)
    known.boxes = boxes
    if boxes is None:
        return
    ranking = queries.read_ranking(output, f"rankings/{boxes}.parquet", max(top, queries.LIST_LENGTH))
    standings = queries.judge(ranking, known.truth)
    found = query_data.QueryData(ranking, known.truth, standings, query_data.PhotoBoxes({}), top)
    shown = found.image_ids()
    found.boxes = query_data.photo_boxes(
        output, boxes, known.truth, ranking.results.query_image_id.tolist() + _missed_photos(known, standings)
    )
    known.sources = queries.read_sources(imageset, known.truth, shown.tolist())
    chosen = queries.pick(standings, n)
    found.want(chosen.tolist(), wanted)
    known.data, known.drawn = found, len(chosen)


def _missed_photos(known: Facts, standings: queries.Standings) -> list[int]:
    return [known.truth.query_gt[row]["query_image_id"] for row in standings.asked[standings.row < 0].tolist()]


def _want_mistakes(found: detection.Detection, wanted: Wanted) -> None:
    """The photos of garments that nobody found, and of those found twice."""
    for miss in found.misses:
        mark = overlay.Mark(miss.bbox, miss.category_id, "?", strong=True, dashed=True)
        wanted.setdefault(miss.image_id, {})[mistake_name("miss", miss)] = Marked((mark,))
    for double in found.doubles:
        each = zip(double.boxes, double.categories, range(1, len(double.boxes) + 1), strict=True)
        marks = tuple(overlay.Mark(box, category, str(number)) for box, category, number in each)
        wanted.setdefault(double.image_id, {})[mistake_name("double", double)] = Marked(marks)


def mistake_name(kind: str, one: detection.Miss | detection.Double) -> str:
    """Name of a mistake's picture: the photo's id and the corners of the true box."""
    return f"{kind}-{one.image_id}-{'-'.join(f'{v:.0f}' for v in one.bbox)}"


def _gather_charts(output: ObjectStore, known: Facts) -> None:
    colours = figures.colours(known.metrics)
    if known.found:
        known.drawings["detection"] = [
            charts.precision_recall(known.found, colours),
            charts.confusion(known.found),
        ]
    found: list[charts.Chart] = []
    for boxes in figures.BOXES:
        models = figures.judged_models(known.metrics, boxes)
        if models:
            curves = retrieval.accuracy_curves(output, boxes, list(models), known.truth)
            found += [charts.accuracy(curves, boxes, colours)] if curves else []
            found += [part] if (part := charts.by_part(models, boxes, colours)) else []
            histogram = _histogram(output, known, boxes)
            found += [charts.similarity(histogram, boxes)] if histogram else []
    known.drawings["retrieval"] = found
    known.drawings["ablation"] = [charts.cost(study, number) for number, study in enumerate(known.studies)]
    speed = charts.throughput(facts.stage_times(known.metrics))
    known.drawings["run"] = [speed] if speed else []


def _histogram(output: ObjectStore, known: Facts, boxes: str) -> retrieval.Histogram | None:
    if boxes == known.boxes and known.data:
        return retrieval.similarity_histogram(known.data.ranking, known.data.standings)
    key = f"rankings/{boxes}.parquet"
    if not output.exists(key):
        return None
    ranking = queries.read_ranking(output, key)
    return retrieval.similarity_histogram(ranking, queries.judge(ranking, known.truth))


def _rows_taken(run: dict[str, Any]) -> dict[str, list[int]] | None:
    """Rows of each shard that a run with a limit took; None for all."""
    return ((run.get("imageset") or {}).get("selected") or {}).get("rows")


# ---- writing -------------------------------------------------------------------------------------------------------


def _write_data(output: ObjectStore, known: Facts) -> set[str]:
    """Data files of the pages' scripts; returns their keys."""
    written = set()

    def write(name: str, content: Any) -> None:
        output.write(f"report/data/{name}.js", as_script(name, content))
        written.add(f"report/data/{name}.js")

    for page, drawn in known.drawings.items():
        if drawn:
            write(f"charts-{page}", drawn)
    if known.data and len(known.data.standings):
        write("queries", known.data.index(known.sources, known.shots))
        for number, chunk in enumerate(known.data.chunks(known.sources, known.shots)):
            write(f"queries-{number:04d}", chunk)
    return written


def _write_assets(output: ObjectStore, *, plotly: bool) -> set[str]:
    """Style and scripts of the pages; plotly.js, 4.5 MB, only where a chart wants it and it is not there."""
    for name in SCRIPTS:
        output.write(f"report/assets/{name}", (TEMPLATES / name).read_bytes())
    written = {f"report/assets/{name}" for name in SCRIPTS}
    if plotly:
        from plotly.offline import get_plotlyjs

        script = get_plotlyjs().encode()
        if not output.exists(PLOTLY) or output.size(PLOTLY) != len(script):
            output.write(PLOTLY, script)
        written.add(PLOTLY)
    return written


def _remove_stale(output: ObjectStore, kept: set[str]) -> None:
    """What an earlier report left in our folders, pictures apart; what somebody laid beside the pages stays."""
    ours = (*(f"{FOLDER}{page}.html" for page in PAGES), "report/data/", "report/assets/")
    for key in sorted(entry.key for entry in output.list(FOLDER)):
        if key.startswith(ours) and key not in kept:
            output.delete(key)


# ---- pages ---------------------------------------------------------------------------------------------------------


def _words(output: ObjectStore, known: Facts, imageset: ImageSet, page: str) -> dict[str, Any]:
    """What the template of a page is filled with, beside what all pages have."""
    return WORDS[page](output, known)


def _index_words(output: ObjectStore, known: Facts) -> dict[str, Any]:
    past = known.past
    tiles = figures.tiles(known.metrics)
    return {
        "tiles": [(*tile, past.difference(*tile[3]) if past else None) for tile in tiles],
        "earlier": past,
        "notes": (known.metrics.get("summary") or {}).get("notes") or [],
        "detection": figures.ap_table(known.metrics),
        "retrieval": _accuracy_tables(known),
        "worst": _surest(known),
        "links": [name for name in LINKED if output.exists(name)],
    }


def _detection_words(output: ObjectStore, known: Facts) -> dict[str, Any]:
    return {
        "detection": figures.ap_table(known.metrics),
        "categories": figures.ap_categories(known.metrics),
        "images": figures.judged_images(known.metrics),
        "found": known.found,
        "min_score": detection.MIN_SCORE,
        "name": mistake_name,
    }


def _retrieval_words(output: ObjectStore, known: Facts) -> dict[str, Any]:
    parts = {boxes: figures.accuracy_parts(known.metrics, boxes) for boxes in figures.BOXES}
    return {
        "retrieval": _accuracy_tables(known),
        "parts": {boxes: found for boxes, found in parts.items() if found},
        "queries_per_photo": known.metrics.get("queries_per_photo"),
    }


def _queries_words(output: ObjectStore, known: Facts) -> dict[str, Any]:
    return {
        "asked": len(known.data.standings) if known.data else 0,
        "has_truth": bool(len(known.truth.queries)),
        "top": known.data.top if known.data else 0,
        "surest_share": queries.SUREST_SHARE,
    }


def _ablation_words(output: ObjectStore, known: Facts) -> dict[str, Any]:
    return {"studies": known.studies, "moved": ablation.moved, "steps_of": _steps_in_words}


def _run_words(output: ObjectStore, known: Facts) -> dict[str, Any]:
    keys = facts.log_keys(output)
    return {
        "times": facts.stage_times(known.metrics),
        "logs": keys,
        "log_rows": facts.stage_logs(output, keys),
        "failures": facts.failures(output),
        "versions": facts.versions(known.run),
        "settings": json.dumps(known.run, indent=2, sort_keys=True, ensure_ascii=False) if known.run else "",
        "links": [name for name in LINKED if output.exists(name)],
    }


WORDS = {
    "index": _index_words,
    "detection": _detection_words,
    "retrieval": _retrieval_words,
    "queries": _queries_words,
    "ablation": _ablation_words,
    "run": _run_words,
}


def _accuracy_tables(known: Facts) -> list[tuple[str, figures.Table]]:
    found = ((boxes, figures.accuracy(known.metrics, boxes)) for boxes in figures.BOXES)
    return [(boxes, table) for boxes, table in found if table]


def _surest(known: Facts, most: int = 6) -> list[tuple[queries.Example, Shot | None, Shot | None]]:
    """The surest mistakes that have pictures: the query's photo, and the crop that was taken for its garment."""
    if not known.data or known.data.standings.right is None:
        return []
    found: list[tuple[queries.Example, Shot | None, Shot | None]] = []
    for place in range(len(known.data.standings)):
        one = known.data.example(place)
        if one.first_right == 1 or one.missed or len(found) == most:
            break
        photo, crop = query_data.photo_name(one), query_data.crop_name(one.results[0]) if one.results else ""
        if photo in known.shots and crop in known.shots:
            found.append((one, known.shots[photo], known.shots[crop]))
    return found


def _steps_in_words(steps: str | None) -> str:
    """A pipeline's JSON as a line: "concat, kreciprocal k1=20".

    >>> _steps_in_words('[{"step": "concat"}, {"step": "kreciprocal", "k1": 20}]')
    'concat, kreciprocal k1=20'
    """
    try:
        found = json.loads(steps or "[]")
        return ", ".join(" ".join([str(s["step"]), *(f"{k}={v}" for k, v in s.items() if k != "step")]) for s in found)
    except (ValueError, TypeError, KeyError, AttributeError):
        return steps or ""


def _set_name(imageset: ImageSet) -> str:
    parts = [part for part in str(imageset.uri).split("/") if part]
    return "/".join(parts[-2:]) if parts else "image set"


def _environment(known: Facts, imageset: ImageSet) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": figures.percent,
        "count": figures.count,
        "duration": figures.duration,
        "signed": figures.signed,
        "category": figures.category,
        "colour": overlay.colour_of,
    }
    environment.globals |= {
        "title": _set_name(imageset),
        "profile": known.settings.get("profile"),
        "recorded": known.run.get("recorded"),
        "imageset": imageset,
        "metrics": known.metrics,
        "colours": figures.colours(known.metrics),
        "n_colours": figures.N_COLOURS,
        "boxes": known.boxes,
        "drawn": known.drawn,
        "shots": known.shots,
        "sources": known.sources,
        "chart_names": {page: [chart["id"] for chart in drawn] for page, drawn in known.drawings.items()},
        "chart_titles": {chart["id"]: chart["title"] for drawn in known.drawings.values() for chart in drawn},
    }
    return environment
