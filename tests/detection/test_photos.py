"""Detection without a job: fusing photo by photo gives what `postproc.wbf` gives; defaults are the profile's."""

import inspect
from dataclasses import replace

import numpy as np
import pytest

from detection.detections import Detections
from detection.photos import RULE, fuse, load_detector, worth_embedding
from jobs.runs.settings import PROFILES, Settings
from jobs.runs.validation import build
from jobs.runs.yaml_text import read_yaml
from postproc.fusion import FusionRule
from postproc.wbf import weighted_boxes_fusion
from store.errors import UserError

NOTHING = Detections.empty()


def detections(*rows: tuple[float, float, float, float, float, int]) -> Detections:
    """x1 y1 x2 y2 score category of each box."""
    table = np.array(rows, np.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].astype(np.int16))


def test_the_defaults_are_the_settings_of_the_profile_tiny() -> None:
    settings = build(Settings, read_yaml(PROFILES / "tiny.yaml", "profile"))
    assert FusionRule.of(settings.fusion) == RULE
    for function, group in ((worth_embedding, settings.items), (load_detector, settings.detect)):
        defaults = {name: one.default for name, one in inspect.signature(function).parameters.items()}
        for name in defaults.keys() & type(group).model_fields.keys():
            assert defaults[name] == getattr(group, name), name


def test_photos_are_fused_one_by_one() -> None:
    first = [detections((0, 0, 10, 10, 0.8, 1), (50, 50, 60, 60, 0.5, 2)), NOTHING, detections((0, 0, 9, 9, 0.3, 4))]
    second = [detections((1, 0, 10, 10, 0.6, 1)), NOTHING, detections((0, 0, 9, 9, 0.9, 5))]
    fused = fuse([first, second], weights=[3, 1])
    for photo, of_photo in enumerate(fused):
        both = first[photo], second[photo]
        boxes, scores, labels = weighted_boxes_fusion(
            [one.boxes for one in both], [one.scores for one in both], [one.categories for one in both],
            weights=[3, 1], iou_thr=RULE.iou_threshold, conf_type=RULE.conf_type,
        )  # fmt: skip
        np.testing.assert_allclose(of_photo.boxes, boxes.reshape(-1, 4), rtol=1e-6)
        np.testing.assert_allclose(of_photo.scores, scores, rtol=1e-6)
        assert of_photo.categories.tolist() == labels.tolist()
        assert (of_photo.boxes.dtype, of_photo.scores.dtype, of_photo.categories.dtype) == (
            np.float32, np.float32, np.int16,
        )  # fmt: skip
    assert [len(one) for one in fused] == [2, 0, 2]


def test_a_rule_of_ones_own() -> None:
    found = [[detections((0, 0, 10, 10, 0.8, 1), (0, 0, 10, 9, 0.7, 1))]]
    (kept,) = fuse(found, rule=replace(RULE, method="nms", min_votes=1))
    assert kept.scores.tolist() == [np.float32(0.8)]


@pytest.mark.parametrize("found, weights, message", [
    ([], None, r"want a list of as many photos of each detector, got \[\]"),
    ([[NOTHING], []], None, r"got \[1, 0\]"),
    ([[NOTHING]], [1, 2], r"want 1 weights, one for each detector and not all 0, got \[1, 2\]"),
    ([[NOTHING]], [0], r"got \[0\]"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(found, weights, message) -> None:
    with pytest.raises(ValueError, match=message):
        fuse(found, weights=weights)


def test_no_photos_and_no_boxes() -> None:
    assert fuse([[]]) == [] and worth_embedding([]) == []
    (photo,) = worth_embedding(fuse([[NOTHING], [NOTHING]]))
    assert len(photo) == 0 and photo.boxes.shape == (0, 4)


def test_garments_are_sure_enough_apart_and_not_too_many() -> None:
    photo = detections((0, 0, 10, 10, 0.9, 1), (0, 0, 10, 9, 0.8, 2), (50, 0, 60, 10, 0.5, 1), (0, 50, 9, 60, 0.05, 1))
    (kept,) = worth_embedding([photo])
    assert kept.scores.tolist() == [np.float32(0.9), np.float32(0.5)]  # 0.8 covers the same place, 0.05 is too low
    (one,) = worth_embedding([photo], max_per_image=1)
    assert len(one) == 1


def test_a_model_without_weights_is_refused(tmp_path) -> None:
    with pytest.raises(UserError, match=r"atss-tiny: no weights .*atss-tiny\.safetensors; give their folder"):
        load_detector("atss-tiny", weights_dir=tmp_path)
    with pytest.raises(UserError, match=r"atss_r101_fpn: no weights .*/weights/paper/"):
        load_detector("atss_r101_fpn")
    with pytest.raises(ValueError, match="no detector named 'none'"):
        load_detector("none")
