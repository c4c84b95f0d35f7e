"""One call for every detector: mmdetection's own per-image pipeline is the oracle."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detection import models
from detection.models import DetectorSpec
from networks.weight_files import WeightsError
from store.decode import decode
from store.imageset import Photo
from tests.marks import first_is_fast

REPO = Path(__file__).resolve().parents[2]
WEIGHTS = REPO / "weights" / "tiny"
TINY = models.PROFILES["tiny"]


def drawn_photos(n: int) -> list[np.ndarray]:
    from sources.drawn import source

    rows = source.read(users=n // 2, shops=n - n // 2, seed=3)
    return [decode(row.image) for row in rows if isinstance(row, Photo)]


def real_photos(folder: Path, n: int) -> list[np.ndarray]:
    paths = sorted((folder / "val" / "image").glob("*.jpg"))
    return [decode(path.read_bytes()) for path in paths[:: len(paths) // n][:n]]


class Mmdetection:
    """mmdetection as its users run it: one photo at a time through its own transforms and data preprocessor."""

    def __init__(self, spec: DetectorSpec, model: Any) -> None:
        from mmcv.transforms import Compose
        from mmdet.datasets import transforms  # noqa: F401  (registers them)
        from mmdet.models.data_preprocessors import DetDataPreprocessor

        keys = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor", "border")
        self.pipeline = Compose(
            [
                dict(type="mmdet.LoadImageFromNDArray"),
                dict(type="mmdet.Resize", scale=spec.scale_px, keep_ratio=True),
                dict(type="mmdet.PackDetInputs", meta_keys=keys[:-1]),
            ]
        )
        self.model = model
        model.data_preprocessor = DetDataPreprocessor(
            mean=spec.mean, std=spec.std, bgr_to_rgb=True, pad_size_divisor=spec.pad_multiple_px
        )

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        import torch

        data = self.pipeline(dict(img=np.ascontiguousarray(image[..., ::-1]), img_id=0))
        data["data_samples"].set_metainfo({"border": np.zeros(4, np.float32)})  # CenterNet asks where its photo lies
        batch = {"inputs": [data["inputs"]], "data_samples": [data["data_samples"]]}
        with torch.inference_mode():
            found = self.model.test_step(batch)[0].pred_instances
        return found.bboxes.numpy(), found.scores.numpy(), found.labels.numpy()


@pytest.fixture(scope="module")
def loaded() -> dict[str, Any]:
    """Each tiny detector, loaded once."""
    from detection import detector

    return {spec.name: detector.load(spec, "cpu", weights=WEIGHTS / spec.weights) for spec in TINY}


def agreement(spec: DetectorSpec, ours: Any, photos: list[np.ndarray], score_from: float = 0.3) -> tuple[int, int]:
    """(how many of mmdetection's boxes from this score up we have within 1 px and 0.01, how many there are)."""
    theirs = Mmdetection(spec, ours.model)
    matched = total = 0
    for photo, found in zip(photos, ours.detect(photos, batch_size=4), strict=True):
        boxes, scores, labels = theirs(photo)
        height, width = photo.shape[:2]
        boxes = np.clip(boxes, 0, [width, height, width, height])
        for box, score, label in zip(boxes, scores, labels, strict=True):
            if score >= score_from:
                near = (np.abs(found.boxes - box).max(1) <= 1) & (np.abs(found.scores - score) <= 0.01)
                matched += bool((near & (found.categories == label + 1)).any())
                total += 1
    return matched, total


@pytest.mark.parametrize("spec", TINY, ids=lambda spec: spec.name)
def test_boxes_are_those_of_mmdetection_on_drawn_photos(spec: DetectorSpec, loaded: dict[str, Any]) -> None:
    matched, total = agreement(spec, loaded[spec.name], drawn_photos(8), score_from=0.1)
    assert total >= 4 and matched >= 0.99 * total


@pytest.mark.slow
@pytest.mark.parametrize("spec", TINY, ids=lambda spec: spec.name)
def test_boxes_are_those_of_mmdetection_on_real_photos(
    spec: DetectorSpec, loaded: dict[str, Any], ccp_df2: Path
) -> None:
    matched, total = agreement(spec, loaded[spec.name], real_photos(ccp_df2, 60))
    assert total >= 20 and matched >= 0.99 * total


def test_results_keep_the_order_of_the_photos(loaded: dict[str, Any]) -> None:
    photos = drawn_photos(6)
    ours = loaded["retinanet-lite0-tiny"]
    forward, backward = ours.detect(photos, batch_size=2), ours.detect(photos[::-1], batch_size=3)[::-1]
    for a, b in zip(forward, backward, strict=True):
        assert len(a) == len(b)
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-3)


