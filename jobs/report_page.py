"""The report of a run: `report/index.html` with small pictures beside it, for a browser, a bucket or an archive.

In: OUTPUT's contract files (metrics.json, run.json, failures.parquet, items/ or fused/, rankings/) and the image set.
Whatever is not there yet is left out of the page, and the page says so. Out: a static page, relative links, no scripts.
Called by `jobs/report.py`.
"""

import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from detection.categories import AP10_IDS, CATEGORIES
from jobs import overlay
from jobs.report_queries import LIST_LENGTH, Example, Result, Truth, pick_examples, read_ranking, read_truth
from store.decode import MAX_PIXELS, DecodeError, decode
from store.imageset import ImageSet
from store.objects import ObjectMissing, ObjectStore

PAGE = "report/index.html"
PICTURES = "report/pictures/"
BOXES = ("detected", "true")
KS = ("1", "5", "10", "15", "20")
AP_COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AP10", "AP10_50")
APART = (("consumers", "AP10"), ("masks", "AP10_50"))  # consumers' photos alone; masks instead of boxes
STAGES = ("detect", "fuse", "embed", "rank", "evaluate", "report")
MAX_FAILURES = 50
MIN_FUSED_SCORE = 0.3  # fused boxes under it are left undrawn; items/ is cut already
ATTRIBUTES = {  # DeepFashion2's meanings of the levels 1, 2, 3
    "scale": ("small", "modest", "large"),
    "occlusion": ("slight", "medium", "heavy"),
    "zoom_in": ("none", "medium", "large"),
    "viewpoint": ("not worn", "frontal", "side or back"),
}
Draw = Callable[[np.ndarray], overlay.Picture]  # (H, W, 3) uint8 upright RGB of one photo -> a small picture of it
LINKED = (
    "metrics.json",
    "run.json",
    "submission.json",
    "failures.parquet",
    "rankings/detected.parquet",
    "rankings/true.parquet",
)


