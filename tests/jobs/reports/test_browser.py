"""The report's pages in a real browser, opened from a folder: charts, filters, keys, both themes, a phone."""

import io
import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import report_runs as runs
from PIL import Image
from report_runs import HOSTILE, build, garment, make_set, photo, ranking_row, write_rows

from jobs.runs import tables
from store.imageset import Photo, open_imageset
from store.imageset_write import write_imageset
from store.objects import open_store

PAGES = ("index", "detection", "retrieval", "queries", "ablation", "run")
EVERY_IMAGE = """async () => {
    const images = [...document.images];
    images.forEach((image) => image.loading = "eager");
    await Promise.all(images.map((image) => image.decode()));
    return images.every((image) => image.naturalWidth > 0) ? images.length : -1;
}"""


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """The report of `four` with figures, detections, an ablation, an earlier run; photo 1's box has two hypotheses."""
    folder = tmp_path_factory.mktemp("report")
    output = open_store(folder / "run")
    images = runs.four(folder / "set", output)
    rows = tables.read(output, "rankings/detected.parquet").to_pylist()
    rows[0]["query_hypotheses"] = [{"category_id": 9, "score": 0.75}, {"category_id": 8, "score": 0.03125}]
    write_rows(output, "rankings/detected.parquet", tables.RANKINGS, rows)
    runs.with_figures(output)
    other_tops = {name: runs.accuracy(value)["top"] for name, value in zip(runs.OTHERS, (0.25, 0.75), strict=True)}
    retrieval = {"detected": {"lite": runs.accuracy(0.25), "concat": runs.accuracy(0.5) | other_tops}}
    metrics = runs.METRICS | {"retrieval": retrieval, "item_categories": CATEGORIES}
    output.write("metrics.json", json.dumps(metrics).encode())
    output.write("index/detected/index.json", json.dumps({"rows": 5}).encode())
    write_rows(output, "ablation.parquet", runs.ABLATION, runs.ablation_rows())
    build(output, images, compare=str(output.uri))
    return folder / "run" / "report"


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    """120 queries, each answered by shop photo 1000: as many pages as it takes for turning them."""
    folder = tmp_path_factory.mktemp("many")
    output = open_store(folder / "run")
    users = [photo(i, "user", garment(1, 9 - i % 2), pair_id=5) for i in range(120)]
    images = make_set(folder / "set", [*users, photo(1000, "shop", garment(1), pair_id=5)], max_images=64)
    rows = [ranking_row(i, [1000], category_id=9 - i % 2, best=0.9 - i / 1000) for i in range(120)]
    write_rows(output, "rankings/detected.parquet", tables.RANKINGS, rows)
    build(output, images, queries=40)
    return folder / "run" / "report"


# of 16 right boxes, as metrics.json has it
CATEGORIES = {
    "boxes": 16, "top_1": 0.75, "top_1_fused": 0.625, "calibration_error": 0.03125,
    "bins": [
        {"above": 0.0, "boxes": 0, "confidence": 0.0, "accuracy": 0.0},
        {"above": 0.4, "boxes": 4, "confidence": 0.4375, "accuracy": 0.5},
        {"above": 0.8, "boxes": 12, "confidence": 0.875, "accuracy": 0.84},
    ],
}  # fmt: skip
# What a page shows of these figures. Table cells are a tab apart; in four photos two queries are right
SHOWN = {
    "index": ("own category 25.0, any category 75.0\n95 %: 0.0 to 100.0, by chance 50.0", "random order"),
    "detection": ("16 detected", "75.0 percent have", "it is 62.5", "by 3.1 percentage", "40.0\t4\t43.8\t50.0\n80.0"),
    "retrieval": ("own category\tany category", "concat\t50.0\t50.0\t50.0\t50.0\t50.0\t25.0\t25.0\t75.0\t75.0\t"),
}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_loads_whole_and_fits_a_phone(report, tab, name):
    page = tab(report).open(f"{name}.html")
    words = page.locator("main").inner_text()
    assert [part for part in SHOWN.get(name, ()) if part not in words] == []
    n_images = page.evaluate(EVERY_IMAGE)
    assert n_images == {"index": 4, "queries": 10, "ablation": 2}.get(name, n_images) >= 0
    drawn = page.locator(".chart .plot .main-svg").count()
    assert page.locator(".chart").count() == page.locator(".chart .plot:has(.main-svg)").count()
    assert (drawn > 0) == (name in ("detection", "retrieval", "ablation", "run"))
    assert page.locator("nav a").all_inner_texts() == [
        "Summary",
        "Detection",
        "Retrieval",
        "Queries",
        "Ablation",
        "Run",
    ]
    assert page.locator("nav a[aria-current=page]").count() == 1
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_function("[...document.querySelectorAll('.main-svg')].every((chart) => chart.clientWidth < 390)")
    assert page.evaluate("document.documentElement.scrollWidth") == 390


