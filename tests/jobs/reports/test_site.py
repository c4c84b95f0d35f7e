"""The report of a run: what its pages and their data say, mark and leave out. Runs and pictures are made here."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import report_runs as runs
from PIL import Image
from report_runs import HOSTILE, METRICS, RUN, build, garment, item_rows, make_set, photo, ranking_row, write_rows

from jobs.reports import site
from jobs.runs import tables
from store.imageset import ImageSet
from store.objects import ObjectStore, open_store


def test_each_query_says_how_it_ended(four):
    found = build(*four)
    assert {one["photo"]: one["first"] for one in found.queries} == {"1": 1, "2": 2, "3": 0, "4": "missed"}
    assert [r[2] for r in found.query(1)["results"]] == [True, False]
    assert [r[2] for r in found.query(2)["results"]] == [False, True]
    assert not any(r[2] for r in found.query(3)["results"]) and found.query(3)["ranked"] == 2
    assert not found.query(4)["results"]
    assert found.query(1)["marks"] == [["1", 9, "#d0307a", 0.8, 4, True, False, [[9, 0.8]]]]  # skirt, 4 votes
    assert [mark[0] for mark in found.query(4)["marks"]] == [
        "1",
        "?",
    ]  # the run's box, and the true one that it does not stand for
    assert found.query(4)["marks"][1][5:7] == [True, True] and found.query(1)["results"][0][1] == 0.9


def test_a_large_run_lists_a_choice_of_its_queries(four, monkeypatch):
    """Right at rank 1, at rank 2, wrong, missed: two at even steps are the first and the last."""
    runs.with_figures(four[0])
    whole = build(*four)
    monkeypatch.setattr("jobs.reports.queries.MOST_LISTED", 2)
    found = build(*four)
    assert {one["photo"] for one in found.queries} == {"1", "4"}
    assert [found.query(n) for n in (1, 4)] == [whole.query(n) for n in (1, 4)]
    assert "All 4 queries with" in whole.pages["queries"].words
    assert "2 of 4 queries with" in found.pages["queries"].words
    for name in ("index", "retrieval", "detection"):  # figures are of all
        assert found.pages[name].words.count("95 %") == whole.pages[name].words.count("95 %")
    assert found.data["charts-retrieval"] == whole.data["charts-retrieval"]


def test_a_box_is_shown_with_the_categories_it_was_judged_by(four):
    """The classifier's, of the rankings; those of the fused boxes, in items/, do not count.

    Photo 1's garment, a skirt (9), is right by the second category of its box. Photo 2's is missed: the fused boxes
    name skirt, but the classifier does not. Photo 4's is a vest (5) to the classifier alone, without a second category.
    """
    output, images = four
    fused = [{"category_id": 7, "score": 0.8}, {"category_id": 9, "score": 0.5}]
    first = [{"category_id": 8, "score": 0.625}, {"category_id": 9, "score": 0.25}]
    second = [{"category_id": 8, "score": 0.625}, {"category_id": 1, "score": 0.125}]
    rows = [
        ranking_row(1, [21], category_id=8) | {"query_hypotheses": first},
        ranking_row(2, [22], category_id=8) | {"query_hypotheses": second},
        ranking_row(4, [25], category_id=5),
    ]
    write_rows(output, "rankings/detected.parquet", tables.RANKINGS, rows)
    items = [row | {"category_id": 7, "hypotheses": fused} for row in item_rows([1, 2, 4])]
    items.append(items[1] | {"item": 1, "bbox": (0.0, 0.0, 9.0, 9.0)})  # not in the rankings
    write_rows(output, "items/detected/shard-00000.parquet", tables.ITEMS, items)
    found = build(output, images)
    assert found.query(1)["category"] == 9 and found.query(1)["first"] == 1
    assert found.query(1)["marks"] == [["1", 8, "#8a4b16", 0.8, 4, True, False, [[8, 0.625], [9, 0.25]]]]
    marks = found.query(2)["marks"]  # its box, the other one, the true one
    assert [(mark[1], mark[7]) for mark in marks] == [(8, [[8, 0.625], [1, 0.125]]), (7, []), (9, [])]
    assert found.query(2)["reason"].startswith("Box of category trousers or short sleeve top only (80.0), and")
    assert found.query(4)["marks"][0][1] == 5
    assert found.query(4)["reason"].startswith("Box of category vest only (80.0), and")


def test_weak_boxes_are_drawn_only_where_the_query_needs_them(four):
    """Of photo 1's three boxes the query's is the weakest; photo 4's weaker one lies on the missed garment."""
    output, images = four
    far, other = (0.0, 0.0, 9.0, 9.0), (20.0, 0.0, 29.0, 9.0)
    scores = [(1, far, 0.3), (1, other, 0.29), (1, runs.BOX, 0.02), (4, far, 0.25), (4, runs.BOX, 0.02)]
    items = [
        item_rows([photo])[0] | {"item": n % 3, "bbox": bbox, "score": score, "category_id": 8}
        for n, (photo, bbox, score) in enumerate(scores)
    ]
    write_rows(output, "items/detected/shard-00000.parquet", tables.ITEMS, items)
    found = build(output, images)
    assert [(mark[0], mark[5]) for mark in found.query(1)["marks"]] == [("1", False), ("3", True)]
    assert [mark[0] for mark in found.query(4)["marks"]] == ["2", "?"]
    assert found.query(4)["reason"].startswith("Box of category trousers only (2.0)")


