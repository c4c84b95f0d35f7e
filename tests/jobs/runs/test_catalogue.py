"""From names in the settings to models: views of shipped and of own models, digests of specs, one network for views."""

import argparse
import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants

from detection.models import ATSS_TINY, viewed
from jobs.runs import catalogue
from jobs.runs.catalogue import SHIPPED
from jobs.runs.models import Model, executed
from jobs.runs.settings import Settings, add_arguments, load
from jobs.stages.embed import CropQueue, EmbedWorker
from retrieval.models import LITE0_SG
from store.errors import UserError
from store.files import file_sha256
from tests.hub_cache import put


def settings(*overrides: str) -> Settings:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    given = [word for override in overrides for word in ("--set", override)]
    return load(parser.parse_args(["--imageset", "in", "--output", "out", *given]))


def test_a_view_has_the_weights_of_its_base_which_need_not_be_listed() -> None:
    detectors, embedders = catalogue.choose_models(
        settings("detectors=[atss-tiny@flip, atss-tiny@0.8]", "embedders=[lite0-sg@margin0.1, lite0-sg]"), SHIPPED
    )
    assert [model.name for model in detectors] == ["atss-tiny@flip", "atss-tiny@0.8"]
    assert {(model.file, model.weights) for model in detectors} == {("atss-tiny.safetensors", ATSS_TINY.sha256)}
    assert [model.spec.margin for model in embedders] == [0.1, 0]


def test_a_view_of_ones_own_model(tmp_path: Path) -> None:
    (tmp_path / "mine.safetensors").write_bytes(b"weights")
    own = "{name: mine, base: atss-tiny, scale_px: [200, 100], weights: mine.safetensors}"
    detectors, _ = catalogue.choose_models(
        settings(
            f"detectors=[mine@flip@0.5, {own}]", f"weights_dir={tmp_path}",
            "embedders=[{name: e, base: lite0-sg, weights: mine.safetensors}]",
        ),
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
    (
        "detectors=[atss-tiny@flip, {name: atss-tiny, base: atss-tiny, view: flip}]",
        "two models are named 'atss-tiny@flip'",
    ),
])  # fmt: skip
def test_an_unknown_view_is_refused_in_one_line(override: str, words: str) -> None:
    with pytest.raises(UserError) as refused:
        catalogue.choose_models(settings(override), SHIPPED)
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_a_detector_of_mmdetections_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = "_base_ = 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py'\nmodel = dict(bbox_head=dict(num_classes=2))\n"
    for name, more in {
        "a.py": "",
        "b.py": "max_epochs = 7\n",
        "c.py": "model['test_cfg'] = dict(score_thr=0.3)\n",
    }.items():
        Path(name).write_text(text + more)
    content = {"meta": {"dataset_meta": {"classes": ("cape", "hat")}}, "state_dict": {"a": torch.zeros(1)}}
    torch.save(content, "rtmdet.pth")

    def chosen(config: str, *more: str) -> Model:
        override = f"detectors=[{{name: rtmdet, config: {config}, checkpoint: ./rtmdet.pth}}]"
        return catalogue.choose_models(settings(override, *more), SHIPPED)[0][0]

    own = chosen("a.py")
    assert own.spec.categories == ("cape", "hat") and own.weights == file_sha256(Path("rtmdet.pth"))
    assert list(executed([own])) == ["rtmdet: executes a.py"]
    assert own.basis == chosen("b.py").basis != chosen("c.py").basis  # training's settings change no result
    view = catalogue.choose_models(
        settings("detectors=[rtmdet@flip@0.5, {name: rtmdet, config: a.py, checkpoint: ./rtmdet.pth}]"), SHIPPED
    )[0][0]
    assert (view.name, view.spec.scale_px, view.weights) == ("rtmdet@flip@0.5", (320, 320), own.weights)
    torch.save({"meta": {"CLASSES": ["cape"]}, "state_dict": {}}, "rtmdet.pth")
    with pytest.raises(UserError, match=r"tells 2 classes apart, and \./rtmdet\.pth names 1; set `categories`"):
        chosen("a.py")
    Path("rtmdet.pth").unlink()
    with pytest.raises(UserError, match=r"rtmdet: no weights \./rtmdet\.pth"):
        chosen("a.py")
    with pytest.raises(UserError, match=r"detectors\[0\]: detector 'rtmdet': config d\.py: no file d\.py here"):
        chosen("d.py")
    with pytest.raises(UserError, match="names 80; set `categories`"):
        chosen("a.py", "allow_random_weights=true")


