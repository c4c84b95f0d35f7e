"""The report page: what it says, what it marks, what it leaves out. Runs are made by hand, pictures drawn here."""

import html.parser
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs import overlay, report_page, tables
from store.imageset import ImageSet, Item, Photo, open_imageset, write_imageset
from store.objects import ObjectStore, open_store

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>.jpg'
BOX = (10.0, 10.0, 60.0, 90.0)
SIZE = (80, 100)  # of every photo, pixels


@dataclass
class Page(html.parser.HTMLParser):
    """A page as lists: tags with attributes, visible text, words of each article."""

    source: str
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    text: str = ""
    articles: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._depth = 0
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "article":
            self._depth += 1
            self.articles.append("")

    def handle_endtag(self, tag: str) -> None:
        self._depth -= tag == "article"

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._depth:
            self.articles[-1] += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def photo(image_id: int, source: str, *items: Item, pair_id: int = 0, **more: Any) -> Photo:
    """A flat picture in the photo's own colour, with an EXIF block that names a camera."""
    exif = Image.Exif()
    exif[0x010F] = "SECRETCAMERA"
    data = io.BytesIO()
    Image.new("RGB", SIZE, (image_id * 37 % 256, image_id * 91 % 256, 120)).save(data, "JPEG", exif=exif)
    more = {"image": data.getvalue(), "file_name": f"{image_id:06}.jpg"} | more
    return Photo(image_id=image_id, width=SIZE[0], height=SIZE[1], source=source, pair_id=pair_id, items=items, **more)


def garment(style: int, category_id: int = 9, bbox: tuple[float, float, float, float] = BOX) -> Item:
    return Item(category_id, style, bbox)


def make_set(folder: Path, photos: list[Photo], max_images: int = 4) -> ImageSet:
    write_imageset(photos, folder, source={"adapter": "test"}, max_images=max_images)
    return open_imageset(folder)


def ranking_row(
    image_id: int, shops: list[int], *, item: int = 0, category_id: int = 9, bbox: tuple = BOX
) -> dict[str, Any]:
    n = len(shops)
    return {
        "query_image_id": image_id, "query_item": item, "query_bbox": bbox, "query_score": 0.8,
        "query_category_id": category_id, "gallery_image_id": shops, "gallery_item": [0] * n, "gallery_bbox": [BOX] * n,
        "similarity": [0.9 - 0.01 * place for place in range(n)],
    }  # fmt: skip


