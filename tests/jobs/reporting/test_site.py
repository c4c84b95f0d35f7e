"""The report of a run: what its pages and their data say, mark and leave out. Runs are made by hand, pictures drawn here."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import report_runs as runs
from PIL import Image
from report_runs import HOSTILE, METRICS, RUN, build, garment, item_rows, make_set, photo, ranking_row, write_rows

from jobs import tables
from jobs.reporting import figures, site
from store.imageset import ImageSet
from store.objects import ObjectStore, open_store


@pytest.fixture
def four(tmp_path: Path) -> tuple[ObjectStore, ImageSet]:
    """`report_runs.four`: 1 right at once, 2 right at rank 2, 3 wrong, 4 missed."""
    output = open_store(tmp_path / "run")
    return output, runs.four(tmp_path / "set", output)


def test_each_query_says_how_it_ended(four):
    found = build(*four)
    assert {one["photo"]: one["first"] for one in found.queries} == {"1": 1, "2": 2, "3": 0, "4": "missed"}
    assert [r[2] for r in found.query(1)["results"]] == [True, False]
    assert [r[2] for r in found.query(2)["results"]] == [False, True]
    assert not any(r[2] for r in found.query(3)["results"]) and found.query(3)["ranked"] == 2
    assert not found.query(4)["results"]
    assert found.query(1)["marks"] == [["1", 9, "#d0307a", 0.8, 4, True, False]]  # the query's box: skirt, 4 votes
    assert [mark[0] for mark in found.query(4)["marks"]] == [
        "1",
        "?",
    ]  # the run's box, and the true one that it does not stand for
    assert found.query(4)["marks"][1][5:] == [True, True] and found.query(1)["results"][0][1] == 0.9


def test_the_surest_mistakes_come_first(four):
    output, images = four
    rows = [
        ranking_row(1, [21]),
        ranking_row(2, [25, 22]),
        ranking_row(3, [23], best=0.5),
        ranking_row(4, [25], best=0.95),
    ]
    write_rows(output, "rankings/detected.parquet", tables.RANKINGS, rows)
    assert [one["photo"] for one in build(output, images).queries] == [
        "4",
        "3",
        "2",
        "1",
    ]  # wrong by similarity, later, right


def test_filters_have_what_they_need(four):
    one = build(*four).query(2)
    assert one["levels"] == "3000"  # scale 2 % 3 + 1, nothing known of the others
    assert (one["category"], one["score"], one["similarity"], one["drawn"]) == (9, 0.8, 0.9, 1)
    assert one["text"].split("\n") == ["000002.jpg", HOSTILE]  # its own file, and the product of a shop photo it shows


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
    assert build(output, images).query(1)["results"][0][2] is right


@pytest.mark.parametrize(
    "queries, photos",
    [
        (40, {1, 2, 3, 4}),  # no more than there are
        (4, {1, 2, 3, 4}),
        (2, {1, 4}),  # the ends: best and missed
        (3, {1, 3, 4}),  # positions 0, 1.5 -> 2, 3
        (1, {1}),
        (0, set()),
    ],
)
def test_pictures_are_taken_at_even_steps_of_their_outcome_and_all_queries_are_listed(four, queries, photos):
    found = build(*four, queries=queries)
    assert {int(one["photo"]) for one in found.queries if one["drawn"]} == photos
    assert {int(one["photo"]) for one in found.queries} == {1, 2, 3, 4}
    assert all(isinstance(one["picture"], list) == bool(one["drawn"]) for one in found.queries)


def test_lists_are_cut_at_top_but_judged_to_twenty(four):
    output, images = four
    write_rows(output, "rankings/detected.parquet", tables.RANKINGS, [ranking_row(1, [25] * 11 + [21] + [25] * 8)])
    found = build(output, images, top=10)
    assert found.query(1)["first"] == 12 and len(found.query(1)["results"]) == 10 == found.data["queries"]["top"]


def test_nothing_hostile_becomes_markup(four, tmp_path):
    output, _ = four
    photos = [
        photo(1, "user", garment(1), pair_id=5, file_name=HOSTILE),
        photo(21, "shop", garment(1), pair_id=5, product_id=HOSTILE),
    ]
    images = make_set(tmp_path / "hostile", photos)
    write_rows(output, "rankings/detected.parquet", tables.RANKINGS, [ranking_row(1, [21])])
    failed = {"image_id": 9, "shard": "s", "stage": "detect", "reason": HOSTILE}
    write_rows(output, "failures.parquet", tables.FAILURES, [failed])
    output.write("run.json", json.dumps(RUN | {"note": HOSTILE}).encode())
    found = build(output, images)
    assert not found.all.of("img") and {tag.get("src") for tag in found.all.of("script")} == {
        "data/queries.js",
        "assets/queries.js",
    }
    assert found.text.count("<script>alert(1)</script>") == 2  # reason, run.json
    assert found.query(1)["file"] == HOSTILE and found.query(1)["results"][0][3] == HOSTILE
    assert not [attrs for _, attrs in found.all.tags if any(name.startswith("on") for name in attrs)]
    assert "node-<b>" in found.text
    assert not any(set(output.read(entry.key)) & set(b"<>&") for entry in output.list("report/data/"))


def test_the_pages_need_nothing_but_their_own_folder(four):
    output, images = four
    runs.with_figures(output)
    found = build(output, images)
    there = {entry.key.removeprefix("report/") for entry in output.list("report/")}
    for page in found.pages.values():
        local = [str(t["src"]) for t in page.of("script")] + [
            str(t["href"]) for t in page.of("link") if t["href"] != "data:,"
        ]
        local += [str(t["href"]).partition("#")[0] for t in page.of("a") if not str(t["href"]).startswith("../")]
        assert local and set(local) <= there
        assert "http://" not in page.source and "https://" not in page.source
        assert all(
            output.exists(str(t["href"]).removeprefix("../")) for t in page.of("a") if str(t["href"]).startswith("../")
        )
    for name in ("assets/report.css", "assets/charts.js", "assets/queries.js"):
        assert b"http" not in output.read(f"report/{name}") and b"url(" not in output.read(f"report/{name}")
    written = {name for name in there if name.startswith("pictures/")}
    assert found.pictures == written
    sizes = {str(image["src"]): (image["width"], image["height"]) for image in found.all.of("img")}
    sizes |= {one["picture"][0]: tuple(map(str, one["picture"][1:])) for one in found.queries}
    for path in written:
        with Image.open(io.BytesIO(output.read(f"report/{path}"))) as picture:
            assert sizes.get(path, (str(picture.width), str(picture.height))) == (
                str(picture.width),
                str(picture.height),
            )
            assert not picture.getexif() and picture.format == "JPEG"
        assert b"SECRETCAMERA" not in output.read(f"report/{path}")
    assert all(image["alt"] and image["loading"] == "lazy" for image in found.all.of("img"))


def test_the_same_run_gives_the_same_bytes_and_old_files_go(four):
    output, images = four
    runs.with_figures(output)
    write_rows(output, "ablation.parquet", runs.ABLATION, runs.ablation_rows())
    build(output, images)
    before = {info.key: output.read(info.key) for info in output.list("report/")}
    output.delete("ablation.parquet")
    build(output, images, queries=2)
    fewer = {info.key for info in output.list("report/")}
    gone = before.keys() - fewer
    assert fewer < before.keys() and {"report/ablation.html", "report/data/charts-ablation.js"} <= gone
    assert [key for key in gone if key.startswith("report/pictures/query-")]
    write_rows(output, "ablation.parquet", runs.ABLATION, runs.ablation_rows())
    build(output, images)
    assert {info.key: output.read(info.key) for info in output.list("report/")} == before


def test_what_somebody_laid_beside_the_pages_stays(four):
    output, images = four
    output.write("report/remarks.txt", b"mine")
    build(output, images)
    assert output.read("report/remarks.txt") == b"mine"


def test_a_report_built_again_draws_only_what_is_new(four, monkeypatch):
    output, images = four
    build(output, images)
    written: list[str] = []
    write = type(output).write

    def spy(self: ObjectStore, key: str, data: Any) -> None:
        written.append(key)
        write(self, key, data)

    monkeypatch.setattr(type(output), "write", spy)
    build(output, images)
    assert not [key for key in written if key.startswith("report/pictures/")]
    output.delete("report/pictures/shop-21-0.jpg")
    write_rows(
        output,
        "items/detected/shard-00000.parquet",
        tables.ITEMS,
        [item_rows([2])[0] | {"bbox": (0.0, 0.0, 30.0, 30.0)}],
    )
    build(output, images)
    again = {Path(key).stem for key in written if key.startswith("report/pictures/")}
    # One is gone; 2 has another box beside its own now, and 4 none that the run found. 1 and 3 lost theirs, but the ranking has it.
    assert again == {"shop-21-0", "query-2-0", "query-4-missed-10-10"}


def test_consumers_and_masks_have_columns_where_they_were_measured(four):
    output, images = four
    detection = {
        "atss": METRICS["detection"]["atss"] | {"consumers": {"AP10": 0.123}, "masks": {"AP10_50": 0.321}},
        "fused": METRICS["detection"]["fused"] | {"consumers": {"AP10": 0.234}, "masks": None},
    }
    output.write("metrics.json", json.dumps(METRICS | {"detection": detection}).encode())
    source = build(output, images).pages["detection"].source
    assert "AP10, consumers" in source and "AP10_50, masks" in source
    assert all(f">{value}<" in source for value in ("12.3", "23.4", "32.1"))


def test_figures_are_percent_with_the_best_in_bold(four):
    output, images = four
    output.write("metrics.json", json.dumps(METRICS).encode())
    output.write("run.json", json.dumps(RUN).encode())
    found = build(output, images)
    for page, line in (
        ("detection", 'c1" aria-hidden="true"></i>atss</th><td class="n">40.0</td>'),
        ("detection", 'c0" aria-hidden="true"></i>fused</th><td class="n"><b>50.0</b></td>'),
        ("retrieval", 'c1" aria-hidden="true"></i>lite</th><td class="n">25.0</td>'),
        ("retrieval", 'c0" aria-hidden="true"></i>concat</th><td class="n"><b>50.0</b></td>'),
        ("run", '<td class="n">90.0</td><td class="n">13.7</td>'),  # detect: 1233 images in 90 s
        ("retrieval", '<th scope="row">1 small</th>'),
    ):
        assert line in found.pages[page].source, line
    assert found.pages["detection"].source.count("–</td>") == 1  # APs of fused
    assert found.pages["run"].source.count("–</td>") == 1  # numpy on the second node
    for page, words in (
        ("index", "profile tiny"),
        ("index", "2030-01-02"),
        ("index", "1,233"),
        ("index", "of 1,234, 1 failed"),
        ("index", "1 min 30 s"),
        ("run", "9.9.8"),
        ("retrieval", "1.5 queries per consumer photo"),
    ):
        assert words in found.pages[page].words


def test_what_was_not_measured_is_said_not_tabled(four):
    output, images = four
    nothing = {k: None for k in ("1", "5", "10", "15", "20")}
    metrics = {
        "summary": {"notes": ["no shop photos: <i>"]},
        "detection": {"fused": runs.figures(None)},
        "retrieval": {"detected": {"lite": {"top": nothing, "missed": 0, "queries": 0}}},
    }
    output.write("metrics.json", json.dumps(metrics).encode())
    found = build(output, images)
    for words in ("no shop photos: <i>", "No detection figures", "No retrieval figures", "No times recorded"):
        assert words in found.text
    assert not [name for name in found.data if name.startswith("charts-")] and not output.exists(
        "report/assets/plotly.min.js"
    )


def test_a_run_that_has_only_begun_still_has_pages(tmp_path):
    images = make_set(tmp_path / "set", [photo(1, "user", garment(1), pair_id=5)])
    found = build(open_store(tmp_path / "run"), images)
    for words in (
        "no metrics.json yet",
        "No detection figures",
        "No retrieval figures",
        "no rankings yet",
        "no failures.parquet yet",
        "No logs",
    ):
        assert words in found.text
    assert not found.all.of("img") and not found.data and "ablation" not in found.pages


def test_empty_rankings_and_no_failures_are_said(four, tmp_path):
    output, _ = four
    images = make_set(tmp_path / "bare", [photo(1, "user")])
    write_rows(output, "rankings/detected.parquet", tables.RANKINGS, [])
    write_rows(output, "failures.parquet", tables.FAILURES, [])
    text = build(output, images).text
    assert "No queries to show" in text and "every image ended done" in text


def test_without_ground_truth_nothing_is_marked(four, tmp_path):
    output, _ = four
    images = make_set(tmp_path / "bare", [photo(1, "user"), photo(2, "user"), photo(21, "shop"), photo(25, "shop")])
    write_rows(
        output, "rankings/detected.parquet", tables.RANKINGS, [ranking_row(1, [21, 25], best=0.3), ranking_row(2, [21])]
    )
    found = build(output, images)
    assert "nothing is marked right or wrong" in found.text and not found.data["queries"]["judged"]
    assert [one["photo"] for one in found.queries] == ["2", "1"]  # the most similar first
    assert not any(result[2] for one in found.queries for result in one["results"])


def test_true_boxes_stand_in_where_nothing_was_detected(four):
    output, images = four
    write_rows(output, "rankings/true.parquet", tables.RANKINGS, [ranking_row(1, [21])])
    output.delete("rankings/detected.parquet")
    found = build(output, images)
    assert "with true boxes" in found.text and found.query(1)["first"] == 1


def test_a_limited_run_asks_only_for_the_photos_it_took(four):
    output, images = four
    taken = {"shard-00000": [0, 2], "shard-00001": [0]}
    output.write("run.json", json.dumps({"imageset": {"selected": {"rows": taken}}}).encode())
    write_rows(output, "rankings/detected.parquet", tables.RANKINGS, [ranking_row(1, [21])])
    assert {one["photo"] for one in build(output, images).queries} == {"1", "3"}


def test_a_photo_that_does_not_decode_leaves_a_gap_not_an_error(four, tmp_path):
    output, _ = four
    photos = [photo(1, "user", garment(1), pair_id=5), photo(21, "shop", garment(1), pair_id=5, image=b"no picture")]
    images = make_set(tmp_path / "broken", photos)
    write_rows(output, "rankings/detected.parquet", tables.RANKINGS, [ranking_row(1, [21])])
    for _ in range(2):  # and it is not tried again
        one = build(output, images).query(1)
        assert isinstance(one["picture"], list) and one["results"][0][4] == 1 and one["first"] == 1


def test_failures_are_counted_and_the_first_fifty_shown(four):
    output, images = four
    rows = [
        {"image_id": 1000 + i, "shard": "shard-00000", "stage": "detect", "reason": "empty file"} for i in range(120)
    ]
    write_rows(output, "failures.parquet", tables.FAILURES, rows)
    text = build(output, images).text
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
    build(output, images, queries=1)
    assert read == ["shard-00000", "shard-00002"]  # photo 1 and shop photo 25, not shop photos 21 to 24
    build(output, images, queries=1)
    assert len(read) == 2  # again: nothing to draw


def test_ids_of_63_bits_arrive_whole(four, tmp_path):
    output, _ = four
    large = 2**63 - 1  # a number of JavaScript's would end in 808
    images = make_set(
        tmp_path / "large",
        [photo(large, "user", garment(1), pair_id=5), photo(large - 1, "shop", garment(1), pair_id=5)],
    )
    write_rows(output, "rankings/detected.parquet", tables.RANKINGS, [ranking_row(large, [large - 1])])
    one = build(output, images).query(large)
    assert one["results"][0][0] == str(large - 1) and one["picture"][0] == f"pictures/query-{large}-0.jpg"


# ---- compared, ablated ---------------------------------------------------------------------------------------------


def earlier(folder: Path, **more: Any) -> ObjectStore:
    """A run whose fused AP50 was 0.4 where `METRICS` has 0.5."""
    store = open_store(folder)
    detection = METRICS["detection"] | {"fused": METRICS["detection"]["fused"] | {"AP50": 0.4}}
    store.write("metrics.json", json.dumps(METRICS | {"detection": detection}).encode())
    store.write("run.json", json.dumps(RUN | more).encode())
    return store


def test_an_earlier_run_over_the_same_photos_gives_differences(four, tmp_path):
    output, images = four
    runs.with_figures(output)
    page = build(output, images, compare=str(earlier(tmp_path / "earlier").uri)).pages["index"]
    assert '50.0<span class="delta up">+10.0</span>' in page.source  # the tile of fused AP50
    assert '50.0 <span class="delta up" title="earlier 40.0">+10.0</span>' in page.source
    assert "detected boxes, concat" in page.text and page.text.count("+10.0") == 2


def test_final_lists_are_compared_whatever_made_them(four, tmp_path):
    """Now steps, then concatenation alone: the tile and a row tell what became of the list that is used."""
    output, images = four
    then = METRICS["retrieval"]["detected"]["concat"]
    steps = then | {"top": {k: value + 0.125 for k, value in then["top"].items()}}
    retrieval = {"detected": METRICS["retrieval"]["detected"] | {"steps": steps}}
    output.write("metrics.json", json.dumps(METRICS | {"retrieval": retrieval}).encode())
    output.write("run.json", json.dumps(RUN).encode())
    page = build(output, images, compare=str(earlier(tmp_path / "earlier").uri)).pages["index"]
    assert "detected boxes, final list" in page.text and page.text.count("+12.5") == 1 + 3
    assert figures.colours({"retrieval": retrieval})["concat"] == -1  # dashed beside the steps


@pytest.mark.parametrize(
    "imageset, words",
    [
        ({"digest": "0" * 32}, "over another image set"),
        ({"selected": {"rows": {"shard-00000": [0]}}}, "took other photos"),
    ],
)
def test_an_earlier_run_over_other_photos_gives_a_sentence_instead(four, tmp_path, imageset, words):
    output, images = four
    runs.with_figures(output)
    page = build(output, images, compare=str(earlier(tmp_path / "earlier", imageset=imageset).uri)).pages["index"]
    assert words in page.text and "+10.0" not in page.text


def test_an_earlier_run_without_figures_is_said(four, tmp_path):
    assert "it has no metrics.json" in build(*four, compare=str(tmp_path / "nothing")).text


def test_an_ablation_has_its_page(four):
    output, images = four
    write_rows(output, "ablation.parquet", runs.ABLATION, runs.ablation_rows())
    found = build(output, images)
    page = found.pages["ablation"]
    assert [tag["href"] for tag in found.pages["index"].of("a")].count("ablation.html") == 1
    for words in (
        "kreciprocal <b>",
        "+12.5",
        "[+2.5, +22.5]",
        "[−5.0, +25.0]",
        "12.25",
        "1 helped, 1 hurt",
        "none → 2",
        "1 → none",
    ):
        assert words in page.words
    assert 'title="concat, kreciprocal k1=20"' in page.source
    assert [image["src"] for image in page.of("img")] == ["pictures/query-3-0.jpg", "pictures/query-1-0.jpg"]
    (chart, alone) = found.data["charts-ablation"]
    better = chart["choices"][0]["series"][1]
    assert (better["x"], better["y"], better["bars"]) == (
        [12.25],
        [62.5],
        [[10.0, 10.0]],
    )  # 62.5 - (12.5 - 2.5), + (22.5 - 12.5)
    assert alone["choices"][0]["series"][0]["x"] == []  # fusing: no seconds known


def test_an_ablation_of_another_kind_is_refused(four):
    output, images = four
    write_rows(output, "ablation.parquet", tables.FAILURES, [])
    with pytest.raises(ValueError, match="no column part, boxes"):
        build(output, images)


# ---- what a person reads -------------------------------------------------------------------------------------------


def test_logs_are_added_up_over_all_starts(four):
    output, images = four
    shard = {"event": "shard", "stage": "detect", "images": 4, "wall_s": 3.0, "waited_s": 1.0, "peak_mb": 500.0}
    first = [shard | {"actor": "a"}, shard | {"actor": "b", "peak_mb": 1500.0}, {"event": "died", "stage": "detect"}]
    output.write("logs/one-000.jsonl", "\n".join(json.dumps(line) for line in first).encode() + b'\n{"event": "sha')
    output.write("logs/two-000.jsonl", json.dumps(shard | {"actor": "a"}).encode())
    page = build(output, images).pages["run"]
    row = '<th scope="row">detect</th><td class="n">3</td><td class="n">12</td><td class="n">2</td><td class="n">75.0</td><td class="n">1,500</td>'
    assert row in page.source  # busy: 9 of 12 s
    assert [t["href"] for t in page.of("a") if "logs/" in str(t["href"])] == [
        "../logs/one-000.jsonl",
        "../logs/two-000.jsonl",
    ]


@pytest.mark.parametrize(
    "seconds, want", [(None, "–"), (8.44, "8.4 s"), (59.96, "60.0 s"), (725, "12 min 05 s"), (11220, "3 h 07 min")]
)
def test_durations_read_as_a_person_says_them(seconds, want):
    assert figures.duration(seconds) == want


def test_pages_say_the_same_of_a_bucket(four, s3_bucket):
    output, images = four
    bucket = open_store(f"{s3_bucket}/run")
    for entry in output.list():
        bucket.write(entry.key, output.read(entry.key))
    assert site.build(bucket, images) == f"{s3_bucket}/run/report/index.html"
    assert runs.read(bucket).queries == build(output, images).queries
