"""The constants that name detectors, and a user's own from the run file."""

import dataclasses

import pytest

from detection import models
from detection.categories import AP10_IDS, CATEGORIES


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
    assert {CATEGORIES[i - 1] for i in set(range(1, 14)) - set(AP10_IDS)} == {
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
        ({"name": "mine", "base": "atss-tiny", "categories": ["hat"]}, "category 'hat' is not one of"),
        ({"name": "mine", "base": "atss-tiny", "scale_px": [320]}, "scale_px wants 2 sides in pixels"),
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
