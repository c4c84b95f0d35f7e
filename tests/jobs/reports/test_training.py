"""The page beside a checkpoint: what it says, draws and leaves out. Logs are made by hand, pictures drawn here."""

import io
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from report_runs import Page

from jobs.reports import pages
from jobs.reports import training as training_report
from jobs.reports.training import Mistake
from store.objects import ObjectStore, open_store

REPO = Path(__file__).parents[3]
HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>'


def picture(seed: int, shape: tuple[int, int] = (40, 30)) -> np.ndarray:
    return np.full((*shape, 3), seed % 256, np.uint8)


def train(step: int, **figures: Any) -> dict[str, Any]:
    return {"step": step, "part": "train", **figures}


def held_out(step: int, **figures: Any) -> dict[str, Any]:
    return {"step": step, "part": "held_out", **figures}


LOG = [
    train(10, triplet=0.9, cross_entropy=4.0, rate=0.001, steps_per_s=2.0),
    held_out(10, **{"acc@1": 0.25, "acc@10": 0.5, "queries": 45}),
    train(20, triplet=0.5, cross_entropy=1.0, rate=0.0005, steps_per_s=2.5),
    held_out(20, **{"acc@1": 0.375, "acc@10": 0.625, "queries": 45}),
]
SCRIPTS = ["assets/plotly.min.js", "data/charts-index.js", "assets/charts.js"]
WHOLE: dict[str, Any] = {
    "title": "lite0-sg",
    "facts": {"model": "lite0-sg", "steps": 1200, "rate": 0.0012, "data": ["a", "b"], "mixed": True, "minutes": None},
    "log": LOG,
    "tables": {"Per category": [{"category": "skirt", "queries": 1234, "acc@1": 0.45678, "acc@10": None}]},
    "mistakes": [Mistake("the skirt of another look", (("query", picture(1)), ("found first", picture(2))))],
}


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """A training's folder on disk, then one in a bucket."""
    where = tmp_path / "train" if request.param == "folder" else f"{request.getfixturevalue('s3_bucket')}/train"
    return open_store(where)


@pytest.fixture
def local(tmp_path: Path) -> ObjectStore:
    return open_store(tmp_path / "train")


def page_of(store: ObjectStore, **changes: Any) -> Page:
    where = training_report.write(store, **{**WHOLE, **changes})
    assert where == f"{store.uri}/report/index.html"
    return Page(store.read("report/index.html").decode())


def written(store: ObjectStore) -> dict[str, bytes]:
    return {info.key: store.read(info.key) for info in store.list("report/")}


def charts(page: Page) -> list[str]:
    """What each drawn chart says of itself."""
    return [str(plot["aria-label"]) for plot in page.of("div") if plot.get("class") == "plot"]


def plots(store: ObjectStore) -> dict[str, dict[str, Any]]:
    """What assets/charts.js is given to draw, by chart."""
    return {chart["id"]: chart for chart in pages.content_of(store.read("report/data/charts-index.js"))}


def drawn_points(store: ObjectStore, chart: str) -> list[int]:
    """Points of each curve of a chart."""
    return [len(series["x"]) for series in plots(store)[chart]["choices"][0]["series"]]


# ------------------------------------------------------------------------------------------------ the whole page


def test_the_page_holds_facts_curves_tables_and_mistakes(store: ObjectStore) -> None:
    page = page_of(store)
    for name, value in [("steps", "1,200"), ("rate", "0.0012"), ("data", "a, b"), ("mixed", "yes"), ("minutes", "–")]:
        assert f"<dt>{name}</dt><dd><bdi>{value}</bdi></dd>" in page.source
    for line in (
        '<th scope="row"><bdi>skirt</bdi></th><td class="n">1,234</td><td class="n">0.457</td><td class="n">–</td>',
        '<th scope="col">category</th><th scope="col" class="n">queries</th>',
        '<td class="n">0.25</td><td class="n">0.375</td><td class="n">0.375 at 20</td>',  # Acc@1: first, last, highest
        '<td class="n">4</td><td class="n">1</td>',  # cross_entropy
    ):
        assert line in page.source
    assert "queries 45." in page.words  # the same at every step: said, not drawn
    assert charts(page) == [
        "Losses over steps 10 to 20: triplet from 0.9 to 0.5; cross_entropy from 4 to 1",
        "Learning rate over steps 10 to 20: rate from 0.001 to 0.0005",
        "Held out over steps 10 to 20: Acc@1 from 0.25 to 0.375; Acc@10 from 0.5 to 0.625",
        "Speed over steps 10 to 20: steps_per_s from 2 to 2.5",
    ]
    assert "the skirt of another look" in page.words and "found first" in page.words


