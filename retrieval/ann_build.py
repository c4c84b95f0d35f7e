"""Building a gallery's index: unit rows and an `IndexPlan` in, the files of `AnnIndex` out; FAISS, without torch.

    vectors.npy   (N, D) float32 or float16, unit length; exact similarities are computed from these rows
    ids.npy       (N,) int64, the id of each row; no two living rows share one
    index.faiss   FAISS' own format with a digest behind it (`ann_files`); not there for `flat`. It stores row numbers
    dead.npy      row numbers removed since, rising; not there when there are none

`train`, `fill` and `merge` are steps of a cluster's job: bytes and paths in, bytes and paths out, nothing kept.
With the same seed, threads and order of input they give the same bytes, and a graph does so with any number of threads.
Every file appears whole or not at all.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import faiss as _faiss
import numpy as np

from retrieval.ann_files import opened, read_array, sealed, write_index, write_rows
from retrieval.ann_lists import PartLists, part_bytes, write_lists
from retrieval.ann_plan import CODE_BITS, CODE_SAMPLE, FILL_BLOCK, PART_ROWS, IndexPlan, faiss_threads

faiss: Any = _faiss  # FAISS' type stubs are incomplete
LIST_ROUNDS, CODE_ROUNDS = 10, 10  # of k-means: for the clusters, for the code book
ROTATION_ROUNDS, ROTATION_STEPS = 10, 4  # of OPQ, and of k-means inside each; the first has CODE_ROUNDS
SUPER_FROM = 32  # numbers a row from which FAISS has SuperKMeans, which compares some of them first
UNIT_TOLERANCE = 0.01  # rows stored in float16 are of unit length within this


def train(chosen: IndexPlan, sample: np.ndarray, seed: int = 0) -> bytes:
    """Learn the clusters of an IVF kind, and the rotation and code book of `ivf_pq`, from a sample of the gallery.

    `sample` (S, D) are float32 unit rows drawn at random from the whole gallery: best `chosen.train_rows` of them, at
    least as many as clusters (16 for ivf_pq). Returns an empty index for `fill` and `merge`: FAISS' bytes with our
    digest behind. Raises ValueError for another kind, and rows of another width, not of unit length, or too few.
    """
    if not chosen.kind.startswith("ivf"):
        raise ValueError(f"train: {chosen.kind} learns nothing; want ivf_flat or ivf_pq")
    least = max(chosen.n_lists, 1 << CODE_BITS if chosen.code_bytes else 1)
    if len(sample) < least:
        wish = f"want at least {least}, best {chosen.train_rows}"
        raise ValueError(f"train: {len(sample)} sample rows for {chosen.n_lists} clusters; {wish}")
    sample = unit_block("train", sample, chosen.dim)
    index, _book = _untrained(chosen, seed)
    with faiss_threads(chosen.threads):
        index.train(sample)
    return sealed(index)


def fill(trained: bytes, vectors: np.ndarray, rows: np.ndarray, *, threads: int = 1) -> bytes:
    """Assign one shard's rows to clusters and encode them. Memory: three times what is returned, and a block of rows.

    `trained` is from `train`; `vectors` (n, D) are float32 or float16, of unit length, and may be memory-mapped; `rows`
    (n,) int64 are their numbers in the gallery's vectors.npy; n may be 0. Returns a part for `merge`, 8 + code bytes a
    row. Raises ValueError for `trained` damaged or foreign, shapes that do not fit, rows not of unit length, and
    negative row numbers.
    """
    index = opened("trained", trained)
    rows = np.asarray(rows)
    if rows.shape != (len(vectors),) or rows.dtype != np.int64 or (len(rows) and rows.min() < 0):
        given = f"{len(vectors)} vectors, row numbers {rows.shape} {rows.dtype}"
        raise ValueError(f"fill: {given}; want as many, int64, from 0")
    with faiss_threads(threads):
        for start in range(0, len(rows), FILL_BLOCK):
            some = slice(start, start + FILL_BLOCK)
            index.add_with_ids(unit_block("fill", vectors[some], index.d, start), rows[some])
    return part_bytes(trained, index)


def fill_parts(chosen: IndexPlan, trained: bytes, vectors: np.ndarray) -> Iterator[bytes]:
    """The parts of a whole gallery, PART_ROWS rows each, one after the other in this process."""
    for start in range(0, len(vectors), PART_ROWS):
        block = vectors[start : start + PART_ROWS]
        yield fill(trained, block, np.arange(start, start + len(block)), threads=chosen.threads)


def merge(trained: bytes, parts: Sequence[Path], out: Path) -> None:
    """Join the parts of a gallery into one index on disk, cluster by cluster; memory does not grow with the gallery.

    `parts` are files with `fill`'s bytes of the same `trained`; within a cluster rows follow their order. One part
    filled with everything and many parts give the same bytes. `out`, index.faiss, is replaced once the new file is
    whole. Raises ValueError for a part damaged, foreign or of another training, and rows not 0 … N - 1, once each.
    """
    opened("trained", trained)
    sources = [PartLists(path, trained) for path in parts]
    seen = np.zeros(sum(len(source.rows) for source in sources), bool)
    for part, source in enumerate(sources):
        rows = source.rows
        if len(rows) and (rows.max() >= len(seen) or seen[rows].any() or len(np.unique(rows)) < len(rows)):
            reason = f"part {part} has row numbers beyond {len(seen):,} rows in all, or some twice"
            raise ValueError(f"merge: {reason}; is a part missing or given twice?")
        seen[rows] = True
    write_lists(trained, sources, out)


def build(
    chosen: IndexPlan,
    folder: Path,
    *,
    seed: int = 0,
    fill_parts: Callable[[IndexPlan, bytes, np.ndarray], Iterator[bytes]] = fill_parts,
) -> None:
    """Write index.faiss for a folder's vectors.npy; nothing for `flat`.

    `fill_parts` takes plan, trained bytes and vectors, and gives the parts of an inverted index, the first rows first.
    Raises ValueError for vectors that do not fit the plan or are not of unit length.
    """
    vectors = read_array(folder / "vectors.npy", 2, (np.float32, np.float16))
    if chosen.kind == "hnsw":
        write_index(_insert(_empty_graph(chosen, seed), vectors, chosen.threads), folder / "index.faiss")
    elif chosen.kind.startswith("ivf"):
        draw = np.random.default_rng(seed).choice
        rows = np.sort(draw(len(vectors), min(chosen.train_rows, len(vectors)), replace=False))
        trained = train(chosen, vectors[rows].astype(np.float32), seed)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".parts-") as passing:
            parts: list[Path] = []
            for data in fill_parts(chosen, trained, vectors):
                parts.append(Path(passing, str(len(parts))))
                parts[-1].write_bytes(data)
            merge(trained, parts, folder / "index.faiss")


def write_vectors(folder: Path, vectors: np.ndarray, ids: np.ndarray, *, half: bool = False) -> None:
    """Write vectors.npy and ids.npy, block by block.

    `vectors` (N, D) are float32 or float16, of unit length within 0.01, and may be memory-mapped; N may be 0. `ids`
    (N,) are int64, from 0, no two alike. `half` stores float16: half the disk, similarities within 1e-3 of float32's.
    Raises ValueError for shapes or types that do not fit, and with its name for a row not of unit length, or an id
    twice or negative.
    """
    ids = checked_ids("vectors", ids, len(vectors))
    blocks = (
        unit_block("vectors", vectors[start : start + FILL_BLOCK], vectors.shape[1], start)
        for start in range(0, len(vectors), FILL_BLOCK)
    )
    write_rows(folder / "vectors.npy", vectors.shape, np.dtype(np.float16 if half else np.float32), blocks)
    write_rows(folder / "ids.npy", ids.shape, ids.dtype, [ids])


# --- checks -----------------------------------------------------------------------------------------------------------
def unit_block(task: str, vectors: np.ndarray, dim: int, first: int = 0) -> np.ndarray:
    """(n, D) float32, contiguous, every row of unit length; `first` is the number of the first row, for the message."""
    if vectors.ndim != 2 or vectors.shape[1] != dim or vectors.dtype not in (np.float32, np.float16):
        reason = f"want rows (n, {dim}) float32 or float16, got {vectors.shape} {vectors.dtype}"
        raise ValueError(f"{task}: {reason}; were they made by another model?")
    block = np.ascontiguousarray(vectors, np.float32)
    is_unit = np.abs(np.einsum("nd,nd->n", block, block, dtype=np.float32) ** 0.5 - 1) <= UNIT_TOLERANCE
    if not is_unit.all():
        row = int(np.argmin(is_unit))
        length = float(np.linalg.norm(block[row]))
        raise ValueError(f"{task}: row {first + row} has length {length:.4g}; want finite rows of unit length")
    return block


def checked_ids(task: str, ids: np.ndarray, count: int) -> np.ndarray:
    """(count,) int64, from 0, no two alike."""
    ids = np.asarray(ids)
    if ids.shape != (count,) or ids.dtype != np.int64:
        raise ValueError(f"{task}: {count} rows with ids {ids.shape} {ids.dtype}; want ({count},) int64")
    rising = np.sort(ids)
    if count and rising[0] < 0:
        raise ValueError(f"{task}: id {rising[0]} is negative; -1 stands for no row")
    if len(repeated := rising[1:][rising[1:] == rising[:-1]]):
        raise ValueError(f"{task}: id {repeated[0]} stands for several rows ({len(repeated)} such); want each once")
    return ids


# --- empty indexes, and the graph -------------------------------------------------------------------------------------
def _untrained(chosen: IndexPlan, seed: int) -> tuple[Any, Any]:
    """An index without rows, and an object that must stay alive until it is trained."""
    width = chosen.code_dim or chosen.dim
    centres = faiss.IndexFlatIP(width)
    if not chosen.code_bytes:
        index = faiss.IndexIVFFlat(centres, width, chosen.n_lists, faiss.METRIC_INNER_PRODUCT)
    else:
        n_codes = chosen.code_bytes * 8 // CODE_BITS
        index = faiss.IndexIVFPQ(centres, width, chosen.n_lists, n_codes, CODE_BITS, faiss.METRIC_INNER_PRODUCT)
        _set_kmeans(index.pq.cp, seed, CODE_ROUNDS, CODE_SAMPLE >> CODE_BITS)
    index.own_fields = True
    centres.this.disown()
    _set_kmeans(index.cp, seed, LIST_ROUNDS, 256)
    index.cp.use_super_kmeans = width >= SUPER_FROM
    if not chosen.code_bytes:
        return index, None
    rotation = faiss.OPQMatrix(chosen.dim, n_codes, chosen.code_dim)
    rotation.niter, rotation.niter_pq, rotation.niter_pq_0 = ROTATION_ROUNDS, ROTATION_STEPS, CODE_ROUNDS
    rotation.max_train_points = CODE_SAMPLE
    book = faiss.ProductQuantizer(chosen.code_dim, n_codes, CODE_BITS)
    _set_kmeans(book.cp, seed, CODE_ROUNDS, CODE_SAMPLE >> CODE_BITS)
    rotation.pq = book  # FAISS borrows it: the caller holds it while the rotation learns
    return faiss.IndexPreTransform(rotation, index), book


def _set_kmeans(clustering: Any, seed: int, rounds: int, most: int) -> None:
    """Settings of one k-means; a small sample is accepted, because `train` has checked it against the plan."""
    clustering.seed, clustering.niter = seed & 0x7FFFFFFF, rounds
    clustering.min_points_per_centroid, clustering.max_points_per_centroid = 1, most


def _empty_graph(chosen: IndexPlan, seed: int) -> Any:
    index = faiss.IndexHNSWSQ(chosen.dim, faiss.ScalarQuantizer.QT_fp16, chosen.links, faiss.METRIC_INNER_PRODUCT)
    index.train(np.zeros((1, chosen.dim), np.float32))  # float16 has nothing to learn
    index.hnsw.efConstruction = chosen.ef_build
    index.hnsw.rng = faiss.RandomGenerator(seed & 0x7FFFFFFF)
    return index


def grow_graph(index: Any, chosen: IndexPlan, vectors: np.ndarray) -> Any:
    """A copy in memory of a graph, which may be mapped, with more rows."""
    copy = faiss.deserialize_index(faiss.serialize_index(index))
    copy.hnsw.efConstruction = chosen.ef_build
    return _insert(copy, vectors, chosen.threads)


def _insert(index: Any, vectors: np.ndarray, threads: int) -> Any:
    """The graph with more rows; FAISS gives the same links for any number of threads."""
    with faiss_threads(threads):
        for start in range(0, len(vectors), FILL_BLOCK):
            index.add(unit_block("build", vectors[start : start + FILL_BLOCK], index.d, start))
    return index
