"""Runs made by hand for the report's tests: photos of one colour, rankings and items by row; pages read back."""

import html.parser
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from jobs.reports import site
from jobs.reports.pages import content_of
from jobs.runs import tables
from retrieval.metrics import TOPS
from store.imageset import ImageSet, Item, Photo, open_imageset
from store.imageset_write import write_imageset
from store.objects import ObjectStore

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>.jpg'
BOX = (10.0, 10.0, 60.0, 90.0)
SIZE = (80, 100)  # of every photo, pixels


@dataclass
class Page(html.parser.HTMLParser):
    """A page, or several after one another, as lists: tags with attributes, visible text."""

    source: str
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    text: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


@dataclass(frozen=True)
class Built:
    """A report: each page, all of them as one, and what the query page is fed."""

    pages: dict[str, Page]
    data: dict[str, Any]

    @property
    def all(self) -> Page:
        return Page("\n".join(page.source for page in self.pages.values()))

    @property
    def text(self) -> str:
        return self.all.text

    @property
    def queries(self) -> list[dict[str, Any]]:
        """Each query's entry in the index together with its details, in the order of the page."""
        if "queries" not in self.data:
            return []
        columns = self.data["queries"]["columns"]
        entries = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        names = sorted(name for name in self.data if name.startswith("queries-"))
        details = [one for name in names for one in self.data[name]]
        return [entry | detail for entry, detail in zip(entries, details, strict=True)]

    def query(self, photo: int) -> dict[str, Any]:
        (found,) = [one for one in self.queries if one["photo"] == str(photo)]
        return found

    @property
    def pictures(self) -> set[str]:
        """Paths of every picture that a page shows."""
        found = {str(image["src"]) for image in self.all.of("img")}
        for one in self.queries:
            found |= {shot[0] for shot in (one["picture"], *(r[4] for r in one["results"])) if isinstance(shot, list)}
        return found


def build(output: ObjectStore, images: ImageSet, **options: Any) -> Built:
    where = site.build(output, images, **options)
    assert where.endswith("/report/index.html")
    return read(output)


def read(output: ObjectStore) -> Built:
    keys = [entry.key for entry in output.list("report/")]
    pages = {Path(k).stem: Page(output.read(k).decode()) for k in keys if k.endswith(".html")}
    data = {Path(k).stem: content_of(output.read(k)) for k in keys if k.startswith("report/data/")}
    return Built(pages, data)


def photo(image_id: int, source: str, *items: Item, pair_id: int = 0, **more: Any) -> Photo:
    """A flat picture in the photo's own colour, with an EXIF block that names a camera."""
    exif = Image.Exif()
    exif[0x010F] = "SECRETCAMERA"
    data = io.BytesIO()
    Image.new("RGB", SIZE, (image_id * 37 % 256, image_id * 91 % 256, 120)).save(data, "JPEG", exif=exif)
    more = {"image": data.getvalue(), "file_name": f"{image_id:06}.jpg"} | more
    return Photo(image_id=image_id, width=SIZE[0], height=SIZE[1], source=source, pair_id=pair_id, items=items, **more)


def garment(style: int, category_id: int = 9, bbox: tuple[float, float, float, float] = BOX, **more: int) -> Item:
    return Item(category_id, style, bbox, **more)


def make_set(folder: Path, photos: list[Photo], max_images: int = 4) -> ImageSet:
    write_imageset(photos, folder, source={"adapter": "test"}, max_images=max_images)
    return open_imageset(folder)


def ranking_row(
    image_id: int, shops: list[int], *, item: int = 0, category_id: int = 9, bbox: tuple = BOX, best: float = 0.9
) -> dict[str, Any]:
    n = len(shops)
    return {
        "query_image_id": image_id,
        "query_item": item,
        "query_bbox": bbox,
        "query_score": 0.8,
        "query_category_id": category_id,
        "gallery_image_id": shops,
        "gallery_item": [0] * n,
        "gallery_bbox": [BOX] * n,
        "similarity": [best - 0.01 * place for place in range(n)],
    }


def write_rows(output: ObjectStore, key: str, schema: pa.Schema, rows: list[dict[str, Any]]) -> None:
    tables.write(output, key, pa.Table.from_pylist(rows, schema=schema))


def item_rows(image_ids: list[int]) -> list[dict[str, Any]]:
    return [{"image_id": i, "item": 0, "bbox": BOX, "score": 0.8, "category_id": 9, "votes": 4} for i in image_ids]


def figures(value: float | None, **more: Any) -> dict[str, Any]:
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AP10", "AP10_50")
    per = {"skirt": {"AP": value, "AP50": value, "items": 7}}
    return dict.fromkeys(names, value) | {"images": 3, "per_category": per} | more


def accuracy(value: float) -> dict[str, Any]:
    top = {k: value for k in ("1", "5", "10", "15", "20")}
    part = {name: top for name in TOPS} | {"missed": 1, "queries": 4}
    return part | {"per_category": {"skirt": part}, "per_attribute": {"scale": {"1": part}, "viewpoint": {}}}


