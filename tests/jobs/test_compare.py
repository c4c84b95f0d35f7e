"""Comparing variants: plans that are refused, and real trainings on real Ray, stopped and continued."""

import json
from pathlib import Path

import pytest

from jobs import compare
from jobs.comparison.plan import read_plan
from store.errors import UserError
from tests.jobs.pictures import pairs

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def imageset(tmp_path_factory) -> str:
    return pairs(tmp_path_factory.mktemp("set"))


BASE = (
    "base: {model: lite0-sg, imageset: [SET], validation: SET2, input-size: 32, dim: 16, stride: 32, steps: 2, "
    "batch-size: 4, eval-every: 2, warm-up: 1}\n"
)


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
    (BASE + "variants: {a: {batch-size: 3}}", "--batch-size 3: want .* a multiple of --per-identity 2"),
    (BASE + "variants: {a: {model: nothing}}", "no embedder named 'nothing'"),
    (BASE + "variants: {a: {descriptors: 'spoc,mean'}}", "branches wants some of spoc, mac, gem"),
    (BASE + "variants: {a: {output: x}}", "variant a: jobs/compare.py itself sets output"),
])  # fmt: skip
def test_a_wrong_plan_is_refused_before_any_work(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        compare.main([str(plan(tmp_path, text)), "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["data", "descriptors", "losses"])
def test_a_plan_of_the_project_goes_by_its_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_plan(Path(name)) == read_plan(REPO / "jobs" / "comparisons" / f"{name}.yaml")
    Path(name).write_text("variants: {own: {}}")
    assert list(read_plan(Path(name))["variants"]) == ["own"]  # a file of that name comes first


@pytest.mark.slow
def test_variants_are_trained_compared_and_not_trained_again(imageset, tmp_path, capsys):
    text = BASE.replace("SET2", imageset).replace("SET", imageset)
    text = text.replace(f", validation: {imageset}", "")  # a set is no judge of itself
    text += "seeds: [1]\nvariants:\n  triplet: {}\n  proxies: {loss: proxy-anchor, loss-arg: {margin: 0.2}}\n"
    text += "  bad: {lr: 1.0e+30, loss: contrastive}\nfinal: {steps: 3}\n"
    path, out = plan(tmp_path, text), tmp_path / "out"
    assert compare.main([str(path), "--output", str(out), "--minutes", "0"]) == 3
    assert "time is over with 3 of 3 trainings to do" in capsys.readouterr().out

    assert compare.main([str(path), "--output", str(out)]) == 3  # one variant cannot be trained; the others are
    printed = capsys.readouterr().out
    assert "bad, seed 1: UserError: lite0-sg, step" in printed
    lines = {line["variant"]: line for line in json.loads((out / "compare.json").read_text())["variants"]}
    assert lines["triplet"]["seeds"] == lines["proxies"]["seeds"] == [1] and lines["bad"]["seeds"] == []
    assert [name for name in lines if name.endswith(", final")] and lines["proxies"]["against"]["triplet"]["seeds"] == 1
    assert len(list((out / "crops").iterdir())) == 1  # one file for all of them, kept while something is to do
    assert (out / "compare.md").read_text() in printed

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    compare.main([str(path), "--output", str(out)])
    assert "2 of 3 trained already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_dry_run_tells_what_is_left_and_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("jobs.compare.train_all", lambda *_: pytest.fail("trained"))
    plan = tmp_path / "plan.yaml"
    plan.write_text("base: {model: lite0-sg, imageset: [set]}\nseeds: [0, 1]\nvariants: {one: {}, two: {dim: 64}}\n")
    assert compare.main([str(plan), "--output", str(tmp_path / "out"), "--dry-run"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "2 variants, 2 seeds: 0 of 4 trained already"
    assert said[1:] == [f"to train: {name}, seed {seed}" for seed in (0, 1) for name in ("one", "two")]
    assert not (tmp_path / "out").exists()
