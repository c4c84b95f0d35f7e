"""Galleries whose garments' categories a classifier improves: built, extended, rebuilt by another one, searched."""

import json
from pathlib import Path
from typing import Any

import infer_with_stand_ins
import numpy as np
import pytest
import stand_ins
from galleries import content, night, opened, shop, stock
from small_gallery import ask

from jobs.gallery import infer
from retrieval.classifier import Classifier
from retrieval.hypotheses import read_hypotheses
from store.categories import DEEPFASHION2
from store.errors import UserError

DIMS = {"coarse": 12, "fine": 48}
MODELS = ["coarse", "fine"]


def classifier(seed: int, embedders: Any = MODELS) -> Classifier:
    """One whose layer is random, and which believes it and the fused boxes alike."""
    rng = np.random.default_rng(seed)
    layers = {name: rng.normal(size=(13, DIMS[name])).astype(np.float32) * 4 for name in embedders}
    weights = dict.fromkeys(embedders, "published")
    return Classifier(DEEPFASHION2, weights, layers, np.zeros(13, np.float32), np.array([0.5, 1], np.float32))


def how(file: Path, *more: str) -> list[str]:
    return ["--set", f"search.classifier={file}", "--set", "detectors=[near, unsure]", *more]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "own.safetensors"
    path.write_bytes(classifier(0).save())
    return path


def record_file(gallery: Path) -> Path:
    return gallery / "versions" / json.loads((gallery / "CURRENT").read_bytes())["version"] / "version.json"


def test_its_hypotheses_are_the_items(tmp_path: Path, calls: list, file: Path) -> None:
    stock(shop(range(9)), tmp_path / "set")
    night(tmp_path / "set", tmp_path / "plain", "--set", "search.classifier=null", "--set", "detectors=[near, unsure]")
    night(tmp_path / "set", tmp_path / "gallery", *how(file))
    plain, gallery = opened(tmp_path / "plain"), opened(tmp_path / "gallery")
    assert plain.record["classifier"] is None and gallery.record["classifier"]["file"] == "own.safetensors"
    ids = plain.items["id"].to_numpy()
    fused, vectors = read_hypotheses(plain.items), plain.vectors(ids) * np.sqrt(2)  # two unit rows, joined
    rows = dict(zip(MODELS, np.split(vectors, [12], axis=1), strict=True))
    want = classifier(0).hypotheses(fused, rows, plain.items["score"].to_numpy(), 5)
    items = gallery.table(ids)
    got = read_hypotheses(items)
    assert got.category_id.tolist() == want.category_id.tolist() and got.category_id.shape == (9, 5)
    np.testing.assert_allclose(got.score, want.score, rtol=1e-4)
    assert items["category_id"].to_pylist() == want.category_id[:, 0].tolist()
    assert items["category_id"].to_pylist() != plain.items["category_id"].to_pylist()
    for name in ("bbox", "score", "product_id"):
        assert items[name].equals(plain.table(ids)[name])