def write_rows(output: ObjectStore, key: str, schema: Any, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa

    tables.write(output, key, pa.Table.from_pylist(rows, schema=schema))


def item_rows(image_ids: list[int]) -> list[dict[str, Any]]:
    return [
        {"image_id": i, "item": 0, "bbox": BOX, "score": 0.8, "category_id": 9, "votes": 4} for i in image_ids
    ]  # fmt: skip


def figures(value: float | None, **more: Any) -> dict[str, Any]:
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AP10", "AP10_50")
    per = {"skirt": {"AP": value, "AP50": value, "items": 7}}
    return dict.fromkeys(names, value) | {"images": 3, "per_category": per} | more


def accuracy(value: float) -> dict[str, Any]:
    part = {"top": {k: value for k in ("1", "5", "10", "15", "20")}, "missed": 1, "queries": 4}
    return part | {"per_category": {"skirt": part}, "per_attribute": {"scale": {"1": part}, "viewpoint": {}}}


METRICS = {
    "schema": 1,
    "summary": {},
    "detection": {"atss": figures(0.4), "fused": figures(0.5, APs=None)},
    "retrieval": {"detected": {"lite": accuracy(0.25), "concat": accuracy(0.5)}},
    "images": {"total": 1234, "done": 1233, "failed": 1},
    "queries_per_photo": 1.5,
    "seconds": {"detect": 90.0, "fuse": 0.5},
}
RUN = {
    "settings": {"profile": "tiny"},
    "recorded": "2030-01-02T03:04:05+00:00",
    "versions": {"driver": {"torch": "9.9.9", "numpy": "2.0"}, "node-<b>": {"torch": "9.9.8"}},
}


@pytest.fixture
def four(tmp_path: Path) -> tuple[ObjectStore, ImageSet]:
    """Four queries over three shards: photo 1 right at once, 2 right at rank 2, 3 wrong, 4 without a box of its category.

    Shop photo 21 answers query 1 (pair 5, style 1), 22 answers query 2 (pair 6, style 2); 23 has the pair of query 3 but
    another style, 24 has its style 0.
    """
    users = [
        photo(i, "user", garment(style), pair_id=pair)
        for i, pair, style in [(1, 5, 1), (2, 6, 2), (3, 7, 1), (4, 8, 1)]
    ]
    shops = [
        photo(i, "shop", garment(style), pair_id=pair)
        for i, pair, style in [(21, 5, 1), (22, 6, 2), (23, 7, 2), (24, 7, 0)]
    ]
    shops.append(photo(25, "shop", garment(3), pair_id=9, product_id=HOSTILE))
    images = make_set(tmp_path / "set", users + shops)
    output = open_store(tmp_path / "run")
    rows = [
        ranking_row(1, [21, 25]),
        ranking_row(2, [25, 22]),
        ranking_row(3, [23, 24]),
        ranking_row(4, [25], category_id=8),
    ]
    write_rows(output, "rankings/detected.parquet", tables.RANKINGS, rows)
    write_rows(output, "items/detected/shard-00000.parquet", tables.ITEMS, item_rows([1, 2, 3, 4]))
    return output, images


def page_of(output: ObjectStore, images: ImageSet, **options: Any) -> Page:
    where = report_page.build(output, images, **options)
    assert where.endswith("/report/index.html")
    return Page(output.read("report/index.html").decode())


def test_each_query_says_how_it_ended(four):
    first, second, third, fourth = page_of(*four).articles
    assert "✓ first right at 1" in first and first.count("✓ right") == 1
    assert "✓ first right at 2" in second and second.count("✓ right") == 1
    assert "✗ none of 2 right" in third and "✓" not in third
    assert "✗ missed" in fourth and "true box, not found" in fourth
    assert "80.0" in first and "4 votes" in first and "skirt" in first and "90.0" in first


def test_right_results_are_marked_in_words_and_in_the_picture_text(four):
    page = page_of(*four)
    alts = [str(image["alt"]) for image in page.of("img")]
    assert "rank 1, shop photo 21, similarity 90.0, right" in alts
    assert "rank 1, shop photo 25, similarity 90.0, wrong" in alts
    assert len([li for li in page.of("li") if li.get("class") == "right"]) == 2


@pytest.mark.parametrize(
    "bbox, right",
    [
        ((10, 10, 60, 90), True),  # the true box
        ((10, 10, 60, 50), True),  # its upper half: IoU 0.5 exactly
        ((10, 10, 60, 49), False),  # 39 of 80 rows
    ],
)
def test_a_shop_box_is_right_from_half_overlap_up(four, bbox, right):
    output, images = four
    write_rows(output, "rankings/detected.parquet", tables.RANKINGS, [ranking_row(1, [21]) | {"gallery_bbox": [bbox]}])
    assert ("✓ right" in page_of(output, images).articles[0]) is right


@pytest.mark.parametrize(
    "queries, photos",
    [
        (40, [1, 2, 3, 4]),  # no more than there are
        (4, [1, 2, 3, 4]),
        (2, [1, 4]),  # the ends: best and missed
        (3, [1, 3, 4]),  # positions 0, 1.5 -> 2, 3
        (1, [1]),
        (0, []),
    ],
)
def test_queries_are_taken_at_even_steps_of_their_outcome(four, queries, photos):
    articles = page_of(*four, queries=queries).articles
    assert [f"Photo {image_id} " in article for image_id, article in zip(photos, articles, strict=True)] == [
        True
    ] * len(photos)


def test_lists_are_cut_at_top_but_judged_to_twenty(four):
    output, images = four
    write_rows(output, "rankings/detected.parquet", tables.RANKINGS, [ranking_row(1, [25] * 11 + [21] + [25] * 8)])
    page = page_of(output, images, top=10)
    assert "first right at 12, below those shown" in " ".join(page.articles[0].split())
    assert len([i for i in page.of("img") if str(i["src"]).startswith("pictures/shop-")]) == 10


def test_nothing_hostile_becomes_markup(four, tmp_path):
    output, _ = four
    photos = [
        photo(1, "user", garment(1), pair_id=5, file_name=HOSTILE),
        photo(21, "shop", garment(1), pair_id=5, product_id=HOSTILE),
    ]
    images = make_set(tmp_path / "hostile", photos)
    write_rows(output, "rankings/detected.parquet", tables.RANKINGS, [ranking_row(1, [21])])
    write_rows(
        output,
        "failures.parquet",
        tables.FAILURES,
        [{"image_id": 9, "shard": "s", "stage": "detect", "reason": HOSTILE}],
    )
    output.write("run.json", json.dumps(RUN | {"note": HOSTILE}).encode())
    page = page_of(output, images)
    assert not page.of("script") and len(page.of("img")) == 2
    assert page.text.count("<script>alert(1)</script>") == 4  # file name, product id, reason, run.json
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    assert "node-<b>" in page.text


def test_the_page_needs_nothing_but_its_own_folder(four):
    output, images = four
    page = page_of(output, images)
    assert not page.of("script") and not [link for link in page.of("link") if link["href"] != "data:,"]
    assert "http://" not in page.source and "https://" not in page.source and "url(" not in page.source
    written = {info.key for info in output.list("report/pictures/")}
    assert {f"report/{image['src']}" for image in page.of("img")} == written
    for image in page.of("img"):
        with Image.open(io.BytesIO(output.read(f"report/{image['src']}"))) as picture:
            assert (str(picture.width), str(picture.height)) == (image["width"], image["height"])
            assert not picture.getexif() and picture.format == "JPEG"
        assert image["alt"] and image["loading"] == "lazy"
    assert not any(b"SECRETCAMERA" in output.read(key) for key in written)


def test_the_same_run_gives_the_same_bytes_and_old_pictures_go(four):
    output, images = four
    report_page.build(output, images)
    before = {info.key: output.read(info.key) for info in output.list("report/")}
    report_page.build(output, images, queries=2)
    fewer = {info.key for info in output.list("report/")}
    report_page.build(output, images)
    assert {info.key: output.read(info.key) for info in output.list("report/")} == before
    assert fewer < before.keys()


def test_consumers_and_masks_have_columns_where_they_were_measured(four):
    output, images = four
    detection = {
        "atss": METRICS["detection"]["atss"] | {"consumers": {"AP10": 0.123}, "masks": {"AP10_50": 0.321}},
        "fused": METRICS["detection"]["fused"] | {"consumers": {"AP10": 0.234}, "masks": None},
    }
    output.write("metrics.json", json.dumps(METRICS | {"detection": detection}).encode())
    source = page_of(output, images).source
    assert "AP10, consumers" in source and "AP10_50, masks" in source
    assert all(f">{value}<" in source for value in ("12.3", "23.4", "32.1"))


def test_figures_are_percent_with_the_best_in_bold(four):
    output, images = four
    output.write("metrics.json", json.dumps(METRICS).encode())
    output.write("run.json", json.dumps(RUN).encode())
    page = page_of(output, images)
    for line in (
        '<th scope="row">atss</th><td class="n">40.0</td>',
        '<th scope="row">fused</th><td class="n"><b>50.0</b></td>',
        '<th scope="row">lite</th><td class="n">25.0</td>',
        '<th scope="row">concat</th><td class="n"><b>50.0</b></td>',
        '<td class="n">90.0</td><td class="n">13.7</td>',  # detect: 1233 images in 90 s
        '<th scope="row">1 small</th>',
    ):
        assert line in page.source
    assert page.source.count("–</td>") == 2  # APs of fused; numpy on the second node
    for words in (
        "profile tiny",
        "2030-01-02",
        "1,233",
        "of 1,234, 1 failed",
        "1 min 30 s",
        "9.9.8",
        "1.5 queries per consumer photo",
    ):
        assert words in " ".join(page.text.split())


def test_what_was_not_measured_is_said_not_tabled(four):
    output, images = four
    nothing = {k: None for k in ("1", "5", "10", "15", "20")}
    metrics = {
        "summary": {"notes": ["no shop photos: <i>"]},
        "detection": {"fused": figures(None)},
        "retrieval": {"detected": {"lite": {"top": nothing, "missed": 0, "queries": 0}}},
    }
    output.write("metrics.json", json.dumps(metrics).encode())
    text = page_of(output, images).text
    for words in ("no shop photos: <i>", "No detection figures", "No retrieval figures", "No times recorded"):
        assert words in text


def test_a_run_that_has_only_begun_still_has_a_page(tmp_path):
    images = make_set(tmp_path / "set", [photo(1, "user", garment(1), pair_id=5)])
    page = page_of(open_store(tmp_path / "run"), images)
    for words in (
        "no metrics.json yet",
        "No detection figures",
        "No retrieval figures",
        "no rankings yet",
        "no failures.parquet yet",
    ):
        assert words in page.text
    assert not page.of("img")


def test_empty_rankings_and_no_failures_are_said(four, tmp_path):
    output, _ = four
    images = make_set(tmp_path / "bare", [photo(1, "user")])
    write_rows(output, "rankings/detected.parquet", tables.RANKINGS, [])
    write_rows(output, "failures.parquet", tables.FAILURES, [])
    text = page_of(output, images).text
    assert "No queries to show" in text and "every image ended done" in text


def test_without_ground_truth_nothing_is_marked(four, tmp_path):
    output, _ = four
    images = make_set(tmp_path / "bare", [photo(1, "user"), photo(21, "shop"), photo(25, "shop")])
    write_rows(output, "rankings/detected.parquet", tables.RANKINGS, [ranking_row(1, [21, 25])])
    page = page_of(output, images)
    assert "nothing is marked right or wrong" in page.text
    assert "✓" not in page.text and "✗" not in page.text and "wrong" not in page.of("img")[1]["alt"]


def test_true_boxes_stand_in_where_nothing_was_detected(four):
    output, images = four
    write_rows(output, "rankings/true.parquet", tables.RANKINGS, [ranking_row(1, [21])])
    output.delete("rankings/detected.parquet")
    page = page_of(output, images)
    assert "with true boxes" in page.text and "✓ first right at 1" in page.articles[0]


def test_a_limited_run_asks_only_for_the_photos_it_took(four):
    output, images = four
    taken = {"shard-00000": [0, 2], "shard-00001": [0]}
    output.write("run.json", json.dumps({"imageset": {"selected": {"rows": taken}}}).encode())
    write_rows(output, "rankings/detected.parquet", tables.RANKINGS, [ranking_row(1, [21])])
    assert [article.split("·")[0].strip() for article in page_of(output, images).articles] == ["Photo 1", "Photo 3"]


def test_a_photo_that_does_not_decode_leaves_a_gap_not_an_error(four, tmp_path):
    output, _ = four
    photos = [photo(1, "user", garment(1), pair_id=5), photo(21, "shop", garment(1), pair_id=5, image=b"no picture")]
    images = make_set(tmp_path / "broken", photos)
    write_rows(output, "rankings/detected.parquet", tables.RANKINGS, [ranking_row(1, [21])])
    page = page_of(output, images)
    assert len(page.of("img")) == 1 and "does not decode" in page.text and "✓ first right at 1" in page.text


def test_failures_are_counted_and_the_first_fifty_shown(four):
    output, images = four
    rows = [
        {"image_id": 1000 + i, "shard": "shard-00000", "stage": "detect", "reason": "empty file"} for i in range(120)
    ]
    write_rows(output, "failures.parquet", tables.FAILURES, rows)
    text = page_of(output, images).text
    assert "120 images, the first 50 shown" in text and text.count("empty file") == 50


def test_only_shards_with_something_to_show_are_read_for_pictures(four, monkeypatch):
    output, images = four
    write_rows(output, "rankings/detected.parquet", tables.RANKINGS, [ranking_row(1, [25])])
    read: list[str] = []
    whole = ImageSet.read

    def spy(self: ImageSet, name: str, columns: list[str] | None = None) -> Any:
        if columns and "image" in columns:
            read.append(name)
        return whole(self, name, columns)

    monkeypatch.setattr(ImageSet, "read", spy)
    report_page.build(output, images, queries=1)
    assert read == ["shard-00000", "shard-00002"]  # photo 1 and shop photo 25, not shop photos 21 to 24


@pytest.mark.parametrize(
    "bbox, size",
    [
        ((100, 100, 200, 200), (112, 112)),  # 100 px and 6 % on each side
        ((0, 0, 400, 300), (160, 120)),  # the whole photo, shrunk to 160
        ((-50, -50, 10, 10), (14, 14)),  # clipped: 10 px and 6 % of 60 beyond
        ((399, 299, 399, 299), (1, 1)),  # no area: one pixel
        ((500, 500, 600, 600), (1, 1)),  # outside: the nearest pixel
    ],
)
def test_crops_have_a_margin_and_stay_in_the_photo(bbox, size):
    picture = overlay.crop(np.zeros((300, 400, 3), np.uint8), bbox)
    assert (picture.width, picture.height) == size


@pytest.mark.parametrize(
    "shape, size", [((1000, 500), (180, 360)), ((500, 1000), (360, 180)), ((30, 40), (40, 30)), ((1, 4000), (360, 1))]
)
def test_photos_shrink_to_360_and_never_grow(shape, size):
    marks = [overlay.Mark((-5, -5, 9999, 9999), 9, "1", strong=True), overlay.Mark((3, 3, 3, 3), 99, "?", dashed=True)]
    picture = overlay.photo_with_marks(np.zeros((*shape, 3), np.uint8), marks)
    assert (picture.width, picture.height) == size


def test_boxes_are_drawn_where_they_are():
    mark = overlay.Mark((200, 200, 400, 400), 9, strong=True)
    picture = overlay.photo_with_marks(np.zeros((720, 720, 3), np.uint8), [mark])
    pixels = np.asarray(Image.open(io.BytesIO(picture.jpeg))).astype(int)  # at half the size the box is 100 to 200
    assert (
        pixels[100:200, 100:104].sum(axis=2).min() > 150
        and pixels[110:190, 110:190].max() < 40
        and pixels[:95].max() < 40
    )


@pytest.mark.parametrize(
    "seconds, want", [(None, "–"), (8.44, "8.4 s"), (59.96, "60.0 s"), (725, "12 min 05 s"), (11220, "3 h 07 min")]
)
def test_durations_read_as_a_person_says_them(seconds, want):
    assert report_page.duration(seconds) == want
