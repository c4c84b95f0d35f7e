"""Search steps: which orders are refused and why, and that what is carried out is what the steps say."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from postproc.features import unit
from retrieval import steps
from retrieval.steps import KINDS, Facts, fit, load, parse, plain, save

CONCAT = {"step": "concat"}


def drawn(n: int, d: int, seed: int) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(n, d))).astype(np.float32)


def facts(n: int) -> Facts:
    return Facts(np.arange(n) % 3 + 1, np.linspace(0, 1, n), np.arange(n) // 2, np.arange(n) % 4)


GALLERY = {"a": drawn(30, 6, 1), "b": drawn(30, 4, 2)}
QUERIES = {"a": drawn(5, 6, 3), "b": drawn(5, 4, 4)}


def asked(entries: list[dict[str, Any]], **how: Any) -> tuple[np.ndarray, np.ndarray]:
    fitted = fit(parse(entries, list(GALLERY)), GALLERY, how.pop("weights", None))
    return fitted.ask(QUERIES, np.ones(5, int), facts(30), **({"top_k": 8, "pool": 20} | how))


@pytest.mark.parametrize("entries, models, words", [
    ([{"step": "magic"}], ["a"], "want {step: NAME}"),
    ([{"stop": "concat"}], ["a"], "want {step: NAME}"),
    (["concat"], ["a"], "want {step: NAME}"),
    ([{"step": "concat", "k": 1}], ["a"], "concat has no option 'k'; its options: none"),
    ([{"step": "dba", "k": -1}], ["a"], "dba.k wants a whole number from 0, got -1"),
    ([{"step": "dba", "k": True}], ["a"], "dba.k wants a whole number"),
    ([{"step": "whiten", "dim": 0}], ["a"], "whiten.dim wants a whole number from 1, or null for all"),
    ([{"step": "power", "alpha": 0}], ["a"], "a number from 0 to 1, not 0"),
    ([{"step": "power", "alpha": float("nan")}], ["a"], "power.alpha wants"),
    ([{"step": "category", "rule": "medium"}], ["a"], "soft or hard or off"),
    ([{"step": "alpha_qe", "alpha": 10**400}], ["a"], "alpha_qe.alpha wants"),
    ([], ["a", "b"], "add concat or rank_fusion"),
    ([{"step": "dba"}], ["a", "b"], "add concat or rank_fusion"),
    ([CONCAT, CONCAT], ["a", "b"], "twice"),
    ([CONCAT, {"step": "rank_fusion"}], ["a", "b"], "want one of them"),
    ([CONCAT, {"step": "views"}], ["a", "a@flip"], "views are averaged as the models gave them"),
    ([CONCAT, {"step": "alpha_qe"}, {"step": "dba"}], ["a", "b"], "queries were moved towards gallery rows as they were"),
    ([{"step": "alpha_qe"}, CONCAT], ["a", "b"], "queries were moved"),
    ([CONCAT, {"step": "alpha_qe"}, {"step": "average_qe"}], ["a", "b"], "two ways to expand"),
    ([CONCAT, {"step": "k_reciprocal"}, {"step": "whiten"}], ["a", "b"], "the ranking is made by then"),
    ([CONCAT, {"step": "k_reciprocal"}, {"step": "diffusion"}], ["a", "b"], "want one of them"),
    ([CONCAT, {"step": "category"}, {"step": "k_reciprocal"}], ["a", "b"], "it ranks anew and would undo it"),
    ([{"step": "category"}, {"step": "rank_fusion"}], ["a", "b"], "works on the one list"),
    ([CONCAT, {"step": "group"}, {"step": "detector_score"}], ["a", "b"], "only the best of each group is left"),
])  # fmt: skip
def test_what_cannot_be_is_refused_with_the_reason(entries: list, models: list, words: str) -> None:
    with pytest.raises(ValueError, match="steps") as error:
        parse(entries, models)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("entries, models", [
    ([], ["a"]),
    ([CONCAT], ["a"]),
    ([{"step": "views"}], ["a", "a@flip"]),                          # one model is left, nothing to join
    ([{"step": "views"}, {"step": "whiten"}, CONCAT, {"step": "whiten"}, {"step": "dba"}, {"step": "alpha_qe"}], ["a", "b", "b@flip"]),
    ([{"step": "dba"}, {"step": "alpha_qe"}, {"step": "k_reciprocal"}, {"step": "rank_fusion"}, {"step": "category"}, {"step": "group"}], ["a", "b"]),
])  # fmt: skip
def test_what_can_be_is_taken(entries: list, models: list) -> None:
    assert [step.name for step in parse(entries, models)] == [entry["step"] for entry in entries]


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["step", "k", "alpha", "dim"]), st.sampled_from([*KINDS, 1, 0.5, None, "x", -3])
        ),
        max_size=4,
    )
)
@settings(max_examples=300, deadline=None)
def test_any_steps_are_taken_or_refused_in_one_line(entries: list) -> None:
    try:
        parse(entries, ["a", "b"])
    except ValueError as error:
        assert "\n" not in str(error) and str(error).startswith("steps")


def test_every_pair_of_steps_is_possible_in_one_order_at_least() -> None:
    apart = {("concat", "rank_fusion"), ("average_qe", "alpha_qe"), ("k_reciprocal", "diffusion")}
    for one, other in itertools.combinations(KINDS, 2):
        works = []
        for pair in ((one, other), (other, one)):
            try:
                works.append(bool(parse([{"step": name} for name in pair], ["a"]) or True))
            except ValueError:
                works.append(False)
        assert any(works) != ((one, other) in apart), (one, other)


def test_concatenation_ranks_by_the_mean_of_the_cosines() -> None:
    rows, similarity = asked([CONCAT], weights=[3, 1])
    want = (3 * QUERIES["a"] @ GALLERY["a"].T + QUERIES["b"] @ GALLERY["b"].T) / 4
    order = np.argsort(-want, axis=1)[:, :8]
    assert rows.tolist() == order.tolist()
    np.testing.assert_allclose(similarity, np.take_along_axis(want, order, axis=1), atol=1e-6)
    assert plain(parse([CONCAT], ["a", "b"])) and not plain(parse([CONCAT, {"step": "power"}], ["a", "b"]))


def test_steps_are_the_techniques_one_after_the_other() -> None:
    """The same by hand: concatenate, whiten, augment, expand, search, category, group."""
    from postproc import category_rule, concat, dba, grouping, neighbours, query_expansion, whiten

    rows, similarity = asked(
        [CONCAT, {"step": "whiten", "dim": 5}, {"step": "dba", "k": 2}, {"step": "alpha_qe", "k": 2},
         {"step": "category", "penalty": 0.5}, {"step": "group", "by": "product"}],
    )  # fmt: skip
    gallery, queries = (concat.concat(list(side.values())) for side in (GALLERY, QUERIES))
    projection = whiten.learn([gallery], 5)
    gallery = dba.augment(projection.apply(gallery), 2)
    queries = query_expansion.alpha(projection.apply(queries), gallery, 2, 3.0)
    by_cosine, found = neighbours.nearest(queries, gallery, 20)
    known = facts(30)
    found, by_cosine = category_rule.category_rule(found, by_cosine, np.ones(5, int), known.category, "soft", 0.5)
    found, by_cosine = grouping.group(found, by_cosine, known.product)
    assert rows[:, :4].tolist() == found[:, :4].tolist()
    assert (rows[:, 4:] == -1).all() and (similarity[:, 4:] == -np.inf).all()  # four products, four results
    np.testing.assert_allclose(similarity[:, :4], by_cosine[:, :4], atol=1e-6)


def test_views_of_a_model_become_its_rows() -> None:
    gallery, queries = {"a": drawn(9, 3, 5), "a@flip": drawn(9, 3, 6)}, {"a": drawn(2, 3, 7), "a@flip": drawn(2, 3, 8)}
    fitted = fit(parse([{"step": "views"}], list(gallery)), gallery)
    np.testing.assert_allclose(fitted.rows["a"], unit(gallery["a"] + gallery["a@flip"]), atol=1e-6)
    rows, _ = fitted.ask(queries, np.ones(2, int), facts(9), top_k=3, pool=3)
    want = unit(queries["a"] + queries["a@flip"]) @ fitted.rows["a"].T
    assert rows.tolist() == np.argsort(-want, axis=1)[:, :3].tolist()


def test_what_was_learned_is_saved_and_read_again() -> None:
    plan = parse([{"step": "pca", "dim": 3}, CONCAT, {"step": "whiten"}, {"step": "average_qe"}], list(GALLERY))
    fitted = fit(plan, GALLERY)
    again = load(plan, fitted.rows, save(fitted))
    for one, other in zip(
        *(f.ask(QUERIES, np.ones(5, int), facts(30), top_k=9, pool=9) for f in (fitted, again)), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    assert save(fitted) == save(fit(plan, GALLERY))
    for data in (b"", b"\x00" * 40, save(fitted)[:-9]):
        with pytest.raises(ValueError, match="cannot be read"):
            load(plan, fitted.rows, data)


@pytest.mark.parametrize("entries", [
    [CONCAT], [CONCAT, {"step": "whiten"}, {"step": "dba"}, {"step": "alpha_qe"}], [CONCAT, {"step": "category"}, {"step": "group"}],
])  # fmt: skip
@pytest.mark.parametrize("n, q", [(0, 3), (1, 2), (30, 0), (2, 1)])
def test_small_and_empty_sides(entries: list, n: int, q: int) -> None:
    gallery, queries = ({name: rows[:k] for name, rows in side.items()} for side, k in ((GALLERY, n), (QUERIES, q)))
    fitted = fit(parse(entries, list(gallery)), gallery)
    rows, similarity = fitted.ask(queries, np.ones(q, int), facts(n), top_k=4, pool=4)
    assert rows.shape == similarity.shape == (q, 4)
    assert ((rows >= 0).sum(axis=1) <= n).all() and ((rows < 0) == (similarity == -np.inf)).all()


def test_seconds_are_kept_for_every_step_that_worked() -> None:
    fitted = fit(parse([CONCAT, {"step": "whiten"}, {"step": "category"}], list(GALLERY)), GALLERY)
    fitted.ask(QUERIES, np.ones(5, int), facts(30), top_k=3, pool=9)
    assert set(fitted.seconds) == {0, 1, 2} and all(seconds >= 0 for seconds in fitted.seconds.values())


def test_bases_are_the_models_of_the_views() -> None:
    assert steps.bases(["b", "a@flip", "a", "a@margin0.1"]) == ["b", "a"]