ORPHANS = """() => [...document.querySelectorAll("main :is(h2, h3, .note)")].filter((one) => {
    const next = one.nextElementSibling;
    const heading = one.matches("h2") ? "h2" : "h2, h3";
    return !next || next.matches(heading) || !next.textContent.trim() && !next.querySelector("img, svg");
}).map((one) => one.textContent)"""


@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_announced_that_does_not_follow(report, tab, name):
    assert tab(report).open(f"{name}.html").evaluate(ORPHANS) == []


def test_nothing_is_announced_where_half_of_a_run_is_missing(tmp_path, tab):
    """Figures without rankings: no curves, no similarities."""
    output = open_store(tmp_path / "run")
    images = runs.four(tmp_path / "set", output)
    runs.with_figures(output)
    for entry in list(output.list("rankings/")):
        output.delete(entry.key)
    build(output, images)
    for name in ("index", "detection", "retrieval", "queries", "run"):
        assert tab(tmp_path / "run" / "report").open(f"{name}.html").evaluate(ORPHANS) == []


@pytest.mark.parametrize("name, link", [("queries", "article .photo a.opens"), ("index", ".mistakes a.opens")])
def test_a_picture_opens_large_by_keyboard_and_closes_by_escape(report, tab, name, link):
    page = tab(report, viewport={"width": 390, "height": 844}).open(f"{name}.html")
    page.locator(link).first.focus()
    words = page.locator(link).first.locator("img").get_attribute("alt")
    page.keyboard.press("Enter")
    dialog = page.locator("dialog[open]")
    assert words in dialog.inner_text() and page.evaluate("document.activeElement.textContent") == "Close"
    box = dialog.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 390 and box["height"] <= 844
    assert dialog.locator("img").bounding_box()["height"] > 400  # of a photo of 100 px
    page.keyboard.press("n")  # belongs to the queries, not to the dialog
    assert page.evaluate("document.activeElement.textContent") == "Close"
    page.keyboard.press("Escape")
    dialog.wait_for(state="detached")
    assert page.evaluate(f"document.activeElement === document.querySelector({link!r})"), "focus is where it was"
    page.locator(link).first.click()
    page.get_by_role("button", name="Close").click()
    dialog.wait_for(state="detached")
    assert page.url.partition("#")[0].endswith(f"{name}.html")