def test_the_page_needs_nothing_but_its_own_folder(store: ObjectStore) -> None:
    page = page_of(store)
    assert "http://" not in page.source and "https://" not in page.source and "url(" not in page.source
    sources = [tag["src"] for tag in page.of("img") + page.of("script")]
    links = [link["href"] for link in page.of("link") if link["href"] != "data:,"]
    assert {f"report/{source}" for source in sources + links} | {"report/index.html"} == written(store).keys()
    for image in page.of("img"):
        assert image["alt"] and image["width"] and image["height"]


def test_pictures_are_small_jpegs_without_exif(local: ObjectStore) -> None:
    big = Mistake("large", (("query", picture(3, (1000, 500))), ("right", picture(4, (100, 300)))))
    page = page_of(local, mistakes=[big])
    shots = [image for image in page.of("img") if str(image["src"]).endswith(".jpg")]
    assert [(s["width"], s["height"]) for s in shots] == [("128", "256"), ("256", "85")]  # 256 × 100 / 300
    assert [(s["alt"], s["loading"]) for s in shots] == [("query: large", "lazy"), ("right: large", "lazy")]
    for shot in shots:
        with Image.open(io.BytesIO(local.read(f"report/{shot['src']}"))) as found:
            assert (found.format, str(found.width), str(found.height)) == ("JPEG", shot["width"], shot["height"])
            assert not found.getexif() and "exif" not in found.info


def test_charts_are_records_for_the_script(local: ObjectStore) -> None:
    page = page_of(local)
    assert list(plots(local)) == [tag["data-chart"] for tag in page.of("section") if "data-chart" in tag]
    losses = plots(local)["losses"]
    assert (losses["kind"], losses["x"]["title"], losses["labels"]) == ("lines", "step", "table")
    assert losses["y"]["range"] == [0.0, pytest.approx(4.0 + 0.06 * (4.0 - 0.5))]
    assert losses["choices"][0]["series"] == [
        {"name": "triplet", "colour": 1, "x": [10, 20], "y": [0.9, 0.5]},
        {"name": "cross_entropy", "colour": 2, "x": [10, 20], "y": [4.0, 1.0]},
    ]
    assert plots(local)["held-out"]["y"]["range"] == pytest.approx([0.25 - 0.06 * 0.375, 0.625 + 0.06 * 0.375])


def test_nothing_hostile_becomes_markup(local: ObjectStore) -> None:
    page = page_of(
        local,
        title=HOSTILE,
        facts={HOSTILE: HOSTILE},
        log=[train(1, **{HOSTILE: 1.0}), train(2, **{HOSTILE: 2.0})],
        tables={HOSTILE: [{HOSTILE: HOSTILE}]},
        mistakes=[Mistake(HOSTILE, ((HOSTILE, picture(1)),))],
    )
    assert [script["src"] for script in page.of("script")] == SCRIPTS and len(page.of("img")) == 1
    (curve,) = plots(local)["losses"]["choices"][0]["series"]
    assert curve["name"] == HOSTILE and b"<" not in local.read("report/data/charts-index.js")
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    shown = page.words.count("<script>alert(1)</script>")
    assert shown == 2 + 2 + 1 + 3 + 2  # titles; fact; curve; table, head, cell; caption, label


def test_half_a_surrogate_pair_in_a_caption_is_no_error(local: ObjectStore) -> None:
    assert "photo ?.jpg" in page_of(local, mistakes=[Mistake("photo \udcff.jpg", ())]).words


# ------------------------------------------------------------------------------------------------ writing again


