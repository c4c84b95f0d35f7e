"""Approximate nearest rows of a gallery by inner product: queries in, similarities and ids out; FAISS, without torch.

A folder of `retrieval.ann_build`'s files is one version of a gallery and never changes; `with_changes` writes the next.
The index only proposes: every similarity is computed from vectors.npy, so all kinds agree on it to the last bit.
"""

from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import faiss as _faiss
import numpy as np

from postproc.neighbours import nearest, pair_products
from retrieval.ann_build import build, checked_ids, fill, grow_graph, unit_block
from retrieval.ann_files import check_digest, read_array, read_index, write_index, write_rows
from retrieval.ann_lists import PartLists, Renumbered, packed, without_rows, write_lists
from retrieval.ann_plan import EXACT_BLOCK, FILL_BLOCK, SPARE, IndexPlan, faiss_threads

faiss: Any = _faiss  # FAISS' type stubs are incomplete
BLOCK = 256  # queries whose candidates are compared at once
COMPACT_ABOVE = 0.2  # share of dead rows above which `with_changes` writes the living rows alone
ROUNDS = 3  # times a query is given four times as many candidates before all rows are compared
ID_BLOCK = 1 << 20  # ids looked through at once


class AnnIndex:
    """One version of a gallery, open for searching; made by `open`.

    `plan` has the parameters it is searched by; `vectors` (N, D), float32 or float16, and `ids` (N,) int64 are mapped;
    `dead` (M,) int64 are rising row numbers.
    """

    def __init__(
        self, plan: IndexPlan, index: Any, searched: Any, vectors: np.ndarray, ids: np.ndarray, dead: np.ndarray
    ) -> None:
        self.plan, self.vectors, self.ids, self.dead = plan, vectors, ids, dead
        self.faiss_index = index  # as index.faiss has it; None for flat
        self._searched = searched  # `packed` for searching
        self._is_dead = np.zeros(len(ids), bool)
        self._is_dead[dead] = True

    @staticmethod
    def open(
        folder: Path,
        plan: IndexPlan,
        *,
        parameters: Mapping[str, Any] | None = None,
        digests: Mapping[str, str] | None = None,
    ) -> "AnnIndex":
        """Map a gallery's files: vectors.npy, ids.npy, index.faiss (not for flat) and perhaps dead.npy.

        `parameters`, from `retrieval.ann_tune.tune`, replace those of the plan. `digests` are BLAKE2b-128
        in hex of some files, by name; index.faiss is always checked against its own, which reads it once. Raises
        ValueError for a file missing, damaged, foreign, of another digest, or not fitting the plan or the others.
        """
        digests = digests or {}
        for name, digest in digests.items():
            if name != "index.faiss":
                check_digest(folder / name, digest)
        names = {field.name for field in fields(IndexPlan)}
        plan = replace(plan, **{name: value for name, value in (parameters or {}).items() if name in names})
        vectors = read_array(folder / "vectors.npy", 2, (np.float32, np.float16))
        ids = read_array(folder / "ids.npy", 1, (np.int64,))
        has_dead = (folder / "dead.npy").exists()
        dead = np.array(read_array(folder / "dead.npy", 1, (np.int64,)) if has_dead else (), np.int64)
        dead_fit = not len(dead) or 0 <= dead.min() <= dead.max() < len(ids)
        if len(ids) != len(vectors) or vectors.shape[1] != plan.dim or not dead_fit:
            found = f"vectors {vectors.shape}, ids {ids.shape}, {len(dead)} dead, plan of {plan.dim} numbers a row"
            raise ValueError(f"{folder}: {found}; the files belong to different versions")
        index = None
        if plan.kind != "flat":
            index = read_index(folder / "index.faiss", digests.get("index.faiss"))
            kind = _kind(index)
            # clusters may have been written without their dead rows; a graph keeps them
            fewest = len(ids) - (0 if kind == "hnsw" else len(dead))
            if kind != plan.kind or index.d != plan.dim or not fewest <= index.ntotal <= len(ids):
                found, wanted = f"{index.ntotal:,} x {index.d} rows", f"{plan.kind} of {len(ids):,} x {plan.dim}"
                reason = f"index.faiss is {kind} of {found}, want {wanted}"
                raise ValueError(f"{folder}: {reason}; the files belong to different versions")
        return AnnIndex(plan, index, packed(index), vectors, ids, dead)

    def with_parameters(self, **parameters: Any) -> "AnnIndex":
        """The same files, searched with other parameters of the plan."""
        plan = replace(self.plan, **parameters)
        return AnnIndex(plan, self.faiss_index, self._searched, self.vectors, self.ids, self.dead)

    @property
    def rows(self) -> int:
        """Number of living rows."""
        return len(self.ids) - len(self.dead)

    @property
    def living(self) -> np.ndarray:
        """(N,) int64: row numbers of the living rows, rising."""
        return np.flatnonzero(~self._is_dead)

    @property
    def dead_share(self) -> float:
        """Share of the stored rows that is dead, in [0, 1]."""
        return len(self.dead) / max(1, len(self.ids))

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k most similar living rows, as far as the index finds them.

        `queries` (Q, D) are float32, finite, best of unit length; Q may be 0. `k` is at least 1 and may exceed the
        gallery. Raises ValueError for k under 1, and queries of another shape, type or width, or not finite.

        Returns similarity (Q, k) float32, falling: the inner product summed in float64 and rounded, which depends on
        the two rows alone, so copies of a row are equal; -inf where there are fewer than k living rows. And ids (Q, k)
        int64; equal similarities by lower id; -1 where there are fewer. With `flat` the list is that of a sort of all
        products. Similarities that differ by rounding alone (some 1e-7) are never called equal.
        """
        if k < 1:
            raise ValueError(f"search: want k of at least 1, got {k}")
        queries = checked_queries(queries, self.plan.dim)
        similarity, ids = _no_results(len(queries), k)
        kept = min(k, self.rows)
        if kept:
            with faiss_threads(self.plan.threads):
                for start in range(0, len(queries), BLOCK):
                    some = slice(start, start + BLOCK)
                    similarity[some, :kept], ids[some, :kept] = self._search_block(queries[some], kept)
        return similarity, ids

    def exact(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """As `search`, comparing every living row: `flat` itself, and the truth for `recall` and `tune`.

        Blocks keep memory bounded while dead rows are left out, float16 becomes float32 and the rows are put in the
        order of their ids, so that ties go to the lower id.
        """
        queries = checked_queries(queries, self.plan.dim)
        similarity, ids = _no_results(len(queries), k)
        for start in range(0, len(self.ids), EXACT_BLOCK):
            rows = start + np.flatnonzero(~self._is_dead[start : start + EXACT_BLOCK])
            if len(rows):
                rows = rows[np.argsort(self.ids[rows])]
                block_similarity, places = nearest(queries, np.asarray(self.vectors[rows], np.float32), k)
                block_ids = np.append(self.ids[rows], -1)[places]
                both = np.concatenate([similarity, block_similarity], axis=1), np.concatenate([ids, block_ids], axis=1)
                similarity, ids = best_of(*both, k)
        return similarity, ids

    # --- searching an index -------------------------------------------------------------------------------------------
    def _search_block(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """`search` for at most BLOCK queries, 1 <= k <= living rows."""
        if self.faiss_index is None:
            return self.exact(queries, k)
        similarity, ids = _no_results(len(queries), k)
        count = int(max(k * self.plan.k_factor, k + SPARE) / (1 - self.dead_share)) + 1
        effort, open_queries = 1, np.arange(len(queries))
        for _ in range(ROUNDS):
            candidates = self.candidates(queries[open_queries], count, effort)
            similarity[open_queries], ids[open_queries] = self._compare(queries[open_queries], candidates, k)
            # the clusters searched have too few rows, or too many dead ones
            open_queries = open_queries[ids[open_queries, -1] < 0]
            if not len(open_queries):
                return similarity, ids
            count, effort = 4 * count, 4 * effort
        similarity[open_queries], ids[open_queries] = self.exact(queries[open_queries], k)
        return similarity, ids

    def candidates(self, queries: np.ndarray, count: int, effort: int = 1) -> np.ndarray:
        """(Q, count) int64 row numbers as the index ranks them, -1 for none or dead. `effort` multiplies the plan's."""
        plan, count = self.plan, min(count, max(1, self.faiss_index.ntotal))
        if plan.kind == "hnsw":
            parameters = faiss.SearchParametersHNSW(efSearch=max(plan.ef_search * effort, count))
        else:
            parameters = faiss.SearchParametersIVF(nprobe=min(plan.nprobe * effort, plan.n_lists))
            if plan.code_bytes:
                parameters = faiss.SearchParametersPreTransform(index_params=parameters)
        _, rows = self._searched.search(queries, count, params=parameters)
        if len(self.dead):
            rows[self._is_dead[rows] & (rows >= 0)] = -1
        return rows

    def _compare(self, queries: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best of candidates (Q, C), -1 for none, by their similarity in vectors.npy; -inf and -1 where fewer."""
        rough = self._rough_products(queries, rows)
        kept = min(k, rows.shape[1])
        border = np.partition(rough, rows.shape[1] - kept, axis=1)[:, rows.shape[1] - kept]
        # only candidates that rounding may have put below the border are worth an exact product
        doubt = 2 * (self.plan.dim + 4) * np.finfo(np.float32).eps * 1.01 * np.linalg.norm(queries, axis=1)
        line, place = np.nonzero((rough >= (border - doubt)[:, None]) & (rows >= 0))
        similarity, ids = _no_results(len(queries), max(k, rows.shape[1]))
        similarity[line, place] = pair_products(queries, self.vectors, line, rows[line, place])
        ids[line, place] = self.ids[rows[line, place]]
        return best_of(similarity, ids, k)

    def _rough_products(self, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """(Q, C) float32 products as float32 sums; -inf for none. FAISS reads the mapped rows where they lie."""
        if self.vectors.dtype == np.float32:
            rough = np.empty(rows.shape, np.float32)
            rows = np.ascontiguousarray(rows)
            arrays = (faiss.swig_ptr(array) for array in (rough, queries, np.asarray(self.vectors), rows))
            faiss.fvec_inner_products_by_idx(*arrays, queries.shape[1], *rows.shape)
        else:
            rough = np.stack([self.vectors[r].astype(np.float32) @ q for r, q in zip(rows, queries, strict=True)])
        return np.where(rows >= 0, rough, -np.inf)

    # --- the next version ---------------------------------------------------------------------------------------------
    def with_changes(
        self, out: Path, add_vectors: np.ndarray, add_ids: np.ndarray, remove_ids: np.ndarray, *, seed: int = 0
    ) -> "AnnIndex":
        """Write the next version: the same clusters, code book and graph, with some rows more and some dead.

        An IVF index loses the removed rows at once; a graph keeps them as steps on the way. Their vectors stay until
        more than COMPACT_ABOVE of all rows are dead (or the kind is flat): then only the living rows are written, in
        their order, and a graph is built again. Memory: a graph is loaded whole; other kinds stream.

        `out` is an empty folder of its own; `add_vectors` (A, D) are float32 or float16 unit rows, `add_ids` (A,) int64
        from 0, `remove_ids` (R,) int64, all living. An id both removed and added is replaced. Raises ValueError for ids
        to remove that are not living, ids to add that are, `out` not empty, and rows that do not fit.
        """
        if out.exists() and any(out.iterdir()):
            raise ValueError(f"changes: {out} is not empty; want a folder for the next version alone")
        add_ids = checked_ids("changes", add_ids, len(add_vectors))
        removed = self._rows_to_remove(np.asarray(remove_ids), add_ids)
        unit_block("changes", add_vectors[:0], self.plan.dim)
        out.mkdir(parents=True, exist_ok=True)
        dead = np.union1d(self.dead, removed).astype(np.int64)
        dead_share = len(dead) / max(1, len(self.ids) + len(add_ids))
        compact = len(dead) > 0 and (self.plan.kind == "flat" or dead_share > COMPACT_ABOVE)
        living = np.ones(len(self.ids), bool)
        living[dead] = False
        kept = living if compact else np.ones(len(living), bool)
        self._write_rows(out, kept, add_vectors, add_ids)
        if len(dead) and not compact:
            write_rows(out / "dead.npy", dead.shape, dead.dtype, [dead])
        if self.plan.kind == "hnsw" and compact:
            build(self.plan, out, seed=seed)
        elif self.plan.kind == "hnsw":
            write_index(grow_graph(self.faiss_index, self.plan, add_vectors), out / "index.faiss")
        elif self.plan.kind != "flat":
            self._write_clusters(out, np.where(living, np.cumsum(kept) - 1, -1), int(kept.sum()), add_vectors)
        return AnnIndex.open(out, self.plan)

    def _rows_to_remove(self, remove_ids: np.ndarray, add_ids: np.ndarray) -> np.ndarray:
        """(R,) int64 rising; both kinds of ids are looked up among the living."""
        remove_ids = checked_ids("changes", remove_ids, len(remove_ids))
        matches = [start + np.flatnonzero(np.isin(ids, remove_ids)) for start, ids in self._living_ids()]
        rows = np.concatenate([np.zeros(0, np.int64), *matches])
        if len(missing := np.setdiff1d(remove_ids, self.ids[rows])):
            raise ValueError(f"changes: {len(missing)} ids to remove are not in the gallery, the first {missing[0]}")
        new_ids = np.setdiff1d(add_ids, remove_ids)
        for _, ids in self._living_ids():
            if len(present := np.intersect1d(ids, new_ids)):
                reason = f"id {present[0]} is in the gallery already"
                raise ValueError(f"changes: {reason}; remove it in the same call to replace it")
        return rows

    def _living_ids(self) -> Iterator[tuple[int, np.ndarray]]:
        """First row number and ids, -1 where dead, of ID_BLOCK rows at a time."""
        for start in range(0, len(self.ids), ID_BLOCK):
            some = slice(start, start + ID_BLOCK)
            yield start, np.where(self._is_dead[some], -1, self.ids[some])

    def _write_rows(self, out: Path, kept: np.ndarray, add_vectors: np.ndarray, add_ids: np.ndarray) -> None:
        def blocks() -> Iterator[np.ndarray]:
            for start in range(0, len(kept), FILL_BLOCK):
                yield self.vectors[start : start + FILL_BLOCK][kept[start : start + FILL_BLOCK]]
            for start in range(0, len(add_ids), FILL_BLOCK):
                yield unit_block("changes", add_vectors[start : start + FILL_BLOCK], self.plan.dim, start)

        count = int(kept.sum()) + len(add_ids)
        write_rows(out / "vectors.npy", (count, self.plan.dim), self.vectors.dtype, blocks())
        write_rows(out / "ids.npy", (count,), np.dtype(np.int64), [self.ids[kept], add_ids])

    def _write_clusters(self, out: Path, numbers: np.ndarray, first: int, add_vectors: np.ndarray) -> None:
        """`numbers` (N,): new row numbers of the stored rows, -1 for the dead; the added rows begin at `first`."""
        trained, added = without_rows(self.faiss_index), out / ".added"
        rows = np.arange(first, first + len(add_vectors))
        added.write_bytes(fill(trained, add_vectors, rows, threads=self.plan.threads))
        write_lists(trained, [Renumbered(self.faiss_index, numbers), PartLists(added, trained)], out / "index.faiss")
        added.unlink()


def checked_queries(queries: np.ndarray, dim: int) -> np.ndarray:
    """The queries, contiguous; raises ValueError where they are not (Q, dim) float32, or not finite."""
    if queries.ndim != 2 or queries.shape[1] != dim or queries.dtype != np.float32:
        reason = f"want queries (Q, {dim}) float32, got {queries.shape} {queries.dtype}"
        raise ValueError(f"search: {reason}; were they made by another model?")
    if len(bad := np.flatnonzero(~np.isfinite(queries).all(axis=1))):
        reason = f"query {bad[0]} has numbers that are not finite ({len(bad)} such rows)"
        raise ValueError(f"search: {reason}; look at the model that made them")
    return np.ascontiguousarray(queries)


def _no_results(n_queries: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full((n_queries, k), -np.inf, np.float32), np.full((n_queries, k), -1, np.int64)


def best_of(similarity: np.ndarray, ids: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The first k of each line by falling similarity, then lower id; the empty (-inf, -1) last."""
    order = np.lexsort((ids, -similarity), axis=1)[:, :k]
    return np.take_along_axis(similarity, order, axis=1), np.take_along_axis(ids, order, axis=1)


def _kind(index: Any) -> str:
    names = {"IndexIVFFlat": "ivf_flat", "IndexPreTransform": "ivf_pq"}
    name = type(index).__name__
    return "hnsw" if isinstance(index, faiss.IndexHNSW) else names.get(name, name)
