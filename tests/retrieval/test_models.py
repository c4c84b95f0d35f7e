"""The table of embedders and a user's own entries."""

import dataclasses
import hashlib
from pathlib import Path

import pytest

from retrieval import models
from retrieval.models import ALL, LITE0_SG, PROFILES, EmbedderSpec, from_fields, named

WEIGHTS = Path(__file__).parents[2] / "weights"


@pytest.mark.parametrize("spec", ALL, ids=lambda spec: spec.name)
def test_every_shipped_embedder_is_found_and_would_pass_as_a_users_own(spec):
    assert named(spec.name) is spec
    assert from_fields({"base": spec.name}) == spec
    assert spec.weights and spec.licence


def test_names_are_used_once():
    assert len({spec.name for spec in ALL}) == len(ALL)
    assert [[spec.dim for spec in PROFILES[profile]] for profile in ("tiny", "paper")] == [
        [512, 512, 512],
        [1536, 1536],
    ]


@pytest.mark.parametrize("spec", PROFILES["tiny"], ids=lambda spec: spec.name)
def test_shipped_weights_are_those_named(spec):
    path = WEIGHTS / "tiny" / spec.weights
    if not path.exists():
        pytest.skip(f"{path.name} is not in this copy")
    if spec.sha256:
        assert hashlib.sha256(path.read_bytes()).hexdigest() == spec.sha256


def test_shipped_weights_are_45_megabytes_at_most():
    """Detectors, embedders and classifier together: they are in the repository and in the wheel."""
    assert sum(path.stat().st_size for path in (WEIGHTS / "tiny").glob("*.safetensors")) <= 45e6


def test_a_users_own_embedder():
    spec = from_fields(
        {"name": "mine", "timm_id": "convnext_tiny", "branches": ["gem"], "dim": 256, "weights": "mine.safetensors"}
    )
    assert spec == EmbedderSpec("mine", "convnext_tiny", ("gem",), 256, weights="mine.safetensors")


def test_other_weights_for_a_shipped_one_do_not_inherit_its_digest(monkeypatch):
    monkeypatch.setattr(models, "ALL", (dataclasses.replace(LITE0_SG, sha256="ab" * 32),))
    assert from_fields({"base": "lite0-sg", "name": "other", "weights": "other.safetensors"}).sha256 == ""
    assert from_fields({"base": "lite0-sg", "name": "same"}).sha256 == "ab" * 32


@pytest.mark.parametrize(
    "fields, message",
    [
        (
            {"name": "x", "timm_id": "resnet18", "size": 3},
            "unknown field 'size'; allowed: base, name, timm_id, branches, dim",
        ),
        ({"name": "x"}, "at least `name` and `timm_id`"),
        ({"base": "lite9", "name": "x"}, "no embedder named 'lite9'; there are: lite0-sg"),
        ({"base": "lite0-sg", "dim": "512"}, "dim wants a whole number from 1 to 65536, got '512'"),
        ({"base": "lite0-sg", "dim": True}, "dim wants a whole number"),
        ({"base": "lite0-sg", "dim": 511}, "511 does not divide into 2 branches"),
        ({"base": "lite0-sg", "input_size": 0}, "input_size wants"),
        ({"base": "lite0-sg", "stride": 12}, "stride wants 8, 16 or 32, got 12"),
        ({"base": "lite0-sg", "branches": ["sum"]}, "branches wants some of spoc, mac, gem"),
        ({"base": "lite0-sg", "branches": "gem"}, "branches wants"),
        ({"base": "lite0-sg", "blocks": [1, 0]}, r"blocks wants whole numbers of at least 1, .* got \(1, 0\)"),
        ({"base": "lite0-sg", "blocks": 3}, "blocks wants"),
        ({"base": "lite0-sg", "std": [0, 1, 1]}, "std wants three numbers"),
        ({"base": "lite0-sg", "mean": [0.5]}, "mean wants three numbers"),
        ({"base": "lite0-sg", "name": "../x"}, "the name becomes a folder"),
        ({"base": "lite0-sg", "name": 3}, "name wants text"),
    ],
)
def test_fields_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        from_fields(fields)


def test_branches_are_those_there_are():
    from retrieval.descriptors import DESCRIPTORS

    assert sorted(models.BRANCHES) == sorted(DESCRIPTORS)


@pytest.mark.parametrize(
    "view, margin, flip", [("flip", 0, True), ("margin0.1", 0.1, False), ("flip@margin-0.2", -0.2, True)]
)
def test_a_view_is_the_same_embedder_looking_otherwise(view, margin, flip):
    spec = named(f"lite0-sg@{view}")
    assert spec == dataclasses.replace(LITE0_SG, name=f"lite0-sg@{view}", margin=margin, flip=flip)
    assert from_fields({"base": "lite0-sg", "name": "mine", "view": view}).name == f"mine@{view}"


@pytest.mark.parametrize(
    "view",
    ["", "flop", "0.1", "margin", "margin0", "margin0.10", "margin-0.3", "margin2", "marginnan", "margin0.1@flip"],
)
def test_a_view_there_is_not_is_refused_and_says_which_there_are(view):
    with pytest.raises(ValueError, match=r"'lite0-sg' has no view .* want flip, marginSHARE"):
        named(f"lite0-sg@{view}")


def test_a_view_of_nothing_and_a_margin_by_hand_are_refused():
    with pytest.raises(ValueError, match="no embedder named 'lite9'"):
        named("lite9@flip")
    with pytest.raises(ValueError, match="unknown field 'margin'"):
        from_fields({"base": "lite0-sg", "name": "x", "margin": 0.1})
