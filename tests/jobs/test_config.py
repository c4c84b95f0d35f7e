"""Settings: layers in their order, and every mistake refused in a line that helps."""

import argparse
from pathlib import Path

import pytest

from jobs import config
from jobs.cli import UserError


def load(*argv: str) -> config.Settings:
    parser = argparse.ArgumentParser()
    config.add_arguments(parser)
    return config.load(parser.parse_args(["--imageset", "in", "--output", "out", *argv]))


def with_file(tmp_path: Path, text: str) -> tuple[str, str]:
    (tmp_path / "run.yaml").write_text(text)
    return "--config", str(tmp_path / "run.yaml")


def test_the_command_line_wins_over_the_run_file_over_the_profile(tmp_path: Path) -> None:
    run_file = with_file(tmp_path, "embed: {batch_size: 3, dtype: float16}\nfusion: {method: nms}")
    settings = load(*run_file, "--set", "embed.batch_size=5", "--limit", "7")
    assert settings.embed == config.Embed(batch_size=5, dtype="float16")
    assert (settings.fusion.method, settings.limit, len(settings.detectors)) == ("nms", 7, 5)
    assert load("--set", "boxes=[detected, true]").boxes == (
        "detected",
        "true",
    )  # which YAML reads as a text and a truth value
    assert load("--profile", "paper").embed.dtype == "float16"


@pytest.mark.parametrize("override, words", [
    ("fusion.iou_treshold=0.5", ["'fusion.iou_treshold'", "did you mean 'iou_threshold'", "conf_type"]),  # misspelt
    ("nonsense=1", ["unknown setting 'nonsense'", "max_failed_share"]),                                # nothing like it
    ("aws_secret_access_key=hunter2", ["unknown setting"]),                                            # and the value is not said
    ("fusion.iou_threshold=1.5", ["fusion.iou_threshold", "0 to 1", "1.5"]),                           # above
    ("fusion.iou_threshold=-0.1", ["0 to 1"]),                                                         # below
    ("fusion.iou_threshold=high", ["a number", "'high'"]),                                             # not a number
    ("fusion.iou_threshold=.nan", ["fusion.iou_threshold", "want a number", ".nan"]),                  # not one either
    ("fusion.method=average", ["wbf or nms or soft_nms_linear", "nmw or voting"]),
    ("fusion.thresholds=[0.1, 0.2]", ["5 thresholds"]),                                                # five detectors
    ("fusion.thresholds=[0.1, 0.2, 0.3, 0.4, 1.5]", ["fusion.thresholds[4]", "0 to 1"]),
    ("fusion.min_votes=6", ["at most 5"]),
    ("fusion.min_votes=0", ["a whole number from 1"]),
    ("fusion.sigma=0", ["fusion.sigma", "0.001"]),                                                     # would divide by nothing
    ("fusion.masks=maybe", ["True or False"]),
    ("fusion.weights=[1, 2]", ["5 weights"]),                                                          # five detectors
    ("fusion.weights=[0, 0, 0, 0, 0]", ["not all 0"]),
    ("detect.batch_size=0", ["a whole number from 1"]),
    ("detect.batch_size=2.5", ["a whole number", "2.5"]),
    ("detect.batch_size=true", ["a whole number", "True"]),                                            # YAML's true is no 1
    ("detect=3", ["a mapping", "batch_size"]),
    ("boxes=[detected, drawn]", ["boxes[1]", "detected or true"]),
    ("boxes=[]", ["at least 1"]),
    ("boxes=[true, true]", ["each one once"]),
    ("actors=many", ["auto", "whole number"]),
    ("actors=0", ["whole number from 1"]),
    ("models_per_actor=2", ["all or 1"]),
    ("gpus_per_actor=1.5", ["a share of one GPU", "1.5"]),                                             # Ray gives out none such
    ("allow_random_weights=1", ["True or False"]),
    ("device=tpu", ["auto or cpu or cuda"]),
    ("search.steps=[{step: magic}]", ["search.steps[0]", "{step: NAME}", "k_reciprocal"]),
    ("search.steps=[]", ["search.steps", "3 embedders", "add concat or rank_fusion"]),                 # nothing joins them
    ("detectors=[{name: '../x'}]", ["file names"]),
    ("storage.endpoint_url=http://me:secret@host", ["credentials do not belong"]),
    ("fusion.method", ["KEY=VALUE"]),                                                                  # no value
    ("fusion.method=[", ["not YAML"]),
])  # fmt: skip
def test_mistakes_are_refused_and_say_what_is_allowed(override: str, words: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        load("--set", override)
    for word in words:
        assert word in str(refused.value)
    assert "hunter2" not in str(refused.value) and "secret@" not in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text, word", [
    ("- 1", "keys and values"), ("a: [", "not YAML"), ("!!python/object/apply:os.system ['true']", "no plain value"),
])  # fmt: skip
def test_a_run_file_that_is_none_is_refused(tmp_path: Path, text: str, word: str) -> None:
    with pytest.raises(UserError, match=word):
        load(*with_file(tmp_path, text))
    with pytest.raises(UserError, match="cannot be read"):
        load("--config", str(tmp_path / "absent.yaml"))


def test_a_submitted_job_keeps_nothing_in_its_passing_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load("--output", "runs/first").output == "runs/first"
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"runtime_env": {"working_dir": "gcs://_ray_pkg_1.zip"}}')
    for line in (
        ("--imageset", "s3://looks", "--output", "runs/first"),
        ("--output", "/runs/first", "--imageset", "looks"),
    ):
        with pytest.raises(UserError, match=rf"{line[-2]} {line[-1]}: .* give an absolute path or a bucket"):
            load(*line)
    assert load("--imageset", "/looks", "--output", "s3://bucket/runs").output == "s3://bucket/runs"


def test_random_weights_keep_boxes_of_any_score_unless_told_otherwise() -> None:
    settings = load("--set", "allow_random_weights=true", "--set", "items.max_per_image=3")
    assert (settings.detect.score_threshold, settings.fusion.score_threshold, settings.items.score_threshold) == (
        0,
        0,
        0,
    )
    assert (settings.detect.max_per_image, settings.items.max_per_image) == (20, 3)
    assert load().detect.score_threshold == 0.01


def test_differences_are_named_by_dotted_keys() -> None:
    old, new = config.record(load()), config.record(load("--set", "fusion.iou_threshold=0.6", "--limit", "3"))
    assert list(config.differences(old, new)) == ["fusion.iou_threshold", "limit"]


def test_the_shipped_profiles_name_models_that_exist() -> None:
    from detection import models as detectors
    from retrieval import models as embedders

    for profile in ("tiny", "paper"):
        settings = load("--profile", profile)
        assert settings.detectors == tuple(spec.name for spec in detectors.PROFILES[profile])
        assert settings.embedders == tuple(spec.name for spec in embedders.PROFILES[profile])