def test_names_stand_for_photos_and_ids_only_where_there_is_none(four, tmp_path):
    output, _ = four
    large = 2**62
    titled = photo(21, "shop", garment(2), pair_id=5, product_id="p", attributes={"Title": "Midi skirt"})
    street = photo(large, "user", garment(1), pair_id=5, file_name="street.jpg")
    photos = [street, titled, photo(22, "shop", garment(1), file_name="")]
    images = make_set(tmp_path / "named", photos)
    write_rows(output, "rankings/detected.parquet", tables.RANKINGS, [ranking_row(large, [21, 22])])
    runs.with_figures(output)
    failed = {"image_id": large, "shard": "s", "stage": "detect", "reason": "x"}
    write_rows(output, "failures.parquet", tables.FAILURES, [failed])
    found = build(output, images)
    assert [result[3] for result in found.query(large)["results"]] == ["Midi skirt", ""]
    visible = "".join(page.text for page in found.pages.values())
    assert str(large) not in visible
    assert all("street.jpg" in found.pages[name].text for name in ("index", "detection", "run"))


def test_the_summary_says_how_sure_it_is(four):
    """Of 4 queries 2 are right among the first ten; a random order of 5 shop items would have them all there."""
    output, images = four
    runs.with_figures(output)
    tops = {"1": 0.25, "10": 0.75}
    concat = runs.accuracy(0.5) | {"top_one_category": runs.accuracy(0.25)["top"], "top_any_category": tops}
    retrieval = {"detected": {"lite": runs.accuracy(0.25) | {k: concat[k] for k in runs.OTHERS}, "concat": concat}}
    output.write("metrics.json", json.dumps(METRICS | {"retrieval": retrieval}).encode())
    output.write("index/detected/index.json", json.dumps({"rows": 5}).encode())
    words = build(output, images).pages["index"].words
    assert "own category 25.0, any category 75.0" in words
    assert "95 %: 0.0 to 100.0, by chance 50.0" in words  # two have no right answer in the gallery
    assert words.count("95 %:") == 4 and "where a figure would lie" in words and "in random order" in words
    assert "Own category: the first of them, which is the box's own," in words
    assert "Any category: the box only has to" in words


def test_a_single_model_that_beats_all_is_named_on_the_summary(four):
    output, images = four
    detection = {"atss": runs.figures(0.625), "fused": runs.figures(0.5)}
    output.write("metrics.json", json.dumps(METRICS | {"detection": detection}).encode())
    words = build(output, images).pages["index"].words
    assert "atss alone is better than the fused boxes: AP50 62.5 against 50.0." in words


