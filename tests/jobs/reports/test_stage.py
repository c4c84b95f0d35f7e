"""The report as a stage of a run: what makes it be written again."""

import json
import re
from pathlib import Path

import pytest
import report_runs as runs
import stand_ins

from jobs.stages import order
from store.errors import UserError
from store.objects import open_store

ALL_OK = ("--set", "max_failed_share=0.1")  # one of the small set's photos is broken


def test_a_comparison_is_a_flag_and_a_setting(small_set: Path, tmp_path: Path, calls, full, capsys) -> None:
    assert full(small_set, tmp_path / "one", *ALL_OK) == 0
    page = tmp_path / "two" / "report" / "index.html"
    assert full(small_set, tmp_path / "two", *ALL_OK) == 0
    assert "Compared with an earlier run" not in page.read_text()

    assert full(small_set, tmp_path / "two", *ALL_OK, "--compare", str(tmp_path / "one")) == 0
    assert "Compared with an earlier run" in page.read_text() and "Not compared" not in page.read_text()
    capsys.readouterr()
    setting = ("--set", f"report.compare={tmp_path / 'one'}")
    assert full(small_set, tmp_path / "two", *ALL_OK, *setting) == 0  # the same said otherwise: nothing to do
    assert "report: written" not in capsys.readouterr().out

    figures = json.loads((tmp_path / "one" / "metrics.json").read_text())
    figures["detection"]["fused"]["AP50"] = 0.0
    (tmp_path / "one" / "metrics.json").write_text(json.dumps(figures))
    assert full(small_set, tmp_path / "two", *ALL_OK, *setting) == 0  # the earlier run has other figures now
    assert "report: written" in capsys.readouterr().out and 'title="earlier 0.0"' in page.read_text()


def test_a_finished_run_is_reported_and_evaluated_by_its_own_settings(
    small_set: Path, tmp_path: Path, calls, full, capsys
) -> None:
    """No image set, no run file: run.json says both. What the line says all the same comes on top."""
    (tmp_path / "run.yaml").write_text("{boxes: [detected], search: {top_k: 7}, report: {queries: 3}}")
    out = str(tmp_path / "one")
    assert full(small_set, out, *ALL_OK, "--config", str(tmp_path / "run.yaml")) == 0
    settings = json.loads((tmp_path / "one/run.json").read_text())["settings"]
    marks = {path: path.read_bytes() for path in (tmp_path / "one/done").rglob("*.json")}
    calls.clear()
    capsys.readouterr()
    for stage in ("evaluate", "report"):
        assert order.main([stage], ["--output", out], None, stand_ins.CATALOGUE) == 0
    assert {path: path.read_bytes() for path in marks} == marks  # nothing had changed
    assert json.loads((tmp_path / "one/run.json").read_text())["settings"] == settings
    line = ["--output", out, "--set", "report.queries=2", "--compare", out]
    assert order.main(["report"], line, None, stand_ins.CATALOGUE) == 0
    after = json.loads((tmp_path / "one/run.json").read_text())["settings"]
    assert after == settings | {"report": {"queries": 2, "top": 10, "compare": out}} and calls == []
    assert "Compared with an earlier run" in (tmp_path / "one/report/index.html").read_text()
    capsys.readouterr()
    assert order.main(["report"], ["--output", out, "--print-config"], None, stand_ins.CATALOGUE) == 0
    assert re.search(r"top_k: 7 +# run.json\n", capsys.readouterr().out)


@pytest.mark.parametrize("stage", ["evaluate", "report"])
def test_what_is_no_run_cannot_be_reported(small_set: Path, tmp_path: Path, stage: str) -> None:
    line = ["--imageset", str(small_set), "--output", str(tmp_path / "none")]
    with pytest.raises(UserError, match=r"none: no run\.json; want the --output of a run"):
        order.main([stage], line, None, stand_ins.CATALOGUE)
    assert not (tmp_path / "none").exists()


def test_an_ablation_makes_the_report_be_written_again(small_set: Path, tmp_path: Path, calls, full, capsys) -> None:
    full(small_set, tmp_path, *ALL_OK)
    runs.write_rows(open_store(tmp_path), "ablation.parquet", runs.ABLATION, runs.ablation_rows())
    capsys.readouterr()
    full(small_set, tmp_path, *ALL_OK)
    assert "report: written" in capsys.readouterr().out and (tmp_path / "report" / "ablation.html").exists()


def test_a_relative_earlier_run_is_refused_in_a_submitted_job(
    small_set: Path, tmp_path: Path, full, monkeypatch
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"runtime_env": {"working_dir": "gcs://x"}}')
    with pytest.raises(UserError, match="--compare runs/one: a submitted job"):
        full(small_set, tmp_path, "--compare", "runs/one")
