"""The first layers of a trunk, once for several detectors: the same numbers, computed once for each batch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from detection import detector, early, models
from networks.engines import Engine

WEIGHTS = Path(__file__).parents[2] / "weights" / "tiny"
OPENVINO = Engine("openvino")
ON_LITE0 = (models.ATSS_TINY, models.CENTERNET_TINY, models.RETINANET_LITE0_TINY)


def load(spec: models.DetectorSpec) -> detector.Detector:
    return detector.load(spec, "cpu", weights=WEIGHTS / spec.weights, engine=OPENVINO)


def test_first_layers_and_the_rest_are_the_trunk() -> None:
    model: Any = detector.build(models.RETINANET_LITE1_TINY).eval()
    batch = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        features = early.FirstLayers(model.backbone)(batch)
        assert [tuple(features.shape)] == early.shapes(early.facts_of(model) or {}, [tuple(batch.shape)])
        for got, want in zip(model.backbone(features), model.backbone(batch), strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_layers_are_told_apart_by_their_weights() -> None:
    models_of: list[Any] = [detector.build(spec).eval() for spec in (*ON_LITE0, models.RETINANET_LITE1_TINY)]
    for model in models_of[:3]:  # untrained trunks start unlike
        model.backbone.load_state_dict(models_of[0].backbone.state_dict())
        model.backbone.blocks[2][0].conv_pw.weight.data += 1  # of a later layer
    models_of[1].backbone.conv_stem.weight.data[0, 0, 0, 0] = -0.0
    models_of[0].backbone.conv_stem.weight.data[0, 0, 0, 0] = 0.0
    models_of[2].backbone.bn1.bias.data[0] += 1e-6
    digests = [(early.facts_of(model) or {})["digest"] for model in models_of]
    assert digests[0] == digests[1] and len(set(digests)) == 3


def test_a_trunk_of_another_kind_has_none() -> None:
    assert early.facts_of(detector.build(models.CENTERNET_R18, initialise=False)) is None


def test_a_key_tells_batches_apart() -> None:
    rng = np.random.default_rng(0)
    one, other = (rng.integers(0, 256, (4, 6, 3), np.uint8) for _ in range(2))
    more = ((32, 32), (0.0,) * 3, (1.0,) * 3)
    keys = {
        early.key_of([one, other], more),
        early.key_of([other, one], more),
        early.key_of([one], more),
        early.key_of([one.reshape(6, 4, 3), other], more),
        early.key_of([one[:, ::-1], other], more),
        early.key_of([one, other], ((64, 32), *more[1:])),
    }
    assert len(keys) == 6 and early.key_of([one.copy(), other.copy()], more) in keys


class Doubled:
    """Twice the batch, and how often it was asked for."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, batch: Tensor) -> tuple[Tensor]:
        self.times += 1
        return (batch * 2,)


@pytest.mark.parametrize(
    "users, kept_bytes, keys, want",
    [
        (1, 1000, "aaaa", 4),  # nobody else asks
        (2, 1000, "aaaa", 1),
        (2, 1000, "abab", 2),
        (2, 32, "abab", 2),  # 16 bytes a batch: both are kept
        (2, 31, "abab", 4),
        (2, 32, "abaca", 3),  # the one asked for least recently goes
        (2, 32, "abacb", 4),
        (2, 15, "aa", 2),
    ],
)
def test_features_are_kept_for_the_next_detector(
    users: int, kept_bytes: int, keys: str, want: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(early, "KEPT_BYTES", kept_bytes)
    network: Any = Doubled()
    layers = early.Early(network)
    layers.users = users
    for letter in keys:
        found = layers(torch.full((4,), float(ord(letter))), letter.encode)
        assert found.tolist() == [2 * ord(letter)] * 4
    assert network.times == want


def test_detectors_beside_each_other_find_what_each_finds_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit, photos of two shapes, with the plans just made and with those on disk."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    rng = np.random.default_rng(0)
    photos = [rng.integers(0, 256, (*size, 3), np.uint8) for size in ((90, 60), (60, 90), (80, 60))]
    specs = ON_LITE0[:2]
    alone = [[vars_of(each) for each in load(spec).detect(photos)] for spec in specs]
    detectors = [load(spec) for spec in specs]
    assert len({id(each._family.early) for each in detectors}) == 1 and not any(each.notes for each in detectors)
    assert [[vars_of(each) for each in one.detect(photos)] for one in detectors] == alone
    assert len(list(tmp_path.rglob("*.plan"))) == 1 + 2 * 2  # first layers; of each detector, its rest and its facts


def vars_of(found: Any) -> tuple[bytes, ...]:
    return found.boxes.tobytes(), found.scores.tobytes(), found.categories.tobytes()