@dataclass(frozen=True)
class Cell:
    """One figure of a table: what to print, and whether it is the best of its column."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Table:
    head: list[str]
    rows: list[tuple[str, list[Cell]]]  # name of the row, its cells; as many as `head` has entries
    groups: tuple[tuple[str, int], ...] = ()  # a line over the head: words, columns they span


@dataclass(frozen=True)
class Shot:
    """A picture that was written beside the page; path relative to the page."""

    path: str
    width: int
    height: int


@dataclass(frozen=True)
class Source:
    """What the image set says about one photo."""

    file_name: str
    product_id: str


def build(output: ObjectStore, imageset: ImageSet, *, queries: int = 40, top: int = 10) -> str:
    """Write the report of a run, the page last, then remove pictures that an earlier page left.

    Args:
        output: the run's folder.
        imageset: the set it ran on.
        queries: how many queries to show, 0 for none.
        top: shop results shown per query.

    Returns:
        where the page lies, as a URI or path.
    """
    metrics, run = _read_json(output, "metrics.json"), _read_json(output, "run.json")
    boxes = next((name for name in BOXES if output.exists(f"rankings/{name}.parquet")), None)
    truth = read_truth(imageset, _rows_taken(run))
    examples: list[Example] = []
    asked = 0
    if boxes and queries > 0:
        examples, asked = pick_examples(read_ranking(output, boxes, max(top, LIST_LENGTH)), truth, n=queries, top=top)
    drawn = _drawn_boxes(output, boxes, truth, examples)
    marks = {e: _marks(e, drawn.get(e.image_id, [])) for e in examples}
    max_pixels = (run.get("settings") or {}).get("max_pixels") or MAX_PIXELS
    shots, sources = _write_pictures(output, imageset, truth, examples, marks, max_pixels)
    page = _template().render(
        title=_set_name(imageset),
        profile=(run.get("settings") or {}).get("profile"),
        recorded=run.get("recorded"),
        imageset=imageset,
        metrics=metrics,
        tiles=_tiles(metrics),
        detection=_ap_table(metrics),
        detection_categories=_ap_categories(metrics),
        detection_images=_judged_images(metrics),
        notes=(metrics.get("summary") or {}).get("notes") or [],
        retrieval=[_retrieval(name, models) for name in BOXES if (models := _judged_models(metrics, name))],
        seconds=_seconds(metrics),
        images=metrics.get("images") or {},
        queries_per_photo=metrics.get("queries_per_photo"),
        failures=_failures(output),
        versions=_versions(run),
        settings=json.dumps(run, indent=2, sort_keys=True, ensure_ascii=False) if run else "",
        boxes=boxes,
        has_truth=bool(len(truth.queries)),
        examples=[(e, marks[e], _swatches(marks[e])) for e in examples],
        asked=asked,
        top=top,
        shots=shots,
        sources=sources,
        photo_key=_photo_key,
        crop_key=_crop_key,
        links=[name for name in LINKED if output.exists(name)],
    )
    output.write(PAGE, page.encode("utf-8", "replace"))
    _remove_stale(output, {shot.path for shot in shots.values()})
    return f"{str(output.uri).rstrip('/')}/{PAGE}"


# ---- reading -------------------------------------------------------------------------------------------------------


def _read_json(output: ObjectStore, key: str) -> dict[str, Any]:
    try:
        return json.loads(output.read(key))
    except ObjectMissing:
        return {}


def _rows_taken(run: dict[str, Any]) -> dict[str, list[int]] | None:
    """Rows of each shard that a run with a limit took; None for all."""
    return ((run.get("imageset") or {}).get("selected") or {}).get("rows")


def _set_name(imageset: ImageSet) -> str:
    parts = [part for part in str(imageset.uri).split("/") if part]
    return "/".join(parts[-2:]) if parts else "image set"


def _failures(output: ObjectStore) -> dict[str, Any] | None:
    """The first rows of failures.parquet and how many there are; None without the file."""
    if not output.exists("failures.parquet"):
        return None
    with output.open("failures.parquet") as file:
        table = pq.ParquetFile(file)
        batches = table.iter_batches(batch_size=MAX_FAILURES, columns=["image_id", "shard", "stage", "reason"])
        return {"total": table.metadata.num_rows, "rows": next((batch.to_pylist() for batch in batches), [])}


def _drawn_boxes(
    output: ObjectStore, boxes: str | None, truth: Truth, examples: list[Example]
) -> dict[int, list[dict[str, Any]]]:
    """Image id -> the boxes to draw on it, best first: the run's items, else its better fused boxes."""
    rows: dict[int, list[dict[str, Any]]] = {}
    for shard, ids in truth.shards_of(e.image_id for e in examples).items():
        key = next((k for k in (f"items/{boxes}/{shard}.parquet", f"fused/{shard}.parquet") if output.exists(k)), None)
        if key is None:
            continue
        with output.open(key) as file:
            table = pq.read_table(file, columns=["image_id", "bbox", "score", "category_id", "votes"])
        keep = pc.is_in(table["image_id"], value_set=pa.array(ids, pa.int64()))
        if key.startswith("fused/"):
            keep = pc.and_(keep, pc.greater_equal(table["score"], MIN_FUSED_SCORE))
        for row in table.filter(keep).to_pylist():
            rows.setdefault(row["image_id"], []).append(row)
    return {image_id: sorted(found, key=lambda row: -row["score"]) for image_id, found in rows.items()}


# ---- pictures ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawn(overlay.Mark):
    """A drawn box and what the legend says of it."""

    score: float | None = None
    votes: int | None = None
    missed: bool = False

    @property
    def category(self) -> str:
        return _category(self.category_id)


def _marks(example: Example, drawn: list[dict[str, Any]]) -> list[Drawn]:
    """The photo's boxes numbered from 1, the query's one strong; a missed garment's true box dashed."""
    same = np.array([np.allclose(row["bbox"], example.bbox, atol=0.5) for row in drawn], dtype=bool)
    if example.missed:
        same[:] = False
    strong = int(same.argmax()) if same.any() else -1
    marks = [
        Drawn(tuple(r["bbox"]), r["category_id"], str(i + 1), i == strong, False, r["score"], r["votes"])
        for i, r in enumerate(drawn)
    ]
    if example.missed:
        marks.append(Drawn(example.bbox, example.category_id, "?", True, True, missed=True))
    elif strong < 0:
        marks.append(Drawn(example.bbox, example.category_id, str(len(marks) + 1), True, False, example.score))
    return marks