def test_what_would_have_been_right_stands_above_the_wrong_results(tmp_path, tab):
    """Photo 3 has a right answer with photo 22, that its list lacks; photo 2 is missed: its box is of trousers."""
    output = open_store(tmp_path / "run")
    users = [photo(2, "user", garment(1), pair_id=5), photo(3, "user", garment(1), pair_id=6)]
    shops = [photo(21, "shop", garment(1), pair_id=5), photo(22, "shop", garment(1), pair_id=6, product_id=HOSTILE)]
    images = make_set(tmp_path / "set", users + shops)
    rows = [ranking_row(2, [21], category_id=8), ranking_row(3, [21])]
    write_rows(output, "rankings/detected.parquet", tables.RANKINGS, rows)
    items = [*runs.item_rows([2, 3, 21, 22])]
    items[0]["category_id"] = 8
    write_rows(output, "items/detected/shard-00000.parquet", tables.ITEMS, items)
    build(output, images)
    page = tab(tmp_path / "run" / "report").open("queries.html")
    wrong, missed = page.locator(".answer").all()
    assert wrong.inner_text() == f"Would have been right: {HOSTILE}. Not among the first 20."
    assert missed.inner_text().startswith("Would have been right: 000021.jpg. Box of category trousers only (80.0)")
    assert page.locator(".answer img").first.get_attribute("alt") == f"would have been right: {HOSTILE}"
    order = page.locator("article").first.evaluate(
        "one => one.innerHTML.indexOf('answer') < one.innerHTML.indexOf('shops')"
    )
    assert order and page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_nothing_moves(report):
    css = (report / "assets" / "report.css").read_text()
    assert "transition" not in css and "animation" not in css and "smooth" not in css


def test_queries_say_how_they_ended(report, tab):
    page = tab(report).open("queries.html")
    articles = {text.split(" ·")[0]: text for text in page.locator("article").all_inner_texts()}
    right, later, wrong, missed = (f"00000{i}.jpg" for i in (1, 2, 3, 4))
    assert list(articles) == [wrong, later, missed, right]
    assert "✓ first right result at rank 1" in articles[right] and articles[right].count("✓ right") == 1
    assert "✓ first right result at rank 2" in articles[later] and articles[later].count("✓ right") == 1
    assert "✗ none of 2 results is right" in articles[wrong] and "✓" not in articles[wrong]
    assert "The shops have no photo of this garment." in articles[wrong]
    assert "✗ missed" in articles[missed] and "true box, not detected" in articles[missed]
    legend = "skirt 80.0 · 4 votes · query; judged as skirt 75.0, trousers 3.1"
    for words in (legend, "90.0", "000001.jpg", "scale modest"):
        assert words in articles[right], words
    assert "judged as" not in articles[later]
    alts = page.locator("article img").evaluate_all("images => images.map((image) => image.alt)")
    assert "rank 1, 000021.jpg, similarity 90.0, right" in alts
    assert f"rank 1, {HOSTILE}, similarity 90.0, wrong" in alts
    assert page.locator("li.right").count() == 2


@pytest.mark.parametrize(
    "address, photos",
    [
        ("", [3, 2, 4, 1]),
        ("#outcome=wrong", [3]),
        ("#outcome=later", [2]),
        ("#outcome=missed", [4]),
        ("#outcome=right", [1]),
        ("#order=photo", [1, 2, 3, 4]),
        ("#order=rank", [1, 2, 3, 4]),  # 1, 2, none, missed
        ("#category=9", [3, 2, 4, 1]),
        ("#category=8", [3, 2, 4, 1]),  # not in this run: as if nothing were chosen
        ("#attribute=0:1", [3]),  # scale 3 % 3 + 1
        ("#score=80", [3, 2, 1]),  # a missed one has none
        ("#score=81", []),
        ("#text=000002", [2]),
        ("#text=ONERROR", [2, 1]),  # the product of shop photo 25, which these two show
        ("#text=21&outcome=right", []),  # ids of shop photos are not searched
    ],
)
def test_the_address_says_what_is_shown(report, tab, address, photos):
    page = tab(report).open(f"queries.html{address}")
    assert [int(text.split(".")[0]) for text in page.locator("article h3").all_inner_texts()] == photos
    assert ("No query fits" in page.locator("#list").inner_text()) == (not photos)