def test_each_view_has_a_digest_of_its_own() -> None:
    specs = [ATSS_TINY, *(viewed(ATSS_TINY, view) for view in ("flip", "0.8", "flip@0.8"))]
    bases = [Model("one name", dataclasses.replace(spec, name="one name"), "digest", "").basis for spec in specs]
    assert len({basis["spec"] for basis in bases}) == 4


def test_results_from_before_there_were_views_stay_valid() -> None:
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
    loaded_names = []

    def load(model: Model) -> Network:
        loaded_names.append(model.name)
        return Network(model.spec, object())

    loaded = catalogue.load_all(tuple(Model(name, f"spec of {name}", weights, "") for name, weights in names), load)
    assert loaded_names == ["a@flip", "b", "b@flip"]
    assert [model.spec for model in loaded.values()] == [f"spec of {name}" for name, _ in names]
    assert loaded["a"].network is loaded["a@flip"].network is loaded["a@0.8"].network


def test_crops_have_the_margin_of_the_view() -> None:
    wide_spec = dataclasses.replace(LITE0_SG, name="wide", margin=0.5)
    specs = [LITE0_SG, wide_spec, dataclasses.replace(LITE0_SG, name="mirror", flip=True)]
    models = tuple(Model(spec.name, dataclasses.replace(spec, input_size=8), "digest", "") for spec in specs)
    worker = EmbedWorker(settings(), SHIPPED, models, None, None)  # type: ignore[arg-type]  # it only crops
    photo = np.zeros((40, 40, 3), np.uint8)
    photo[10:30, 10:30] = 200
    queues = {("true", spec.name): CropQueue() for spec in specs}
    worker._crop(queues, "true", 7, photo, np.array([0]), np.array([[10.0, 10, 30, 30]]))
    plain, wide, mirror = (queues["true", spec.name].waiting[0][1] for spec in specs)
    assert (plain == 200).all() and wide[0, 0].tolist() == [0, 0, 0] and wide[4, 4].tolist() == [200] * 3
    assert mirror is not None and np.shares_memory(plain, mirror)  # the model mirrors, the crop is the same one


# ---- models of timm ----------------------------------------------------------------------------------------------
@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def test_published_weights_are_known_by_their_digest_before_a_worker_starts(hub_cache: Path) -> None:
    put(hub_cache, "timm/resnet10t.c3_in1k", {"model.safetensors": b"one"})
    entry = "embedders=[{name: r, timm: resnet10t, input_size: 64}, r@flip]"
    _, (model, view) = catalogue.choose_models(settings(entry), SHIPPED)
    assert model.weights == view.weights == hashlib.sha256(b"one").hexdigest()
    assert (model.spec.dim, model.spec.input_size, model.file) == (512, 64, "")
    put(hub_cache, "timm/resnet10t.c3_in1k", {"model.safetensors": b"one", "README.md": b"another commit, equal bytes"})
    _, (again, _) = catalogue.choose_models(settings(entry), SHIPPED)
    assert again.spec.published != model.spec.published and again.basis == model.basis  # nothing is computed anew
    put(hub_cache, "timm/resnet10t.c3_in1k", {"model.safetensors": b"two"})
    _, (other, _) = catalogue.choose_models(settings(entry), SHIPPED)
    assert other.basis["weights"] == hashlib.sha256(b"two").hexdigest()


@pytest.mark.slow
def test_without_published_weights_a_run_is_refused_or_random(hub_cache: Path) -> None:
    entry = "embedders=[{name: r, timm: resnet10t}]"
    with pytest.raises(UserError, match=r"^r: model\.safetensors .* cannot be fetched .* name a file with `weights`$"):
        catalogue.choose_models(settings(entry), SHIPPED)
    _, (model,) = catalogue.choose_models(settings(entry, "allow_random_weights=true"), SHIPPED)
    assert (model.weights, model.spec.sha256) == ("random", "")


@pytest.mark.slow
def test_what_timm_cannot_build_names_the_entry() -> None:
    with pytest.raises(UserError, match=r"^embedders\[1\]: .*resnet10t at 176 px, pool cls: it has no class"):
        catalogue.choose_models(settings("embedders=[lite0-sg, {name: r, timm: resnet10t, pool: cls}]"), SHIPPED)
