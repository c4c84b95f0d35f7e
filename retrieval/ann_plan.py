"""Which approximate index for a gallery, and what it will cost: rows, width and a memory budget in, a `Plan` out.

Sizes are counted from the formats `retrieval.ann_build` writes; times from a short calibration on this machine. 1 MB is 10^6 bytes.
Source of the kinds: Jégou et al., Product Quantization, TPAMI 2011; Ge et al., OPQ, CVPR 2013; Malkov, HNSW, arXiv:1603.09320.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from math import log2
from typing import Any

import faiss as _faiss
import numpy as np

faiss: Any = _faiss  # its type stubs know a part of it
KINDS = ("flat", "hnsw", "ivf_flat", "ivf_pq")
SPARE = 8  # candidates beyond k that any approximate kind is asked for
EXACT_UNTIL = 20_000  # rows up to which `auto` searches them all: some milliseconds a query
GRAPH_UNTIL = 200_000  # rows up to which `auto` takes the graph, which is built by one thread, row by row
FEWEST = 1_000  # rows below which there is nothing to cluster
MOST_LISTS = 65_536
ROWS_A_LIST = 39  # of the training sample: fewer and FAISS warns that centres are poor
LIST_ROUNDS, CODE_ROUNDS = 10, 10  # of k-means for the clusters, for the code book
ROTATION_ROUNDS, ROTATION_STEPS = 10, 4  # of OPQ, and of k-means inside each; the first has CODE_ROUNDS
CODE_SAMPLE = 16_384  # rows OPQ and the codes are learned from
FILL_BLOCK = 8_192  # rows put into an index at once
PART_ROWS = 262_144  # rows of a part when nobody else cuts the gallery
EXACT_BLOCK = 16_384  # rows compared at once by exact search


@dataclass(frozen=True)
class Plan:
    """An index to be: what is built, how it is asked, and what both cost. Fields a kind has no use for are 0."""

    kind: str  # flat, hnsw, ivf_flat or ivf_pq
    rows: int  # N expected; a few per cent more or fewer do not matter
    dim: int  # D
    threads: int = 1
    n_lists: int = 0  # ivf: clusters
    nprobe: int = 0  # ivf: clusters looked into
    code_bytes: int = 0  # ivf_pq: of a row
    code_dim: int = 0  # ivf_pq: numbers of a row after the rotation
    links: int = 0  # hnsw: M, neighbours of a row; twice as many on the ground floor
    ef_build: int = 0  # hnsw: candidates held while a row is put in
    ef_search: int = 0  # hnsw: candidates held while searching
    k_factor: int = 1  # candidates compared exactly, as a multiple of k
    train_rows: int = 0  # ivf: rows of the sample wanted
    memory_mb: float = (
        0  # while searching: index and ids, all of them touched; what is read of vectors.npy comes on top for the
    )
    # approximate kinds (k_factor x k rows a query), in pages the system can take back
    build_mb: float = 0  # the dearest step of building: a sample trained on, one part filled, or the graph
    disk_mb: float = 0  # index, vectors and ids
    build_s: float = 0  # training and filling in one process, each thread with a core to itself
    why: str = ""


def plan(
    kind: str, rows: int, dim: int, *, budget_mb: float, threads: int = 1, vector_bytes: int = 4, timed: bool = True
) -> Plan:
    """Choose an index's parameters within a memory budget.

    Args:
        kind: flat | hnsw | ivf_flat | ivf_pq | auto.
        rows: N of the gallery, 0 or more. dim: D, at least 1.
        budget_mb: 10^6 bytes that searching, and each step of building, may hold.
        threads: for training, filling and searching. The graph is built by one thread: with more, its links depend on their race.
        vector_bytes: of a number in vectors.npy, 4 or 2.
        timed: calibrate, some 50 ms a width, and say `build_s`; False: 0 there, and the same plan on every machine.

    Raises:
        ValueError: a kind that is unknown, or that does not fit rows or budget, with what would.

    >>> chosen = plan("auto", 5_000, 64, budget_mb=100, timed=False)
    >>> chosen.kind, round(chosen.disk_mb, 2)     # 5,000 x (64 x 4 + 8) bytes
    ('flat', 1.32)
    """
    if kind not in (*KINDS, "auto"):
        raise ValueError(f"plan: kind {kind!r}; want one of {', '.join(KINDS)}, auto")
    if rows < 0 or dim < 1 or threads < 1 or vector_bytes not in (2, 4) or not budget_mb > 0:
        raise ValueError(
            f"plan: rows {rows}, dim {dim}, threads {threads}, vector_bytes {vector_bytes}, budget_mb {budget_mb}; "
            "want rows from 0, dim and threads from 1, 2 or 4 bytes, a budget above 0"
        )
    fits = {each: _fitting(each, rows, dim, budget_mb, threads, vector_bytes) for each in KINDS}
    chosen = _automatic(fits, rows, budget_mb) if kind == "auto" else fits[kind]
    if isinstance(chosen, str):
        others = [f"{each} ({found.needs:.0f} MB)" for each, found in fits.items() if not isinstance(found, str)]
        raise ValueError(
            f"plan: {kind} of {rows:,} x {dim} rows {chosen}; what fits {budget_mb:.0f} MB: {', '.join(others) or 'nothing'}"
        )
    made = chosen.plan
    return replace(made, build_s=_build_s(made)) if timed else made


@contextmanager
def faiss_threads(count: int) -> Iterator[None]:
    """FAISS with so many threads, and afterwards as before."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


