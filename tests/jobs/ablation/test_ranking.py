"""Which searches the ablation tries, and that a judged search is the search that a run makes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.ablation import ranking
from jobs.ablation.folder import open_folder
from jobs.ablation.ranking import Option, Variant, judge, options, possible
from jobs.cli import UserError
from retrieval import steps

MODELS = ["a", "b"]
DIMS = {"a": 64, "b": 64}


def test_every_technique_is_tried_alone_and_is_possible_alone() -> None:
    found = options([*MODELS, "a@flip"], {**DIMS, "a@flip": 64}, "detected", has_products=True)
    used = {entry["step"] for option in found for entry in option.steps}
    assert used == set(steps.KINDS)  # nothing of postproc is left out
    assert len({option.name for option in found}) == len(found)
    assert all(possible(Variant(option.name, (option,)), [*MODELS, "a@flip"]) for option in found)


@pytest.mark.parametrize("models, kind, products, absent", [
    (["a"], "detected", True, {"concat", "rank_fusion", "views"}),        # one model: nothing to join
    (MODELS, "true", True, {"detector_score", "views"}),                  # true boxes have no score
    (MODELS, "detected", False, {"views"}),
])  # fmt: skip
def test_what_the_run_cannot_show_is_not_tried(models: list[str], kind: str, products: bool, absent: set[str]) -> None:
    found = options(models, DIMS, kind, has_products=products)
    assert not absent & {entry["step"] for option in found for entry in option.steps}
    assert ("one result a product" in {option.name for option in found}) == products


def test_options_stand_in_the_order_of_a_search() -> None:
    late = Option("x", "qe", ({"step": "alpha_qe"},))
    early = Option("y", "project", ({"step": "whiten"},))
    assert [entry["step"] for entry in Variant("v", (late, early)).steps(MODELS)] == ["concat", "whiten", "alpha_qe"]
    fused = Option("z", "join", ({"step": "rank_fusion"},))
    assert [entry["step"] for entry in Variant("v", (fused,)).steps(MODELS)] == ["rank_fusion"]
    assert Variant("v").steps(["a"]) == []


def test_two_options_of_one_slot_do_not_go_together() -> None:
    one, other = (Option(f"dba {k}", "dba", ({"step": "dba", "k": k},)) for k in (1, 3))
    assert possible(Variant("v", (one,)), MODELS) and not possible(Variant("v", (one, other)), MODELS)


def test_a_judged_search_is_the_runs_own(
    small_set: Path, tmp_path: Path, calls: list, full: Callable[..., int]
) -> None:
    entries = "[{step: concat}, {step: whiten, dim: 8}, {step: dba, k: 2}, {step: alpha_qe, k: 1}]"
    full(small_set, tmp_path, "--set", f"search.steps={entries}")
    data = open_folder(str(tmp_path)).data("detected")
    plan = steps.parse(
        [{"step": "concat"}, {"step": "whiten", "dim": 8}, {"step": "dba", "k": 2}, {"step": "alpha_qe", "k": 1}], list(data.gallery)
    )  # fmt: skip
    rows, similarity = steps.fit(plan, data.gallery).ask(
        data.queries, data.query_category, data.facts, top_k=20, pool=200
    )
    table = pq.read_table(tmp_path / "rankings" / "detected.parquet")
    assert table["query_image_id"].to_pylist() == data.query_image.tolist()
    found = [data.gallery_image[line[line >= 0]].tolist() for line in rows]
    assert table["gallery_image_id"].to_pylist() == found
    for want, line in zip(table["similarity"].to_pylist(), similarity, strict=True):
        np.testing.assert_array_equal(np.array(want, np.float32), line[np.isfinite(line)])
    judged = judge(data, [step.as_json() for step in plan], None, 200)
    assert len(judged["ranks"]) == len(data.asked) == 12 and judged["peak_mb"] >= 0
    assert [name for name, _ in judged["seconds"]] == ["concat", "whiten", "dba", "alpha_qe", "search"]
    assert ranking.standing_items(data).tolist() == [0] * 12  # each photo's one garment, found as its best box


def test_a_folder_without_a_finished_run_is_refused(
    small_set: Path, tmp_path: Path, calls: list, full: Callable[..., int]
) -> None:
    with pytest.raises(UserError, match=r"no run\.json"):
        open_folder(str(tmp_path))
    full(small_set, tmp_path)
    for mark in (tmp_path / "done" / "rank").rglob("*.json"):
        mark.unlink()
    with pytest.raises(UserError, match="not ranked yet"):
        open_folder(str(tmp_path))


def test_another_image_set_is_refused(small_set: Path, tmp_path: Path, calls: list, full: Callable[..., int]) -> None:
    import stand_ins

    full(small_set, tmp_path / "run")
    stand_ins.imageset(tmp_path / "other", n=3)
    with pytest.raises(UserError, match="say where that one is with --imageset"):
        open_folder(str(tmp_path / "run"), str(tmp_path / "other"))