def test_filters_work_and_stand_in_the_address(many, tab):
    page = tab(many).open("queries.html")
    assert page.locator("#count").inner_text() == "1–50 of 120 queries"
    page.select_option("[name=category]", label="trousers (60)")
    page.wait_for_function("document.getElementById('count').textContent === '1–50 of 60 queries'")
    page.fill("[name=text]", "00011")
    page.wait_for_function("document.getElementById('count').textContent === '1–6 of 6 queries'")  # 11, 111, 113 … 119
    assert page.url.endswith("#category=8&text=00011")
    page.check("[name=drawn]")
    page.wait_for_function("!document.getElementById('count').textContent.includes('of 6 ')")
    page.reload()
    page.wait_for_selector("#list[data-shown]")
    assert page.input_value("[name=text]") == "00011" and page.is_checked("[name=drawn]")


def test_keys_walk_through_queries_and_pages(many, tab):
    page = tab(many).open("queries.html")
    focused = (
        "document.activeElement.querySelector?.('h3')?.textContent.split(' ')[0] ?? document.activeElement.name ?? ''"
    )
    first = page.locator("article h3").first.inner_text().split()[0]
    second = page.locator("article h3").nth(1).inner_text().split()[0]
    page.keyboard.press("n")
    assert page.evaluate(focused) == first
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid", "focus is visible"
    page.keyboard.press("n")
    assert page.evaluate(focused) == second
    page.keyboard.press("p")
    assert page.evaluate(focused) == first
    page.keyboard.press("ArrowRight")
    page.wait_for_function("document.getElementById('count').textContent === '51–100 of 120 queries'")
    assert page.url.endswith("#page=2")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("document.getElementById('count').textContent === '101–120 of 120 queries'")
    assert page.locator("[data-step='1']").first.is_disabled()
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.name") == "text"
    page.keyboard.type("n/p")  # goes into the field
    assert page.input_value("[name=text]") == "n/p"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement === document.body")


def test_both_themes_and_a_change_between_them(report, tab):
    page = tab(report, color_scheme="light").open("detection.html")
    line = "document.querySelector('.plot .scatterlayer path.js-line')?.style.stroke"
    light = page.evaluate(f"[getComputedStyle(document.body).backgroundColor, {line}]")
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"{line} !== {light[1]!r}")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert light[0] == "rgb(247, 247, 245)" and dark == "rgb(20, 23, 26)"


def test_a_choice_changes_the_chart(report, tab):
    page = tab(report).open("retrieval.html")
    chart = page.locator("[data-chart=parts-detected]")
    assert chart.locator("option").all_inner_texts() == ["per category", "per scale"]
    assert [text.strip() for text in chart.locator(".ytick").all_text_contents()] == ["skirt (4)"]
    counts = page.locator("[data-chart=similarity-detected] .ytick").all_text_contents()
    assert [text.strip() for text in counts] == ["0", "1", "2"], "whole queries"
    chart.locator("select").select_option("per scale")
    assert [text.strip() for text in chart.locator(".ytick").all_text_contents()] == ["1 small (4)"]


def test_names_beside_many_lines_stand_apart_within_the_chart(tmp_path, tab):
    """Ten models that end at the same figure."""
    output = open_store(tmp_path / "run")
    images = runs.four(tmp_path / "set", output)
    runs.with_figures(output)
    names = [f"lite{n}" for n in range(9)]
    detected = dict.fromkeys(names, runs.accuracy(0.5)) | {"concat": runs.accuracy(0.5)}
    output.write("metrics.json", json.dumps(runs.METRICS | {"retrieval": {"detected": detected}}).encode())
    for name in names:
        output.write(f"rankings/detected/{name}.parquet", output.read("rankings/detected/lite.parquet"))
    build(output, images)
    page = tab(tmp_path / "run" / "report").open("retrieval.html")
    chart = page.locator("[data-chart^=accuracy]").first
    svg = chart.locator(".main-svg").first.bounding_box()
    labels = sorted((label.bounding_box() for label in chart.locator(".annotation").all()), key=lambda box: box["y"])
    assert len(labels) == 10 and svg["y"] <= labels[0]["y"]
    assert labels[-1]["y"] + labels[-1]["height"] <= svg["y"] + svg["height"]
    assert all(below["y"] - above["y"] >= 15 for above, below in itertools.pairwise(labels))


