"""The steps of a search: from every model's embeddings to ranked lists, in the order the settings give.

`parse` checks `search.steps`. `fit` applies to the gallery every step that changes its embeddings and learns what has
to be learned. `FittedSearch.rank` applies the steps to queries and ranks the gallery. The evaluation, the ablation and
the published gallery all use these. `retrieval.step_kinds` has the steps there are.

    steps:                                    # these work on several models' embeddings, each model's apart …
      - {step: power, alpha: 0.5}
      - {step: concat}                        # … until they are joined
      - {step: whiten, dim: 512}
      - {step: dba, k: 5}
      - {step: alpha_qe, k: 3, alpha: 3}
      - {step: k_reciprocal, k1: 20, k2: 6}   # instead of the plain search
      - {step: group, by: product}
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import safetensors.numpy

from postproc import whiten
from postproc.features import in_blocks
from postproc.hypotheses import Hypotheses
from postproc.neighbours import nearest
from postproc.whiten import Moments, Projection
from retrieval.step_kinds import ALTERNATIVES, STEPS, Embeddings, GalleryFacts, Lists, Options, Phase, StepKind, base_of


@dataclass(frozen=True)
class Step:
    """One step with all its options."""

    name: str
    options: Options

    @property
    def kind(self) -> StepKind:
        return STEPS[self.name]

    def as_json(self) -> dict[str, Any]:
        return {"step": self.name, **self.options}


# --- reading and checking a search ------------------------------------------------------------------------------------
def parse(entries: Sequence[Mapping[str, Any]], models: Sequence[str]) -> tuple[Step, ...]:
    """The steps of a search, after a check of names, options and order.

    `entries` are `{"step": NAME, option: value, …}`, as the settings have them; `models` names the embedders, views
    (`NAME@flip`) included. Raises ValueError in one line, with the place and the reason.

    >>> parse([{"step": "concat"}, {"step": "whiten", "dim": 512}], ["a", "b"])[1].options
    {'dim': 512, 'power': 1.0}
    """
    steps = tuple(_step(entry, f"steps[{i}]") for i, entry in enumerate(entries))
    _check_order(steps, models)
    return steps


def _step(entry: Any, where: str) -> Step:
    name = entry.get("step") if isinstance(entry, Mapping) else None
    if not isinstance(name, str) or name not in STEPS:
        raise ValueError(f"{where}: want {{step: NAME}}, NAME one of {', '.join(STEPS)}; got {entry!r}")
    options = STEPS[name].options
    for key, value in entry.items():
        if key != "step" and key not in options:
            allowed = ", ".join(options) or "none"
            raise ValueError(f"{where}: {name} has no option {key!r}; its options: {allowed}")
        if key != "step" and not options[key].accepts(value):
            raise ValueError(f"{where}: {name}.{key} wants {options[key].want}, got {value!r}")
    return Step(name, {key: entry.get(key, option.default) for key, option in options.items()})


def _check_order(steps: tuple[Step, ...], models: Sequence[str]) -> None:
    """Refuse an order in which a step could not do its work, with the reason."""
    names = [step.name for step in steps]
    for i, step in enumerate(steps):
        if step.name in names[:i] and not step.kind.repeats:
            raise ValueError(f"steps[{i}]: {step.name} stands there twice; one is enough")
    for first, second, reason in ALTERNATIVES:
        if first in names and second in names:
            raise ValueError(f"steps: {reason}; want one of them")
    if "views" in names and names[0] != "views":
        raise ValueError(f"steps: views are averaged as the models gave them; want it before {names[0]}")
    for i, step in enumerate(steps):
        for earlier in steps[:i]:
            if reason := _conflict(earlier.kind.phase, step.kind.phase):
                raise ValueError(f"steps[{i}]: {step.name} cannot come after {earlier.name}: {reason}")
    several = len(bases(models) if "views" in names else models) > 1
    if several and not {"concat", "rank_fusion"} & set(names):
        raise ValueError(f"steps: {len(models)} embedders and nothing that joins them; add concat or rank_fusion")


def _conflict(earlier: Phase, later: Phase) -> str:
    """Why a step of phase `later` cannot follow one of phase `earlier`; "" where it can."""
    if later <= Phase.GALLERY and earlier == Phase.QUERIES:
        return "queries were moved towards the gallery's embeddings as they were before it"
    if later <= Phase.QUERIES and earlier >= Phase.RANKING:
        return "it changes embeddings, and the ranking is made by then"
    if later == Phase.RANKING and earlier > Phase.RANKING:
        return "it ranks anew and would undo it"
    if later == Phase.LIST_FUSION and earlier == Phase.LISTS:
        return "that works on the one list that it makes"
    if earlier == Phase.GROUPS:
        return "only the best of each group is left by then"
    return ""


def bases(models: Iterable[str]) -> list[str]:
    """The models that these views are of, each once.

    >>> bases(["a", "a@flip", "b@margin0.1"])
    ['a', 'b']
    """
    return list(dict.fromkeys(map(base_of, models)))


def plain(steps: Sequence[Step]) -> bool:
    """Whether the search is concatenation and nothing else, the figure that papers compare."""
    return all(step.name == "concat" for step in steps)


def width(steps: Sequence[Step], dims: Mapping[str, int]) -> int:
    """Dimensions of an item after the steps, at most, from each model's `dims`; their sum where nothing joins them.

    >>> width(parse([{"step": "whiten", "dim": 8}, {"step": "concat"}], ["a", "b"]), {"a": 512, "b": 4})
    12
    """
    for step in steps:
        dims = step.kind.width(dims, step.options)
    return sum(dims.values())


# --- searching --------------------------------------------------------------------------------------------------------
@dataclass
class FittedSearch:
    """A gallery after the steps that change its embeddings, ready for queries."""

    steps: tuple[Step, ...]
    weights: Sequence[float] | None  # of the models in `concat` and `rank_fusion`, in their order; None: all alike
    gallery: Embeddings  # model -> (N, D) float32, one entry where the models are joined
    # place of the step -> model -> its projection, None where the embeddings do not differ
    learned: dict[int, dict[str, Projection | None]] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)  # by the step's place, on gallery and queries together
    # (queries, k) -> similarity, rows: an index over the one entry of `gallery`; None: all rows are compared
    find: Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]] | None = None

    def rank(self, queries: Embeddings, hypotheses: Hypotheses, facts: GalleryFacts, *, top_k: int, pool: int) -> Lists:
        """Rank the gallery for every query.

        `queries` are model -> (Q, D) float32 unit rows as the models gave them, the models `fit` had;
        `hypotheses` are the categories that each query may have, and `facts` are of the gallery's items. `top_k`
        results are wanted, at least 1; the steps on lists see the `pool` best candidates, at least top_k.

        Returns rows (Q, top_k) int64, positions in the gallery, best first, -1 where there are fewer, and similarity
        (Q, top_k) float32, falling, -inf there: the cosine, or 1 - distance of `k_reciprocal`, or the score of
        `diffusion` or `rank_fusion`, with what `detector_score` and `category` add or take.
        """
        k = max(pool, top_k) if any(step.kind.phase > Phase.RANKING for step in self.steps) else top_k
        per_model = self._search(self.transform(queries), k)
        rows, similarity = next(iter(per_model.values()))
        for i, step in enumerate(self.steps):
            with self._timed(i):
                if step.kind.phase == Phase.LIST_FUSION:
                    rows, similarity = step.kind.apply(list(per_model.values()), step.options, self.weights, k)
                elif step.kind.phase > Phase.LIST_FUSION:
                    rows, similarity = step.kind.apply((rows, similarity), step.options, hypotheses, facts)
        padding = ((0, 0), (0, max(0, top_k - rows.shape[1])))
        rows = np.pad(rows[:, :top_k].astype(np.int64), padding, constant_values=-1)
        return rows, np.pad(similarity[:, :top_k].astype(np.float32), padding, constant_values=-np.inf)

    def transform(self, queries: Embeddings) -> Embeddings:
        """Queries' embeddings in the gallery's space, expanded where a step says so."""
        if not queries:
            raise ValueError("search: no model's embeddings of the queries")
        for i, step in enumerate(self.steps):
            with self._timed(i):
                if step.kind.phase == Phase.QUERIES:  # no later step changes the gallery, so it is what expansion wants
                    how = step.options, self.find
                    queries = {name: step.kind.apply(q, self.gallery[name], *how) for name, q in queries.items()}
                else:
                    queries = self._apply(i, queries)
        return queries

    def project(self, embeddings: Embeddings, n_steps: int | None = None) -> Embeddings:
        """Embeddings after those of the first `n_steps` steps (None: all) that treat gallery and queries alike."""
        for i in range(len(self.steps) if n_steps is None else n_steps):
            embeddings = self._apply(i, embeddings)
        return embeddings

    def _apply(self, i: int, embeddings: Embeddings) -> Embeddings:
        step = self.steps[i]
        if step.kind.phase > Phase.JOIN:
            return embeddings
        changed: Embeddings = step.kind.apply(embeddings, step.options, self.weights, self.learned.get(i, {}))
        return changed

    def _search(self, queries: Embeddings, k: int) -> dict[str, Lists]:
        """Each model's lists, by inner product or by the step that ranks."""
        i = next((i for i, step in enumerate(self.steps) if step.kind.phase == Phase.RANKING), None)
        if i is None:
            found = {n: self.find(q, k) if self.find else nearest(q, self.gallery[n], k) for n, q in queries.items()}
            return {name: (rows, similarity) for name, (similarity, rows) in found.items()}
        step, lists = self.steps[i], {}
        with self._timed(i):
            for name, rows in queries.items():
                gallery, shape = self.gallery[name], (len(rows), k)
                if len(rows) and len(gallery):
                    lists[name] = step.kind.apply(rows, gallery, step.options, min(k, len(gallery)))
                else:
                    lists[name] = np.full(shape, -1, np.int64), np.full(shape, -np.inf, np.float32)
        return lists

    @contextmanager
    def _timed(self, i: int) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[i] = self.seconds.get(i, 0.0) + time.perf_counter() - start


