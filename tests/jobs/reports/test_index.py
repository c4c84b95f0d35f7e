"""The first page compared with an earlier run: differences where both judged the same photos, else the reason."""

import json
from pathlib import Path
from typing import Any

import pytest
import report_runs as runs
from report_runs import METRICS, RUN, build

from jobs.reports import figures
from store.objects import ObjectStore, open_store


def earlier(folder: Path, **more: Any) -> ObjectStore:
    """A run whose fused AP50 was 0.4 where `METRICS` has 0.5."""
    store = open_store(folder)
    detection = METRICS["detection"] | {"fused": METRICS["detection"]["fused"] | {"AP50": 0.4}}
    store.write("metrics.json", json.dumps(METRICS | {"detection": detection}).encode())
    store.write("run.json", json.dumps(RUN | more).encode())
    return store


def test_an_earlier_run_over_the_same_photos_gives_differences(four, tmp_path):
    output, images = four
    runs.with_figures(output)
    page = build(output, images, compare=str(earlier(tmp_path / "earlier").uri)).pages["index"]
    assert '50.0<span class="delta up">+10.0</span>' in page.source  # the tile of fused AP50
    assert '50.0 <span class="delta up" title="earlier 40.0">+10.0</span>' in page.source
    assert "detected boxes, concat" in page.text and page.text.count("+10.0") == 2


def test_final_lists_are_compared_whatever_made_them(four, tmp_path):
    """Now steps, then concatenation alone: the tile and a row tell what became of the list that is used."""
    output, images = four
    then = METRICS["retrieval"]["detected"]["concat"]
    steps = then | {"top": {k: value + 0.125 for k, value in then["top"].items()}}
    retrieval = {"detected": METRICS["retrieval"]["detected"] | {"steps": steps}}
    output.write("metrics.json", json.dumps(METRICS | {"retrieval": retrieval}).encode())
    output.write("run.json", json.dumps(RUN).encode())
    page = build(output, images, compare=str(earlier(tmp_path / "earlier").uri)).pages["index"]
    assert "detected boxes, final list" in page.text and page.text.count("+12.5") == 1 + 3
    assert figures.colours({"retrieval": retrieval})["concat"] == -1  # dashed beside the steps


def test_a_run_from_before_hypotheses_is_compared_by_the_own_category(four, tmp_path):
    output, images = four
    concat = METRICS["retrieval"]["detected"]["concat"]
    now = concat | {"top": {k: 0.75 for k in concat["top"]}}
    output.write("metrics.json", json.dumps(METRICS | {"retrieval": {"detected": {"concat": now}}}).encode())
    output.write("run.json", json.dumps(RUN).encode())
    before = {name: value for name, value in concat.items() if name in ("top", "missed", "queries")}
    before["top"] = {k: 0.375 for k in concat["top"]}
    store = earlier(tmp_path / "earlier")
    store.write("metrics.json", json.dumps(METRICS | {"retrieval": {"detected": {"concat": before}}}).encode())
    page = build(output, images, compare=str(store.uri)).pages["index"]
    assert "Acc@10, own category" in page.text
    assert page.text.count("+12.5") == 2 * 2 and "+37.5" not in page.text  # final list and concat, k of 1 and 10


def part(digit: str) -> dict[str, Any]:
    """An image set as run.json has it."""
    return {"uri": "runs/set", "digest": 32 * digit, "images": 3, "shards": 1}


SCHEMA_1 = {"imageset": part("0") | {"selected": {"rows": None}}}


@pytest.mark.parametrize(
    "more, words",
    [
        (SCHEMA_1, "ran on another image set (digest 000000000000, here none)"),
        ({"imagesets": [part("0")]}, "ran on another image set (digest 000000000000, here none)"),
        ({"imagesets": [part(digit) for digit in "01"]}, "other image sets (digest 000000000000, 1111"),
        ({"selected": {"rows": {"shard-00000": [0]}}}, "took other photos"),
    ],
)
def test_an_earlier_run_over_other_photos_gives_a_sentence_instead(four, tmp_path, more, words):
    output, images = four
    runs.with_figures(output)
    page = build(output, images, compare=str(earlier(tmp_path / "earlier", **more).uri)).pages["index"]
    assert words in page.text and "+10.0" not in page.text


def test_an_earlier_run_without_figures_is_said(four, tmp_path):
    assert "it has no figures" in build(*four, compare=str(tmp_path / "nothing")).text