def test_a_search_asks_with_its_hypotheses(
    tmp_path: Path, calls: list, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A shop's photo has the categories that its item has."""
    stock(shop(range(9)), tmp_path / "set")
    night(tmp_path / "set", tmp_path / "gallery", *how(file))
    asked = tmp_path / "asked.png"
    asked.write_bytes(shop([4])[0].photo().image)
    assert ask(tmp_path / "gallery", asked, "--top", "1", "--json") == 0
    (garment,) = json.loads(capsys.readouterr().out)["garments"]
    (item,) = garment["items"]
    assert item["file_name"] == "4.png" and item["similarity"] == pytest.approx(1, abs=1e-5)
    assert garment["category"] == item["category"] == DEEPFASHION2[item["hypotheses"][0]["category_id"] - 1]
    settings = infer.settings_of(opened(tmp_path / "gallery").record, stand_ins.CATALOGUE)
    photos = {0: (asked.read_bytes(), 48, 64)}
    found = infer.infer(photos, settings.replace(device="cpu"), DEEPFASHION2, infer_with_stand_ins.SCRIPT)
    assert found.hypothesis_id.tolist() == [[one["category_id"] for one in item["hypotheses"]]]
    np.testing.assert_allclose(found.hypothesis_score, [[one["score"] for one in item["hypotheses"]]], rtol=1e-6)


def test_another_one_builds_anew_and_runs_no_model(tmp_path: Path, calls: list, file: Path) -> None:
    stock(shop(range(9)), tmp_path / "set")
    night(tmp_path / "set", tmp_path / "gallery", *how(file))
    calls.clear()
    assert night(tmp_path / "set", tmp_path / "gallery", *how(file))["status"] == "unchanged"
    moved = tmp_path / "elsewhere" / file.name
    moved.parent.mkdir()
    moved.write_bytes(file.read_bytes())
    assert night(tmp_path / "set", tmp_path / "gallery", *how(moved))["status"] == "unchanged"
    file.write_bytes(classifier(1).save())
    found = night(tmp_path / "set", tmp_path / "gallery", *how(file))
    assert (found["status"], found["rebuilt"], calls) == ("published", "another classifier of garments", [])
    night(tmp_path / "set", tmp_path / "fresh", *how(file))
    assert content(opened(tmp_path / "gallery")) == content(opened(tmp_path / "fresh"))


@pytest.mark.parametrize("parts", [1, 3])
def test_nights_give_what_one_night_gives(tmp_path: Path, calls: list, file: Path, parts: int) -> None:
    line = how(file, "--set", f"gallery.parts={parts}")
    for numbers in (range(1), range(7), range(2, 12)):
        stock(shop(numbers), tmp_path / "set")
        night(tmp_path / "set", tmp_path / "gallery", *line)
    night(tmp_path / "set", tmp_path / "once", *how(file))
    assert content(opened(tmp_path / "gallery")) == content(opened(tmp_path / "once"))


def test_a_version_of_another_file_is_refused(tmp_path: Path, calls: list, file: Path) -> None:
    stock(shop(range(3)), tmp_path / "set")
    night(tmp_path / "set", tmp_path / "gallery", *how(file))
    record = opened(tmp_path / "gallery").record
    file.write_bytes(classifier(1).save())
    with pytest.raises(UserError, match=r"categories are those of own.safetensors \w{16}, which is not what is here"):
        infer.settings_of(record, stand_ins.CATALOGUE)


def test_a_version_of_a_release_without_one_is_searched_by_the_fused_boxes(
    tmp_path: Path, calls: list, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The next night builds it anew, from the results that there are."""
    stock(shop(range(9)), tmp_path / "set")
    night(
        tmp_path / "set", tmp_path / "gallery", "--set", "search.classifier=null", "--set", "detectors=[near, unsure]"
    )
    path = record_file(tmp_path / "gallery")
    record = json.loads(path.read_text())
    del record["classifier"], record["settings"]["search"]
    record["search"]["classifier"] = str(file)  # set, and used for evaluation alone
    path.write_text(json.dumps(record))
    asked = tmp_path / "asked.png"
    asked.write_bytes(shop([4])[0].photo().image)
    assert ask(tmp_path / "gallery", asked, "--top", "1", "--json") == 0
    (garment,) = json.loads(capsys.readouterr().out)["garments"]
    assert garment["category"] == garment["items"][0]["category"] and len(garment["items"][0]["hypotheses"]) == 2
    calls.clear()
    found = night(tmp_path / "set", tmp_path / "gallery", *how(file))
    assert (found["rebuilt"], calls) == ("another classifier of garments", [])


@pytest.mark.parametrize("more, want", [
    (["--set", "embedders=[coarse]"], "own.safetensors wants embeddings that are not made here: fine"),
    (["--set", "detectors=[]"], ""),  # whole photos are of no category
])  # fmt: skip
def test_one_that_does_not_fit_is_told_and_left_out(
    tmp_path: Path, calls: list, file: Path, capfd: pytest.CaptureFixture[str], more: list[str], want: str
) -> None:
    from jobs import reindex_gallery

    stock(shop(range(3)), tmp_path / "set")
    line = ["--imageset", str(tmp_path / "set"), "--gallery", str(tmp_path / "gallery"), *stand_ins.SETTINGS]
    assert reindex_gallery.main([*line, "--set", "gallery.copies=0", *how(file), *more], stand_ins.CATALOGUE) == 0
    said = "".join(capfd.readouterr())
    assert want in said and ("the fused boxes alone say what a garment is" in said) is bool(want)
    gallery = opened(tmp_path / "gallery")
    assert gallery.record["classifier"] is None and infer.settings_of(gallery.record, stand_ins.CATALOGUE)


def test_the_gates_copies_are_classified_too(tmp_path: Path, calls: list) -> None:
    """By a hard rule a copy of another category would not find its photo."""
    every = Classifier(
        DEEPFASHION2, {"coarse": "published"}, {"coarse": np.zeros((13, 12), np.float32)},
        np.arange(13, dtype=np.float32) * 9, np.array([0, 1], np.float32),
    )  # fmt: skip
    file = tmp_path / "every.safetensors"
    file.write_bytes(every.save())
    stock(shop(range(8)), tmp_path / "set")
    rule = "search.steps=[{step: concat}, {step: category, rule: hard}]"
    more = ["--set", "gallery.copies=8", "--set", "gallery.least_copies=0", "--set", rule]
    found = night(tmp_path / "set", tmp_path / "gallery", *how(file, *more))
    assert set(opened(tmp_path / "gallery").items["category_id"].to_pylist()) == {13}
    assert found["gate"]["copies"] > 0.5
