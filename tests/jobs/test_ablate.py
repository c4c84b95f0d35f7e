"""The ablation from the command line: what it writes, what it does not do twice, what it refuses."""

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import stand_ins

from jobs import ablate, full_eval
from jobs.ablation import bench, ranking, verdict
from jobs.ablation.bench import Bench
from jobs.ablation.ranking import Technique
from jobs.runs import shards
from jobs.runs.marks import as_json
from store.errors import UserError


@pytest.fixture(scope="module")
def finished(small_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the stand-ins, made without Ray."""
    output = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "run_on_actors", functools.partial(stand_ins.here, []))
        full_eval.main(
            [*stand_ins.SETTINGS, "--imageset", str(small_set), "--output", str(output)], stand_ins.CATALOGUE
        )
    return output


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No Ray: variants are judged in this process, one after the other. The list names them."""
    names: list[str] = []

    def here(self: Bench, part: str, todo: Any, keys: Any, task: Callable, shared: Any, need_mb: float) -> None:
        for name, arguments in todo.items():
            names.append(f"{part}, {name}")
            answer = task(shared, **arguments)
            self.run.store.write(f"{bench.ANSWERS}{keys[name]}.json", as_json(answer))
            self.answers[keys[name]] = answer

    monkeypatch.setattr(Bench, "_run", here)
    return names


def rows_of(run: Path) -> list[dict]:
    return pq.read_table(run / "ablation.parquet").to_pylist()


def test_each_technique_is_judged_on_each_kind_of_boxes(run: Path, judged: list[str], capsys: Any) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and "report" not in path.parts}
    assert ablate.main([str(run), "--part", "retrieval", "--only", "dba*", "--only", "category, hard"]) == 0
    rows = rows_of(run)
    names = {"concat", "dba 1", "dba 3", "dba 5", "dba 5, by similarity", "category, hard"}
    assert {(row["boxes"], row["name"]) for row in rows if row["group"] in ("base", "single")} == {
        (kind, name) for kind in ("detected", "true") for name in names
    }
    metrics = json.loads((run / "metrics.json").read_text())
    for row in rows:
        if row["group"] == "base":  # the base is the run's own concat
            top = metrics["retrieval"][row["boxes"]]["concat"]["top"]
            assert (row["top1"], row["top10"]) == (top["1"], top["10"])
    assert pq.read_schema(run / "ablation.parquet").equals(verdict.SCHEMA)
    assert all(path.read_bytes() == data for path, data in before.items())  # the run itself is as it was
    assert "dba 5, by similarity" in (run / "report" / "ablation.html").read_text()
    said = capsys.readouterr().out
    assert "retrieval, detected boxes" in said and "dba 5, by similarity" in said


def test_the_same_line_again_judges_nothing_and_writes_the_same(run: Path, judged: list[str]) -> None:
    line = [str(run), "--part", "retrieval", "--only", "power*"]
    ablate.main(line)
    first, n = (run / "ablation.parquet").read_bytes(), len(judged)
    assert n == 2 * 3 and len(set(judged)) == n  # concat, power 0.5, power 0.7: for either kind of boxes, each once
    ablate.main(line)
    assert len(judged) == n and (run / "ablation.parquet").read_bytes() == first
    next((run / "ablation").glob("*.json")).unlink()
    ablate.main(line)
    assert len(judged) == n + 1  # what is lost, and nothing else


def test_the_report_is_still_the_runs_own(run: Path, judged: list[str], capsys: Any, small_set: Path) -> None:
    line = [*stand_ins.SETTINGS, "--imageset", str(small_set), "--output", str(run)]
    assert ablate.main([str(run), "--part", "retrieval", "--only", "dba*"]) == 0
    assert full_eval.main(line, stand_ins.CATALOGUE) == 3  # one of the set's photos is cut off
    assert "replaced by another program" not in capsys.readouterr().out