# ----------------------------------------------------------------------------------------------------------------------
# What fits.


@dataclass(frozen=True)
class _Fit:
    plan: Plan

    @property
    def needs(self) -> float:
        return max(self.plan.memory_mb, self.plan.build_mb)


def _fitting(kind: str, rows: int, dim: int, budget_mb: float, threads: int, vector_bytes: int) -> _Fit | str:
    """The best parameters within the budget, or why there are none."""
    if kind.startswith("ivf") and rows < FEWEST:
        return f"has too few rows to cluster (want {FEWEST:,})"
    least = np.inf
    for candidate in _candidates(kind, rows, dim, threads):
        fit = _Fit(_sized(candidate, vector_bytes))
        if fit.needs <= budget_mb:
            return fit
        least = min(least, fit.needs)
    return f"needs {least:.0f} MB, the budget is {budget_mb:.0f} MB"


def _candidates(kind: str, rows: int, dim: int, threads: int) -> Iterator[Plan]:
    """Plans of a kind without sizes, the one wanted most first."""
    base = Plan(kind, rows, dim, threads)
    if kind == "flat":
        yield replace(base, why="exact: every row is compared")
    elif kind == "hnsw":
        for links, ef in ((32, 128), (16, 128), (8, 64)):
            why = f"a graph of {links} links a row: the fewest comparisons a query, for the most memory"
            yield replace(base, links=links, ef_build=ef, ef_search=64, why=why)
    else:
        most = max(1, dim // 8)
        for code in (0,) if kind == "ivf_flat" else [c for c in (96, 64, 48, 32, 24, 16, 8, 4, 2, 1) if c <= most]:
            for n_lists in _list_counts(rows):
                yield _clustered(base, n_lists, code)


def _clustered(base: Plan, n_lists: int, code: int) -> Plan:
    what = f"{code} bytes a row, {16 if code else 1} x k candidates compared exactly" if code else "rows kept whole"
    return replace(
        base, n_lists=n_lists, nprobe=max(1, n_lists // 64), code_bytes=code, code_dim=code * min(8, base.dim // code) if code else 0,
        k_factor=16 if code else 1, train_rows=min(base.rows, max(ROWS_A_LIST * n_lists, min(CODE_SAMPLE, ROWS_A_LIST * 256))),
        why=f"{n_lists} clusters of some {base.rows // n_lists} rows, {what}",
    )  # fmt: skip


def _list_counts(rows: int) -> list[int]:
    """About 2 sqrt(N), a power of two, each cluster with rows to learn from; then halves of it down to an eighth."""
    most = min(2 * rows**0.5, rows / ROWS_A_LIST, MOST_LISTS)
    first = 1 << max(0, round(log2(most)))
    return [first // part for part in (1, 2, 4, 8) if first >= part]


def _sized(made: Plan, vector_bytes: int) -> Plan:
    """The plan with its memory and disk. All in bytes, then 10^6 of them."""
    vectors, ids, index = made.rows * made.dim * vector_bytes, 8 * made.rows, index_bytes(made)
    block = 4 * FILL_BLOCK * made.dim
    if made.kind == "flat":
        memory, build = vectors + ids + 8 * min(EXACT_BLOCK, made.rows) * made.dim, 0
    elif made.kind == "hnsw":
        memory, build = index + ids, index + made.rows + min(block, 4 * made.rows * made.dim)
    else:
        row = index_row_bytes(made)
        train = made.train_rows * 4 * (2 * made.dim + (made.code_dim or 0)) + index - made.rows * row
        memory, build = index + ids, max(train, 3 * min(PART_ROWS, made.rows) * row + 2 * block)
    return replace(made, memory_mb=memory / 1e6, build_mb=build / 1e6, disk_mb=(index + vectors + ids) / 1e6)


def index_row_bytes(made: Plan) -> int:
    """Of one more row in index.faiss.

    >>> index_row_bytes(Plan("ivf_pq", 10**6, 512, code_bytes=64))     # the code and the row's number
    72
    """
    return {
        "flat": 0,
        "hnsw": 2 * made.dim
        + 4 * 2 * made.links
        + 8
        + 4
        + 4,  # float16 numbers, ground floor, offset, level, upper floors
        "ivf_flat": 4 * made.dim + 8,
        "ivf_pq": made.code_bytes + 8,
    }[made.kind]


def index_bytes(made: Plan) -> int:
    """Of index.faiss: the rows, the clusters' centres, the rotation and the code book."""
    width = made.code_dim or made.dim
    centres = made.n_lists * (4 * width + 8)
    codes = 4 * made.dim * made.code_dim + 4 * 256 * made.code_dim
    return made.rows * index_row_bytes(made) + centres + codes


def _automatic(fits: dict[str, _Fit | str], rows: int, budget_mb: float) -> _Fit | str:
    """Exact while that is quick, then the graph while that is built soon, then codes; the next one where memory is short."""
    order = ["flat"] * (rows <= EXACT_UNTIL) + ["hnsw"] * (rows <= GRAPH_UNTIL) + ["ivf_pq"]
    for kind in order:
        found = fits[kind]
        if not isinstance(found, str):
            passed = [f"{each} {fits[each]}" for each in order[: order.index(kind)]]
            reason = "; ".join([f"{rows:,} rows in {budget_mb:.0f} MB: {kind}, {found.plan.why}", *passed])
            return _Fit(replace(found.plan, why=reason))
    return "fits as no kind"


# ----------------------------------------------------------------------------------------------------------------------
# How long building takes.

# hnsw: comparisons to put a row in, over ef_build x log2(N). It is the data's: by CPU time 7 at 4,000 x 64 and 5 at 10,000 x 512 of random
# rows, 8 to 11 at 40,000 in families of eight, but 1.9 and 3.2 at 40,000 and 150,000 embeddings of photos, whose graph is built in a quarter
# to a half of the seconds said.
PAIRS_A_ROW = 7.0
ENCODING = 0.2  # a sub-vector's comparison when encoding, over one in k-means; by CPU time


def _build_s(made: Plan) -> float:
    """Seconds of training and filling where the plan's threads have a core each; on a busy machine it is their CPU time over threads."""
    if made.kind == "flat" or not made.rows:
        return 0.0
    if made.kind == "hnsw":
        pairs = made.rows * PAIRS_A_ROW * made.ef_build * log2(made.rows + 1)
        return pairs / _rates(made.dim)[2]
    wide, narrow, _ = _rates(made.code_dim or made.dim)
    lists = (made.train_rows * LIST_ROUNDS + made.rows) * made.n_lists
    if made.kind == "ivf_flat":
        return lists / wide / made.threads
    sample = min(CODE_SAMPLE, made.train_rows)
    rounds = ROTATION_ROUNDS * ROTATION_STEPS + 2 * CODE_ROUNDS
    codes = (sample * rounds + made.rows * ENCODING) * 256 * made.code_bytes
    rotations = (3 * sample * ROTATION_ROUNDS + made.rows) * made.dim
    return ((lists + rotations) / wide + codes / narrow) / made.threads


@lru_cache(maxsize=32)
def _rates(dim: int) -> tuple[float, float, float]:
    """Comparisons a second of one thread: of whole rows in a matrix product, of sub-vectors of 8 numbers, of single float16 rows."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((1024, dim), np.float32)
    short = rng.standard_normal((4096, 8), np.float32)
    stored = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    stored.train(rows)
    stored.add(rows)
    with faiss_threads(1):
        wide = _rate(lambda: faiss.knn(rows, rows, 1), len(rows) ** 2)
        narrow = _rate(lambda: faiss.knn(short, short[:256], 1), len(short) * 256)
        return wide, narrow, _rate(lambda: stored.search(rows[:16], 1), 16 * len(rows))


def _rate(work: Callable[[], Any], count: int) -> float:
    """By this thread's own time, so that other work on the machine does not count; of five goes the middle one."""
    taken = []
    for _ in range(5):
        start = time.thread_time()
        work()
        taken.append(time.thread_time() - start)
    return count / max(sorted(taken)[2], 1e-9)
