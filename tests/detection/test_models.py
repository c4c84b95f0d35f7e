"""The constants that name detectors, and a user's own from the run file."""

import dataclasses

import pytest

from detection import models
from detection.average_precision import AP10_IDS
from store.categories import DEEPFASHION2


def test_names_and_weight_files_are_unique() -> None:
    assert len({spec.name for spec in models.ALL}) == len(models.ALL)
    assert len({spec.weights for spec in models.ALL}) == len(models.ALL)


def test_both_profiles_hold_the_five_of_the_paper() -> None:
    for profile in ("tiny", "paper"):
        kinds = [spec.model["type"] for spec in models.PROFILES[profile]]
        assert sorted(kinds) == ["ATSS", "CascadeRCNN", "CenterNet", "RetinaNet", "RetinaNet"]


def test_shipped_weights_are_pinned() -> None:
    for spec in models.PROFILES["tiny"]:
        assert len(spec.sha256) == 64 and spec.licence


def test_ap10_leaves_out_three() -> None:
    assert {DEEPFASHION2[i - 1] for i in set(range(1, 14)) - set(AP10_IDS)} == {
        "short sleeve outwear",
        "sling",
        "sling dress",
    }


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"name": "mine", "base": "atss-tiny", "weigths": "x"}, "unknown field 'weigths'; allowed: base, name, model"),
        ({"name": "mine"}, "at least `name` and `model`"),
        ({"name": "mine", "base": "atss"}, "no detector named 'atss'; there are: atss-tiny"),
        ({"name": "mine", "base": "atss-tiny", "categories": ["hat", "hat"]}, "category 'hat' is named twice"),
        ({"name": "mine", "base": "atss-tiny", "scale_px": [320]}, "scale_px wants 2 sides in pixels"),
        *[
            ({"name": "mine", "base": "atss-tiny", "fusion_weight": weight}, f"fusion_weight wants .*, got {weight}")
            for weight in (-1.0, float("nan"), float("inf"))
        ],
    ],
)
def test_a_wrong_model_of_ones_own_is_refused(fields: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        models.from_fields(fields)


def test_a_model_of_ones_own_takes_the_rest_from_its_base() -> None:
    mine = models.from_fields(
        {"name": "mine", "base": "atss-tiny", "scale_px": [512, 512], "weights": "mine.safetensors", "sha256": ""}
    )
    assert mine.scale_px == (512, 512) and mine.model == models.ATSS_TINY.model
    assert (
        dataclasses.replace(models.ATSS_TINY, name="mine", scale_px=(512, 512), weights="mine.safetensors", sha256="")
        == mine
    )


def test_the_digest_of_the_base_does_not_judge_another_file() -> None:
    assert models.from_fields({"name": "mine", "base": "atss-tiny", "weights": "mine.safetensors"}).sha256 == ""
    assert models.from_fields({"name": "mine", "base": "atss-tiny"}).sha256 == models.ATSS_TINY.sha256


@pytest.mark.parametrize("view, scale_px, flip", [
    ("flip", (320, 320), True), ("0.8", (256, 256), False), ("flip@1.25", (400, 400), True),
    ("0.333", (107, 107), False),
])  # fmt: skip
def test_a_view_is_the_same_detector_looking_otherwise(view: str, scale_px: tuple[int, int], flip: bool) -> None:
    spec = models.named(f"atss-tiny@{view}")
    same = dataclasses.replace(spec, name="atss-tiny", scale_px=(320, 320), flip=False)
    assert same == models.ATSS_TINY and (spec.scale_px, spec.flip) == (scale_px, flip)
    mine = models.from_fields({"name": "mine", "base": "atss-tiny", "scale_px": [320, 320], "view": view})
    assert mine == dataclasses.replace(spec, name=f"mine@{view}")


@pytest.mark.parametrize(
    "view",
    ["", "flop", "flip@flip", "0.8@flip", "0.80", "1", "1.0", "0.2", "4.1", "-0.8", "nan", "inf", "flip@", "0.8@0.9"],
)
def test_a_view_there_is_not_is_refused_and_says_which_there_are(view: str) -> None:
    with pytest.raises(ValueError, match=r"'atss-tiny' has no view .* want flip, a factor of its size from 0\.25 to 4"):
        models.named(f"atss-tiny@{view}")


def test_a_view_of_nothing_and_a_mirror_by_hand_are_refused() -> None:
    with pytest.raises(ValueError, match="no detector named 'atss'; there are"):
        models.named("atss@flip")
    with pytest.raises(ValueError, match="unknown field 'flip'"):
        models.from_fields({"name": "mine", "base": "atss-tiny", "flip": True})
    with pytest.raises(ValueError, match="no detector named 'atss-tiny@flip'"):
        models.from_fields({"name": "mine", "base": "atss-tiny@flip"})


def test_a_base_is_made_for_the_categories_named() -> None:
    mine = models.from_fields({"name": "mine", "base": "cascade-mask-rcnn-tiny", "categories": ["cape", "kilt"]})
    heads = [*mine.model["roi_head"]["bbox_head"], mine.model["roi_head"]["mask_head"]]
    assert mine.categories == ("cape", "kilt") and [head["num_classes"] for head in heads] == [2] * 4
    same = models.with_categories(mine, DEEPFASHION2)
    assert same.model == models.CASCADE_MASK_RCNN_TINY.model


@pytest.mark.parametrize("classes", [["skirt"], {1: "kilt"}, {"skirt": 1}, {"skirt": ["kilt"]}])
def test_classes_of_another_kind_are_refused(classes: object) -> None:
    with pytest.raises(ValueError, match="classes want a mapping of its names to the run's"):
        models.from_fields({"name": "mine", "base": "atss-tiny", "classes": classes})
