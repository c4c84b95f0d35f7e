"""How well an index finds what exact search finds: its recall, its drift, and the cheapest parameters that suffice."""

from dataclasses import replace
from typing import Any

import faiss as _faiss
import numpy as np

from postproc.neighbours import pair_products
from retrieval.ann import BLOCK, AnnIndex, checked_queries
from retrieval.ann_build import unit_block
from retrieval.ann_files import opened
from retrieval.ann_plan import SPARE, IndexPlan, faiss_threads

faiss: Any = _faiss  # FAISS' type stubs are incomplete
FACTORS = (1, 2, 4, 8, 16, 32, 64)  # of k: numbers of candidates that `tune` tries


def recall(index: AnnIndex, queries: np.ndarray, k: int = 10) -> float:
    """Share of the exact k nearest that `search` finds, mean over queries: in [0, 1]; nan without queries or rows.

    A result as similar as the exact k-th counts, so copies of a row may stand for each other.
    """
    k = min(k, index.rows)
    if not k or not len(queries):
        return float("nan")
    kth_similarity = index.exact(queries, k)[0][:, -1:]
    return float((index.search(queries, k)[0] >= kth_similarity).mean())


def quantisation_error(index: AnnIndex | bytes, sample: np.ndarray) -> float:
    """Mean squared distance of unit rows to what the index stores of them: it grows as rows drift.

    ivf_pq: to the code's reconstruction; ivf_flat, which stores rows whole: to the centre of their cluster; 0 for hnsw
    and flat, which learn nothing. Compare it with the error of rows that were held out of training, from the same
    trained bytes: the training sample itself fits a little better. Half as much again is a reason to train again.
    `index` may also be `train`'s bytes; `sample` (S, D) are float32 unit rows, and the error is nan if S is 0.
    """
    inner = opened("trained", index) if isinstance(index, bytes) else index.faiss_index
    if inner is None or isinstance(inner, faiss.IndexHNSW):
        return 0.0
    if not len(sample):
        return float("nan")
    sample = unit_block("quantisation error", sample, inner.d)
    if isinstance(inner, faiss.IndexPreTransform):
        stored = inner.sa_decode(inner.sa_encode(sample))
    else:
        centres = faiss.downcast_index(inner.quantizer)
        stored = np.stack([centres.reconstruct(int(i)) for i in centres.search(sample, 1)[1][:, 0]])
    return float(((sample - stored) ** 2).sum(axis=1).mean())


def tune(index: AnnIndex, queries: np.ndarray, target: float = 0.95, k: int = 10) -> dict[str, Any]:
    """The cheapest of the usual parameters that reach a recall on sample queries: for `AnnIndex.open(parameters=…)`.

    The cost of a candidate is counted in bytes read, so the choice does not depend on how busy the machine is.
    `queries` (Q, D) are float32, at least one, best a few hundred like those that users will send; `target` is in
    (0, 1].

    Returns {"nprobe", "k_factor", "recall", "target", "k"}, for hnsw "ef_search" in place of "nprobe", and for flat
    {"recall": 1.0, "target", "k"} alone; plain JSON. "recall" is this sample's. Raises ValueError for no rows or
    queries, or a target that the best setting misses, with its recall.
    """
    if not len(queries) or not index.rows or not 0 < target <= 1:
        given = f"{len(queries)} queries, {index.rows} rows, target {target}"
        raise ValueError(f"tune: {given}; want some of each, and in (0, 1]")
    wanted = {"target": target, "k": k}
    if index.plan.kind == "flat":
        return {"recall": 1.0, **wanted}
    k = min(k, index.rows)
    queries = checked_queries(queries, index.plan.dim)
    kth_similarity = index.exact(queries, k)[0][:, -1:]
    options: list[tuple[float, dict[str, Any]]] = []
    highest = 0.0
    for parameters in _settings(index.plan):
        if options and _bytes_read(replace(index.plan, **parameters), 0) > min(options, key=_cost)[0]:
            break  # the settings that follow read even more
        recalls = _recall_by_factor(index.with_parameters(**parameters), queries, kth_similarity, k)
        highest = max(highest, *recalls.values())
        for factor, reached in recalls.items():
            if reached >= target:
                cost = _bytes_read(replace(index.plan, **parameters), k * factor)
                options.append((cost, {**parameters, "k_factor": factor, "recall": reached, **wanted}))
    if not options:
        reason = f"recall {target} is not reached, {highest:.3f} at the most"
        raise ValueError(f"tune: {reason}; want a plan of more bytes a row or links")
    return min(options, key=_cost)[1]


def _cost(option: tuple[float, dict[str, Any]]) -> float:
    return option[0]


def _settings(plan: IndexPlan) -> list[dict[str, Any]]:
    """The settings to try, the cheapest first."""
    if plan.kind == "hnsw":
        return [{"ef_search": ef} for ef in (16, 32, 64, 128, 256, 512)]
    counts = [1, *(count << power for power in range(plan.n_lists.bit_length()) for count in (2, 3))]
    return [{"nprobe": count} for count in counts if count <= plan.n_lists]


def _recall_by_factor(index: AnnIndex, queries: np.ndarray, kth_similarity: np.ndarray, k: int) -> dict[int, float]:
    """Factor -> recall when so many times k candidates are compared exactly.

    A graph is searched more widely when it is asked for more candidates, so that a long list does not tell what a
    short one would have found. Its `ef_search` is what counts; the factor stays 1.
    """
    if index.plan.kind == "hnsw":
        found = index.with_parameters(k_factor=1).search(queries, k)[0]
        return {1: float((found >= kth_similarity).mean())}
    counts = np.zeros(len(FACTORS))
    with faiss_threads(index.plan.threads):
        for start in range(0, len(queries), BLOCK):
            block = queries[start : start + BLOCK]
            rows = index.candidates(block, max(FACTORS) * k)
            line, place = np.nonzero(rows >= 0)
            hit = pair_products(block, index.vectors, line, rows[line, place]) >= kth_similarity[start + line, 0]
            is_hit = np.zeros(rows.shape, np.int64)
            is_hit[line[hit], place[hit]] = 1
            so_far = np.minimum(np.cumsum(is_hit, axis=1), k)
            last = [min(max(factor * k, k + SPARE), rows.shape[1]) - 1 for factor in FACTORS]
            counts += so_far[:, last].sum(axis=0)
    return dict(zip(FACTORS, (counts / (k * len(queries))).tolist(), strict=True))


def _bytes_read(plan: IndexPlan, n_exact: int) -> float:
    """Bytes read for one query; the `n_exact` rows compared exactly count twice, because they lie scattered."""
    exact = 2 * n_exact * 4 * plan.dim
    if plan.kind == "hnsw":
        return max(plan.ef_search, n_exact) * plan.links * 2 * plan.dim + exact
    row = (plan.code_bytes or 4 * plan.dim) + 8
    return plan.nprobe * plan.rows / plan.n_lists * row + exact
