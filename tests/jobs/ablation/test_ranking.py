"""Which searches the ablation tries; and a judged search is the search that a run makes."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import stand_ins
import yaml

from jobs.ablation import ranking
from jobs.ablation.ranking import Technique, Variant, judge, techniques
from jobs.runs.finished import open_finished
from retrieval import steps
from retrieval.step_kinds import STEPS
from store.errors import UserError
from store.imageset_write import write_imageset

MODELS = ["a", "b"]
DIMS = {"a": 64, "b": 64}


def test_every_technique_is_tried_alone_and_is_possible_alone() -> None:
    tried = techniques([*MODELS, "a@flip"], {**DIMS, "a@flip": 64}, "detected", has_products=True)
    used = {entry["step"] for technique in tried for entry in technique.steps}
    assert used == set(STEPS)  # nothing of postproc is left out
    assert len({technique.name for technique in tried}) == len(tried)
    assert all(Variant(technique.name, (technique,)).is_possible([*MODELS, "a@flip"]) for technique in tried)


@pytest.mark.parametrize("models, kind, products, absent", [
    (["a"], "detected", True, {"concat", "rank_fusion", "views"}),        # one model: nothing to join
    (MODELS, "true", True, {"detector_score", "views"}),                  # true boxes have no score
    (MODELS, "detected", False, {"views"}),
])  # fmt: skip
def test_what_the_run_cannot_show_is_not_tried(models: list[str], kind: str, products: bool, absent: set[str]) -> None:
    tried = techniques(models, DIMS, kind, has_products=products)
    assert not absent & {entry["step"] for technique in tried for entry in technique.steps}
    assert ("one result a product" in {technique.name for technique in tried}) == products


def test_steps_are_in_the_order_of_a_search() -> None:
    late = Technique("x", "qe", ({"step": "alpha_qe"},))
    early = Technique("y", "project", ({"step": "whiten"},))
    assert [entry["step"] for entry in Variant("v", (late, early)).steps(MODELS)] == ["concat", "whiten", "alpha_qe"]
    fused = Technique("z", "join", ({"step": "rank_fusion"},))
    assert [entry["step"] for entry in Variant("v", (fused,)).steps(MODELS)] == ["rank_fusion"]
    assert Variant("v").steps(["a"]) == []


def test_two_techniques_of_one_slot_do_not_go_together() -> None:
    first, second = (Technique(f"dba {k}", "dba", ({"step": "dba", "k": k},)) for k in (1, 3))
    assert Variant("v", (first,)).is_possible(MODELS) and not Variant("v", (first, second)).is_possible(MODELS)


def test_a_judged_search_is_the_same_as_the_runs_own(
    small_set: Path, tmp_path: Path, calls: list, full: Callable[..., int]
) -> None:
    entries = "[{step: concat}, {step: whiten, dim: 8}, {step: dba, k: 2}, {step: alpha_qe, k: 1}]"
    full(small_set, tmp_path, "--set", f"search.steps={entries}")
    data = open_finished(str(tmp_path)).search_data("detected")
    queries, gallery = data.queries, data.gallery
    plan = steps.parse(yaml.safe_load(entries), list(gallery.embeddings))
    rows, similarity = steps.fit(plan, gallery.embeddings).rank(
        queries.embeddings, queries.hypotheses, data.facts, top_k=20, pool=200
    )
    table = pq.read_table(tmp_path / "rankings" / "detected.parquet")
    assert table["query_image_id"].to_pylist() == queries.image_id.tolist()
    results = [gallery.image_id[line[line >= 0]].tolist() for line in rows]
    assert table["gallery_image_id"].to_pylist() == results
    for want, line in zip(table["similarity"].to_pylist(), similarity, strict=True):
        np.testing.assert_array_equal(np.array(want, np.float32), line[np.isfinite(line)])
    judged = judge(data, [step.as_json() for step in plan], None, 200)
    assert len(judged["ranks"]) == len(data.truth.photo) == 12 and judged["peak_mb"] >= 0
    assert [name for name, _ in judged["seconds"]] == ["concat", "whiten", "dba", "alpha_qe", "search"]
    assert ranking.standing_items(data).tolist() == [0] * 12  # each photo's one garment, found as its best box


def test_a_search_is_judged_by_photo_where_the_run_is(
    small_set: Path, tmp_path: Path, calls: list, full: Callable[..., int]
) -> None:
    photos = [replace(stand_ins.photo(i, "user" if i < 6 else "shop", 1 + i % 6), items=()) for i in range(12)]
    write_imageset(photos, tmp_path / "set", source={"adapter": "stand-in", "arguments": {}})
    full(tmp_path / "set", tmp_path / "run")
    data = open_finished(str(tmp_path / "run")).search_data("detected")
    figures = json.loads((tmp_path / "run" / "metrics.json").read_text())["retrieval"]["detected"]["concat"]
    ranks = judge(data, [{"step": "concat"}], None, 200)["ranks"]
    assert data.truth.kind == figures["truth"] == "photo" and len(ranks) == figures["queries"] == 6
    assert np.mean([0 < rank <= 5 for rank in ranks]) == figures["top"]["5"]
    assert ranking.standing_items(data).tolist() == [0] * 6
    full(tmp_path / "set", tmp_path / "run", "--set", "search.top_k=1")  # an ablation's Acc@10 wants longer lists
    short = open_finished(str(tmp_path / "run")).search_data("detected")
    assert judge(short, [{"step": "concat"}], None, 200)["ranks"] == ranks


def test_a_folder_without_a_finished_run_is_refused(
    small_set: Path, tmp_path: Path, calls: list, full: Callable[..., int]
) -> None:
    with pytest.raises(UserError, match=r"no run\.json"):
        open_finished(str(tmp_path))
    full(small_set, tmp_path)
    for mark in (tmp_path / "done" / "rank").rglob("*.json"):
        mark.unlink()
    with pytest.raises(UserError, match="not ranked yet"):
        open_finished(str(tmp_path))


def test_another_image_set_is_refused(small_set: Path, tmp_path: Path, calls: list, full: Callable[..., int]) -> None:
    full(small_set, tmp_path / "run")
    stand_ins.imageset(tmp_path / "other", n=3)
    with pytest.raises(UserError, match="say with --imageset, once for each and in this order, where they are"):
        open_finished(str(tmp_path / "run"), [str(tmp_path / "other")])
