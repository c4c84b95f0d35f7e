"""Settings: layers in their order, and every mistake refused in a line that helps."""

import argparse
import json
import pickle
from pathlib import Path

import pytest

import detection.models
import retrieval.models
from jobs.runs.settings import EmbedSettings, Settings, add_arguments, load, record
from jobs.runs.validation import build
from store.errors import UserError


def load_line(*argv: str) -> Settings:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return load(parser.parse_args([*([] if "--imageset" in argv else ["--imageset", "in"]), "--output", "out", *argv]))


def with_file(tmp_path: Path, text: str) -> tuple[str, str]:
    (tmp_path / "run.yaml").write_text(text)
    return "--config", str(tmp_path / "run.yaml")


def test_the_command_line_wins_over_the_run_file_over_the_profile(tmp_path: Path) -> None:
    run_file = with_file(tmp_path, "embed: {batch_size: 3, dtype: float16}\nfusion: {method: nms}")
    settings = load_line(*run_file, "--set", "embed.batch_size=5", "--limit", "7")
    assert settings.embed == EmbedSettings(batch_size=5, dtype="float16")
    assert (settings.fusion.method, settings.limit, len(settings.detectors)) == ("nms", 7, 5)
    # YAML reads a text and a truth value.
    assert load_line("--set", "boxes=[detected, true]").boxes == ("detected", "true")
    assert load_line("--profile", "paper").embed.dtype == "float16"


@pytest.mark.parametrize("text, value", [("false", False), ("no", False), ("off", False), ("true", True), ("on", True)])
def test_truth_values_are_those_of_yaml(text: str, value: bool) -> None:
    assert load_line("--set", f"fusion.masks={text}").fusion.masks is value


@pytest.mark.parametrize("override, words", [
    ("fusion.iou_treshold=0.5", ["'fusion.iou_treshold'", "did you mean 'fusion.iou_threshold'", "conf_type"]),
    ("top_k=5", ["unknown setting 'top_k'; did you mean 'search.top_k'?"]),  # without its group
    ("nonsense=1", ["unknown setting 'nonsense'", "max_failed_share"]),                                # nothing like it
    ("aws_secret_access_key=hunter2", ["unknown setting"]),  # and the value is not said
    ("fusion.iou_threshold=1.5", ["fusion.iou_threshold", "0 to 1", "1.5"]),                           # above
    ("fusion.iou_threshold=-0.1", ["0 to 1"]),                                                         # below
    ("fusion.iou_threshold=high", ["a number", "'high'"]),                                             # not a number
    ("fusion.iou_threshold=.nan", ["fusion.iou_threshold", "want a number", ".nan"]),                  # not one either
    ("fusion.method=average", ["wbf or nms or soft_nms_linear", "nmw or voting"]),
    ("fusion.thresholds=[0.1, 0.2]", ["5 thresholds"]),                                                # five detectors
    ("fusion.thresholds=[0.1, 0.2, 0.3, 0.4, 1.5]", ["fusion.thresholds[4]", "0 to 1"]),
    ("fusion.min_votes=6", ["at most 5"]),
    ("fusion.min_votes=0", ["a whole number from 1"]),
    ("fusion.sigma=0", ["fusion.sigma", "0.001"]),  # would divide by nothing
    ("fusion.masks=maybe", ["true or false", "'maybe'"]),
    ("fusion.masks='false'", ["fusion.masks", "true or false", "'false'"]),  # nor is a text
    ("fusion.masks=0", ["fusion.masks", "true or false", "0"]),
    ("fusion.masks=1", ["fusion.masks", "true or false"]),  # a number is no truth value
    ("fusion.iou_threshold='0.5'", ["a number from 0 to 1", "'0.5'"]),  # a text is no number
    ("fusion.weights=[true, 1, 1, 1, 1]", ["fusion.weights[0]", "a number from 0 up", "True"]),
    ("fusion.weights=5", ["fusion.weights", "a list of at least 1", "5"]),
    ("fusion.weights={1: 2}", ["fusion.weights", "a list of at least 1"]),
    ("fusion.weights=[1, 2]", ["5 weights"]),                                                          # five detectors
    ("fusion.weights=[0, 0, 0, 0, 0]", ["not all 0"]),
    ("detect.batch_size=0", ["a whole number from 1"]),
    ("detect.batch_size=2.5", ["a whole number", "2.5"]),
    ("detect.batch_size=true", ["a whole number", "True"]),  # YAML's true is no 1
    ("detect=3", ["a mapping", "batch_size"]),
    ("boxes=[detected, drawn]", ["boxes[1]", "detected or true"]),
    ("boxes=[]", ["at least 1"]),
    ("boxes=[true, true]", ["each one once"]),
    ("actors=many", ["auto", "whole number"]),
    ("actors=0", ["whole number from 1"]),
    ("models_per_actor=2", ["all or 1"]),
    ("gpus_per_actor=1.5", ["a share of one GPU", "1.5"]),  # Ray gives out none such
    ("models_per_actor=true", ["all or 1", "True"]),                                                   # which equals 1
    ("limit=1.0", ["limit", "a whole number from 1 up", "1.0"]),
    ("limit=3000000000", ["limit", "a whole number"]),
    ("allow_random_weights=1", ["true or false"]),
    ("device=tpu", ["auto or cpu or cuda"]),
    ("engine=onnx", ["engine", "auto or torch or openvino or cudagraph"]),
    ("search.steps=[{step: magic}]", ["search.steps[0]", "{step: NAME}", "k_reciprocal"]),
    ("search.steps=[]", ["search.steps", "3 embedders", "add concat or rank_fusion"]),  # nothing joins them
    ("detectors=[{name: '../x'}]", ["detectors[0]", "file names", "'../x'"]),
    ("detectors=[7]", ["detectors[0]", "a text or a mapping", "7"]),
    ("detectors=[atss-tiny, atss-tiny]", ["detectors", "each one once"]),
    ("detectors=atss-tiny", ["detectors", "a list"]),
    ("search.steps=[concat]", ["search.steps[0]", "a mapping such as {step:", "'concat'"]),
    ("fusion.7=1", ["unknown setting 'fusion.7'"]),
    ("fusion={7: 1}", ["unknown setting 'fusion.7'", "iou_threshold"]),
    ("report.compare=''", ["report.compare", "a text"]),
    ("storage.endpoint_url=http://me:secret@host", ["credentials do not belong"]),
    ("fusion.method", ["KEY=VALUE"]),                                                                  # no value
    ("fusion.method=[", ["not YAML"]),
])  # fmt: skip
def test_mistakes_are_refused_and_say_what_is_allowed(override: str, words: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        load_line("--set", override)
    for word in words:
        assert word in str(refused.value)
    assert "hunter2" not in str(refused.value) and "secret@" not in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("engine, place, device", [("openvino", "CPU", "cuda"), ("cudagraph", "GPU", "cpu")])
def test_an_engine_is_refused_on_the_other_device(engine: str, place: str, device: str) -> None:
    assert load_line("--set", f"engine={engine}").engine == engine  # a device found later may refuse it
    with pytest.raises(UserError, match=f"engine: {engine} runs networks on a {place} and device is {device}"):
        load_line("--set", f"engine={engine}", "--set", f"device={device}")


@pytest.mark.parametrize("text, word", [
    ("- 1", "keys and values"), ("a: [", "not YAML"), ("!!python/object/apply:os.system ['true']", "no plain value"),
])  # fmt: skip
def test_a_run_file_that_is_none_is_refused(tmp_path: Path, text: str, word: str) -> None:
    with pytest.raises(UserError, match=word):
        load_line(*with_file(tmp_path, text))
    with pytest.raises(UserError, match="cannot be read"):
        load_line("--config", str(tmp_path / "absent.yaml"))


def test_a_submitted_job_keeps_nothing_in_its_temporary_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_line("--output", "runs/first").output == "runs/first"
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"runtime_env": {"working_dir": "gcs://_ray_pkg_1.zip"}}')
    for line in (
        ("--imageset", "s3://looks", "--output", "runs/first"),
        ("--output", "/runs/first", "--imageset", "looks"),
    ):
        with pytest.raises(UserError, match=rf"{line[-2]} {line[-1]}: .* give an absolute path or a bucket"):
            load_line(*line)
    assert load_line("--imageset", "/looks", "--output", "s3://bucket/runs").output == "s3://bucket/runs"