def test_the_same_training_gives_the_same_bytes_in_any_process(local: ObjectStore, tmp_path: Path) -> None:
    page_of(local)
    first = written(local)
    code = (
        "import sys; sys.path[:0] = ['tests/jobs/reports', 'tests/jobs']; import test_training as t\n"
        "from store.objects import open_store\n"
        f"t.training_report.write(open_store({str(tmp_path / 'again')!r}), **t.WHOLE)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPO, check=True)
    assert written(open_store(tmp_path / "again")) == first


def test_pictures_come_first_the_page_after_them_and_old_ones_go_last(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    page_of(store)
    before = written(store)
    done: list[tuple[str, str]] = []
    for name in ("write", "delete"):
        act = getattr(type(store), name)

        def spy(self: ObjectStore, key: str, *rest: Any, name: str = name, act: Any = act) -> Any:
            done.append((name, key))
            return act(self, key, *rest)

        monkeypatch.setattr(type(store), name, spy)
    page_of(store, mistakes=[Mistake("another", (("query", picture(9)),))])
    verbs = [verb if key != "report/index.html" else "page" for verb, key in done]
    # style, charts.js, the charts' data, a picture; plotly.js is there already; the two pictures of before
    assert verbs == ["write"] * 4 + ["page"] + ["delete"] * 2
    gone = before.keys() - written(store).keys()
    assert gone == {key for verb, key in done if verb == "delete"} and all(key.endswith(".jpg") for key in gone)


# ------------------------------------------------------------------------------------------------ little or nothing


def test_an_empty_training_has_a_page(store: ObjectStore) -> None:
    page = page_of(store, facts={}, log=[], tables={}, mistakes=[])
    assert written(store).keys() == {"report/index.html", "report/assets/report.css", "report/assets/charts.js"}
    assert not page.of("img") and not page.of("script")
    assert page.words.count("Nothing of it in the log") == 3  # losses, learning rate, held out
    for words in ("Nothing was noted", "No tables", "None to show"):
        assert words in page.words
    assert "No rows" in page_of(store, tables={"Per category": []}).words


def test_one_measurement_is_said_not_drawn(local: ObjectStore) -> None:
    page = page_of(local, log=[*LOG[:1], held_out(10, AP10=0.29, images=189)])
    assert not charts(page) and page.words.count("Too few points for a curve") == 4
    assert '</th><td class="n">10</td><td class="n">0.29</td>' in page.source and "images 189." in page.words


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None, "high", True])
def test_what_is_no_finite_number_is_not_drawn(local: ObjectStore, bad: Any) -> None:
    log = [train(step, loss=bad if step == 20 else 1.0) for step in (10, 20, 30)]
    page = page_of(local, log=log)
    assert charts(page) == ["Losses over steps 10 to 30: loss from 1 to 1"]
    assert drawn_points(local, "losses") == [2]
    assert "1 value is no finite number and not drawn" in page.words


def test_a_figure_that_was_never_finite_leaves_no_empty_chart(local: ObjectStore) -> None:
    page = page_of(local, log=[train(step, loss=math.nan) for step in (1, 2)])
    assert not charts(page) and "2 values are no finite number and not drawn" in page.words


# ------------------------------------------------------------------------------------------------ curves


def test_lines_in_any_order_are_drawn_by_step_and_the_later_of_two_counts(local: ObjectStore) -> None:
    page = page_of(local, log=[train(30, loss=1.0), train(10, loss=9.0), train(20, loss=5.0), train(10, loss=3.0)])
    assert charts(page) == ["Losses over steps 10 to 30: loss from 3 to 1"]


def test_long_logs_are_averaged_over_neighbours() -> None:
    log = [train(step, loss=float(step)) for step in range(1, 1201)]  # twice as many as are drawn
    (curve,) = training_report.charts_of(log)[0].curves
    assert len(curve.steps) == 600
    assert curve.steps[:2] == (2, 4) and curve.values[:2] == ((1 + 2) / 2, (3 + 4) / 2)


@pytest.mark.parametrize(
    ("figures", "groups"),
    [
        ({"acc@1": (0.1, 0.2)}, {"Held out": ["Acc@1"]}),
        ({"AP10": (0.0, 0.0)}, {"Held out": ["AP10"]}),  # it learns nothing: a curve at the bottom
        ({"AP10": (0.1, 0.2), "images": (189, 189)}, {"Held out": ["AP10"]}),
        ({"loss": (3.0, 2.0)}, {"Held out": [], "Held out, other figures": ["loss"]}),
        ({"margin": (-0.5, 0.5)}, {"Held out": [], "Held out, other figures": ["margin"]}),
    ],
)
def test_held_out_figures_share_an_axis_where_they_are_shares(figures: dict[str, Any], groups: dict[str, Any]) -> None:
    log = [held_out(step, **{name: values[step] for name, values in figures.items()}) for step in (0, 1)]
    found = {chart.title: [curve.name for curve in chart.curves] for chart in training_report.charts_of(log)}
    assert {title: names for title, names in found.items() if title.startswith("Held")} == groups