def test_answers_are_within_the_photo_and_sorted(loaded: dict[str, Any]) -> None:
    photos = [*drawn_photos(2), np.full((7, 300, 3), 128, np.uint8), np.zeros((1, 1, 3), np.uint8)]
    for ours in loaded.values():
        for photo, found in zip(photos, ours.detect(photos), strict=True):
            height, width = photo.shape[:2]
            assert (
                found.boxes.dtype == np.float32
                and found.scores.dtype == np.float32
                and found.categories.dtype == np.int16
            )
            assert (np.diff(found.scores) <= 0).all() and len(found) <= 100
            if len(found):
                assert found.boxes[:, :2].min() >= 0 and (found.boxes[:, 2:].max(0) <= [width, height]).all()
                assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
                assert found.categories.min() >= 1 and found.categories.max() <= 13


def test_masks_lie_in_their_boxes(loaded: dict[str, Any]) -> None:
    from pycocotools import mask as coco_mask

    photo = drawn_photos(1)[0]
    found = loaded["cascade-mask-rcnn-tiny"].detect([photo])[0]
    assert found.masks is not None and len(found.masks) == len(found) > 0
    for box, rle in zip(found.boxes[:5], found.masks[:5], strict=True):
        mask = coco_mask.decode(rle)
        assert mask.shape == photo.shape[:2]
        ys, xs = np.nonzero(mask)
        if len(xs):
            assert (
                xs.min() >= box[0] - 1 and xs.max() <= box[2] + 1 and ys.min() >= box[1] - 1 and ys.max() <= box[3] + 1
            )
    assert all(loaded[s.name].detect([photo])[0].masks is None for s in TINY if "mask" not in s.name)


def test_no_photos_no_answers(loaded: dict[str, Any]) -> None:
    assert loaded["atss-tiny"].detect([]) == []


@pytest.mark.parametrize(
    ("size", "scale_px", "want"),
    [
        ((512, 340), (320, 320), (320, 213)),  # 340 * 320 / 512 = 212.5, rounded half up
        ((100, 50), (320, 320), (320, 160)),  # up
        ((800, 1333), (1333, 800), (800, 1333)),  # exactly
        ((1000, 1000), (1333, 800), (800, 800)),  # the short side decides
        ((1, 900), (320, 320), (1, 320)),  # never to nothing
    ],
)
def test_photos_are_fitted_with_their_proportions(
    size: tuple[int, int], scale_px: tuple[int, int], want: tuple[int, int]
) -> None:
    from detection.batches import fit

    assert fit(np.zeros((*size, 3), np.uint8), scale_px).shape == (*want, 3)


@pytest.mark.parametrize(
    "wrong", [np.zeros((5, 5), np.uint8), np.zeros((5, 5, 4), np.uint8), np.zeros((5, 5, 3), np.float32)]
)
def test_what_is_not_a_photo_is_refused(wrong: np.ndarray, loaded: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="uint8 photo"):
        loaded["atss-tiny"].detect([wrong])