def _write_pictures(
    output: ObjectStore,
    imageset: ImageSet,
    truth: Truth,
    examples: list[Example],
    marks: dict[Example, list[Drawn]],
    max_pixels: int,
) -> tuple[dict[str, Shot], dict[int, Source]]:
    """Write every picture the page shows, one shard's photos in memory at a time.

    Returns:
        key of the picture -> where it lies (keys of undecodable photos are absent), and image id -> its names.
    """
    wanted: dict[int, dict[str, Draw]] = {}
    for example in examples:
        wanted.setdefault(example.image_id, {})[_photo_key(example)] = _photo_job(marks[example])
        for result in example.results:
            wanted.setdefault(result.image_id, {})[_crop_key(result)] = _crop_job(result.bbox)
    shots: dict[str, Shot] = {}
    sources: dict[int, Source] = {}
    with ThreadPoolExecutor(
        4 if output.local_path is None else 1
    ) as threads:  # a bucket answers slowly, a disk does not
        for shard, ids in truth.shards_of(wanted).items():
            table = imageset.read(shard, columns=["image_id", "image", "file_name", "product_id"])
            rows = table.filter(pc.is_in(table["image_id"], value_set=pa.array(ids, pa.int64()))).to_pylist()
            sources |= {row["image_id"]: Source(row["file_name"] or "", row["product_id"] or "") for row in rows}
            work = [threads.submit(_write_photo, output, r["image"], wanted[r["image_id"]], max_pixels) for r in rows]
            for photo in work:
                shots |= photo.result()
    return shots, sources


def _write_photo(output: ObjectStore, data: bytes, wanted: dict[str, Draw], max_pixels: int) -> dict[str, Shot]:
    """Decode one photo and write the pictures wanted of it; nothing where it does not decode."""
    try:
        image = decode(data, max_pixels=max_pixels)
    except DecodeError:
        return {}
    shots = {}
    for key, draw in wanted.items():
        picture = draw(image)
        output.write(f"{PICTURES}{key}.jpg", picture.jpeg)
        shots[key] = Shot(f"pictures/{key}.jpg", picture.width, picture.height)
    return shots


def _photo_job(marks: list[Drawn]) -> Draw:
    return lambda image: overlay.photo_with_marks(image, list(marks))


def _crop_job(bbox: tuple[float, float, float, float]) -> Draw:
    return lambda image: overlay.crop(image, bbox)


def _photo_key(example: Example) -> str:
    """Name of a query's photo: its ids, and for a missed garment the corner of its box."""
    item = f"missed-{example.bbox[0]:.0f}-{example.bbox[1]:.0f}" if example.missed else str(example.item)
    return f"query-{example.image_id}-{item}"


def _crop_key(result: Result) -> str:
    return f"shop-{result.image_id}-{result.item}"


def _remove_stale(output: ObjectStore, kept: set[str]) -> None:
    for entry in output.list(PICTURES):
        if entry.key.removeprefix("report/") not in kept:
            output.delete(entry.key)


# ---- figures -------------------------------------------------------------------------------------------------------