def fit(steps: tuple[Step, ...], gallery: Embeddings, weights: Sequence[float] | None = None) -> FittedSearch:
    """Apply to the gallery every step that changes its embeddings, learning from them what is to be learned.

    The gallery is model -> (N, D) float32 unit rows; with N = 0 nothing is learned. `weights` has a number >= 0 for
    each model that `concat` or `rank_fusion` joins.
    """
    fitted = FittedSearch(steps, weights, dict(gallery))
    for i, step in enumerate(steps):
        with fitted._timed(i):
            if step.kind.phase == Phase.GALLERY:
                fitted.gallery = {name: step.kind.apply(rows, step.options) for name, rows in fitted.gallery.items()}
            if step.kind.fit is not None:
                fitted.learned[i] = {name: _learn(step, rows) for name, rows in fitted.gallery.items()}
            fitted.gallery = fitted._apply(i, fitted.gallery)
    return fitted


def fit_blocks(
    steps: tuple[Step, ...], blocks: Callable[[], Iterable[Embeddings]], weights: Sequence[float] | None = None
) -> FittedSearch:
    """`fit` for a gallery that does not fit in memory: learns block by block and leaves `gallery` empty.

    `blocks` is called once for each step that learns; it gives the gallery's embeddings, some rows at a time. `dba`,
    which compares all rows, may not come before a step that learns.
    """
    fitted = FittedSearch(steps, weights, {})
    for i, step in enumerate(steps):
        if step.kind.fit is not None:
            sums: dict[str, Moments] = {}
            for embeddings in blocks():
                for name, rows in fitted.project(embeddings, i).items():
                    if len(rows):
                        here = whiten.moments_of(rows)
                        sums[name] = whiten.together(sums[name], here) if name in sums else here
            fitted.learned[i] = {name: _projection(step, moments) for name, moments in sums.items()}
    return fitted


