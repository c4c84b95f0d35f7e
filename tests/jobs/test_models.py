"""Names in the settings to models: views of shipped and of own ones, what their results follow from, one network for all."""

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from detection.models import ATSS_TINY, viewed
from jobs import config, models
from jobs.cli import UserError
from jobs.embed_shard import EmbedShard, Rows
from jobs.models import SHIPPED, Model
from retrieval.models import LITE0_SG


def settings(*overrides: str) -> config.Settings:
    parser = argparse.ArgumentParser()
    config.add_arguments(parser)
    given = [word for override in overrides for word in ("--set", override)]
    return config.load(parser.parse_args(["--imageset", "in", "--output", "out", *given]))


def test_a_view_needs_no_base_beside_it_and_has_its_weights() -> None:
    detectors, embedders = models.chosen(
        settings("detectors=[atss-tiny@flip, atss-tiny@0.8]", "embedders=[lite0-sg@margin0.1, lite0-sg]"), SHIPPED
    )
    assert [model.name for model in detectors] == ["atss-tiny@flip", "atss-tiny@0.8"]
    assert {(model.file, model.weights) for model in detectors} == {("atss-tiny.safetensors", ATSS_TINY.sha256)}
    assert [model.spec.margin for model in embedders] == [0.1, 0]


def test_a_view_of_ones_own_model(tmp_path: Path) -> None:
    (tmp_path / "mine.safetensors").write_bytes(b"weights")
    own = "{name: mine, base: atss-tiny, scale_px: [200, 100], weights: mine.safetensors}"
    detectors, _ = models.chosen(
        settings(f"detectors=[mine@flip@0.5, {own}]", "embedders=[{name: e, base: lite0-sg, weights: mine.safetensors}]", f"weights_dir={tmp_path}"),
        SHIPPED,
    )  # fmt: skip
    assert [(model.name, model.spec.scale_px, model.spec.flip) for model in detectors] == [
        ("mine@flip@0.5", (100, 50), True),
        ("mine", (200, 100), False),
    ]
    assert len({model.weights for model in detectors}) == 1


@pytest.mark.parametrize("override, words", [
    ("detectors=[atss-tiny@flop]", "detectors[0]: detector 'atss-tiny' has no view 'flop'; want flip"),
    ("detectors=[mine@flip]", "no detector named 'mine'"),
    ("embedders=[lite0-sg@margin9]", "embedders[0]: embedder 'lite0-sg' has no view 'margin9'"),
    ("detectors=[{name: 'mine@flip', base: atss-tiny}]", "file names"),
    ("detectors=[atss-tiny@flip, {name: atss-tiny, base: atss-tiny, view: flip}]", "two models are named 'atss-tiny@flip'"),
])  # fmt: skip
def test_what_is_no_view_is_refused_in_one_line(override: str, words: str) -> None:
    with pytest.raises(UserError) as refused:
        models.chosen(settings(override), SHIPPED)
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_results_of_views_are_never_taken_for_one_another() -> None:
    specs = [ATSS_TINY, *(viewed(ATSS_TINY, view) for view in ("flip", "0.8", "flip@0.8"))]
    bases = [Model("one name", dataclasses.replace(spec, name="one name"), "digest", "").basis for spec in specs]
    assert len({basis["spec"] for basis in bases}) == 4


def test_what_was_made_before_there_were_views_stays_valid() -> None:
    @dataclasses.dataclass(frozen=True)
    class Before:
        name: str = "x"
        size: int = 3

    @dataclasses.dataclass(frozen=True)
    class Now(Before):
        flip: bool = False
        margin: float = 0.0

    assert Model("x", Now(), "digest", "").basis == Model("x", Before(), "digest", "").basis
    assert Model("x", Now(flip=True), "digest", "").basis != Model("x", Before(), "digest", "").basis


class Network:
    def __init__(self, spec: object, network: object) -> None:
        self.spec, self.network = spec, network

    def view(self, spec: object) -> "Network":
        return Network(spec, self.network)


def test_views_of_one_model_are_loaded_once() -> None:
    names = [("a@flip", "1"), ("b", "2"), ("a", "1"), ("a@0.8", "1"), ("b@flip", "other weights")]
    asked = []

    def load(model: Model) -> Network:
        asked.append(model.name)
        return Network(model.spec, object())

    loaded = models.load_all(tuple(Model(name, f"spec of {name}", weights, "") for name, weights in names), load)
    assert asked == ["a@flip", "b", "b@flip"]
    assert [model.spec for model in loaded.values()] == [f"spec of {name}" for name, _ in names]
    assert loaded["a"].network is loaded["a@flip"].network is loaded["a@0.8"].network


def test_crops_are_as_wide_as_the_view_wants() -> None:
    specs = [LITE0_SG, dataclasses.replace(LITE0_SG, name="wide", margin=0.5), dataclasses.replace(LITE0_SG, name="mirror", flip=True)]  # fmt: skip
    shard = EmbedShard(settings(), SHIPPED, (), None, None, "cpu")  # type: ignore[arg-type]  # it only crops
    shard.looks = {spec.name: (8, spec.margin) for spec in specs}
    photo = np.zeros((40, 40, 3), np.uint8)
    photo[10:30, 10:30] = 200
    rows = {("true", spec.name): Rows() for spec in specs}
    shard._add(rows, "true", 7, photo, np.array([0]), np.array([[10.0, 10, 30, 30]]))
    plain, wide, mirror = (rows["true", spec.name].crops[0] for spec in specs)
    assert (plain == 200).all() and wide[0, 0].tolist() == [0, 0, 0] and wide[4, 4].tolist() == [200] * 3
    assert mirror is not None and np.shares_memory(plain, mirror)  # the model mirrors, the crop is the same one