def _tiles(metrics: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The figures on top of the page: name, value, a word of explanation."""
    if not metrics:
        return []
    fused = (metrics.get("detection") or {}).get("fused") or {}
    tiles = [
        ("AP50, fused", percent(fused.get("AP50")), "boxes right at IoU 0.5, 13 categories"),
        ("AP10_50, fused", percent(fused.get("AP10_50")), f"the same over {len(AP10_IDS)} categories"),
    ]
    for boxes in BOXES:
        models = _judged_models(metrics, boxes)
        name = "concat" if "concat" in models else next(iter(models), None)
        figures: dict[str, Any] = models[name] if name else {}
        queries = figures.get("queries")
        note = f"{name}, {count(queries)} queries" if name else "not measured"
        tiles.append((f"Acc@10, {boxes} boxes", percent((figures.get("top") or {}).get("10")), note))
    images = metrics.get("images") or {}
    tiles.append(
        (
            "images done",
            count(images.get("done")),
            f"of {count(images.get('total'))}, {count(images.get('failed'))} failed",
        )
    )
    seconds = [s for s in (metrics.get("seconds") or {}).values() if s is not None]
    tiles.append(("worker time", duration(sum(seconds) if seconds else None), "all stages, all workers"))
    return tiles


def _detectors(metrics: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The detection figures; {} where none of them was measured."""
    found = metrics.get("detection") or {}
    return found if any(row.get(c) is not None for row in found.values() for c in AP_COLUMNS) else {}


def _ap_table(metrics: dict[str, Any]) -> Table | None:
    rows = _detectors(metrics)
    columns: dict[str, list[float | None]] = {c: [row.get(c) for row in rows.values()] for c in AP_COLUMNS}
    for part, measure in APART:  # where they were measured
        values = [(row.get(part) or {}).get(measure) for row in rows.values()]
        columns |= {f"{measure}, {part}": values} if any(value is not None for value in values) else {}
    by_row = zip(*columns.values(), strict=True)
    return (
        _table(tuple(columns), [(name, list(values)) for name, values in zip(rows, by_row, strict=True)])
        if rows
        else None
    )


def _ap_categories(metrics: dict[str, Any]) -> Table | None:
    """AP per category: a column per detector, the best of each row bold, the item count last."""
    named = {name: row.get("per_category") or {} for name, row in _detectors(metrics).items()}
    categories = _in_order(category for figures in named.values() for category in figures)
    if not categories:
        return None
    rows = []
    for category in categories:
        figures = [(per.get(category) or {}).get("AP") for per in named.values()]
        fused = named.get("fused") or next(iter(named.values()))
        extra = fused.get(category) or {}
        cells = [Cell(percent(v), b) for v, b in zip(figures, _best(figures), strict=True)]
        rows.append((category, [*cells, Cell(percent(extra.get("AP50"))), Cell(count(extra.get("items")))]))
    last = "fused" if "fused" in named else next(iter(named))
    return Table([*named, last, "items"], rows, (("AP", len(named)), ("AP50", 1), ("", 1)))


def _judged_images(metrics: dict[str, Any]) -> int | None:
    return next((row.get("images") for row in _detectors(metrics).values()), None)


def _judged_models(metrics: dict[str, Any], boxes: str) -> dict[str, dict[str, Any]]:
    """The retrieval figures of one kind of boxes; {} where there was no query to judge."""
    found = (metrics.get("retrieval") or {}).get(boxes) or {}
    return found if any(row.get("queries") for row in found.values()) else {}


def _retrieval(boxes: str, models: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The accuracy tables of detected or of true boxes: whole set, per category, per attribute level."""
    accuracy = [(name, [(row.get("top") or {}).get(k) for k in KS]) for name, row in models.items()]
    whole = _table([f"top-{k}" for k in KS], accuracy)
    counts = [[Cell(count(row.get("missed"))), Cell(count(row.get("queries")))] for row in models.values()]
    rows = [(name, [*cells, *more]) for (name, cells), more in zip(whole.rows, counts, strict=True)]
    per_category = [row.get("per_category") or {} for row in models.values()]
    categories = _in_order(name for per in per_category for name, part in per.items() if part.get("queries"))
    parts = [("category", [(name, [per.get(name) or {} for per in per_category]) for name in categories])]
    for attribute, meanings in ATTRIBUTES.items():
        per = [(row.get("per_attribute") or {}).get(attribute) or {} for row in models.values()]
        levels = [(f"{level} {word}", [p.get(str(level)) or {} for p in per]) for level, word in enumerate(meanings, 1)]
        parts.append((attribute.replace("_", " "), [row for row in levels if any(row[1])]))
    return {
        "boxes": boxes,
        "table": Table([*whole.head, "missed", "queries"], rows),
        "parts": [(name, _part(list(models), part)) for name, part in parts if part],
    }


def _part(models: list[str], rows: list[tuple[str, list[dict[str, Any]]]]) -> Table:
    """Top-1 and top-10 of every model per row, the best model of each row bold, the number of queries last."""
    done = []
    for name, figures in rows:
        cells: list[Cell] = []
        for k in ("1", "10"):
            values = [(f.get("top") or {}).get(k) for f in figures]
            cells += [Cell(percent(v), b) for v, b in zip(values, _best(values), strict=True)]
        queries = next((f["queries"] for f in figures if f.get("queries") is not None), None)
        done.append((name, [*cells, Cell(count(queries))]))
    return Table([*models, *models, "queries"], done, (("top-1", len(models)), ("top-10", len(models)), ("", 1)))


def _table(head: Iterable[str], rows: list[tuple[str, list[float | None]]]) -> Table:
    """Fractions as percent, the best of each column marked."""
    best = [_best([values[c] for _, values in rows]) for c in range(len(rows[0][1]))]
    cells = [
        (name, [Cell(percent(v), best[c][r]) for c, v in enumerate(values)]) for r, (name, values) in enumerate(rows)
    ]
    return Table(list(head), cells)


def _best(values: list[float | None]) -> list[bool]:
    """Which values are the highest as printed; none where fewer than two can be compared."""
    known = [round(v, 3) for v in values if v is not None]
    return [len(known) > 1 and v is not None and round(v, 3) == max(known) for v in values]


def _in_order(names: Iterable[str]) -> list[str]:
    """Each category name once, in DeepFashion2's order, others after them."""
    found = list(dict.fromkeys(names))
    return sorted(found, key=lambda name: CATEGORIES.index(name) if name in CATEGORIES else len(CATEGORIES))


def _seconds(metrics: dict[str, Any]) -> list[tuple[str, str, str, float]]:
    """Per stage: name, worker seconds, images per worker second, share of the whole in [0, 1]."""
    seconds = {stage: s for stage, s in (metrics.get("seconds") or {}).items() if s is not None}
    done, whole = (metrics.get("images") or {}).get("done"), sum(seconds.values())
    ordered = sorted(seconds, key=lambda stage: STAGES.index(stage) if stage in STAGES else len(STAGES))
    return [
        (
            s,
            f"{seconds[s]:,.1f}",
            f"{done / seconds[s]:,.1f}" if done and seconds[s] > 0 else "–",
            seconds[s] / whole if whole else 0.0,
        )
        for s in ordered
    ]


def _versions(run: dict[str, Any]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Names of the nodes, and per package its version on each, from run.json's node -> package -> version."""
    nodes = {str(name): found for name, found in (run.get("versions") or {}).items() if isinstance(found, dict)}
    packages = sorted({package for found in nodes.values() for package in found})
    return list(nodes), [(p, [str(found.get(p, "–")) for found in nodes.values()]) for p in packages]


def _swatches(marks: list[Drawn]) -> list[tuple[Drawn, str]]:
    return [(mark, overlay.colour_of(mark.category_id)) for mark in marks]


# ---- printing ------------------------------------------------------------------------------------------------------


def percent(fraction: float | None) -> str:
    """0.4567 -> 45.7; nothing measured -> a dash."""
    return "–" if fraction is None else f"{100 * fraction:.1f}"


def count(number: int | None) -> str:
    return "–" if number is None else f"{number:,}"


def duration(seconds: float | None) -> str:
    """Seconds as a person says them: 8.4 s, 12 min 05 s, 3 h 07 min."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def _category(category_id: int) -> str:
    return CATEGORIES[category_id - 1] if 1 <= category_id <= len(CATEGORIES) else f"category {category_id}"


def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    env = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    env.filters.update(percent=percent, count=count, category=_category)
    return env.get_template("report.html.j2")
