"""Approximate nearest rows of a gallery by inner product: queries in, similarities and ids out; FAISS, never torch.

A folder of `retrieval.ann_build`'s files is one version of a gallery and never changes; `with_changes` writes the next one.
The index only proposes: every similarity is computed from vectors.npy, so all kinds agree on it to the last bit.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import faiss as _faiss
import numpy as np

from postproc.neighbours import nearest, pair_products
from retrieval import ann_build
from retrieval.ann_build import unit_block, write_rows
from retrieval.ann_plan import EXACT_BLOCK, FILL_BLOCK, SPARE, Plan, faiss_threads

faiss: Any = _faiss  # its type stubs know a part of it
BLOCK = 256  # queries whose candidates are compared at once
COMPACT_ABOVE = 0.2  # share of dead rows past which `with_changes` writes the living alone
FACTORS = (1, 2, 4, 8, 16, 32, 64)  # of k: candidates `tune` tries
ROUNDS = 3  # times a query is asked for four times as many candidates before all rows are compared


class AnnIndex:
    """One version of a gallery, open for searching. Made by `open`; closes with the process."""

    def __init__(self, plan: Plan, index: Any, vectors: np.ndarray, ids: np.ndarray, dead: np.ndarray) -> None:
        self.plan, self.vectors, self.ids, self.dead = plan, vectors, ids, dead
        self._index = index  # None for flat
        self._is_dead = np.zeros(len(ids), bool) if len(dead) else None
        if self._is_dead is not None:
            self._is_dead[dead] = True

    @staticmethod
    def open(
        folder: Path,
        plan: Plan,
        *,
        parameters: Mapping[str, Any] | None = None,
        digests: Mapping[str, str] | None = None,
    ) -> "AnnIndex":
        """Map a gallery's files.

        Args:
            folder: with vectors.npy, ids.npy, index.faiss (not for flat) and perhaps dead.npy.
            plan: the one it was built by.
            parameters: from `tune`; they replace the plan's.
            digests: BLAKE2b-128 in hex of any of the files, by name; index.faiss is checked against its own in any case, which
                reads it once.

        Raises:
            ValueError: a file that is missing, spoiled, foreign, of another digest, or that does not fit the plan or the others.
        """
        for name, digest in (digests or {}).items():
            if name != "index.faiss":
                ann_build.check_digest(folder / name, digest)
        plan = replace(plan, **{f.name: parameters[f.name] for f in fields(Plan) if f.name in (parameters or {})})  # type: ignore[index]
        vectors = ann_build.read_array(folder / "vectors.npy", 2, (np.float32, np.float16))
        ids = ann_build.read_array(folder / "ids.npy", 1, (np.int64,))
        dead = np.zeros(0, np.int64)
        if (folder / "dead.npy").exists():
            dead = np.array(ann_build.read_array(folder / "dead.npy", 1, (np.int64,)))
        if (
            len(ids) != len(vectors)
            or vectors.shape[1] != plan.dim
            or (len(dead) and not 0 <= dead.min() <= dead.max() < len(ids))
        ):
            raise ValueError(
                f"{folder}: vectors {vectors.shape}, ids {ids.shape}, {len(dead)} dead, plan of {plan.dim} numbers a row; "
                "the files belong to different versions"
            )
        index = None
        if plan.kind != "flat":
            index = ann_build.read_index(folder / "index.faiss", (digests or {}).get("index.faiss"))
            found = _kind(index)
            fewest = len(ids) - (
                0 if found == "hnsw" else len(dead)
            )  # a cluster may have been written without its dead
            if found != plan.kind or index.d != plan.dim or not fewest <= index.ntotal <= len(ids):
                raise ValueError(
                    f"{folder}: index.faiss is {found} of {index.ntotal:,} x {index.d} rows, "
                    f"want {plan.kind} of {len(ids):,} x {plan.dim}; the files belong to different versions"
                )
        return AnnIndex(plan, index, vectors, ids, dead)

    @property
    def rows(self) -> int:
        """Living rows."""
        return len(self.ids) - len(self.dead)

    @property
    def dead_share(self) -> float:
        """Of the stored rows, in [0, 1]."""
        return len(self.dead) / max(1, len(self.ids))

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k most similar living rows, as far as the index finds them.

        Args:
            queries: (Q, D) float32, finite; Q may be 0. Compared in blocks; best of unit length.
            k: at least 1; may exceed the gallery.

        Returns:
            similarity (Q, k) float32, falling: the inner product summed in float64 and rounded, which depends on the two rows alone, so
                that copies of a row are equal; -inf where fewer than k rows are living.
            ids (Q, k) int64; equal similarities by lower id; -1 where fewer. With `flat` the list is that of a sort of all
                products. Similarities that merely differ by rounding (some 1e-7) are as they are, never called equal.

        Raises:
            ValueError: k under 1, or queries of another shape, type or width, or not finite.
        """
        if k < 1:
            raise ValueError(f"search: want k of at least 1, got {k}")
        queries = _checked(queries, self.plan.dim)
        similarity, ids = np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1, np.int64)
        held = min(k, self.rows)
        if held:
            with faiss_threads(self.plan.threads):
                for start in range(0, len(queries), BLOCK):
                    some = slice(start, start + BLOCK)
                    similarity[some, :held], ids[some, :held] = self._block(queries[some], held)
        return similarity, ids

    def exact(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """As `search`, comparing every living row: the oracle of `recall` and `tune`, and `flat` itself."""
        queries = _checked(queries, self.plan.dim)
        similarity, ids = np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1, np.int64)
        for vectors, names in self._living(EXACT_BLOCK):
            order = (
                np.argsort(names) if (names[1:] < names[:-1]).any() else slice(None)
            )  # so that ties go to the lower id
            vectors, names = vectors[order], np.append(names[order], -1)
            found, places = nearest(queries, vectors, k)
            similarity, ids = _best(
                np.concatenate([similarity, found], axis=1), np.concatenate([ids, names[places]], axis=1), k
            )
        return similarity, ids

    def with_changes(
        self, out: Path, add_vectors: np.ndarray, add_ids: np.ndarray, remove_ids: np.ndarray, *, seed: int = 0
    ) -> "AnnIndex":
        """The next version: the same clusters, code book and graph, some rows more and some dead.

        The removed are left out of an IVF index at once and stay in a graph as steps of the way; their vectors stay until more than
        COMPACT_ABOVE of all are dead (or the kind is flat): then only the living are written, in their order, and a graph is built
        again. Memory: a graph is loaded whole; other kinds stream.

        Args:
            out: an empty folder of its own.
            add_vectors: (A, D) float32 or float16 unit rows. add_ids: (A,) int64, from 0.
            remove_ids: (R,) int64, all living. An id both removed and added is replaced.

        Raises:
            ValueError: ids to remove that are not living, to add that are; `out` that is not empty; rows that do not fit.
        """
        if out.exists() and any(out.iterdir()):
            raise ValueError(f"changes: {out} is not empty; want a folder for the next version alone")
        add_ids = ann_build.checked_ids("changes", add_ids, len(add_vectors))
        gone = self._rows_to_remove(np.asarray(remove_ids), add_ids)
        unit_block("changes", add_vectors[:0], self.plan.dim)
        out.mkdir(parents=True, exist_ok=True)
        dead = np.union1d(self.dead, gone).astype(np.int64)
        stored = len(self.ids) + len(add_ids)
        compact = len(dead) > 0 and (self.plan.kind == "flat" or len(dead) / stored > COMPACT_ABOVE)
        alive = np.ones(len(self.ids), bool)
        alive[dead] = False
        kept = alive if compact else np.ones(len(alive), bool)
        self._write_rows(out, kept, add_vectors, add_ids)
        if len(dead) and not compact:
            write_rows(out / "dead.npy", dead.shape, dead.dtype, [dead])
        numbers = np.where(alive, np.cumsum(kept) - 1, -1)
        self._write_index(out, numbers, int(kept.sum()), add_vectors, compact, seed)
        return AnnIndex.open(out, self.plan)

    def _block(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """`search` for at most BLOCK queries, 1 <= k <= living rows."""
        if self._index is None:
            return self.exact(queries, k)
        similarity, ids = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        asked, effort = max(k * self.plan.k_factor, k + SPARE), 1
        asked, open_ = int(asked / (1 - self.dead_share)) + 1, np.arange(len(queries))
        for _ in range(ROUNDS):
            similarity[open_], ids[open_] = self._compared(
                queries[open_], self._candidates(queries[open_], asked, effort), k
            )
            open_ = open_[ids[open_, -1] < 0]  # too few in the clusters looked into, or too many dead
            if not len(open_):
                return similarity, ids
            asked, effort = 4 * asked, 4 * effort
        similarity[open_], ids[open_] = self.exact(queries[open_], k)
        return similarity, ids

    def _candidates(self, queries: np.ndarray, count: int, effort: int) -> np.ndarray:
        """(Q, count) int64 row numbers as the index ranks them, -1 for none or a dead one; effort multiplies what is looked into."""
        plan, count = self.plan, min(count, max(1, self._index.ntotal))
        if plan.kind == "hnsw":
            how = faiss.SearchParametersHNSW(efSearch=max(plan.ef_search * effort, count))
        else:
            how = faiss.SearchParametersIVF(nprobe=min(plan.nprobe * effort, plan.n_lists))
            how = faiss.SearchParametersPreTransform(index_params=how) if plan.code_bytes else how
        _, rows = self._index.search(queries, count, params=how)
        if self._is_dead is not None:
            rows[self._is_dead[rows] & (rows >= 0)] = -1
        return rows

    def _compared(self, queries: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best of candidates (Q, C), -1 for none, by their similarity in vectors.npy; -inf and -1 where fewer."""
        rough = self._rough(queries, rows)
        held = min(k, rows.shape[1])
        border = np.partition(rough, rows.shape[1] - held, axis=1)[:, rows.shape[1] - held]
        doubt = 2 * (self.plan.dim + 4) * np.finfo(np.float32).eps * 1.01 * np.linalg.norm(queries, axis=1)
        line, place = np.nonzero((rough >= (border - doubt)[:, None]) & (rows >= 0))
        true, ids = np.full(rows.shape, -np.inf, np.float32), np.full(rows.shape, -1, np.int64)
        true[line, place] = pair_products(queries, self.vectors, line, rows[line, place])
        ids[line, place] = self.ids[rows[line, place]]
        if held < k:
            more = ((0, 0), (0, k - held))
            true, ids = np.pad(true, more, constant_values=-np.inf), np.pad(ids, more, constant_values=-1)
        return _best(true, ids, k)

    def _rough(self, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """(Q, C) float32 products as float32 sums; -inf for none. FAISS reads the mapped rows where they lie."""
        if self.vectors.dtype == np.float32:
            rough = np.full(rows.shape, -np.inf, np.float32)
            rows = np.ascontiguousarray(rows)
            faiss.fvec_inner_products_by_idx(
                faiss.swig_ptr(rough), faiss.swig_ptr(queries), faiss.swig_ptr(np.asarray(self.vectors)), faiss.swig_ptr(rows),
                queries.shape[1], *rows.shape,
            )  # fmt: skip
        else:
            rough = np.stack([self.vectors[r].astype(np.float32) @ q for r, q in zip(rows, queries, strict=True)])
        return np.where(rows >= 0, rough, -np.inf)

    def _living(self, block: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """vectors (n, D) float32 and ids (n,) int64 of the living, block by block in stored order."""
        for start in range(0, len(self.ids), block):
            vectors, ids = self.vectors[start : start + block], self.ids[start : start + block]
            if self._is_dead is not None:
                alive = ~self._is_dead[start : start + block]
                vectors, ids = vectors[alive], ids[alive]
            if len(ids):
                yield np.asarray(vectors, np.float32), np.asarray(ids)

    def _rows_to_remove(self, remove_ids: np.ndarray, add_ids: np.ndarray) -> np.ndarray:
        """(R,) int64 rising; both kinds of ids are looked up in one pass over the living."""
        remove_ids = ann_build.checked_ids("changes", remove_ids, len(remove_ids))
        gone = [start + np.flatnonzero(np.isin(ids, remove_ids)) for start, ids in self._living_ids()]
        rows = np.concatenate([np.zeros(0, np.int64), *gone])
        missing = np.setdiff1d(remove_ids, self.ids[rows])
        if len(missing):
            raise ValueError(f"changes: {len(missing)} ids to remove are not in the gallery, the first {missing[0]}")
        staying = np.setdiff1d(add_ids, remove_ids)
        for _, ids in self._living_ids():
            twice = np.intersect1d(ids, staying)
            if len(twice):
                raise ValueError(
                    f"changes: id {twice[0]} is in the gallery already; remove it in the same call to replace it"
                )
        return rows

    def _living_ids(self) -> Iterator[tuple[int, np.ndarray]]:
        """First row number and ids, -1 where dead, of a million rows at a time."""
        for start in range(0, len(self.ids), 1 << 20):
            ids = np.array(self.ids[start : start + (1 << 20)])
            if self._is_dead is not None:
                ids[self._is_dead[start : start + (1 << 20)]] = -1
            yield start, ids

    def _write_rows(self, out: Path, kept: np.ndarray, add_vectors: np.ndarray, add_ids: np.ndarray) -> None:
        def blocks() -> Iterable[np.ndarray]:
            for start in range(0, len(kept), FILL_BLOCK):
                yield self.vectors[start : start + FILL_BLOCK][kept[start : start + FILL_BLOCK]]
            for start in range(0, len(add_ids), FILL_BLOCK):
                yield unit_block("changes", add_vectors[start : start + FILL_BLOCK], self.plan.dim, start)

        count = int(kept.sum()) + len(add_ids)
        write_rows(out / "vectors.npy", (count, self.plan.dim), self.vectors.dtype, blocks())
        write_rows(out / "ids.npy", (count,), np.dtype(np.int64), [self.ids[kept], add_ids])

    def _write_index(
        self, out: Path, numbers: np.ndarray, first: int, add_vectors: np.ndarray, compact: bool, seed: int
    ) -> None:
        """`numbers` (N,): new row numbers of the stored rows, -1 for the dead; the added begin at `first`."""
        if self.plan.kind == "hnsw" and compact:
            ann_build.build(self.plan, out, seed=seed)
        elif self.plan.kind == "hnsw":
            ann_build.write_index(ann_build.grown(self._index, self.plan, add_vectors), out / "index.faiss")
        elif self.plan.kind != "flat":
            trained = ann_build.emptied(self._index)
            part = ann_build.fill(
                trained, add_vectors, np.arange(first, first + len(add_vectors)), threads=self.plan.threads
            )
            (out / ".added").write_bytes(part)
            sources = [ann_build.Renumbered(self._index, numbers), ann_build.part_lists(out / ".added", trained)]
            ann_build.write_lists(trained, sources, out / "index.faiss")
            (out / ".added").unlink()


# ----------------------------------------------------------------------------------------------------------------------
# Numbers to hold against limits.


def recall(index: AnnIndex, queries: np.ndarray, k: int = 10) -> float:
    """Of the exact k nearest, the share that `search` finds, mean over queries: in [0, 1]; nan without queries or rows.

    A found row as similar as the exact k-th counts, so that copies of a row may stand for each other.
    """
    held = min(k, index.rows)
    if not held or not len(queries):
        return float("nan")
    border = index.exact(queries, held)[0][:, -1:]
    return float((index.search(queries, held)[0] >= border).mean())


def quantisation_error(index: AnnIndex | bytes, sample: np.ndarray) -> float:
    """Mean squared distance of unit rows to what the index stores of them; grows when the rows drift from those trained on.

    ivf_pq: to the code's reconstruction; ivf_flat, which stores rows whole: to the centre of their cluster. 0 for hnsw and flat, which
    learn nothing. Compare with the figure of rows that were held out of training, from the same `train`ed bytes: the sample
    itself fits a little better. Half as much again is a reason to train again.

    Args:
        index: opened, or `train`'s bytes. sample: (S, D) float32 unit rows; nan if S is 0.
    """
    inner = ann_build.opened("trained", index) if isinstance(index, bytes) else index._index
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

    What a candidate costs is counted in bytes read, so the choice does not depend on how busy the machine is.

    Args:
        queries: (Q, D) float32, at least one; a few hundred of those users will ask. target: in (0, 1].

    Returns:
        {"nprobe", "k_factor", "recall", "target", "k"}, for hnsw "ef_search" in place of "nprobe"; JSON takes it as it is. "recall" is
        this sample's. For flat {"recall": 1.0, …} alone.

    Raises:
        ValueError: no rows or queries, or a target that the best setting misses, with its recall.
    """
    if not len(queries) or not index.rows or not 0 < target <= 1:
        raise ValueError(
            f"tune: {len(queries)} queries, {index.rows} rows, target {target}; want some of each, and in (0, 1]"
        )
    stated = {"target": target, "k": k}
    if index.plan.kind == "flat":
        return {"recall": 1.0, **stated}
    k = min(k, index.rows)
    queries = _checked(queries, index.plan.dim)
    border = index.exact(queries, k)[0][:, -1:]
    best: tuple[float, dict[str, Any]] | None = None
    reached = 0.0
    for looked in _settings(index.plan):
        found = _found_after(_asked_otherwise(index, looked), queries, border, k)
        reached = max(reached, found.max())
        for factor, share in zip(FACTORS, found.tolist(), strict=True):
            cost = _bytes_read(replace(index.plan, **looked), k * factor)
            if share >= target and (best is None or cost < best[0]):
                best = cost, {**looked, "k_factor": factor, "recall": share, **stated}
    if best is None:
        raise ValueError(
            f"tune: recall {target} is not reached, {reached:.3f} at the most; want a plan of more bytes a row or links"
        )
    return best[1]


def _asked_otherwise(index: AnnIndex, parameters: Mapping[str, Any]) -> AnnIndex:
    """The same files, asked otherwise."""
    return AnnIndex(replace(index.plan, **parameters), index._index, index.vectors, index.ids, index.dead)


def _settings(plan: Plan) -> list[dict[str, Any]]:
    if plan.kind == "hnsw":
        return [{"ef_search": ef} for ef in (16, 32, 64, 128, 256, 512)]
    return [{"nprobe": 1 << power} for power in range(plan.n_lists.bit_length())]


def _found_after(index: AnnIndex, queries: np.ndarray, border: np.ndarray, k: int) -> np.ndarray:
    """(len(FACTORS),) the recall when the first FACTORS x k candidates are compared exactly."""
    counts = np.zeros(len(FACTORS))
    with faiss_threads(index.plan.threads):
        for start in range(0, len(queries), BLOCK):
            some = queries[start : start + BLOCK]
            rows = index._candidates(some, max(FACTORS) * k, 1)
            line, place = np.nonzero(rows >= 0)
            hit = pair_products(some, index.vectors, line, rows[line, place]) >= border[start + line, 0]
            within = np.zeros(rows.shape, np.int64)
            within[line[hit], place[hit]] = 1
            so_far = np.minimum(np.cumsum(within, axis=1), k)
            asked = [min(max(f * k, k + SPARE), rows.shape[1]) - 1 for f in FACTORS]
            counts += so_far[:, asked].sum(axis=0)
    return counts / (k * len(queries))


def _bytes_read(plan: Plan, compared: int) -> float:
    """Of one query: rows scanned as stored, centres, and rows compared exactly, whose bytes lie scattered: twice as dear."""
    exact = 2 * compared * 4 * plan.dim
    if plan.kind == "hnsw":
        return max(plan.ef_search, compared) * plan.links * 2 * plan.dim + exact
    row = (plan.code_bytes or 4 * plan.dim) + 8
    return plan.nprobe * plan.rows / plan.n_lists * row + exact


def _best(similarity: np.ndarray, ids: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The first k of each line by falling similarity, then lower id; those of none (-inf, -1) last."""
    order = np.lexsort((ids, -similarity), axis=1)[:, :k]
    return np.take_along_axis(similarity, order, axis=1), np.take_along_axis(ids, order, axis=1)


def _kind(index: Any) -> str:
    if isinstance(index, faiss.IndexHNSW):
        return "hnsw"
    names = {"IndexIVFFlat": "ivf_flat", "IndexPreTransform": "ivf_pq"}
    return names.get(type(index).__name__, type(index).__name__)


def _checked(queries: np.ndarray, dim: int) -> np.ndarray:
    if queries.ndim != 2 or queries.shape[1] != dim or queries.dtype != np.float32:
        raise ValueError(
            f"search: want queries (Q, {dim}) float32, got {queries.shape} {queries.dtype}; were they made by another model?"
        )
    bad = np.flatnonzero(~np.isfinite(queries).all(axis=1))
    if len(bad):
        raise ValueError(
            f"search: query {bad[0]} has numbers that are not finite ({len(bad)} such rows); look at the model that made them"
        )
    return np.ascontiguousarray(queries)
