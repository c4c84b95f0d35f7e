"""The steps a search can have: for each its phase, options, width and work, one record in `STEPS`.

The techniques themselves are in `postproc/`, one file each, with their sources. Adding a step takes its file there, its
test and a record here; `retrieval.steps` reads, checks and runs them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np

from postproc import category_rule, detector_score, grouping, query_expansion, rank_fusion, whiten
from postproc.concat import concat
from postproc.dba import augment
from postproc.hypotheses import Hypotheses
from postproc.power import power_normalise
from postproc.views import average_views
from postproc.whiten import Moments, Projection

Embeddings = dict[str, np.ndarray]  # model -> (N, D) float32 unit rows, the same items in every entry
Lists = tuple[np.ndarray, np.ndarray]  # positions in the gallery (Q, K), -1 for none, and similarity (Q, K)
Options = Mapping[str, Any]
JOINED = ""  # the one entry of Embeddings after `concat`


class Phase(IntEnum):
    """What a step works on, in the order in which steps can follow each other."""

    EMBEDDINGS = 0  # of gallery and queries alike, each model's apart
    JOIN = 1
    GALLERY = 2
    QUERIES = 3
    RANKING = 4
    LIST_FUSION = 5
    LISTS = 6
    GROUPS = 7


@dataclass(frozen=True)
class StepOption:
    """One option of a step: its default, its accepted values in words, and the test of a value."""

    default: Any
    want: str
    accepts: Callable[[Any], bool]


@dataclass(frozen=True)
class StepKind:
    """What all steps of one name have in common.

    What `apply` takes and returns depends on the phase:
        EMBEDDINGS, JOIN: (embeddings, options, weights of the models, model -> projection) -> embeddings;
        GALLERY: (gallery (N, D), options) -> (N, D);
        QUERIES: (queries (Q, D), gallery (N, D), options, find) -> (Q, D);
        RANKING: (queries (Q, D), gallery (N, D), options, k) -> lists;
        LIST_FUSION: (every model's lists, options, weights of the models, k) -> lists;
        LISTS, GROUPS: (lists, options, what the Q queries may be, facts) -> lists.
    """

    phase: Phase  # what it works on
    apply: Callable[..., Any]
    options: Mapping[str, StepOption] = field(default_factory=dict)
    # (model -> dimensions, options) -> the same after the step
    width: Callable[[Mapping[str, int], Options], Mapping[str, int]] = lambda dims, options: dims
    # (moments of one model's gallery, options) -> projection; None: the step learns nothing
    fit: Callable[[Moments, Options], Projection] | None = None
    repeats: bool = False  # whether it may stand in a search more than once


@dataclass(frozen=True)
class GalleryFacts:
    """What is known of the gallery's items besides their embeddings, in the same order."""

    hypotheses: Hypotheses  # the categories that each of the N may have
    score: np.ndarray  # (N,) float in [0, 1], the detectors'
    photo: np.ndarray  # (N,) int, equal for items of one photo
    product: np.ndarray  # (N,) int, equal for items of one product, -1 where unknown


def base_of(name: str) -> str:
    """The model that a view is of: `lite0-sg` for `lite0-sg@flip`, and for `lite0-sg` itself."""
    return name.partition("@")[0]


def _integer(default: int | None, low: int) -> StepOption:
    want = f"a whole number from {low}" + ("" if default is not None else ", or null for all")
    return StepOption(default, want, lambda v: low <= v <= 100_000 if type(v) is int else v is None and default is None)


def _number(default: float, low: float, high: float, *, above: bool = False) -> StepOption:
    def accepts(value: Any) -> bool:
        return type(value) in (int, float) and low <= value <= high and not (above and value == low)

    return StepOption(default, f"a number from {low:g} to {high:g}" + (f", not {low:g}" if above else ""), accepts)


def _one_of(*allowed: str) -> StepOption:
    return StepOption(allowed[0], " or ".join(allowed), lambda value: isinstance(value, str) and value in allowed)


def _views(embeddings: Embeddings, *_: Any) -> Embeddings:
    views: dict[str, list[np.ndarray]] = {}
    for name, rows in embeddings.items():
        views.setdefault(base_of(name), []).append(rows)
    return {base: average_views(rows) for base, rows in views.items()}


def _power(embeddings: Embeddings, options: Options, *_: Any) -> Embeddings:
    return {name: power_normalise(rows, options["alpha"]) for name, rows in embeddings.items()}


def _project(embeddings: Embeddings, options: Options, weights: Any, projections: Mapping[str, Any]) -> Embeddings:
    return {name: p.apply(rows) if (p := projections.get(name)) else rows for name, rows in embeddings.items()}


def _k_reciprocal(queries: np.ndarray, gallery: np.ndarray, options: Options, k: int) -> Lists:
    from postproc.kreciprocal import rerank  # delays scipy

    rows, distance = rerank(queries, gallery, options["k1"], options["k2"], options["lambda"], k)
    return rows, 1 - distance


def _diffusion(queries: np.ndarray, gallery: np.ndarray, options: Options, k: int) -> Lists:
    from postproc.diffusion import diffuse  # delays scipy

    return diffuse(queries, gallery, **options, top_k=k)


def _detector_score(lists: Lists, options: Options, _: Any, facts: GalleryFacts) -> Lists:
    return detector_score.with_detector_score(*lists, facts.score, options["weight"])


def _category(lists: Lists, options: Options, query: Hypotheses, facts: GalleryFacts) -> Lists:
    return category_rule.category_rule(*lists, query, facts.hypotheses, options["rule"], options["penalty"])


def _group(lists: Lists, options: Options, _: Any, facts: GalleryFacts) -> Lists:
    return grouping.group(*lists, facts.product if options["by"] == "product" else facts.photo)


def _cut(dims: Mapping[str, int], options: Options) -> dict[str, int]:
    return {name: min(dim, options["dim"] or dim) for name, dim in dims.items()}


STEPS: dict[str, StepKind] = {  # `o` are the step's options
    "views": StepKind(Phase.EMBEDDINGS, _views, width=lambda dims, o: {base_of(name): n for name, n in dims.items()}),
    "power": StepKind(Phase.EMBEDDINGS, _power, {"alpha": _number(0.5, 0, 1, above=True)}, repeats=True),
    "pca": StepKind(
        Phase.EMBEDDINGS, _project, {"dim": _integer(None, 1)}, _cut,
        lambda moments, o: whiten.from_moments(moments, o["dim"], whiten=False), repeats=True,
    ),
    "whiten": StepKind(
        Phase.EMBEDDINGS, _project, {"dim": _integer(None, 1), "power": _number(1.0, 0, 1)}, _cut,
        lambda moments, o: whiten.from_moments(moments, o["dim"], power=o["power"]), repeats=True,
    ),
    "concat": StepKind(
        Phase.JOIN, lambda embeddings, o, weights, _: {JOINED: concat(list(embeddings.values()), weights)},
        width=lambda dims, o: {JOINED: sum(dims.values())},
    ),
    "dba": StepKind(
        Phase.GALLERY, lambda gallery, o: augment(gallery, o["k"], weights=o["weights"], alpha=o["alpha"]),
        {"k": _integer(5, 0), "weights": _one_of("rank", "similarity"), "alpha": _number(3.0, 0, 100)},
    ),
    "average_qe": StepKind(
        Phase.QUERIES, lambda queries, gallery, o, find: query_expansion.alpha(queries, gallery, o["k"], 0, find=find),
        {"k": _integer(3, 0)},
    ),
    "alpha_qe": StepKind(
        Phase.QUERIES,
        lambda queries, gallery, o, find: query_expansion.alpha(queries, gallery, o["k"], o["alpha"], find=find),
        {"k": _integer(3, 0), "alpha": _number(3.0, 0, 100)},
    ),
    "k_reciprocal": StepKind(
        Phase.RANKING, _k_reciprocal, {"k1": _integer(20, 1), "k2": _integer(6, 1), "lambda": _number(0.3, 0, 1)},
    ),
    "diffusion": StepKind(
        Phase.RANKING, _diffusion,
        {"k": _integer(50, 1), "query_k": _integer(10, 1), "alpha": _number(0.99, 0, 0.9999),
         "gamma": _number(3.0, 0, 100, above=True)},
    ),
    "rank_fusion": StepKind(
        Phase.LIST_FUSION, lambda lists, o, weights, k: rank_fusion.fuse_lists(lists, o["method"], weights, o["k"], k),
        {"method": _one_of("rrf", "combsum", "combmnz"), "k": _integer(60, 1)},
    ),
    "detector_score": StepKind(Phase.LISTS, _detector_score, {"weight": _number(0.1, -10, 10)}),
    "category": StepKind(
        Phase.LISTS, _category, {"rule": _one_of("soft", "hard", "off"), "penalty": _number(0.02, 0, 10)},
    ),
    "group": StepKind(Phase.GROUPS, _group, {"by": _one_of("product", "image")}),
}  # fmt: skip
ALTERNATIVES = (
    ("concat", "rank_fusion", "concat joins the models' embeddings, rank_fusion their lists"),
    ("average_qe", "alpha_qe", "average_qe and alpha_qe are two ways to expand a query"),
    ("k_reciprocal", "diffusion", "k_reciprocal and diffusion each rank the gallery anew"),
)
