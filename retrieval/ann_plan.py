"""Which approximate index a gallery gets, and its size: rows, width, memory budget in, an `IndexPlan` out.

Sizes are counted from the formats that `retrieval.ann_build` writes. 1 MB is 10^6 bytes.
Sources: Jégou et al., Product Quantization, TPAMI 2011; Ge et al., OPQ, CVPR 2013; Malkov, HNSW, arXiv:1603.09320.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import inf, log2
from typing import Any

import faiss as _faiss

faiss: Any = _faiss  # FAISS' type stubs are incomplete
KINDS = ("flat", "hnsw", "ivf_flat", "ivf_pq")
SPARE = 8  # candidates beyond k that every approximate kind is asked for
EXACT_UNTIL = 20_000  # rows up to which `auto` compares all of them: some milliseconds a query
GRAPH_UNTIL = 200_000  # rows up to which `auto` takes the graph, whose building takes longest
FEWEST = 1_000  # rows below which clustering is refused
MOST_LISTS = 65_536
ROWS_A_LIST = 39  # of the training sample, for each cluster: FAISS warns of poor centres below
CODE_SAMPLE = 16_384  # rows that OPQ and the code book are learned from
CANDIDATES = 32  # of k: rows that codes propose before `tune` has looked
CODE_BITS = 4  # for each group of numbers; FastScan compares such codes in registers
BLOCK_ROWS = 32  # of a cluster, that FastScan compares at once
FILL_BLOCK = 8_192  # rows put into an index at once
PART_ROWS = 262_144  # rows of a part, unless the caller cuts the gallery otherwise
EXACT_BLOCK = 16_384  # rows that exact search compares at once


@dataclass(frozen=True)
class IndexPlan:
    """An index to build, how it is searched, its memory and disk. Parameters that a kind does not use are 0."""

    kind: str  # flat, hnsw, ivf_flat or ivf_pq
    rows: int  # N expected; a few per cent more or fewer make no difference
    dim: int  # D
    threads: int = 1  # for training, filling and searching
    n_lists: int = 0  # ivf: number of clusters
    nprobe: int = 0  # ivf: clusters searched for a query
    code_bytes: int = 0  # ivf_pq: bytes of a row's code
    code_dim: int = 0  # ivf_pq: width of a row after the rotation
    links: int = 0  # hnsw: M, neighbours of a row; the ground floor has twice as many
    ef_build: int = 0  # hnsw: candidates held while a row is inserted
    ef_search: int = 0  # hnsw: candidates held while searching
    k_factor: int = 1  # candidates compared exactly, as a multiple of k
    train_rows: int = 0  # ivf: rows wanted in the training sample
    # while searching, with every page of index and ids touched; the system can take back pages of vectors.npy, of which
    # the approximate kinds read k_factor x k rows a query, and of index.faiss once ivf_pq's codes are packed from it
    memory_mb: float = 0
    build_mb: float = 0  # of the most expensive step of building: training, filling one part, or the graph
    disk_mb: float = 0  # index, vectors and ids
    why: str = ""  # the choice in words


def plan(kind: str, rows: int, dim: int, *, budget_mb: float, threads: int = 1, vector_bytes: int = 4) -> IndexPlan:
    """Choose an index's parameters within a memory budget; the same choice on every machine.

    `kind` is flat, hnsw, ivf_flat, ivf_pq or auto; `rows` is N of the gallery, from 0, `dim` D, from 1. `budget_mb` is
    what searching, and each step of building, may hold, in 10^6 bytes. `threads` train, fill and search. A number in
    vectors.npy has 4 or 2 `vector_bytes`. Raises ValueError for an unknown kind, or one that does not fit the rows or
    the budget, with the kinds that do.

    >>> small = plan("auto", 5_000, 64, budget_mb=100)
    >>> small.kind, round(small.disk_mb, 2)     # 5,000 x (64 x 4 + 8) bytes
    ('flat', 1.32)
    """
    if kind not in (*KINDS, "auto"):
        raise ValueError(f"plan: kind {kind!r}; want one of {', '.join(KINDS)}, auto")
    if rows < 0 or dim < 1 or threads < 1 or vector_bytes not in (2, 4) or not budget_mb > 0:
        given = f"rows {rows}, dim {dim}, threads {threads}, vector_bytes {vector_bytes}, budget_mb {budget_mb}"
        raise ValueError(f"plan: {given}; want rows from 0, dim and threads from 1, 2 or 4 bytes, a budget above 0")
    plans = {each: _fit(each, rows, dim, budget_mb, threads, vector_bytes) for each in KINDS}
    choice = _automatic(plans, rows, budget_mb) if kind == "auto" else plans[kind]
    if isinstance(choice, str):
        fitting = [f"{each} ({_needs(fit):.0f} MB)" for each, fit in plans.items() if not isinstance(fit, str)]
        advice = f"what fits {budget_mb:.0f} MB: {', '.join(fitting) or 'nothing'}"
        raise ValueError(f"plan: {kind} of {rows:,} x {dim} rows {choice}; {advice}")
    return choice


@contextmanager
def faiss_threads(count: int) -> Iterator[None]:
    """FAISS with this many threads; afterwards the number is as before."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


# --- what fits the budget ---------------------------------------------------------------------------------------------
def _needs(fit: IndexPlan) -> float:
    return max(fit.memory_mb, fit.build_mb)