def test_another_run_in_the_folder_is_judged_again(run: Path, judged: list[str]) -> None:
    line = [str(run), "--part", "retrieval", "--only", "power 0.5"]
    ablate.main(line)
    mark = next((run / "done" / "embed").rglob("*.json"))
    changed = json.loads(mark.read_text())
    changed["outputs"] = dict.fromkeys(changed["outputs"], "0" * 32)
    mark.write_text(json.dumps(changed))
    ablate.main(line)
    assert len(judged) == 2 * 2 * 2


def test_greedy_adds_what_helps_on_one_half_and_stops(
    monkeypatch: pytest.MonkeyPatch, run: Path, judged: list[str]
) -> None:
    """Made-up ranks: `good` helps, `better` helps more, both help most, `bad` never; then nothing is left to add."""
    worth = {"": 0.5, "good": 0.6, "better": 0.7, "bad": 0.2, "better + good": 0.8}
    made_up = [
        Technique("good", "power", ({"step": "power"},)),
        Technique("better", "dba", ({"step": "dba"},)),
        Technique("bad", "qe", ({"step": "alpha_qe"},)),
    ]
    by_steps = {"power": "good", "dba": "better", "alpha_qe": "bad"}

    def judge(data: Any, entries: list, weights: Any, pool: int) -> dict[str, Any]:
        name = " + ".join(sorted(by_steps[entry["step"]] for entry in entries if entry["step"] in by_steps))
        n = len(data.truth.photo)
        ranks = [1 if i < round(worth[name] * n) else 0 for i in range(n)]
        return {"ranks": ranks, "seconds": [["search", 0.1]], "peak_mb": 1.0}

    monkeypatch.setattr(ranking, "judge", judge)
    monkeypatch.setattr(ranking, "techniques", lambda *_, **__: made_up)
    # all photos are in the half that choices are made on, so that the arithmetic is easy
    monkeypatch.setattr(verdict, "selection_half", lambda photo: photo >= 0)
    ablate.main([str(run), "--part", "retrieval"])
    rows = [row for row in rows_of(run) if row["boxes"] == "true"]
    assert [row["name"] for row in rows if row["group"] == "greedy"] == ["better", "better + good"]
    assert {row["name"] for row in rows if row["group"] == "removed"} == {"best without better", "best without good"}
    assert not any("bad" in name and "+" in name for name in judged)


@pytest.mark.parametrize("line, words", [
    ([], "no run.json"),
    (["--only", "magic"], ""),
])  # fmt: skip
def test_mistakes_are_one_line(tmp_path: Path, run: Path, judged: list[str], line: list[str], words: str) -> None:
    if words:
        with pytest.raises(UserError, match=words):
            ablate.main([str(tmp_path / "nothing"), *line])
    else:  # no such technique: the base alone is reported
        assert ablate.main([str(run), "--part", "retrieval", *line]) == 0
        assert {row["group"] for row in rows_of(run)} == {"base"}


def test_a_technique_that_fails_is_named_and_the_others_are_reported(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def broken(self: Bench, part: str, todo: Any, keys: Any, task: Callable, shared: Any, need_mb: float) -> None:
        for name, arguments in todo.items():
            if "0.5" in name:
                self.failures[f"{part}, {name}"] = "MemoryError"
            else:
                self.answers[keys[name]] = task(shared, **arguments)

    monkeypatch.setattr(Bench, "_run", broken)
    assert ablate.main([str(run), "--part", "retrieval", "--only", "power*"]) == 3
    assert {row["name"] for row in rows_of(run)} == {"concat", "power 0.7"}
    assert "detected, power 0.5: could not be judged: MemoryError" in capsys.readouterr().out


@pytest.mark.slow
def test_on_ray_the_answers_are_the_same(run: Path, judged: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    line = [str(run), "--part", "retrieval", "--only", "whiten", "--only", "dba 3"]
    ablate.main(line)
    here = rows_of(run)
    monkeypatch.undo()
    shutil.rmtree(run / "ablation")
    assert ablate.main(line) == 0
    timing = ("seconds", "peak_mb", "spent")
    assert [{k: v for k, v in row.items() if k not in timing} for row in rows_of(run)] == [
        {k: v for k, v in row.items() if k not in timing} for row in here
    ]