def test_hostile_names_stay_text(tmp_path, tab):
    output = open_store(tmp_path / "run")
    photos = [
        photo(1, "user", garment(1), pair_id=5, file_name=HOSTILE),
        photo(21, "shop", garment(1), pair_id=5, product_id=HOSTILE),
    ]
    images = make_set(tmp_path / "set", photos)
    write_rows(output, "rankings/detected.parquet", tables.RANKINGS, [ranking_row(1, [21])])
    build(output, images)
    page = tab(tmp_path / "run" / "report").open("queries.html")
    assert page.locator("article").inner_text().count(HOSTILE) == 2
    assert page.locator("article script, article img:not([src^='pictures/'])").count() == 0
    assert page.locator("article bdi").evaluate_all("found => found.every((one) => one.children.length === 0)")


def test_a_missing_data_file_is_said(many, tab, tmp_path):
    shutil.copytree(many, tmp_path / "report")
    (tmp_path / "report" / "data" / "queries-0000.js").unlink()
    one = tab(tmp_path / "report")
    page = one.open("queries.html")
    assert "data/queries-0000.js does not load" in page.locator("#list").inner_text()
    assert one.trouble and all("queries-0000.js" in line or "ERR_FILE_NOT_FOUND" in line for line in one.trouble)
    one.trouble.clear()


def tiny(image_id: int, source: str, pair_id: int) -> Photo:
    data = io.BytesIO()
    Image.new("RGB", (8, 8), (image_id % 256, image_id // 256 % 256, 90)).save(data, "JPEG")
    item = garment(1, 1 + image_id % 13, (0.0, 0.0, 8.0, 8.0))
    return Photo(
        image_id, data.getvalue(), 8, 8, source, pair_id, f"product {pair_id}", f"{image_id:08}.jpg", items=(item,)
    )


@pytest.fixture(scope="module")
def ten_thousand(tmp_path_factory) -> Path:
    """10,000 queries over 500 shop photos, every third wrong."""
    folder = tmp_path_factory.mktemp("large")
    n, shops = 10_000, 500

    def photos() -> Iterator[Photo]:
        yield from (tiny(i, "user", 1 + i % shops) for i in range(n))
        yield from (tiny(n + i, "shop", 1 + i) for i in range(shops))

    write_imageset(photos(), folder / "set", source={"adapter": "test"}, max_images=256)
    box = (0.0, 0.0, 8.0, 8.0)
    rows = [
        ranking_row(
            i,
            [n + (i + (i % 3 == 0) + 7 * place) % shops for place in range(20)],
            category_id=1 + i % 13,
            bbox=box,
            best=0.99 - i / 20_000,
        )
        | {"gallery_bbox": [box] * 20}
        for i in range(n)
    ]
    output = open_store(folder / "run")
    write_rows(output, "rankings/detected.parquet", tables.RANKINGS, rows)
    build(output, open_imageset(folder / "set"), queries=200)
    return folder / "run" / "report"


@pytest.mark.slow
def test_ten_thousand_queries_open_and_sort_at_the_cost_of_fifty(ten_thousand, tab):
    """What takes time is counted: elements on the page, and data files read."""
    n_elements = "document.querySelectorAll('*').length"
    n_loaded = "[...document.scripts].filter((script) => script.src.includes('/data/queries-')).length"
    page = tab(ten_thousand).open("queries.html")
    assert page.locator("article").count() == 50 and "of 10,000 queries" in page.locator("#count").inner_text()
    assert page.evaluate(n_elements) < 50 * 200
    assert page.evaluate(n_loaded) <= 2 < len(list((ten_thousand / "data").glob("queries-*.js"))) / 10
    page.select_option("[name=outcome]", "right")
    page.select_option("[name=order]", "photo")
    page.wait_for_function(
        "document.querySelector('article h3')?.textContent.startsWith('00000001.jpg')", timeout=120_000
    )
    assert page.locator("article").count() == 50
    assert page.evaluate(n_elements) < 50 * 200 and page.evaluate(n_loaded) <= 4