def _fit(kind: str, rows: int, dim: int, budget_mb: float, threads: int, vector_bytes: int) -> IndexPlan | str:
    """The best parameters within the budget, or why none fit."""
    if kind.startswith("ivf") and rows < FEWEST:
        return f"has too few rows to cluster (want {FEWEST:,})"
    least = inf
    for candidate in _candidates(kind, rows, dim, threads):
        fit = _with_sizes(candidate, vector_bytes)
        if _needs(fit) <= budget_mb:
            return fit
        least = min(least, _needs(fit))
    return f"needs {least:.0f} MB, the budget is {budget_mb:.0f} MB"


def _candidates(kind: str, rows: int, dim: int, threads: int) -> Iterator[IndexPlan]:
    """Plans of a kind without sizes, the preferred one first."""
    base = IndexPlan(kind, rows, dim, threads)
    if kind == "flat":
        yield replace(base, why="exact: every row is compared")
    elif kind == "hnsw":
        for links, ef in ((32, 128), (16, 128), (8, 64)):
            why = f"a graph of {links} links a row: the fewest comparisons a query, for the most memory"
            yield replace(base, links=links, ef_build=ef, ef_search=64, why=why)
    else:
        codes = (0,) if kind == "ivf_flat" else (96, 64, 48, 32, 24, 16, 8, 4, 2, 1)
        for code in codes:
            if code <= max(1, dim // 8):
                for n_lists in _list_counts(rows):
                    yield _clustered(base, n_lists, code)


def _clustered(base: IndexPlan, n_lists: int, code: int) -> IndexPlan:
    what = f"{code} bytes a row, {CANDIDATES} x k candidates compared exactly" if code else "rows kept whole"
    return replace(
        base,
        n_lists=n_lists,
        nprobe=max(1, n_lists // 64),
        code_bytes=code,
        code_dim=2 * code * max(1, min(4, base.dim // (2 * code))) if code else 0,
        k_factor=CANDIDATES if code else 1,
        train_rows=min(base.rows, max(ROWS_A_LIST * n_lists, CODE_SAMPLE if code else 0)),
        why=f"{n_lists} clusters of some {base.rows // n_lists} rows, {what}",
    )


def _list_counts(rows: int) -> list[int]:
    """About 2 sqrt(N) clusters, a power of two, each with rows to learn from; then a half, a quarter, an eighth."""
    most = min(2 * rows**0.5, rows / ROWS_A_LIST, MOST_LISTS)
    first = 1 << max(0, round(log2(most)))
    return [first // part for part in (1, 2, 4, 8) if first >= part]


def _with_sizes(sizeless: IndexPlan, vector_bytes: int) -> IndexPlan:
    """The plan with its memory and disk."""
    n, dim, index = sizeless.rows, sizeless.dim, index_bytes(sizeless)
    vectors, ids = n * dim * vector_bytes, 8 * n
    block = 4 * FILL_BLOCK * dim
    if sizeless.kind == "flat":
        memory, build = vectors + ids + 8 * min(EXACT_BLOCK, n) * dim, 0
    elif sizeless.kind == "hnsw":
        memory, build = index + ids, index + n * sizeless.threads + min(block, 4 * n * dim)
    else:
        row = index_row_bytes(sizeless)
        train = sizeless.train_rows * 4 * (2 * dim + sizeless.code_dim) + index - n * row
        memory, build = index + ids, max(train, 3 * min(PART_ROWS, n) * row + 2 * block)
        memory += sizeless.n_lists * sizeless.code_bytes * BLOCK_ROWS // 2  # the last block of a cluster is half empty
    return replace(sizeless, memory_mb=memory / 1e6, build_mb=build / 1e6, disk_mb=(index + vectors + ids) / 1e6)


def index_row_bytes(chosen: IndexPlan) -> int:
    """Bytes that one more row takes in index.faiss.

    >>> index_row_bytes(IndexPlan("ivf_pq", 10**6, 512, code_bytes=64))     # the code and the row's number
    72
    """
    return {
        "flat": 0,
        # float16 numbers, links of the ground floor, offset, level, upper floors
        "hnsw": 2 * chosen.dim + 4 * 2 * chosen.links + 8 + 4 + 4,
        "ivf_flat": 4 * chosen.dim + 8,
        "ivf_pq": chosen.code_bytes + 8,
    }[chosen.kind]


def index_bytes(chosen: IndexPlan) -> int:
    """Bytes of index.faiss: the rows, the clusters' centres, the rotation and the code book."""
    centres = chosen.n_lists * (4 * (chosen.code_dim or chosen.dim) + 8)
    codes = 4 * chosen.dim * chosen.code_dim + (4 << CODE_BITS) * chosen.code_dim
    return chosen.rows * index_row_bytes(chosen) + centres + codes


def _automatic(plans: dict[str, IndexPlan | str], rows: int, budget_mb: float) -> IndexPlan | str:
    """Exact while that is fast, the graph while it is soon built, then codes; the next if memory is short."""
    order = ["flat"] * (rows <= EXACT_UNTIL) + ["hnsw"] * (rows <= GRAPH_UNTIL) + ["ivf_pq"]
    for kind in order:
        fit = plans[kind]
        if not isinstance(fit, str):
            skipped = [f"{each} {plans[each]}" for each in order[: order.index(kind)]]
            why = "; ".join([f"{rows:,} rows in {budget_mb:.0f} MB: {kind}, {fit.why}", *skipped])
            return replace(fit, why=why)
    return "fits as no kind"