def test_weights_are_checked(tmp_path: Path) -> None:
    from detection import detector

    spec = models.ATSS_TINY
    good = (WEIGHTS / spec.weights).read_bytes()
    cases = {
        "absent.safetensors": (None, r"cannot read weights .*absent.*No such file"),
        "changed.safetensors": (good[:-1] + bytes([good[-1] ^ 1]), "has sha256"),
        "other.safetensors": (
            (WEIGHTS / models.CENTERNET_TINY.weights).read_bytes(),
            "were they trained for another model",
        ),
        "noise.safetensors": (b"\x80\x04pickle.", "not a safetensors file"),
    }
    for name, (data, reason) in cases.items():
        if data is not None:
            (tmp_path / name).write_bytes(data)
        trusting = spec if "changed" in name else dataclasses.replace(spec, sha256="")
        with pytest.raises(WeightsError, match=reason):
            detector.load(trusting, "cpu", weights=tmp_path / name)
    with pytest.raises(WeightsError, match="no weights given"):
        detector.load(spec, "cpu", weights=None)


def test_out_of_memory_halves_the_batch(loaded: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    ours = loaded["atss-tiny"]
    photos = [p[:200, :150] for p in drawn_photos(4)]
    whole = ours.detect(photos, batch_size=4)
    forward = ours._forward

    def small_memory(batch: list, *rest: Any) -> Any:
        if len(batch) > 1:
            raise torch.cuda.OutOfMemoryError("stand-in")
        return forward(batch, *rest)

    monkeypatch.setattr(ours, "_forward", small_memory)
    halved = ours.detect(photos, batch_size=4)
    assert [len(a) for a in whole] == [len(b) for b in halved] and any("halved" in note for note in ours.notes)


@pytest.mark.parametrize("n, batch_size, seen", [(1, 4, [1]), (3, 4, [4]), (5, 4, [4, 1]), (5, 6, [6]), (6, 6, [6])])
def test_on_a_gpu_batches_have_few_sizes_and_the_boxes_are_the_same(
    loaded: dict[str, Any], monkeypatch: pytest.MonkeyPatch, n: int, batch_size: int, seen: list[int]
) -> None:
    ours, sizes = loaded["atss-tiny"], []
    photos = [photo[:200, :150] for photo in drawn_photos(n)]
    want, forward = ours.detect(photos, batch_size=1), ours._forward
    monkeypatch.setattr(ours, "_few_sizes", True)
    monkeypatch.setattr(ours, "_forward", lambda batch, *rest: sizes.append(len(batch)) or forward(batch, *rest))
    found = ours.detect(photos, batch_size=batch_size)
    assert sizes == seen and len(found) == n
    for a, b in zip(found, want, strict=True):
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("spec", [*models.PROFILES["paper"], models.CENTERNET_HOURGLASS], ids=lambda spec: spec.name)
def test_paper_models_build_and_see_photos(spec: DetectorSpec) -> None:
    """At the paper's widths and depths; photos at a reduced size, because the machine has two cores."""
    from detection import detector

    small = dataclasses.replace(spec, scale_px=(320, 192))
    ours = detector.load(small, "cpu", weights=None, allow_random_weights=True, score_threshold=0.0, max_per_image=5)
    found = ours.detect(drawn_photos(2))
    assert [len(f) for f in found] == [5, 5]
    assert (found[0].masks is not None) == ("mask" in spec.name)


def agree_in_the_mirror(plain: Any, photos: list[np.ndarray]) -> tuple[int, int]:
    """Of the plain detector's boxes from 0.3 up: how many the flipped one finds (1 px, 0.01); how many there are."""
    flipped = plain.view(models.viewed(plain.spec, "flip"))
    mirrored = [np.ascontiguousarray(photo[:, ::-1]) for photo in photos]
    matched = total = 0
    for photo, want, found in zip(photos, plain.detect(photos), flipped.detect(mirrored), strict=True):
        width = photo.shape[1]
        for k in np.flatnonzero(want.scores >= 0.3):
            x1, y1, x2, y2 = want.boxes[k]
            near = np.abs(found.boxes - [width - x2, y1, width - x1, y2]).max(axis=1) <= 1
            near &= (np.abs(found.scores - want.scores[k]) <= 0.01) & (found.categories == want.categories[k])
            if want.masks is not None and near.any():
                from pycocotools import mask as coco

                ours = coco.decode(found.masks[int(np.argmax(near))])
                theirs = coco.decode(want.masks[k])[:, ::-1]
                near &= (ours != theirs).sum() <= 0.03 * max(theirs.sum(), 1)
            matched, total = matched + bool(near.any()), total + 1
    return matched, total


@pytest.mark.parametrize("name", ["atss-tiny", "cascade-mask-rcnn-tiny"])
def test_a_flipped_detector_finds_the_mirrored_boxes_of_a_mirrored_photo(name: str, loaded: dict[str, Any]) -> None:
    matched, total = agree_in_the_mirror(loaded[name], drawn_photos(8))
    assert total >= 4 and matched >= 0.95 * total


@pytest.mark.slow
@pytest.mark.parametrize("spec", TINY, ids=lambda spec: spec.name)
def test_a_flipped_detector_on_real_photos(spec: DetectorSpec, loaded: dict[str, Any], ccp_df2: Path) -> None:
    matched, total = agree_in_the_mirror(loaded[spec.name], real_photos(ccp_df2, 30))
    assert total >= 20 and matched >= 0.95 * total


def test_views_share_the_network_and_answer_within_the_photo(loaded: dict[str, Any]) -> None:
    plain, photo = loaded["atss-tiny"], drawn_photos(1)[0]
    for view in ("flip", "0.8", "flip@1.25"):
        other = plain.view(models.viewed(plain.spec, view))
        assert other.model is plain.model
        found = other.detect([photo])[0]
        height, width = photo.shape[:2]
        assert len(found) and found.boxes.min() >= 0 and (found.boxes[:, 2:].max(axis=0) <= [width, height]).all()
        assert found.boxes.dtype == np.float32 and (found.boxes[:, 2:] > found.boxes[:, :2]).all()


@pytest.mark.parametrize("spec", first_is_fast(TINY[:4]), ids=lambda spec: spec.name)
def test_classes_that_are_left_out_take_nobodys_place(spec: DetectorSpec) -> None:
    """The best boxes of two classes are the same whether all boxes are kept and then chosen from, or few at once."""
    from detection import detector

    photos = [np.random.default_rng(0).integers(0, 255, (160, 120, 3), np.uint8), drawn_photos(1)[0]]
    model = detector.build(spec)
    whole = detector.Detector(spec, model, "cpu", 0.0, 2000).detect(photos)
    ids = [0] * 13
    ids[3], ids[8] = 300, 1
    few = detector.Detector(spec, model, "cpu", 0.0, 7, ids).detect(photos)
    for every, best in zip(whole, few, strict=True):
        rows = np.flatnonzero(np.isin(every.categories, (4, 9)))[:7]
        assert len(rows) == len(best) == 7
        np.testing.assert_allclose(best.boxes, every.boxes[rows], atol=1e-3)
        assert best.categories.tolist() == [{4: 300, 9: 1}[i] for i in every.categories[rows].tolist()]


def test_a_detector_of_other_categories_has_heads_of_their_number() -> None:
    from detection import detector

    for spec in TINY[:4]:
        own = models.with_categories(spec, ("cape", "kilt"))
        found = detector.load(own, "cpu", weights=None, allow_random_weights=True, score_threshold=0.0)
        assert set(found.detect(drawn_photos(1))[0].categories.tolist()) == {1, 2}


def test_a_batch_is_normalised_and_padded_with_zeros() -> None:
    import torch

    from detection.batches import normalise

    spec = models.PROFILES["paper"][0]  # its channels differ in mean and deviation
    rng = np.random.default_rng(0)
    photos = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((5, 7), (8, 4), (8, 8))]
    want = np.zeros((3, 3, 8, 8), np.float32)
    for slot, photo in zip(want, photos, strict=True):
        scaled = (photo.astype(np.float32) - np.float32(spec.mean)) / np.float32(spec.std)
        slot[:, : photo.shape[0], : photo.shape[1]] = scaled.transpose(2, 0, 1)
    found = normalise(photos, (8, 8), spec, torch.device("cpu"))
    assert found.dtype == torch.float32
    assert found.numpy().tobytes() == want.tobytes()