def _learn(step: Step, rows: np.ndarray) -> Projection | None:
    """The projection of one model's embeddings; None where they do not differ, as in an empty gallery."""
    differ = len(rows) > 1 and (rows != rows[0]).any()  # exact, where the scatter of equal rows has rounding errors
    return _projection(step, whiten.moments(in_blocks(rows))) if differ else None


def _projection(step: Step, moments: Moments) -> Projection | None:
    n, _, scatter = moments
    return step.kind.fit(moments, step.options) if step.kind.fit and n > 1 and scatter.any() else None


def save(fitted: FittedSearch) -> bytes:
    """What the steps learned, as safetensors. Later queries need it, the settings and the gallery's embeddings."""
    arrays: dict[str, np.ndarray] = {}
    for i, projections in fitted.learned.items():
        for name, projection in projections.items():
            if projection is not None:
                key = f"{i}/{name}"
                arrays |= {f"{key}/mean": projection.mean, f"{key}/axes": np.ascontiguousarray(projection.axes)}
                arrays[f"{key}/kept"] = np.array([projection.kept])
    return safetensors.numpy.save(arrays)


def load(
    steps: tuple[Step, ...], gallery: Embeddings, data: bytes, weights: Sequence[float] | None = None
) -> FittedSearch:
    """A fitted search again, from its gallery after the steps and the bytes of `save`. ValueError: other bytes."""
    fitted = FittedSearch(steps, weights, gallery)
    try:
        arrays = safetensors.numpy.load(data)
        for i, step in enumerate(steps):
            if step.kind.fit is not None:
                names = [key.split("/")[1] for key in arrays if key.startswith(f"{i}/") and key.endswith("/mean")]
                fitted.learned[i] = {name: _saved_projection(arrays, f"{i}/{name}") for name in names}
    except (safetensors.SafetensorError, KeyError, IndexError) as error:
        raise ValueError(f"what the search's steps learned: {len(data)} bytes cannot be read: {error}") from None
    return fitted


def _saved_projection(arrays: Mapping[str, np.ndarray], key: str) -> Projection:
    return Projection(arrays[f"{key}/mean"], arrays[f"{key}/axes"], float(arrays[f"{key}/kept"][0]))
