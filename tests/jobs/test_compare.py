"""Comparing variants: plans that cannot be, the table by hand, and real trainings on real Ray, stopped and gone on with."""

import json
from pathlib import Path

import pytest

from jobs import compare
from jobs.cli import UserError
from tests.jobs.pictures import pairs


@pytest.fixture(scope="module")
def imageset(tmp_path_factory) -> str:
    return pairs(tmp_path_factory.mktemp("set"))


BASE = "base: {model: lite0-sg, imageset: [SET], validation: SET2, input-size: 32, dim: 16, stride: 32, steps: 2, batch-size: 4, eval-every: 2, warm-up: 1}\n"


def plan(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "variants.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("text, message", [
    ("variants: [1]", "want a mapping with `variants"),
    ("{", "variants.yaml"),
    ("variants: {a: {}}\nbudget: 3", "unknown key 'budget'; allowed: base, seeds, variants, against, final"),
    ("variants: {a: {}}\nagainst: [b]", "against wants a list of variants, got \\['b'\\]"),
    ("variants: {a: {}}\nseeds: [x]", "seeds want a list of whole numbers"),
    ("variants: {a/b: {}}", "variant 'a/b' becomes a folder"),
    ("variants: {a: 3}", "a wants a mapping of flags, got 3"),
    (BASE + "variants: {a: {lss: triplet}}", "variant a: unrecognized arguments: --lss"),
    (BASE + "variants: {a: {batch-size: 3}}", "variant a: --batch-size 3 wants to be a multiple"),
    (BASE + "variants: {a: {model: nothing}}", "no embedder named 'nothing'"),
    (BASE + "variants: {a: {descriptors: 'spoc,mean'}}", "branches wants some of spoc, mac, gem"),
    (BASE + "variants: {a: {output: x}}", "variant a: output is jobs/compare.py's own to say"),
])  # fmt: skip
def test_a_plan_that_cannot_be_is_refused_before_any_work(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        compare.main([str(plan(tmp_path, text)), "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def row(variant: str, seed: int, top10: float, ranks: list[int]) -> dict:
    figures = {"acc@1": top10 / 2, "acc@10": top10, "queries": len(ranks)}
    return {
        "variant": variant, "seed": seed, "held_out": figures, "validation": None, "seconds": 60,
        "ranks": {"photo": list(range(len(ranks))), "rank": ranks},
    }  # fmt: skip


def test_the_table_by_hand():
    rows = [
        row("a", 0, 0.5, [1, 0, 11, 3]), row("b", 0, 0.75, [1, 2, 11, 3]),
        row("a", 1, 0.25, [1, 0, 0, 0]), row("b", 1, 1.0, [1, 10, 1, 1]),
    ]  # fmt: skip
    a, b = compare.table(rows, ["a", "b"], ["a"])
    assert a["held_out acc@10"] == {"each": [0.5, 0.25], "mean": 0.375, "spread": pytest.approx(0.125 * 2**0.5)}
    assert a["against"] == {"a": None} and b["minutes"] == 1.0
    assert b["against"]["a"]["acc@10"] == pytest.approx((3 / 4 + 4 / 4) / 2 - (2 / 4 + 1 / 4) / 2)
    assert compare.winner([a, b]) == "b"
    text = compare.as_markdown([a, b])
    assert "| b | 0.438 ± 0.088 (0.375, 0.500) | 0.875 ± 0.177 (0.750, 1.000) | +0.500 [" in text
    assert compare.table(rows[:1], ["a", "c"], ["c"])[1]["held_out acc@1"]["mean"] is None  # nothing trained yet


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_variants_are_trained_compared_and_not_trained_again(imageset, tmp_path, capsys):
    text = BASE.replace("SET2", imageset).replace("SET", imageset)
    text = text.replace(f", validation: {imageset}", "")  # a set is no judge of itself
    text += "seeds: [1]\nvariants:\n  triplet: {}\n  proxies: {loss: proxy-anchor, loss-arg: {margin: 0.2}}\n"
    text += "  bad: {lr: 1.0e+30, loss: contrastive}\nfinal: {steps: 3}\n"
    path, out = plan(tmp_path, text), tmp_path / "out"
    assert compare.main([str(path), "--output", str(out), "--minutes", "0"]) == 3
    assert "time is over with 3 of 3 trainings to do" in capsys.readouterr().out

    assert compare.main([str(path), "--output", str(out)]) == 3  # one variant cannot be trained; the others are
    said = capsys.readouterr().out
    assert "bad, seed 1: UserError: lite0-sg, step" in said
    found = {line["variant"]: line for line in json.loads((out / "compare.json").read_text())["variants"]}
    assert found["triplet"]["seeds"] == found["proxies"]["seeds"] == [1] and found["bad"]["seeds"] == []
    assert [name for name in found if name.endswith(", final")] and found["proxies"]["against"]["triplet"]["seeds"] == 1
    assert len(list((out / "crops").iterdir())) == 1  # one file for all of them, kept while something is to do
    assert (out / "compare.md").read_text() in said

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    compare.main([str(path), "--output", str(out)])
    assert "2 of 3 trained already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before