@pytest.mark.parametrize(
    ("losses", "logarithmic"),
    [((49.9, 1.0), False), ((50.0, 1.0), True), ((50.0, 0.0), False), ((1.0, -1.0), False)],
)
def test_losses_that_fall_fifty_fold_get_a_logarithmic_axis(
    local: ObjectStore, losses: tuple[float, float], logarithmic: bool
) -> None:
    page = page_of(local, log=[train(step, loss=value) for step, value in enumerate(losses)])
    assert ("logarithmic axis" in page.words) is logarithmic


def test_each_loss_has_a_colour_of_its_own_and_their_sum_is_the_boldest(local: ObjectStore) -> None:
    names = [f"loss_{number}" for number in range(12)]
    page = page_of(local, log=[train(step, **dict.fromkeys([*names, "loss"], 1.0)) for step in (1, 2)])
    series = plots(local)["losses"]["choices"][0]["series"]
    assert [(one["name"], one["colour"]) for one in series] == [("loss", 0), *zip(names, range(1, 13), strict=True)]
    lines = [tuple(line.get(name) for name in ("stroke", "stroke-dasharray")) for line in page.of("line")]
    assert len(lines) == len(set(lines)) == 13 and lines[0] == ("var(--c0)", None)


# ------------------------------------------------------------------------------------------------ tables, mistakes


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.45678, "0.457"), (np.float32(0.5), "0.500"), (1.0, "1.000"), (-0.0001, "0.000"), (12345.6, "12,345.600"),
        (1234, "1,234"), (np.int64(7), "7"), (None, "–"), (math.nan, "–"), (True, "yes"), ("1.5", "1.5"),
    ],
)  # fmt: skip
def test_cells_are_printed(value: Any, text: str) -> None:
    assert training_report.cell_text(value) == text


def test_columns_of_numbers_and_gaps_stand_at_the_right() -> None:
    head, rows = training_report.table([{"a": "x", "b": 1, "c": None}, {"a": 2, "b": None, "c": None, "d": 0.5}])
    assert head == [("a", False), ("b", True), ("c", True), ("d", True)]
    assert [text for text, _ in rows[0]] == ["x", "1", "–", "–"]


def test_forty_mistakes_are_shown_and_the_rest_counted(local: ObjectStore) -> None:
    page = page_of(local, mistakes=[Mistake(f"mistake {i}.", ()) for i in range(57)])
    assert "The 40 worst, 17 more not shown" in page.words
    assert "mistake 39." in page.words and "mistake 40." not in page.words


def test_a_picture_without_area_leaves_a_gap(local: ObjectStore) -> None:
    page = page_of(local, mistakes=[Mistake("a box of no width", (("query", picture(1, (40, 0))),))])
    assert "no picture: it has no area" in page.words


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3))])
def test_arrays_that_are_no_rgb_are_refused(local: ObjectStore, image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"picture 'query': want \(h, w, 3\) uint8 RGB, got"):
        page_of(local, mistakes=[Mistake("wrong", (("query", image),))])
    assert not written(local)


def test_importing_it_brings_nothing_heavy() -> None:
    code = "import sys, jobs.reports.training; sys.exit(any(m in sys.modules for m in ('torch', 'plotly', 'faiss')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPO).returncode == 0


# ------------------------------------------------------------------------------------------------ in a browser


@pytest.mark.parametrize("options", [
    {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    {"viewport": {"width": 375, "height": 800}, "color_scheme": "dark"},
], ids=["desk", "dark phone"])  # fmt: skip
def test_the_curves_are_drawn_from_a_folder_and_fit_the_screen(
    tab: Any, local: ObjectStore, tmp_path: Path, options: dict[str, Any]
) -> None:
    page_of(local, log=[*LOG, train(30, triplet=0.005, cross_entropy=0.01, rate=0.0001, steps_per_s=2.0)])
    page = tab(tmp_path / "train" / "report", **options).open("index.html")
    assert page.locator(".chart[data-chart]").count() == 4 == page.locator(".plot .main-svg:first-of-type").count()
    curves = page.locator('[data-chart="losses"] .scatterlayer path.js-line')
    colours = [curve.evaluate("line => getComputedStyle(line).stroke") for curve in curves.all()]
    keys = page.locator('[data-chart="losses"] .key line').all()
    assert len(colours) == 2 and colours == [key.evaluate("line => getComputedStyle(line).stroke") for key in keys]
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
