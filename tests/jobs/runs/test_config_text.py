"""--print-config: every setting once, with its source; what it prints is a run file. --list-models: a line a model."""

import argparse
from pathlib import Path

import pytest

from jobs.runs.catalogue import SHIPPED
from jobs.runs.config_text import asked, config_lines, groups_of_settings
from jobs.runs.model_list import model_lines
from jobs.runs.settings import Settings, add_arguments, layers, load


def parsed(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(["--imageset", "in", "--output", "out", *argv])


def sources(*argv: str) -> dict[str, tuple[str, str]]:
    """Dotted name -> value and source, as printed."""
    found, group = {}, ""
    for line in config_lines(layers(parsed(*argv))):
        if line.endswith(":"):
            group = line
            continue
        name, _, rest = line.partition(": ")
        value, _, source = rest.rpartition("  # ")
        prefix = group.rstrip(":") + "." if line.startswith("  ") else ""
        found[prefix + name.strip()] = value.strip(), source
    return found


def test_each_setting_has_the_source_that_won(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("fusion: {method: nms, iou_threshold: 0.6}\ndevice: cuda\nlimit: 5\n")
    found = sources("--config", str(tmp_path / "run.yaml"), "--set", "fusion.method=nmw", "--device", "cpu")
    assert found["fusion.method"] == ('"nmw"', "command line")
    assert found["fusion.iou_threshold"] == ("0.6", "run file")
    assert found["fusion.conf_type"] == ('"box_and_model_avg"', "profile tiny")
    assert found["fusion.sigma"] == ("0.5", "default")
    assert found["device"] == ('"cpu"', "command line") and found["limit"] == ("5", "run file")
    assert found["imageset"] == ('["in"]', "command line") and found["profile"] == ('"tiny"', "default")


@pytest.mark.parametrize("flag, setting, value", [
    ("--weights-dir w", "weights_dir", '"w"'), ("--endpoint-url http://a:1", "storage.endpoint_url", '"http://a:1"'),
    ("--top 7", "report.top", "7"), ("--compare x", "report.compare", '"x"'), ("--limit 3", "limit", "3"),
    ("--profile paper", "profile", '"paper"'),
])  # fmt: skip
def test_a_flag_is_a_setting(flag: str, setting: str, value: str) -> None:
    assert sources(*flag.split())[setting] == (value, "command line")


def test_random_weights_are_a_source_of_their_own() -> None:
    found = sources("--set", "allow_random_weights=true", "--set", "detect.max_per_image=9")
    assert found["detect.score_threshold"] == ("0.0", "allow_random_weights")
    assert found["detect.max_per_image"] == ("9", "command line")


def test_what_is_printed_is_a_run_file(tmp_path: Path) -> None:
    line = ["--profile", "paper", "--set", "search.steps=[{step: concat}, {step: whiten, dim: 8}]", "--device", "cpu"]
    text = "\n".join(config_lines(layers(parsed(*line))))
    (tmp_path / "run.yaml").write_text(text)
    assert load(parsed("--config", str(tmp_path / "run.yaml"))) == load(parsed(*line))


def test_every_setting_is_named_by_help() -> None:
    named = set(groups_of_settings().partition("\n")[2].replace(",", " ").split())
    assert named == set(sources())
    assert len(named) > len(Settings.model_fields)


def test_models_and_whether_their_weights_are_here(tmp_path: Path) -> None:
    (tmp_path / "lite0-sg.safetensors").touch()
    own = "detectors=[{name: mine, base: atss-tiny, weights: ./none.safetensors}, {name: odd, base: gone}]"
    lines = list(model_lines(layers(parsed("--weights-dir", str(tmp_path), "--set", own)), SHIPPED))
    rows = {line.split()[0]: line for line in lines}
    assert rows["lite0-sg"].split("160 x 160")[1].split() == ["yes", "present:", f"{tmp_path}/lite0-sg.safetensors"]
    assert "absent: " in rows["atss-tiny"] and "  yes  " not in rows["atss-tiny"]  # another list of detectors is given
    assert "detector, ATSS" in rows["mine"] and "  yes  " in rows["mine"] and "absent" in rows["mine"]
    assert "refused: no detector named 'gone'" in rows["odd"]
    assert "absent: " in rows["centernet_hourglass104"] and "1333 x 800" in rows["centernet_hourglass104"]


def test_both_are_printed_when_both_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert not asked(parsed(), SHIPPED)
    assert asked(parsed("--print-config", "--list-models"), SHIPPED)
    said = capsys.readouterr().out
    assert "fusion:\n" in said and "weights/tiny/atss-tiny.safetensors" in said
