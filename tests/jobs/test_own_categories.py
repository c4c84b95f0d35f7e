"""A shop's own categories, from detectors' classes to the report: stand-in models over a set with three of its own."""

import dataclasses
import functools
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import stand_ins
from PIL import Image

from detection.detections import Detections
from jobs import full_eval, reindex_gallery, search
from jobs.runs.models import Catalogue
from retrieval.gallery import open_gallery
from store.categories import DEEPFASHION2
from store.errors import UserError
from store.imageset import Item, Photo
from store.imageset_write import write_imageset

SHOPS = ("kilt", "cape", "trousers")  # the last alone is DeepFashion2's
CLASSES = ("person", "skirt", "cape", "trousers")  # of the detector
SHADES = {name: 40 + 50 * i for i, name in enumerate(CLASSES)}  # grey, by which it tells garments apart


@dataclasses.dataclass(frozen=True)
class ShadeSpec:
    """A detector of `CLASSES`, by shade."""

    name: str
    categories: tuple[str, ...] = CLASSES
    classes: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    weights: str = ""
    sha256: str = ""


class ShadeFinder:
    """Finds each rectangle of one shade, and a person over the whole photo, which has the best score."""

    def __init__(self, category_ids: Sequence[int], max_per_image: int) -> None:
        self.category_ids, self.max_per_image = np.array(category_ids, np.int16), max_per_image

    def detect(self, images: Sequence[np.ndarray], *, batch_size: int = 8) -> list[Detections]:
        return [self._one(image) for image in images]

    def _one(self, image: np.ndarray) -> Detections:
        found = [((0, 0, image.shape[1], image.shape[0]), 0.95, 0)]
        for number, shade in enumerate(SHADES.values()):
            rows, columns = np.nonzero(np.abs(image[:, :, 0].astype(int) - shade) < 6)
            if len(rows) > 20:
                found.append(
                    ((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1), 0.9 - number / 100, number)
                )
        boxes, scores, labels = (np.array(part) for part in zip(*found, strict=True))
        kept = np.flatnonzero(self.category_ids[labels])[: self.max_per_image]
        return Detections(
            boxes[kept].astype(np.float32), scores[kept].astype(np.float32), self.category_ids[labels[kept]]
        )


def load_detector(
    spec: ShadeSpec, device: str, *, category_ids: Sequence[int], max_per_image: int, **how: Any
) -> ShadeFinder:
    return ShadeFinder(category_ids, max_per_image)


CATALOGUE = Catalogue(
    lambda entry: ShadeSpec(**entry) if isinstance(entry, dict) else ShadeSpec(entry),
    stand_ins.EMBEDDERS.__getitem__,
    load_detector,
    stand_ins.load_embedder,
)


