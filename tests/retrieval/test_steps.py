"""Search steps: which orders are refused and why, and that a search does what its steps say."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from postproc.features import unit
from postproc.hypotheses import Hypotheses
from retrieval import steps
from retrieval.step_kinds import STEPS, GalleryFacts
from retrieval.steps import fit, load, parse, plain, save

CONCAT = {"step": "concat"}


def random_rows(n: int, d: int, seed: int) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(n, d))).astype(np.float32)


def sure(category_id: np.ndarray) -> Hypotheses:
    return Hypotheses.own(category_id, np.ones(len(category_id)))


def facts(n: int) -> GalleryFacts:
    return GalleryFacts(sure(np.arange(n) % 3 + 1), np.linspace(0, 1, n), np.arange(n) // 2, np.arange(n) % 4)


GALLERY = {"a": random_rows(30, 6, 1), "b": random_rows(30, 4, 2)}
QUERIES = {"a": random_rows(5, 6, 3), "b": random_rows(5, 4, 4)}


def rank(entries: list[dict[str, Any]], **how: Any) -> tuple[np.ndarray, np.ndarray]:
    fitted = fit(parse(entries, list(GALLERY)), GALLERY, how.pop("weights", None))
    return fitted.rank(QUERIES, sure(np.ones(5, int)), facts(30), **({"top_k": 8, "pool": 20} | how))


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
    ([CONCAT, {"step": "alpha_qe"}, {"step": "dba"}], ["a", "b"],
     "queries were moved towards the gallery's embeddings as they were"),
    ([{"step": "alpha_qe"}, CONCAT], ["a", "b"], "queries were moved"),
    ([CONCAT, {"step": "alpha_qe"}, {"step": "average_qe"}], ["a", "b"], "two ways to expand"),
    ([CONCAT, {"step": "k_reciprocal"}, {"step": "whiten"}], ["a", "b"], "the ranking is made by then"),
    ([CONCAT, {"step": "k_reciprocal"}, {"step": "diffusion"}], ["a", "b"], "want one of them"),
    ([CONCAT, {"step": "category"}, {"step": "k_reciprocal"}], ["a", "b"], "it ranks anew and would undo it"),
    ([{"step": "category"}, {"step": "rank_fusion"}], ["a", "b"], "works on the one list"),
    ([CONCAT, {"step": "group"}, {"step": "detector_score"}], ["a", "b"], "only the best of each group is left"),
])  # fmt: skip
def test_impossible_steps_are_refused_with_the_reason(entries: list, models: list, words: str) -> None:
    with pytest.raises(ValueError, match="steps") as error:
        parse(entries, models)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("entries, models", [
    ([], ["a"]),
    ([CONCAT], ["a"]),
    ([{"step": "views"}], ["a", "a@flip"]),                          # one model is left, nothing to join
    ([{"step": "views"}, {"step": "whiten"}, CONCAT, {"step": "whiten"}, {"step": "dba"}, {"step": "alpha_qe"}],
     ["a", "b", "b@flip"]),
    ([{"step": "dba"}, {"step": "alpha_qe"}, {"step": "k_reciprocal"}, {"step": "rank_fusion"}, {"step": "category"},
      {"step": "group"}], ["a", "b"]),
])  # fmt: skip
def test_possible_steps_are_accepted(entries: list, models: list) -> None:
    assert [step.name for step in parse(entries, models)] == [entry["step"] for entry in entries]


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["step", "k", "alpha", "dim"]), st.sampled_from([*STEPS, 1, 0.5, None, "x", -3])
        ),
        max_size=4,
    )
)
@settings(max_examples=300)
def test_any_steps_are_accepted_or_refused_in_one_line(entries: list) -> None:
    try:
        parse(entries, ["a", "b"])
    except ValueError as error:
        assert "\n" not in str(error) and str(error).startswith("steps")


def test_every_pair_of_steps_is_possible_in_one_order_at_least() -> None:
    apart = {("concat", "rank_fusion"), ("average_qe", "alpha_qe"), ("k_reciprocal", "diffusion")}
    for one, other in itertools.combinations(STEPS, 2):
        works = []
        for pair in ((one, other), (other, one)):
            try:
                works.append(bool(parse([{"step": name} for name in pair], ["a"]) or True))
            except ValueError:
                works.append(False)
        assert any(works) != ((one, other) in apart), (one, other)


def test_concatenation_ranks_by_the_mean_of_the_cosines() -> None:
    rows, similarity = rank([CONCAT], weights=[3, 1])
    want = (3 * QUERIES["a"] @ GALLERY["a"].T + QUERIES["b"] @ GALLERY["b"].T) / 4
    order = np.argsort(-want, axis=1)[:, :8]
    assert rows.tolist() == order.tolist()
    np.testing.assert_allclose(similarity, np.take_along_axis(want, order, axis=1), atol=1e-6)
    assert plain(parse([CONCAT], ["a", "b"])) and not plain(parse([CONCAT, {"step": "power"}], ["a", "b"]))


def test_steps_are_the_techniques_one_after_the_other() -> None:
    """The same by hand: concatenate, whiten, augment, expand, search, category, group."""
    from postproc import category_rule, concat, dba, grouping, neighbours, query_expansion, whiten

    rows, similarity = rank(
        [CONCAT, {"step": "whiten", "dim": 5}, {"step": "dba", "k": 2}, {"step": "alpha_qe", "k": 2},
         {"step": "category", "penalty": 0.5}, {"step": "group", "by": "product"}],
    )  # fmt: skip
    gallery, queries = (concat.concat(list(side.values())) for side in (GALLERY, QUERIES))
    projection = whiten.learn([gallery], 5)
    gallery = dba.augment(projection.apply(gallery), 2)
    queries = query_expansion.alpha(projection.apply(queries), gallery, 2, 3.0)
    by_cosine, found = neighbours.nearest(queries, gallery, 20)
    of_gallery = facts(30)
    found, by_cosine = category_rule.category_rule(
        found, by_cosine, sure(np.ones(5, int)), of_gallery.hypotheses, "soft", 0.5
    )
    found, by_cosine = grouping.group(found, by_cosine, of_gallery.product)
    assert rows[:, :4].tolist() == found[:, :4].tolist()
    assert (rows[:, 4:] == -1).all() and (similarity[:, 4:] == -np.inf).all()  # four products, four results
    np.testing.assert_allclose(similarity[:, :4], by_cosine[:, :4], atol=1e-6)


def test_views_of_a_model_become_one_embedding() -> None:
    gallery, queries = (
        {"a": random_rows(9, 3, 5), "a@flip": random_rows(9, 3, 6)},
        {"a": random_rows(2, 3, 7), "a@flip": random_rows(2, 3, 8)},
    )
    fitted = fit(parse([{"step": "views"}], list(gallery)), gallery)
    np.testing.assert_allclose(fitted.gallery["a"], unit(gallery["a"] + gallery["a@flip"]), atol=1e-6)
    rows, _ = fitted.rank(queries, sure(np.ones(2, int)), facts(9), top_k=3, pool=3)
    want = unit(queries["a"] + queries["a@flip"]) @ fitted.gallery["a"].T
    assert rows.tolist() == np.argsort(-want, axis=1)[:, :3].tolist()


def test_learned_projections_are_saved_and_read_again() -> None:
    plan = parse([{"step": "pca", "dim": 3}, CONCAT, {"step": "whiten"}, {"step": "average_qe"}], list(GALLERY))
    fitted = fit(plan, GALLERY)
    again = load(plan, fitted.gallery, save(fitted))
    for one, other in zip(
        *(f.rank(QUERIES, sure(np.ones(5, int)), facts(30), top_k=9, pool=9) for f in (fitted, again)), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    assert save(fitted) == save(fit(plan, GALLERY))
    for data in (b"", b"\x00" * 40, save(fitted)[:-9]):
        with pytest.raises(ValueError, match="cannot be read"):
            load(plan, fitted.gallery, data)


@pytest.mark.parametrize("entries", [
    [CONCAT], [CONCAT, {"step": "whiten"}, {"step": "dba"}, {"step": "alpha_qe"}],
    [CONCAT, {"step": "category"}, {"step": "group"}],
])  # fmt: skip
@pytest.mark.parametrize("n, q", [(0, 3), (1, 2), (30, 0), (2, 1)])
def test_small_and_empty_sides(entries: list, n: int, q: int) -> None:
    gallery, queries = ({name: rows[:k] for name, rows in side.items()} for side, k in ((GALLERY, n), (QUERIES, q)))
    fitted = fit(parse(entries, list(gallery)), gallery)
    rows, similarity = fitted.rank(queries, sure(np.ones(q, int)), facts(n), top_k=4, pool=4)
    assert rows.shape == similarity.shape == (q, 4)
    assert ((rows >= 0).sum(axis=1) <= n).all() and ((rows < 0) == (similarity == -np.inf)).all()


def test_seconds_are_kept_for_every_step() -> None:
    fitted = fit(parse([CONCAT, {"step": "whiten"}, {"step": "category"}], list(GALLERY)), GALLERY)
    fitted.rank(QUERIES, sure(np.ones(5, int)), facts(30), top_k=3, pool=9)
    assert set(fitted.seconds) == {0, 1, 2} and all(seconds >= 0 for seconds in fitted.seconds.values())


def test_bases_are_the_models_of_the_views() -> None:
    assert steps.bases(["b", "a@flip", "a", "a@margin0.1"]) == ["b", "a"]


@pytest.mark.parametrize("entries, dims, want", [
    ([], {"a": 512}, 512),
    ([CONCAT], {"a": 512, "b": 256}, 512 + 256),
    ([{"step": "views"}], {"a": 512, "a@flip": 512}, 512),                                  # one model is left
    ([{"step": "views"}, CONCAT], {"a": 512, "a@flip": 512, "b": 256}, 512 + 256),
    ([{"step": "pca", "dim": 300}, CONCAT], {"a": 512, "b": 256}, 300 + 256),               # never more than there were
    ([CONCAT, {"step": "whiten", "dim": 100}, {"step": "dba"}], {"a": 512, "b": 256}, 100),
    ([{"step": "whiten"}, {"step": "rank_fusion"}], {"a": 512, "b": 256}, 512 + 256),
])  # fmt: skip
def test_width_follows_the_steps(entries: list, dims: dict[str, int], want: int) -> None:
    assert steps.width(parse(entries, list(dims)), dims) == want
