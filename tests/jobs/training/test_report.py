"""The page beside a checkpoint: what it says, draws and leaves out. Logs are made by hand, pictures drawn here."""

import html.parser
import io
import math
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from jobs.training import report as training_report
from jobs.training.report import Mistake
from store.objects import ObjectStore, open_store

REPO = Path(__file__).parents[3]
HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>'


@dataclass
class Page(html.parser.HTMLParser):
    """A page as lists: tags with attributes, visible text with single spaces."""

    source: str
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    words: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data

    @property
    def text(self) -> str:
        return " ".join(self.words.split())

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


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
    return [str(image["alt"]) for image in page.of("img") if str(image["src"]).endswith(".svg")]


def drawn_points(store: ObjectStore, chart: str) -> list[int]:
    """Points of each curve in the SVG of the chart whose file name begins so."""
    (key,) = [info.key for info in store.list(f"report/pictures/{chart}-")]
    paths = list(ElementTree.fromstring(store.read(key)).iter("{http://www.w3.org/2000/svg}path"))
    colours = [f"fill: none; stroke: {colour}" for colour in training_report.COLOURS]
    curves = [path.get("d", "") for path in paths if path.get("style", "").startswith(tuple(colours))]
    return [curve.count("M") + curve.count("L") for curve in curves]


# ------------------------------------------------------------------------------------------------ the whole page


def test_the_page_holds_facts_curves_tables_and_mistakes(store: ObjectStore) -> None:
    page = page_of(store)
    for name, value in [("steps", "1,200"), ("rate", "0.0012"), ("data", "a, b"), ("mixed", "yes"), ("minutes", "–")]:
        assert f"<dt>{name}</dt><dd><bdi>{value}</bdi></dd>" in page.source
    for line in (
        '<th scope="row"><bdi>skirt</bdi></th><td class="n">1,234</td><td class="n">0.457</td><td class="n">–</td>',
        '<th scope="col">category</th><th scope="col" class="n">queries</th>',
        '<td class="n">0.25</td><td class="n">0.375</td><td class="n">0.375 at 20</td>',  # acc@1: first, last, highest
        '<td class="n">4</td><td class="n">1</td>',  # cross_entropy
    ):
        assert line in page.source
    assert "queries 45." in page.text  # the same at every step: said, not drawn
    assert charts(page) == [
        "Losses over steps 10 to 20: triplet from 0.9 to 0.5; cross_entropy from 4 to 1",
        "Learning rate over steps 10 to 20: rate from 0.001 to 0.0005",
        "Held out over steps 10 to 20: acc@1 from 0.25 to 0.375; acc@10 from 0.5 to 0.625",
        "Speed over steps 10 to 20: steps_per_s from 2 to 2.5",
    ]
    assert "the skirt of another look" in page.text and "found first" in page.text


def test_the_page_needs_nothing_but_its_own_folder(store: ObjectStore) -> None:
    page = page_of(store)
    assert not page.of("script") and not [link for link in page.of("link") if link["href"] != "data:,"]
    assert "http://" not in page.source and "https://" not in page.source and "url(" not in page.source
    keys = {f"report/{image['src']}" for image in page.of("img")}
    assert keys | {"report/index.html"} == written(store).keys()
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


def test_charts_are_svg_with_text_as_text_and_without_a_date(local: ObjectStore) -> None:
    page_of(local)
    for key, data in written(local).items():
        if key.endswith(".svg"):
            assert b"<text" in data and b">step</text>" in data and b"<dc:date>" not in data and b"#000000" not in data
            assert ElementTree.fromstring(data).tag.endswith("svg")


def test_nothing_hostile_becomes_markup(local: ObjectStore) -> None:
    page = page_of(
        local,
        title=HOSTILE,
        facts={HOSTILE: HOSTILE},
        log=[train(1, **{HOSTILE: 1.0}), train(2, **{HOSTILE: 2.0})],
        tables={HOSTILE: [{HOSTILE: HOSTILE}]},
        mistakes=[Mistake(HOSTILE, ((HOSTILE, picture(1)),))],
    )
    assert not page.of("script") and len(page.of("img")) == 2  # a chart and a picture
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    shown = page.text.count("<script>alert(1)</script>")
    assert shown == 2 + 2 + 1 + 3 + 2  # titles; fact; curve; table, head, cell; caption, label


def test_half_a_surrogate_pair_in_a_caption_is_no_error(local: ObjectStore) -> None:
    assert "photo ?.jpg" in page_of(local, mistakes=[Mistake("photo \udcff.jpg", ())]).text


# ------------------------------------------------------------------------------------------------ writing again


def test_the_same_training_gives_the_same_bytes_in_any_process(local: ObjectStore, tmp_path: Path) -> None:
    page_of(local)
    first = written(local)
    code = (
        "import sys; sys.path.insert(0, 'tests/jobs/training'); import test_report as t; from store.objects import open_store\n"
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
    assert verbs == ["write"] * 5 + ["page"] + ["delete"] * 2  # four charts, a picture; the two of before
    gone = before.keys() - written(store).keys()
    assert gone == {key for verb, key in done if verb == "delete"} and all(key.endswith(".jpg") for key in gone)


# ------------------------------------------------------------------------------------------------ little or nothing


def test_an_empty_training_has_a_page(store: ObjectStore) -> None:
    page = page_of(store, facts={}, log=[], tables={}, mistakes=[])
    assert written(store).keys() == {"report/index.html"} and not page.of("img")
    assert page.text.count("Nothing of it in the log") == 3  # losses, learning rate, held out
    for words in ("Nothing was noted", "No tables", "None to show"):
        assert words in page.text
    assert "No rows" in page_of(store, tables={"Per category": []}).text


def test_one_measurement_is_said_not_drawn(local: ObjectStore) -> None:
    page = page_of(local, log=[*LOG[:1], held_out(10, AP10=0.29, images=189)])
    assert not charts(page) and page.text.count("Too few points for a curve") == 4
    assert '</th><td class="n">10</td><td class="n">0.29</td>' in page.source and "images 189." in page.text


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None, "high", True])
def test_what_is_no_finite_number_is_not_drawn(local: ObjectStore, bad: Any) -> None:
    log = [train(step, loss=bad if step == 20 else 1.0) for step in (10, 20, 30)]
    page = page_of(local, log=log)
    assert charts(page) == ["Losses over steps 10 to 30: loss from 1 to 1"]
    assert drawn_points(local, "losses") == [2]
    assert "1 value is no finite number and not drawn" in page.text


