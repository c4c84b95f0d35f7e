"""A shop's own photos, pairs and categories, from the command line alone, with a shipped detector and embedder.

Street and shop photos have equal file names. The shop's CSV names products, prices and three categories of its own, one
of which DeepFashion2 lacks; the street's CSV says what was bought.
"""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sources.drawn import source as drawn
from store.imageset import Photo, open_imageset

REPO = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

LOOKS, SIZE = 8, 320
OWN = {8: "jeans", 9: "skirt", 10: "caftan", 11: "caftan", 12: "caftan"}  # of DeepFashion2's ids
RUN_FILE = """
detectors:
  - name: own
    base: atss-tiny
    classes: {trousers: jeans, short sleeve dress: caftan, long sleeve dress: caftan, vest dress: caftan}
embedders: [lite0-sg]
boxes: [detected]
"""


def run(script: str, *argv: object) -> str:
    """Standard output and error of a command that ends well."""
    line = [sys.executable, f"jobs/{script}.py", *map(str, argv)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, cwd=REPO, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, f"{script}: {done.stdout}"
    return done.stdout


def products(folder: Path, photos: Iterator[Photo], csv_path: Path, *, with_boxes: bool) -> None:
    """Photos as files 0001.jpg …, and a CSV of their products; the shop's has prices, titles and boxes."""
    folder.mkdir(parents=True)
    columns = [
        "file_name",
        "product_id",
        *(["category", "x1", "y1", "x2", "y2", "price", "title"] if with_boxes else []),
    ]
    with open(csv_path, "w", newline="") as file:
        rows = csv.DictWriter(file, columns, restval="")
        rows.writeheader()
        for number, photo in enumerate(photos, 1):
            name = f"{number:04d}.jpg"
            (folder / name).write_bytes(photo.image)
            about = {"file_name": name, "product_id": f"P-{photo.pair_id}"}
            if not with_boxes:
                rows.writerow(about)
                continue
            about |= {"price": f"{10 + photo.pair_id}.90", "title": f"Look no. {photo.pair_id} <b>&"}
            items = [item for item in photo.items if item.category_id in OWN]
            for item in items:
                corners = dict(zip(("x1", "y1", "x2", "y2"), item.bbox, strict=True))
                rows.writerow(about | {"category": OWN[item.category_id]} | corners)
            if not items:
                rows.writerow(about)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two image sets, street and sold, a run over both, and a gallery."""
    folder = tmp_path_factory.mktemp("shop")
    products(folder / "street", iter(drawn.read(LOOKS, 0, 5, SIZE)), folder / "bought.csv", with_boxes=False)
    products(folder / "sold", iter(drawn.read(0, 3 * LOOKS, 5, SIZE)), folder / "products.csv", with_boxes=True)
    (folder / "sold" / "notes.txt").write_text("not a picture")
    (folder / "run.yaml").write_text(RUN_FILE)
    run(
        "ingest",
        "folder",
        folder / "street",
        folder / "sets/street",
        "--source",
        "user",
        "--metadata",
        folder / "bought.csv",
    )
    said = run(
        "ingest",
        "folder",
        folder / "sold",
        folder / "sets/sold",
        "--source",
        "shop",
        "--metadata",
        folder / "products.csv",
    )
    assert "skipped: 1 .txt" in said and "columns kept as attributes: price, title" in said
    both = ("--imageset", folder / "sets/street", "--imageset", folder / "sets/sold", "--config", folder / "run.yaml")
    said = run("full_eval", *both, "--output", folder / "run")
    assert "own: boxes of short sleeve top, long sleeve top" in said and "are left out" in said
    run("reindex_gallery", *both, "--gallery", folder / "gallery")
    return folder


def test_sets_of_equal_names_are_one_run(shop: Path) -> None:
    record = json.loads((shop / "run/run.json").read_text())
    assert [Path(part["uri"]).name for part in record["imagesets"]] == ["street", "sold"]
    assert [part["images"] for part in record["imagesets"]] == [LOOKS, 3 * LOOKS]
    assert open_imageset(shop / "sets/sold").categories == tuple(record["categories"])
    assert sorted(record["categories"]) == ["caftan", "jeans", "skirt"]


def test_figures_by_photo(shop: Path) -> None:
    metrics = json.loads((shop / "run/metrics.json").read_text())
    figures = metrics["retrieval"]["detected"]["lite0-sg"]
    assert metrics["categories"] == json.loads((shop / "run/run.json").read_text())["categories"]
    assert (figures["truth"], figures["queries"]) == ("photo", LOOKS)
    assert 0 < figures["top"]["20"] <= 1 and 0 < figures["map"] <= figures["mrr"] <= 1
    assert metrics["detection"]["own"]["AP10"] is None


def test_boxes_are_of_the_shops_categories(shop: Path) -> None:
    names = json.loads((shop / "run/metrics.json").read_text())["categories"]
    ids = {
        id for path in (shop / "run/detections/own").iterdir() for id in pq.read_table(path)["category_id"].to_pylist()
    }
    assert {names[i - 1] for i in ids} <= {"caftan", "jeans", "skirt"} and ids


def test_the_report_shows_price_and_title(shop: Path) -> None:
    text = "".join(path.read_text() for path in (shop / "run/report/data").glob("queries-*.js"))
    assert '"price"' in text and ".90" in text and "Look no. " in text
    assert "<b>&" not in (shop / "run/report/queries.html").read_text()


def test_a_gallery_of_both_sets_and_a_search_page(shop: Path) -> None:
    photo, page = shop / "street/0001.jpg", shop / "found.html"
    said = run("search", photo, "--gallery", shop / "gallery", "--top", 3, "--html", page)
    assert "P-" in said and any(name in said for name in ("caftan", "jeans", "skirt"))
    html = page.read_text()
    assert "price" in html and ".90" in html and "&lt;b&gt;&amp;" in html and "<b>&" not in html


def test_exports(shop: Path) -> None:
    from pycocotools.coco import COCO
    from ranx import Qrels, Run, evaluate

    for kind in ("coco", "trec", "csv"):
        run("export", shop / "run", "--to", kind, shop / "out" / kind)
    figures = json.loads((shop / "run/metrics.json").read_text())["retrieval"]["detected"]["lite0-sg"]
    qrels = Qrels.from_file(str(shop / "out/trec/detected.qrels"), kind="trec")
    ranked = Run.from_file(str(shop / "out/trec/detected-lite0-sg.run"), kind="trec")
    assert evaluate(qrels, ranked, "map", make_comparable=True) == pytest.approx(figures["map"], abs=1e-9)
    with open(shop / "out/csv/rankings-detected-lite0-sg.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {"price", "title"} <= rows[0].keys() and rows[0]["price"].endswith(".90")
    truth = COCO(str(shop / "out/coco/truth.json"))
    assert {part["name"] for part in truth.loadCats(truth.getCatIds())} == {"caftan", "jeans", "skirt"}
