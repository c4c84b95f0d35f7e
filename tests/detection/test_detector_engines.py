"""Shipped detectors through other engines: the boxes and masks that torch finds, and views on one network."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco

from detection import detector, families, models
from detection.models import DetectorSpec, viewed
from networks import engines
from networks.engines import Engine
from tests.detection.test_detector import drawn_photos
from tests.marks import first_is_fast
from tests.networks.test_cuda_graphs import OutOfMemory, StandIn

TINY = Path(detector.__file__).parents[1] / "weights" / "tiny"


@pytest.mark.parametrize("spec", first_is_fast(models.PROFILES["tiny"]), ids=lambda spec: spec.name)
def test_through_openvino_a_detector_finds_what_torch_finds(
    spec: DetectorSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first, second = drawn_photos(2)
    photos = [first, second, np.ascontiguousarray(first[:, : first.shape[1] // 2]), np.zeros((9, 700, 3), np.uint8)]
    torchs, ours = (
        detector.load(spec, "cpu", weights=TINY / spec.weights, engine=Engine(name)) for name in ("torch", "openvino")
    )
    assert (torchs.engine, ours.engine, ours.notes) == ("torch", "openvino", [])
    flip = viewed(spec, "flip")
    for theirs, mine in ((torchs, ours), (torchs.view(flip), ours.view(flip))):
        assert mine.engine == "openvino"
        for want, found in zip(theirs.detect(photos), mine.detect(photos), strict=True):
            np.testing.assert_allclose(found.boxes, want.boxes, atol=1e-2)
            np.testing.assert_allclose(found.scores, want.scores, atol=1e-4)
            np.testing.assert_array_equal(found.categories, want.categories)
            assert (found.masks is None) == (want.masks is None)
            for a, b in zip(found.masks or (), want.masks or (), strict=True):
                assert (coco.decode(a) != coco.decode(b)).sum() <= 2  # cells at the threshold
    assert any(len(found.boxes) for found in ours.detect(photos))


def test_a_second_start_compiles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    spec = models.CASCADE_MASK_RCNN_TINY  # of three plans
    how = {"weights": TINY / spec.weights, "engine": Engine("openvino")}
    photos = drawn_photos(2)
    want = detector.load(spec, "cpu", **how).detect(photos)

    def refuse(*_: object) -> bytes:
        raise AssertionError("it was on disk")

    monkeypatch.setattr(engines.CompiledNetwork, "_compiled", refuse)
    for found, before in zip(detector.load(spec, "cpu", **how).detect(photos), want, strict=True):
        np.testing.assert_array_equal(found.boxes, before.boxes)
        assert found.masks == before.masks


@pytest.mark.parametrize("spec", first_is_fast(models.PROFILES["tiny"]), ids=lambda spec: spec.name)
def test_with_plans_and_facts_on_disk_no_model_is_built(
    spec: DetectorSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same boxes, also where a category is left out; where the facts are damaged, the model is built."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    photos, built = drawn_photos(2), list[str]()
    build = detector.build
    monkeypatch.setattr(detector, "build", lambda spec, **how: built.append(spec.name) or build(spec, **how))
    wanted = [0, *range(2, len(spec.categories) + 1)]
    how: dict = {"weights": TINY / spec.weights, "engine": Engine("openvino"), "score_threshold": 0.001}

    def found(**more: list[int]) -> list[list[bytes]]:
        ours = detector.load(spec, "cpu", **how, **more)
        answers = [*ours.detect(photos), *ours.view(viewed(spec, "flip")).detect(photos)]
        return [[part.tobytes() for part in (each.boxes, each.scores, each.categories)] for each in answers]

    whole, partly = found(), found(category_ids=wanted)
    assert built == [spec.name] * 2 and whole != partly
    assert found() == whole and found(category_ids=wanted) == partly
    assert len(built) == 2
    for file in (tmp_path / "clothes-retrieval" / "plans").iterdir():
        if file.stat().st_size < 20_000:  # facts, not a plan
            file.write_bytes(b"damaged")
    assert found() == whole and len(built) == 3


def test_what_only_a_model_needs_is_not_imported_with_the_detector() -> None:
    code = "import sys, detection.detector; sys.exit(str([m for m in ('timm', 'mmdet', 'mmcv') if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], cwd=TINY.parents[1], capture_output=True, text=True)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize("spec", [models.ATSS_TINY, models.CASCADE_MASK_RCNN_TINY], ids=lambda spec: spec.name)
def test_from_graphs_a_detector_finds_what_torch_finds(spec: DetectorSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = drawn_photos(2)
    photos = [first, second, np.ascontiguousarray(first[:, : first.shape[1] // 2])]
    torchs = detector.load(spec, "cpu", weights=TINY / spec.weights)
    monkeypatch.setattr(families, "GraphedNetwork", StandIn)
    ours = detector.load(spec, "cpu", weights=TINY / spec.weights, engine=Engine("cudagraph"))
    flip = viewed(spec, "flip")
    for theirs, mine in ((torchs, ours), (torchs.view(flip), ours.view(flip))):
        for want, found in zip(theirs.detect(photos), mine.detect(photos), strict=True):
            np.testing.assert_array_equal(found.boxes, want.boxes)
            np.testing.assert_array_equal(found.scores, want.scores)
            assert found.masks == want.masks
        assert (mine.engine, mine.notes) == ("cudagraph", [])
    shapes = ours._family.dense.captured
    assert len(shapes) == len({*shapes}) == 3  # a graph for each shape, which the views share


def test_a_detector_that_cannot_be_captured_stays_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "GraphedNetwork", OutOfMemory)
    spec = models.RETINANET_LITE0_TINY
    ours = detector.load(spec, "cpu", weights=TINY / spec.weights, engine=Engine("cudagraph"))
    photo = drawn_photos(2)[0]
    ours.detect([photo, np.zeros((700, 9, 3), np.uint8)])
    assert ours.engine == "torch" and ours.notes[0].startswith("retinanet-lite0-tiny: torch runs it")


def test_a_model_without_weights_stays_with_torch() -> None:
    spec = models.RETINANET_LITE0_TINY
    untrained = detector.load(spec, "cpu", weights=None, allow_random_weights=True, engine=Engine("openvino"))
    assert untrained.engine == "torch" and not untrained.notes