def test_a_figure_that_was_never_finite_leaves_no_empty_chart(local: ObjectStore) -> None:
    page = page_of(local, log=[train(step, loss=math.nan) for step in (1, 2)])
    assert not charts(page) and "2 values are no finite number and not drawn" in page.text


# ------------------------------------------------------------------------------------------------ curves


def test_lines_in_any_order_are_drawn_by_step_and_the_later_of_two_counts(local: ObjectStore) -> None:
    page = page_of(local, log=[train(30, loss=1.0), train(10, loss=9.0), train(20, loss=5.0), train(10, loss=3.0)])
    assert charts(page) == ["Losses over steps 10 to 30: loss from 3 to 1"]


def test_long_logs_are_averaged_over_neighbours() -> None:
    log = [train(step, loss=float(step)) for step in range(1, 1201)]  # twice as many as are drawn
    (curve,) = training_report._charts(log)[0].curves
    assert len(curve.steps) == 600
    assert curve.steps[:2] == (2, 4) and curve.values[:2] == ((1 + 2) / 2, (3 + 4) / 2)


@pytest.mark.parametrize(
    ("figures", "groups"),
    [
        ({"acc@1": (0.1, 0.2)}, {"Held out": ["acc@1"]}),
        ({"AP10": (0.0, 0.0)}, {"Held out": ["AP10"]}),  # it learns nothing: a curve at the bottom
        ({"AP10": (0.1, 0.2), "images": (189, 189)}, {"Held out": ["AP10"]}),
        ({"loss": (3.0, 2.0)}, {"Held out": [], "Held out, other figures": ["loss"]}),
        ({"margin": (-0.5, 0.5)}, {"Held out": [], "Held out, other figures": ["margin"]}),
    ],
)
def test_held_out_figures_share_an_axis_where_they_are_shares(figures: dict[str, Any], groups: dict[str, Any]) -> None:
    log = [held_out(step, **{name: values[step] for name, values in figures.items()}) for step in (0, 1)]
    found = {chart.title: [curve.name for curve in chart.curves] for chart in training_report._charts(log)}
    assert {title: names for title, names in found.items() if title.startswith("Held")} == groups


@pytest.mark.parametrize(
    ("losses", "logarithmic"),
    [((49.9, 1.0), False), ((50.0, 1.0), True), ((50.0, 0.0), False), ((1.0, -1.0), False)],
)
def test_losses_that_fall_fifty_fold_get_a_logarithmic_axis(
    local: ObjectStore, losses: tuple[float, float], logarithmic: bool
) -> None:
    page = page_of(local, log=[train(step, loss=value) for step, value in enumerate(losses)])
    assert ("logarithmic axis" in page.text) is logarithmic


def test_many_losses_differ_by_colour_or_dashes() -> None:
    assert len({training_report._style(place) for place in range(28)}) == 28  # 7 colours × 4 kinds of line
    assert training_report._style(28) == training_report._style(0)


# ------------------------------------------------------------------------------------------------ tables, mistakes


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.45678, "0.457"), (np.float32(0.5), "0.500"), (1.0, "1.000"), (-0.0001, "0.000"), (12345.6, "12,345.600"),
        (1234, "1,234"), (np.int64(7), "7"), (None, "–"), (math.nan, "–"), (True, "yes"), ("1.5", "1.5"),
    ],
)  # fmt: skip
def test_cells_are_printed(value: Any, text: str) -> None:
    assert training_report._cell(value) == text


def test_columns_of_numbers_and_gaps_stand_at_the_right() -> None:
    head, rows = training_report._table([{"a": "x", "b": 1, "c": None}, {"a": 2, "b": None, "c": None, "d": 0.5}])
    assert head == [("a", False), ("b", True), ("c", True), ("d", True)]
    assert [cell.text for cell in rows[0]] == ["x", "1", "–", "–"]


def test_forty_mistakes_are_shown_and_the_rest_counted(local: ObjectStore) -> None:
    page = page_of(local, mistakes=[Mistake(f"mistake {i}.", ()) for i in range(57)])
    assert "The 40 worst, 17 more not shown" in page.text
    assert "mistake 39." in page.text and "mistake 40." not in page.text


def test_a_picture_without_area_leaves_a_gap(local: ObjectStore) -> None:
    page = page_of(local, mistakes=[Mistake("a box of no width", (("query", picture(1, (40, 0))),))])
    assert "no picture: it has no area" in page.text


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3))])
def test_arrays_that_are_no_rgb_are_refused(local: ObjectStore, image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"picture 'query': want \(h, w, 3\) uint8 RGB, got"):
        page_of(local, mistakes=[Mistake("wrong", (("query", image),))])
    assert not written(local)


def test_importing_it_brings_nothing_heavy() -> None:
    code = "import sys, jobs.training.report; sys.exit(any(m in sys.modules for m in ('torch', 'matplotlib', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPO).returncode == 0