OTHERS = ("top_one_category", "top_any_category")
METRICS: dict[str, Any] = {
    "schema": 1,
    "summary": {},
    "detection": {"atss": figures(0.4), "fused": figures(0.5, APs=None)},
    "retrieval": {"detected": {"lite": accuracy(0.25), "concat": accuracy(0.5)}},
    "images": {"total": 1234, "done": 1233, "failed": 1},
    "queries_per_photo": 1.5,
    "seconds": {"detect": 90.0, "fuse": 0.5},
}
RUN: dict[str, Any] = {
    "imagesets": [],
    "selected": {"rows": None},
    "settings": {"profile": "tiny"},
    "detectors": [{"name": "atss"}],
    "embedders": [{"name": "lite"}],
    "boxes": ["detected"],
    "recorded": "2030-01-02T03:04:05+00:00",
    "versions": {"driver": {"torch": "9.9.9", "numpy": "2.0"}, "node-<b>": {"torch": "9.9.8"}},
}
ABLATION = pa.schema(
    [
        ("part", pa.string()),
        ("boxes", pa.string()),
        ("name", pa.string()),
        ("group", pa.string()),
        ("steps", pa.string()),
        ("metric", pa.string()),
        *(
            (name, pa.float64())
            for name in (
                "value",
                "difference",
                "low",
                "high",
                "half_value",
                "half_difference",
                "half_low",
                "half_high",
                "seconds",
                "peak_mb",
                "top1",
                "top5",
                "top10",
                "top20",
            )
        ),
        *(
            (
                name,
                pa.list_(
                    pa.struct(
                        [("image_id", pa.int64()), ("item", pa.int32()), ("before", pa.int32()), ("after", pa.int32())]
                    )
                ),
            )
            for name in ("helped", "hurt")
        ),
    ]
)


def ablation_rows() -> list[dict[str, Any]]:
    """A base, a variant that gains a query of photo 3 and loses one of photo 1, and fusion's base alone."""
    base = {
        "part": "retrieval",
        "boxes": "detected",
        "name": "plain",
        "group": "base",
        "steps": '[{"step": "concat"}]',
        "metric": "top-10",
        "value": 0.5,
        "difference": 0.0,
        "seconds": 0.5,
        "peak_mb": 20.0,
        "top1": 0.4,
        "top5": 0.5,
        "top10": 0.5,
        "top20": 0.6,
    }
    better = base | {
        "name": "kreciprocal <b>",
        "group": "single",
        "steps": '[{"step": "concat"}, {"step": "kreciprocal", "k1": 20}]',
        "value": 0.625,
        "difference": 0.125,
        "low": 0.025,
        "high": 0.225,
        "half_value": 0.6,
        "half_difference": 0.1,
        "half_low": -0.05,
        "half_high": 0.25,
        "seconds": 12.25,
        "helped": [{"image_id": 3, "item": 0, "before": 0, "after": 2}],
        "hurt": [{"image_id": 1, "item": 0, "before": 1, "after": 0}],
    }
    boxes = {
        "part": "boxes",
        "boxes": "",
        "name": "wbf",
        "group": "base",
        "steps": "[]",
        "metric": "AP10",
        "value": 0.4,
        "difference": 0.0,
    }
    return [base, better, boxes]


def four(folder: Path, store: ObjectStore) -> ImageSet:
    """Four queries over three shards: photo 1 right at rank 1, 2 at rank 2, 3 wrong, 4 without a box of its category.

    Shop photo 21 answers query 1 (pair 5, style 1), 22 answers query 2 (pair 6, style 2); 23 has the pair of query 3
    but another style, 24 has its style 0.
    """
    pairs = [(1, 5, 1), (2, 6, 2), (3, 7, 1), (4, 8, 1)]
    users = [photo(i, "user", garment(style, scale=i % 3 + 1), pair_id=pair) for i, pair, style in pairs]
    shops = [
        photo(i, "shop", garment(style), pair_id=pair)
        for i, pair, style in [(21, 5, 1), (22, 6, 2), (23, 7, 2), (24, 7, 0)]
    ]
    shops.append(photo(25, "shop", garment(3), pair_id=9, product_id=HOSTILE))
    images = make_set(folder, users + shops)
    rows = [
        ranking_row(1, [21, 25]),
        ranking_row(2, [25, 22]),
        ranking_row(3, [23, 24]),
        ranking_row(4, [25], category_id=8),
    ]
    write_rows(store, "rankings/detected.parquet", tables.RANKINGS, rows)
    write_rows(store, "items/detected/shard-00000.parquet", tables.ITEMS, item_rows([1, 2, 3, 4]))
    return images


def with_figures(store: ObjectStore) -> None:
    """Figures, settings and detections for `four`: both find every photo's true box, but that of photo 4 twice as 8."""
    store.write("metrics.json", json.dumps(METRICS).encode())
    store.write("run.json", json.dumps(RUN).encode())
    store.write("rankings/detected/lite.parquet", store.read("rankings/detected.parquet"))
    for place, schema in (("detections/atss", tables.DETECTIONS), ("fused", tables.FUSED)):
        for shard, ids in (("shard-00000", [1, 2, 3, 4, 4]), ("shard-00001", [21, 22, 23]), ("shard-00002", [])):
            found = [
                {"image_id": i, "bbox": BOX, "score": 0.9 - 0.1 * n, "category_id": 8 if i == 4 else 9, "votes": 2}
                for n, i in enumerate(ids)
            ]
            write_rows(
                store, f"{place}/{shard}.parquet", schema, [{k: row.get(k) for k in schema.names} for row in found]
            )