def test_the_most_confident_mistakes_come_first(four):
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
        "assets/pictures.js",
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
    # One was deleted; 2 has another box beside its own now, 4 has none. 1 and 3 lost theirs, but the ranking has it.
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
        ("retrieval", "1.5 garments searched for per consumer photo"),
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
        "no figures yet",
        "No detection figures",
        "No retrieval figures",
        "no rankings yet",
        "no list of failures yet",
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
    assert "No queries to show" in text and "every image was processed" in text


def test_without_ground_truth_nothing_is_marked(four, tmp_path):
    output, _ = four
    images = make_set(tmp_path / "bare", [photo(1, "user"), photo(2, "user"), photo(21, "shop"), photo(25, "shop")])
    write_rows(
        output, "rankings/detected.parquet", tables.RANKINGS, [ranking_row(1, [21, 25], best=0.3), ranking_row(2, [21])]
    )
    found = build(output, images)
    assert "nothing is marked right or wrong" in found.text and not found.data["queries"]["truth"]
    assert [one["photo"] for one in found.queries] == ["2", "1"]  # the most similar first
    assert not any(result[2] for one in found.queries for result in one["results"])


def test_by_photo_a_query_is_a_photo(tmp_path):
    """Photo 1 has two garments, of which the second finds shop photo 21; photo 2 is not detected; 3 asks nothing."""
    output = open_store(tmp_path / "run")
    photos = [photo(1, "user", pair_id=5), photo(2, "user", product_id="a"), photo(3, "user")]
    shops = [photo(21, "shop", pair_id=5), photo(22, "shop", pair_id=6), photo(23, "shop", product_id="a")]
    images = make_set(tmp_path / "set", photos + shops)
    rows = [
        ranking_row(1, [22, 23], best=0.8),
        ranking_row(1, [22, 21], item=1, best=0.7) | {"query_score": 0.9},
        ranking_row(3, [22], best=0.6),
    ]
    write_rows(output, "rankings/detected.parquet", tables.RANKINGS, rows)
    write_rows(output, "items/detected/shard-00000.parquet", tables.ITEMS, item_rows([1, 3]))
    found = build(output, images)
    assert {one["photo"]: one["first"] for one in found.queries} == {"1": 3, "2": "missed"}
    assert [(r[0], r[1], r[2]) for r in found.query(1)["results"]] == [
        ("22", 0.8, False),
        ("23", 0.79, False),
        ("21", 0.69, True),
    ]
    assert found.query(1)["item"] == 1 and found.query(2)["marks"] == []
    assert found.data["queries"]["truth"] == "photo" and "the lists of its garments are joined" in found.text


def test_true_boxes_stand_in_where_nothing_was_detected(four):
    output, images = four
    write_rows(output, "rankings/true.parquet", tables.RANKINGS, [ranking_row(1, [21])])
    output.delete("rankings/detected.parquet")
    found = build(output, images)
    assert "with true boxes" in found.text and found.query(1)["first"] == 1


def test_a_limited_run_asks_only_for_the_photos_it_took(four):
    output, images = four
    taken = {"shard-00000": [0, 2], "shard-00001": [0]}
    output.write("run.json", json.dumps(RUN | {"selected": {"rows": taken}}).encode())
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
    # photo 1; shop photo 21, which would have been right; shop photo 25
    assert read == ["shard-00000", "shard-00001", "shard-00002"]
    build(output, images, queries=1)
    assert len(read) == 3  # again: nothing to draw


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


def test_pages_say_the_same_of_a_bucket(four, s3_bucket):
    output, images = four
    bucket = open_store(f"{s3_bucket}/run")
    for entry in output.list():
        bucket.write(entry.key, output.read(entry.key))
    assert site.build(bucket, images) == f"{s3_bucket}/run/report/index.html"
    assert runs.read(bucket).queries == build(output, images).queries