def photo(number: int, source: str, garment: int) -> Photo:
    """Two garments side by side: shop category 1 + garment % 3, and the next one; their height tells the garment."""
    pixels = np.full((64, 96, 3), 250, np.uint8)
    items = []
    for side in range(2):
        category = (garment + side) % 3
        shade = SHADES[("skirt", "cape", "trousers")[category]]
        left, top, height = 6 + 46 * side, 4 + number % 3, 24 + 3 * garment
        pixels[top : top + height, left : left + 36] = shade
        pixels[top : top + height, left : left + 36, 2] = 20 * garment
        box = (left, top, left + 36, top + height)
        items.append(Item(category + 1, 1 + side, box, scale=1, occlusion=1, zoom_in=1, viewpoint=1))
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    return Photo(
        number, encoded.getvalue(), 96, 64, source, 1 + garment, f"p{garment}", f"{number}.png", items=tuple(items)
    )


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 photos of consumers and 12 of shops, garment i in photo i of either half."""
    folder = tmp_path_factory.mktemp("own") / "imageset"
    photos = (photo(i, "user" if i < 12 else "shop", i % 12) for i in range(24))
    write_imageset(photos, folder, source={"adapter": "test", "arguments": {}}, max_images=8, categories=SHOPS)
    return folder


def run(
    imageset: Path, output: Path, *more: str, classes: str = "{skirt: kilt}", main: Callable = full_eval.main,
    place: str = "--output",
) -> int:  # fmt: skip
    line = ["--set", f"detectors=[{{name: shades, classes: {classes}}}]", "--set", "embedders=[coarse, fine]"]
    line += ["--set", "device=cpu", "--set", "items.iou_threshold=0.9", "--imageset", str(imageset), place, str(output)]
    return main([*line, *more], CATALOGUE)


def read(output: Path, name: str) -> Any:
    return pq.read_table(output / name) if name.endswith(".parquet") else json.loads((output / name).read_text())


def test_a_run_has_the_sets_categories_from_boxes_to_report(shop, tmp_path, calls, capsys):
    assert run(shop, tmp_path) == 0
    said = capsys.readouterr().out
    assert "shades: boxes of person are left out; no category of this run has such a name" in said
    assert "no detector finds" not in said

    boxes = read(tmp_path, "detections/shades/shard-00000.parquet")
    assert str(boxes.schema.field("category_id").type) == "int16"
    assert boxes.slice(0, 2).column("category_id").to_pylist() == [1, 2]  # photo 0: kilt, cape

    metrics = read(tmp_path, "metrics.json")
    assert metrics["categories"] == read(tmp_path, "run.json")["categories"] == list(SHOPS)
    fused = metrics["detection"]["fused"]
    assert fused["AP"] == 1.0 and fused["AP10"] is None and fused["AP10_50"] is None
    assert {name: part["items"] for name, part in fused["per_category"].items()} == dict.fromkeys(SHOPS, 16)
    assert metrics["summary"]["best_detector"] == "shades" and metrics["summary"]["best_detector_AP10"] is None
    concat = metrics["retrieval"]["detected"]["concat"]
    assert concat["missed"] == 0 and {name: part["queries"] for name, part in concat["per_category"].items()} == (
        dict.fromkeys(SHOPS, 8)
    )

    page = (tmp_path / "report" / "detection.html").read_text()
    assert "kilt" in page and "vest" not in page and "AP10" not in page
    assert '"categories":["kilt","cape","trousers"]' in (tmp_path / "report" / "data" / "queries.js").read_text()


def test_only_what_the_classes_change_is_done_again(shop, tmp_path, calls, capsys):
    run(shop, tmp_path)
    calls.clear()
    capsys.readouterr()
    run(shop, tmp_path, classes="{skirt: kilt, person: null}")  # the same, said
    assert calls == [] and "are left out" not in capsys.readouterr().out
    run(shop, tmp_path, classes="{skirt: kilt, cape: null}")
    said = capsys.readouterr().out
    assert "3 model changed: classes" in said and "no detector finds cape" in said
    assert [call[0] for call in calls].count("detect") == 3
    assert read(tmp_path, "metrics.json")["detection"]["fused"]["per_category"]["cape"]["AP"] == 0.0


@pytest.mark.parametrize("classes, reason", [
    ("{skrt: kilt}", "shades: classes: it has no class 'skrt'; did you mean 'skirt'?"),
    ("{skirt: klit}", "shades: classes: 'klit' is no category of this run; did you mean 'kilt'?"),
    ("{cape: null, trousers: null}", "shades: none of its classes"),
])  # fmt: skip
@pytest.mark.parametrize("more", [[], ["--check"]])
def test_classes_that_cannot_be_meant_are_refused(shop, tmp_path, calls, classes, reason, more):
    with pytest.raises(UserError, match=reason.replace("?", r"\?")):
        run(shop, tmp_path, *more, classes=classes)


def test_a_check_says_what_is_left_out(shop, tmp_path, calls, capsys):
    assert run(shop, tmp_path, "--check", classes="{skirt: kilt, cape: null}") == 0
    said = capsys.readouterr().out
    assert "categories: 3 (kilt, cape, trousers)" in said
    assert "boxes of person are left out" in said and "no detector finds cape" in said


def test_boxes_that_are_left_out_take_no_place(shop, tmp_path, calls):
    run(shop, tmp_path, "--set", "detect.max_per_image=2")  # the person has the best score
    assert read(tmp_path, "metrics.json")["detection"]["shades"]["AP"] == 1.0


def test_where_a_set_states_none_the_detectors_name_them(tmp_path, calls):
    photos = [dataclasses.replace(photo(i, "user" if i < 4 else "shop", i % 4), items=()) for i in range(8)]
    write_imageset(photos, tmp_path / "set", source={"adapter": "test", "arguments": {}}, categories=())
    assert run(tmp_path / "set", tmp_path / "run", classes="{person: null}") == 0
    assert read(tmp_path / "run", "run.json")["categories"] == ["skirt", "cape", "trousers"]


def test_three_hundred_categories_go_from_boxes_to_report(tmp_path, calls, capsys):
    """The same photos under ids 298 to 300, beyond eight bits: the same figures, and pages one can still read."""
    names = (*(f"filler {i}" for i in range(297)), *SHOPS)
    photos = []
    for number in range(24):
        one = photo(number, "user" if number < 12 else "shop", number % 12)
        items = tuple(dataclasses.replace(item, category_id=item.category_id + 297) for item in one.items)
        photos.append(dataclasses.replace(one, items=items))
    write_imageset(photos, tmp_path / "set", source={"adapter": "test", "arguments": {}}, categories=names)
    assert run(tmp_path / "set", tmp_path / "run", "--set", "search.steps=[{step: concat}, {step: category}]") == 0
    assert "no detector finds filler 0, " in (said := capsys.readouterr().out) and "filler 9 and 287 more" in said
    assert set(read(tmp_path / "run", "fused/shard-00000.parquet").column("category_id").to_pylist()) == {298, 299, 300}
    assert set(read(tmp_path / "run", "rankings/detected.parquet").column("query_category_id").to_pylist()) == {
        298, 299, 300,
    }  # fmt: skip
    metrics = read(tmp_path / "run", "metrics.json")
    assert metrics["detection"]["fused"]["AP"] == 1.0 and metrics["retrieval"]["detected"]["steps"]["missed"] == 0
    assert set(metrics["detection"]["fused"]["per_category"]) == set(names)
    page = (tmp_path / "run" / "report" / "detection.html").read_text()
    assert page.count("<tr>") > 300 and 'class="scroll long"' in page


def test_runs_of_before_are_done_with_8_bits(small_set, tmp_path, calls, full):
    """A run that an earlier version left: tables with int8, no names in run.json; nothing of it is repeated."""
    full(small_set, tmp_path, "--set", "max_failed_share=1")
    tables = [path for path in tmp_path.rglob("*.parquet") if path.parts[-2] not in ("index",)]
    for path in tables:
        table = pq.read_table(path)
        for place, field in enumerate(table.schema):
            if field.name.endswith("category_id"):
                table = table.set_column(place, field.name, table.column(place).cast("int8"))
        pq.write_table(table, path)
    record = read(tmp_path, "run.json")
    assert record.pop("categories") == list(DEEPFASHION2)
    (tmp_path / "run.json").write_text(json.dumps(record))
    before = read(tmp_path, "metrics.json")
    calls.clear()
    full(small_set, tmp_path, "--set", "max_failed_share=1")
    assert calls == []
    (tmp_path / "metrics.json").unlink()
    (tmp_path / "fused/shard-00001.parquet").unlink()  # so 8 and 16 bits meet in one table
    full(small_set, tmp_path, "--set", "max_failed_share=1")
    after = read(tmp_path, "metrics.json")
    assert (after["detection"], after["retrieval"]) == (before["detection"], before["retrieval"])


# ---- the gallery -----------------------------------------------------------------------------------------------------


@pytest.fixture
def gallery(shop, tmp_path, calls) -> Path:
    assert (
        run(shop, tmp_path / "gallery", "--set", "gallery.copies=4", main=reindex_gallery.main, place="--gallery") == 0
    )
    return tmp_path / "gallery"


def test_a_gallery_remembers_its_categories(gallery, shop, tmp_path, calls, capsys):
    opened = open_gallery(str(gallery))
    assert opened.record["categories"] == list(SHOPS)
    assert set(opened.items.column("category_id").to_pylist()) == {1, 2, 3}
    capsys.readouterr()
    calls.clear()
    run(shop, gallery, main=reindex_gallery.main, place="--gallery", classes="{skirt: kilt, person: null}")
    assert calls == [] and '"status": "unchanged"' in capsys.readouterr().out
    run(shop, gallery, main=reindex_gallery.main, place="--gallery", classes="{skirt: cape}")
    assert [call[0] for call in calls].count("detect") > 0 and open_gallery(str(gallery)).version != opened.version


def test_a_search_names_the_gallerys_categories(gallery, tmp_path, capsys, monkeypatch):
    asked = tmp_path / "asked.png"
    asked.write_bytes(photo(0, "user", 0).image)
    monkeypatch.setattr(search, "infer", functools.partial(_infer_here, tmp_path))
    found: list[Any] = []
    for category in ("KILT", "cape"):
        assert search.main([str(asked), "--gallery", str(gallery), "--category", category], CATALOGUE) == 0
        found.append(capsys.readouterr().out)
    assert "1 garment found" in found[0] and "1. kilt 0.89" in found[0] and "1. cape 0.88" in found[1]
    with pytest.raises(UserError, match="the gallery has none named 'klit'; did you mean 'kilt'"):
        search.main([str(asked), "--gallery", str(gallery), "--category", "klit"], CATALOGUE)
    with pytest.raises(UserError, match="none named 'skirt'"):
        search.main([str(asked), "--gallery", str(gallery), "--category", "skirt"], CATALOGUE)


def _infer_here(tmp_path: Path, photos: Any, settings: Any, categories: Any, script: Any, texts: Any) -> Any:
    """`infer` in this process."""
    from jobs.gallery import infer

    def run_here(command: Sequence[str], **_: Any) -> Any:
        infer.answer(Path(command[-1]), CATALOGUE)
        return type("Done", (), {"returncode": 0, "stderr": b""})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(infer.subprocess, "run", run_here)
        return infer.infer(photos, settings, categories)
