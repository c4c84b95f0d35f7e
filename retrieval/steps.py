"""The steps of a search: from every model's rows to ranked lists, in the order the settings give.

`parse` reads `search.steps` and refuses what makes no sense; `fit` carries out on the gallery what changes its rows and learns
what has to be learned; `Fitted.ask` takes queries the same way and ranks. The evaluation, the ablation and the published gallery
all go through here. The techniques are in `postproc/`, one file each, with their sources.

    steps:                                    # on several models' rows, each model's apart …
      - {step: power, alpha: 0.5}
      - {step: concat}                        # … until they are joined
      - {step: whiten, dim: 512}
      - {step: dba, k: 5}
      - {step: alpha_qe, k: 3, alpha: 3}
      - {step: k_reciprocal, k1: 20, k2: 6}   # instead of the plain search
      - {step: group, by: product}
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Rows = dict[str, np.ndarray]  # model -> (N, D) float32 unit rows, the same items in every entry
JOINED = ""  # the one entry of Rows after `concat`


# ---------------------------------------------------------------------------------------------------------------------
# What may be asked for.


@dataclass(frozen=True)
class Option:
    """One field of a step: its value where none is given, and what it may be."""

    default: Any
    want: str
    fits: Callable[[Any], bool]


def _whole(default: int | None, low: int) -> Option:
    want = f"a whole number from {low}" + ("" if default is not None else ", or null for all")
    return Option(default, want, lambda v: (type(v) is int and low <= v <= 100_000) or (v is None and default is None))


def _number(default: float, low: float, high: float, *, above: bool = False) -> Option:
    def fits(value: Any) -> bool:
        return type(value) in (int, float) and low <= value <= high and not (above and value == low)

    return Option(default, f"a number from {low:g} to {high:g}" + (f", not {low:g}" if above else ""), fits)


def _one_of(*allowed: str) -> Option:
    return Option(allowed[0], " or ".join(allowed), lambda value: isinstance(value, str) and value in allowed)


ROWS, JOIN, GALLERY, QUERIES, RANKS, LISTS, LAST = range(7)  # what a step works on, in the order that is possible


@dataclass(frozen=True)
class Kind:
    place: int
    options: Mapping[str, Option] = field(default_factory=dict)


KINDS: dict[str, Kind] = {
    "views": Kind(ROWS),
    "power": Kind(ROWS, {"alpha": _number(0.5, 0, 1, above=True)}),
    "pca": Kind(ROWS, {"dim": _whole(None, 1)}),
    "whiten": Kind(ROWS, {"dim": _whole(None, 1), "power": _number(1.0, 0, 1)}),
    "concat": Kind(JOIN),
    "dba": Kind(GALLERY, {"k": _whole(5, 0), "weights": _one_of("rank", "similarity"), "alpha": _number(3.0, 0, 100)}),
    "average_qe": Kind(QUERIES, {"k": _whole(3, 0)}),
    "alpha_qe": Kind(QUERIES, {"k": _whole(3, 0), "alpha": _number(3.0, 0, 100)}),
    "k_reciprocal": Kind(RANKS, {"k1": _whole(20, 1), "k2": _whole(6, 1), "lambda": _number(0.3, 0, 1)}),
    "diffusion": Kind(
        RANKS,
        {
            "k": _whole(50, 1), "query_k": _whole(10, 1),
            "alpha": _number(0.99, 0, 0.9999), "gamma": _number(3.0, 0, 100, above=True),
        },
    ),
    "rank_fusion": Kind(LISTS, {"method": _one_of("rrf", "combsum", "combmnz"), "k": _whole(60, 1)}),
    "detector_score": Kind(LISTS, {"weight": _number(0.1, -10, 10)}),
    "category": Kind(LISTS, {"rule": _one_of("soft", "hard", "off"), "penalty": _number(0.1, 0, 10)}),
    "group": Kind(LAST, {"by": _one_of("product", "image")}),
}  # fmt: skip
AGAIN = ("power", "pca", "whiten")  # steps that make sense before and after `concat`


@dataclass(frozen=True)
class Step:
    """One step with all its options."""

    name: str
    options: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        return {"step": self.name, **self.options}


def parse(entries: Sequence[Mapping[str, Any]], models: Sequence[str]) -> tuple[Step, ...]:
    """The steps of a search, checked: each one known, its options possible, their order one that works.

    Args:
        entries: `{"step": NAME, option: value, …}`, as the settings have them.
        models: names of the embedders, views (`NAME@flip`) included.

    Raises:
        ValueError: in one line, with the place and the reason.

    >>> parse([{"step": "concat"}, {"step": "whiten", "dim": 512}], ["a", "b"])[1].options
    {'dim': 512, 'power': 1.0}
    """
    steps = tuple(_step(entry, f"steps[{i}]") for i, entry in enumerate(entries))
    _possible(steps, models)
    return steps


def _step(entry: Any, where: str) -> Step:
    name = entry.get("step") if isinstance(entry, Mapping) else None
    if not isinstance(name, str) or name not in KINDS:
        raise ValueError(f"{where}: want {{step: NAME}}, NAME one of {', '.join(KINDS)}; got {entry!r}")
    options = KINDS[name].options
    for key, value in entry.items():
        if key != "step" and key not in options:
            allowed = ", ".join(options) or "none"
            raise ValueError(f"{where}: {name} has no option {key!r}; its options: {allowed}")
        if key != "step" and not options[key].fits(value):
            raise ValueError(f"{where}: {name}.{key} wants {options[key].want}, got {value!r}")
    return Step(name, {key: entry.get(key, option.default) for key, option in options.items()})


def _possible(steps: tuple[Step, ...], models: Sequence[str]) -> None:
    """Refuse an order in which a step could not do its work, with the reason."""
    names = [step.name for step in steps]
    for i, name in enumerate(names):
        if name in names[:i] and name not in AGAIN:
            raise ValueError(f"steps[{i}]: {name} stands there twice; one is enough")
    if "concat" in names and "rank_fusion" in names:
        raise ValueError("steps: concat joins the models' rows, rank_fusion their lists; want one of them")
    if "views" in names and names[0] != "views":
        raise ValueError(f"steps: views are averaged as the models gave them; want it before {names[0]}")
    if "average_qe" in names and "alpha_qe" in names:
        raise ValueError("steps: average_qe and alpha_qe are two ways to expand a query; want one of them")
    if "k_reciprocal" in names and "diffusion" in names:
        raise ValueError("steps: k_reciprocal and diffusion each rank the gallery anew; want one of them")
    for i, step in enumerate(steps):
        for before in names[:i]:
            if reason := _clash(before, step.name):
                raise ValueError(f"steps[{i}]: {step.name} cannot come after {before}: {reason}")
    several = len(bases(models) if "views" in names else models) > 1
    if several and not {"concat", "rank_fusion"} & set(names):
        raise ValueError(f"steps: {len(models)} embedders and nothing that joins them; add concat or rank_fusion")


def _clash(before: str, after: str) -> str:
    first, second = KINDS[before].place, KINDS[after].place
    if second in (ROWS, JOIN, GALLERY) and first == QUERIES:
        return "queries were moved towards gallery rows as they were before it"
    if second <= QUERIES and first >= RANKS:
        return "the ranking is made by then, and it changes rows"
    if second == RANKS and first >= LISTS:
        return "it ranks anew and would undo it"
    if after == "rank_fusion" and first == LISTS:
        return "that works on the one list that it makes"
    if first == LAST:
        return "only the best of each group is left by then"
    return ""


def bases(models: Iterable[str]) -> list[str]:
    """The models whose views these are, each once: `lite0-sg@flip` is a view of `lite0-sg`.

    >>> bases(["a", "a@flip", "b@margin0.1"])
    ['a', 'b']
    """
    return list(dict.fromkeys(name.partition("@")[0] for name in models))


def plain(steps: Sequence[Step]) -> bool:
    """Whether the search is concatenation and nothing else, the figure that papers compare."""
    return all(step.name == "concat" for step in steps)


# ---------------------------------------------------------------------------------------------------------------------
# Doing it.


@dataclass(frozen=True)
class Facts:
    """What is known of the items besides their rows, in the rows' order.

    Attributes:
        category: (N,) int category ids.
        score: (N,) float in [0, 1], the detectors'.
        image: (N,) int, equal for items of one photo. product: (N,) int, equal for items of one product, -1 where unknown.
    """

    category: np.ndarray
    score: np.ndarray
    image: np.ndarray
    product: np.ndarray


@dataclass
class Fitted:
    """A gallery after the steps that change its rows, ready to be asked.

    Attributes:
        steps: all of them.
        weights: of the models in `concat` and `rank_fusion`, in their order; None: all alike.
        rows: model -> (N, D) float32, one entry where the models are joined.
        learned: place of the step -> model -> what it learned (`postproc.whiten.Projection`).
        seconds: place of the step -> seconds it took, asking included.
        find: (queries, k) -> similarity, rows: an index over the one entry of `rows`, for expansion; None: all rows are compared.
    """

    steps: tuple[Step, ...]
    weights: Sequence[float] | None
    rows: Rows
    learned: dict[int, dict[str, Any]] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)
    find: Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]] | None = None

    def ask(
        self, queries: Rows, query_category: np.ndarray, facts: Facts, *, top_k: int, pool: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rank the gallery for every query.

        Args:
            queries: model -> (Q, D) float32 unit rows as the models gave them, the models `fit` had.
            query_category: (Q,) int.
            facts: of the gallery's items.
            top_k: results wanted, at least 1. pool: best candidates that the steps on lists see, at least top_k.

        Returns:
            rows (Q, top_k) int64, positions in the gallery, best first, -1 where there is nothing; similarity (Q, top_k) float32,
            falling, -inf there: the cosine, or 1 - distance of `k_reciprocal`, or the score of `diffusion` or `rank_fusion`,
            with what `detector_score` and `category` add or take.
        """
        moved = self.transform(queries)
        on_lists = any(KINDS[step.name].place >= LISTS for step in self.steps)
        lists = self._search(moved, max(pool, top_k) if on_lists else top_k)
        rows, similarity = next(iter(lists.values()))
        for i, step in enumerate(self.steps):
            start = time.perf_counter()
            if step.name == "rank_fusion":
                from postproc.rank_fusion import fuse_lists

                how: dict[str, Any] = {"method": step.options["method"], "k": step.options["k"]}
                rows, similarity = fuse_lists(list(lists.values()), weights=self.weights, top_k=max(pool, top_k), **how)
            elif KINDS[step.name].place >= LISTS:
                rows, similarity = _on_list(step, rows, similarity, query_category, facts)
            else:
                continue
            self._spent(i, start)
        return _exactly(rows, similarity, top_k)

    def transform(self, queries: Rows) -> Rows:
        """Queries' rows in the gallery's space, expanded where a step says so."""
        if not queries:
            raise ValueError("search: no model's rows of the queries")
        for i, step in enumerate(self.steps):
            start = time.perf_counter()
            queries = self._transform_one(i, step, queries)
            self._spent(i, start)
        return queries

    def _transform_one(self, i: int, step: Step, queries: Rows) -> Rows:
        """No step after an expansion changes the gallery's rows, so they are what the expansion wants."""
        place = KINDS[step.name].place
        if place == QUERIES:
            from postproc import query_expansion

            exponent = step.options.get("alpha", 0.0)
            return {
                name: query_expansion.alpha(rows, self.rows[name], step.options["k"], exponent, find=self.find)
                for name, rows in queries.items()
            }
        return on_rows(step, queries, self.weights, self.learned.get(i, {})) if place < GALLERY else queries

    def _search(self, queries: Rows, k: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Each model's list: by inner product, or as a ranking step does it."""
        ranking = next(((i, step) for i, step in enumerate(self.steps) if KINDS[step.name].place == RANKS), None)
        start, lists = time.perf_counter(), {}
        for name, rows in queries.items():
            gallery = self.rows[name]
            if ranking is None and self.find is not None:
                similarity, found = self.find(rows, k)
                lists[name] = (found, similarity)
            elif ranking is None:
                from retrieval import index

                similarity, found = index.search(index.build(gallery), rows, k)
                lists[name] = (found, similarity)
            else:
                lists[name] = _rank_anew(ranking[1], rows, gallery, k)
        if ranking is not None:
            self._spent(ranking[0], start)
        return lists

    def _spent(self, i: int, start: float) -> None:
        self.seconds[i] = self.seconds.get(i, 0.0) + time.perf_counter() - start


def fit(steps: tuple[Step, ...], gallery: Rows, weights: Sequence[float] | None = None) -> Fitted:
    """Carry out on the gallery every step that changes its rows, learning what is to be learned from them.

    Args:
        steps: from `parse`.
        gallery: model -> (N, D) float32 unit rows; N may be 0, and then nothing is learned.
        weights: a number >= 0 for each model that `concat` or `rank_fusion` joins.
    """
    fitted = Fitted(steps, weights, dict(gallery))
    for i, step in enumerate(steps):
        start = time.perf_counter()
        if step.name == "dba":
            from postproc import dba

            how = {key: step.options[key] for key in ("weights", "alpha")}
            fitted.rows = {name: dba.augment(rows, step.options["k"], **how) for name, rows in fitted.rows.items()}
        elif KINDS[step.name].place < GALLERY:
            if step.name in ("pca", "whiten"):
                fitted.learned[i] = {name: _learn(step, rows) for name, rows in fitted.rows.items()}
            fitted.rows = on_rows(step, fitted.rows, weights, fitted.learned.get(i, {}))
        else:
            continue
        fitted.seconds[i] = time.perf_counter() - start
    return fitted


def learn_from(
    steps: tuple[Step, ...], blocks: Callable[[], Iterable[Rows]], weights: Sequence[float] | None = None
) -> dict[int, dict[str, Any]]:
    """What `fit` would learn, from rows that do not fit in memory: one pass over them for each step that learns.

    Args:
        blocks: called for each pass; gives the gallery's rows, some of them at a time. None of the steps may be `dba`, whose rows
            need all others, before one that learns.
    """
    learned: dict[int, dict[str, Any]] = {}
    for i, step in enumerate(steps):
        if step.name in ("pca", "whiten"):
            before = [(j, one) for j, one in enumerate(steps[:i]) if KINDS[one.name].place < GALLERY]
            sums: dict[str, Any] = {}
            for rows in blocks():
                for j, one in before:
                    rows = on_rows(one, rows, weights, learned.get(j, {}))
                for name, block in rows.items():
                    if len(block):
                        sums[name] = _added(sums.get(name), block)
            learned[i] = {name: _projection_of(step, moments) for name, moments in sums.items()}
    return learned


def _added(moments: Any, block: np.ndarray) -> Any:
    from postproc.whiten import moments_of, together

    here = moments_of(block)
    return here if moments is None else together(moments, here)


def _projection_of(step: Step, moments: Any) -> Any:
    from postproc.whiten import from_moments

    if moments[0] < 2 or not moments[2].any():
        return None
    return from_moments(
        moments, step.options["dim"], whiten=step.name == "whiten", power=step.options.get("power", 1.0)
    )


def save(fitted: Fitted) -> bytes:
    """What a gallery's steps learned, as safetensors: with the settings and the gallery's rows all that later queries need."""
    from safetensors.numpy import save as to_bytes

    arrays: dict[str, np.ndarray] = {}
    for i, projections in fitted.learned.items():
        for name, one in projections.items():
            if one is not None:
                arrays |= {f"{i}/{name}/mean": one.mean, f"{i}/{name}/axes": np.ascontiguousarray(one.axes)}
                arrays[f"{i}/{name}/kept"] = np.array([one.kept])
    return to_bytes(arrays)


def load(steps: tuple[Step, ...], rows: Rows, data: bytes, weights: Sequence[float] | None = None) -> Fitted:
    """A fitted gallery again, from its rows after the steps and `save`'s bytes.

    Raises:
        ValueError: the bytes are no such file.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load as from_bytes

    try:
        arrays = from_bytes(data)
        fitted = Fitted(steps, weights, rows)
        for i, step in enumerate(steps):
            if step.name in ("pca", "whiten"):
                names = [key.split("/")[1] for key in arrays if key.startswith(f"{i}/") and key.endswith("/mean")]
                fitted.learned[i] = {name: _projection(arrays, f"{i}/{name}") for name in names}
    except (SafetensorError, KeyError, IndexError) as error:
        raise ValueError(f"what the search's steps learned: {len(data)} bytes cannot be read: {error}") from None
    return fitted


def _projection(arrays: Mapping[str, np.ndarray], where: str) -> Any:
    from postproc.whiten import Projection

    return Projection(arrays[f"{where}/mean"], arrays[f"{where}/axes"], float(arrays[f"{where}/kept"][0]))


def _learn(step: Step, rows: np.ndarray) -> Any:
    """The projection of one model's rows; None where they do not differ, as of an empty gallery: rows stay as they are."""
    from postproc import whiten
    from postproc.features import in_blocks

    if len(rows) < 2 or (rows == rows[0]).all():
        return None
    return whiten.learn(
        in_blocks(rows), step.options["dim"], whiten=step.name == "whiten", power=step.options.get("power", 1.0)
    )


def on_rows(step: Step, rows: Rows, weights: Sequence[float] | None, learned: Mapping[str, Any]) -> Rows:
    """A step that treats gallery and query rows alike."""
    if step.name == "views":
        from postproc.views import average_views

        return {
            base: average_views([one for name, one in rows.items() if name.partition("@")[0] == base])
            for base in bases(rows)
        }
    if step.name == "concat":
        from postproc.concat import concat

        return {JOINED: concat(list(rows.values()), weights)}
    if step.name == "power":
        from postproc.power import power_normalise

        return {name: power_normalise(one, step.options["alpha"]) for name, one in rows.items()}
    return {name: learned[name].apply(one) if learned.get(name) else one for name, one in rows.items()}


def _rank_anew(step: Step, queries: np.ndarray, gallery: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The list of a step that ranks the gallery itself."""
    if not len(queries) or not len(gallery):
        return np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf, np.float32)
    if step.name == "k_reciprocal":
        from postproc.kreciprocal import rerank

        how = {"k1": step.options["k1"], "k2": step.options["k2"], "lambda_value": step.options["lambda"]}
        rows, distance = rerank(queries, gallery, **how, top_k=min(k, len(gallery)))
        return rows, 1 - distance
    from postproc.diffusion import diffuse

    rows, score = diffuse(queries, gallery, **step.options, top_k=min(k, len(gallery)))
    return rows, score


def _on_list(
    step: Step, rows: np.ndarray, similarity: np.ndarray, query_category: np.ndarray, facts: Facts
) -> tuple[np.ndarray, np.ndarray]:
    if step.name == "category":
        from postproc.category_rule import category_rule

        return category_rule(
            rows, similarity, query_category, facts.category, step.options["rule"], step.options["penalty"]
        )
    if step.name == "detector_score":
        from postproc.detector_score import with_detector_score

        return with_detector_score(rows, similarity, facts.score, step.options["weight"])
    from postproc.grouping import group

    return group(rows, similarity, facts.product if step.options["by"] == "product" else facts.image)


def _exactly(rows: np.ndarray, similarity: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Lists cut or filled up to k places."""
    short = max(0, k - rows.shape[1])
    rows = np.pad(rows[:, :k].astype(np.int64), ((0, 0), (0, short)), constant_values=-1)
    return rows, np.pad(similarity[:, :k].astype(np.float32), ((0, 0), (0, short)), constant_values=-np.inf)