def test_random_weights_keep_boxes_of_any_score_unless_told_otherwise() -> None:
    settings = load_line("--set", "allow_random_weights=true", "--set", "items.max_per_image=3")
    assert [part.score_threshold for part in (settings.detect, settings.fusion, settings.items)] == [0, 0, 0]
    assert (settings.detect.max_per_image, settings.items.max_per_image) == (20, 3)
    assert load_line().detect.score_threshold == 0.01


def test_a_path_that_is_not_valid_unicode_is_kept() -> None:
    settings = load_line("--output", "out\udcff")
    assert settings.output == json.loads(json.dumps(record(settings)))["output"] == "out\udcff"


def test_the_record_is_plain_json_and_makes_the_same_settings_again() -> None:
    settings = load_line("--set", "fusion.weights=[1, 2, 3, 4, 5]", "--set", "search.steps=[{step: concat}]")
    kept = record(settings)
    assert kept["fusion"]["weights"] == [1.0, 2.0, 3.0, 4.0, 5.0] and kept["search"]["steps"] == [{"step": "concat"}]
    assert build(Settings, json.loads(json.dumps(kept))) == settings == pickle.loads(pickle.dumps(settings))


def test_a_changed_copy_is_checked_and_the_original_is_frozen() -> None:
    settings = load_line()
    assert settings.replace(limit=3, fusion=settings.fusion.replace(weights=[1, 2])).fusion.weights == (1.0, 2.0)
    assert settings.limit is None and settings.fusion.weights is None and settings.replace() == settings
    for change in ({"limit": 0}, {"limmit": 3}, {"fusion": {"weights": "12"}}):
        with pytest.raises(ValueError, match="Settings"):
            settings.replace(**change)
    with pytest.raises(ValueError, match="frozen"):
        settings.limit = 3  # type: ignore[misc]


def test_the_shipped_profiles_name_models_that_exist() -> None:
    for profile in ("tiny", "paper"):
        settings = load_line("--profile", profile)
        assert settings.detectors == tuple(spec.name for spec in detection.models.PROFILES[profile])
        assert settings.embedders == tuple(spec.name for spec in retrieval.models.PROFILES[profile])
