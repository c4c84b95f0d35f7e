"""Building a gallery's index: unit rows and a `Plan` in, the files of `retrieval.ann.AnnIndex` out; FAISS, never torch.

    vectors.npy   (N, D) float32 or float16, unit length; exact answers are computed from these rows
    ids.npy       (N,) int64, whose each row is; no two alike among the living
    index.faiss   FAISS' own format, then 8 bytes of MAGIC and 16 of BLAKE2b-128; not there for `flat`. It stores row numbers
    dead.npy      row numbers removed since, rising; not there when there are none

`train`, `fill` and `merge` are steps of a cluster's job: bytes and paths in, bytes and paths out, nothing kept in between. With the
same seed, threads and order of input they give the same bytes. Every file appears whole under its name or not at all.
"""

import hashlib
import os
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import faiss as _faiss
import numpy as np

from retrieval.ann_plan import (
    CODE_ROUNDS,
    CODE_SAMPLE,
    FILL_BLOCK,
    LIST_ROUNDS,
    PART_ROWS,
    ROTATION_ROUNDS,
    ROTATION_STEPS,
    Plan,
    faiss_threads,
)

faiss: Any = _faiss  # its type stubs know a part of it
MAGIC, PART_MAGIC = b"CR-ANN-1", b"CR-PART1"
PART_HEAD = struct.Struct("<8s16sQQQ")  # magic, digest of what was trained, clusters, bytes of a code, rows
UNIT_TOLERANCE = 0.01  # rows stored in float16 are unit length within this
COPY_BYTES = 1 << 22  # read and hashed at once


def train(made: Plan, sample: np.ndarray, seed: int = 0) -> bytes:
    """Learn the clusters of an IVF kind, and the rotation and code book of `ivf_pq`, from a sample of the gallery.

    Args:
        made: of kind ivf_flat or ivf_pq.
        sample: (S, D) float32 unit rows drawn at random from all of the gallery; `made.train_rows` are wanted, the clusters' number
            (256 for ivf_pq) is the least.

    Returns:
        An empty index, for `fill` and `merge`: FAISS' bytes with our digest behind.

    Raises:
        ValueError: another kind; rows of another width, not of unit length, or too few.
    """
    if not made.kind.startswith("ivf"):
        raise ValueError(f"train: {made.kind} learns nothing; want ivf_flat or ivf_pq")
    least = max(made.n_lists, 256 if made.code_bytes else 1)
    if len(sample) < least:
        raise ValueError(
            f"train: {len(sample)} sample rows for {made.n_lists} clusters; want at least {least}, best {made.train_rows}"
        )
    sample = unit_block("train", sample, made.dim)
    index, _held = _untrained(made, seed)
    with faiss_threads(made.threads):
        index.train(sample)
    return sealed(faiss.serialize_index(index).tobytes())


def fill(trained: bytes, vectors: np.ndarray, rows: np.ndarray, *, threads: int = 1) -> bytes:
    """Assign and encode one shard's rows.

    Args:
        trained: from `train`.
        vectors: (n, D) float32 or float16, unit length, may be memory-mapped; n may be 0.
        rows: (n,) int64, where these vectors stand in the gallery's vectors.npy.

    Returns:
        A part for `merge`: head, clusters' sizes, row numbers and codes cluster by cluster, digest. 8 + code bytes a row.
        Memory: three times that, and a block of rows.

    Raises:
        ValueError: `trained` is spoiled or foreign; shapes that do not fit; rows not of unit length; negative row numbers.
    """
    index = opened("trained", trained)
    rows = np.asarray(rows)
    if rows.shape != (len(vectors),) or rows.dtype != np.int64 or (len(rows) and rows.min() < 0):
        raise ValueError(
            f"fill: {len(vectors)} vectors, row numbers {rows.shape} {rows.dtype}; want as many, int64, from 0"
        )
    with faiss_threads(threads):
        for start in range(0, len(rows), FILL_BLOCK):
            some = slice(start, start + FILL_BLOCK)
            index.add_with_ids(unit_block("fill", vectors[some], index.d, start), rows[some])
    lists = _FaissLists(index)
    head = PART_HEAD.pack(PART_MAGIC, _digest(trained), len(lists.sizes), lists.code_size, len(rows))
    body = [lists.read(i) for i in range(len(lists.sizes))]
    data = b"".join(
        [head, lists.sizes.tobytes(), *(part.tobytes() for _, part in body), *(part.tobytes() for part, _ in body)]
    )
    return data + _digest(data)


def merge(trained: bytes, parts: Sequence[Path], out: Path) -> None:
    """Join the parts of a gallery into one index on disk, cluster by cluster; memory does not grow with the gallery.

    Args:
        parts: files with `fill`'s bytes of the same `trained`; within a cluster rows follow this order. Filling everything at
            once and merging its one part gives the same bytes as merging many.
        out: index.faiss to be; replaced when whole.

    Raises:
        ValueError: a part that is spoiled, foreign or of another training; row numbers that are not 0 … N - 1, once each.
    """
    opened("trained", trained)
    sources = [_PartLists(path, _digest(trained)) for path in parts]
    _check_rows([source.rows for source in sources])
    write_lists(trained, sources, out)


def build(
    made: Plan,
    folder: Path,
    *,
    seed: int = 0,
    filled: Callable[[Plan, bytes, np.ndarray], Iterator[bytes]] | None = None,
) -> None:
    """Write index.faiss for the vectors.npy and ids.npy of a folder: the whole of `hnsw`, nothing for `flat`.

    Args:
        filled: (plan, trained, vectors) -> the filled parts of an inverted index, PART_ROWS rows each, the first rows first; None: in
            this process.

    Raises:
        ValueError: vectors that do not fit the plan or are not of unit length.
    """
    vectors = read_array(folder / "vectors.npy", 2, (np.float32, np.float16))
    if made.kind == "hnsw":
        write_index(_grown(_empty_graph(made, seed), vectors), folder / "index.faiss")
    elif made.kind.startswith("ivf"):
        trained = train_on(made, vectors, seed)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".parts-") as passing:
            parts: list[Path] = []
            for data in (filled or filled_here)(made, trained, vectors):
                parts.append(Path(passing, str(len(parts))))
                parts[-1].write_bytes(data)
            merge(trained, parts, folder / "index.faiss")


def filled_here(made: Plan, trained: bytes, vectors: np.ndarray) -> Iterator[bytes]:
    """The parts of `build`, one after the other."""
    for start in range(0, len(vectors), PART_ROWS):
        block = vectors[start : start + PART_ROWS]
        yield fill(trained, block, np.arange(start, start + len(block)), threads=made.threads)


def train_on(made: Plan, vectors: np.ndarray, seed: int = 0) -> bytes:
    """`train` on as many of a gallery's vectors (N, D) as the plan wants, drawn by the seed."""
    rng = np.random.default_rng(seed)
    some = np.sort(rng.choice(len(vectors), min(made.train_rows, len(vectors)), replace=False))
    return train(made, vectors[some].astype(np.float32), seed)


def write_vectors(folder: Path, vectors: np.ndarray, ids: np.ndarray, *, half: bool = False) -> None:
    """Write vectors.npy and ids.npy, block by block.

    Args:
        vectors: (N, D) float32 or float16, unit length within 0.01, may be memory-mapped; N may be 0.
        ids: (N,) int64, from 0, no two alike.
        half: store float16: half the disk, similarities within 1e-3 of float32's.

    Raises:
        ValueError: shapes or types that do not fit, a row not of unit length, an id twice or negative; named.
    """
    ids = checked_ids("vectors", ids, len(vectors))
    blocks = (
        unit_block("vectors", vectors[start : start + FILL_BLOCK], vectors.shape[1], start)
        for start in range(0, len(vectors), FILL_BLOCK)
    )
    write_rows(folder / "vectors.npy", vectors.shape, np.dtype(np.float16 if half else np.float32), blocks)
    write_rows(folder / "ids.npy", ids.shape, ids.dtype, [ids])


# ----------------------------------------------------------------------------------------------------------------------
# Rows checked.


def unit_block(doing: str, vectors: np.ndarray, dim: int, first: int = 0) -> np.ndarray:
    """(n, D) float32, contiguous, every row of unit length; `first` is the number of the first row, for the message."""
    if vectors.ndim != 2 or vectors.shape[1] != dim or vectors.dtype not in (np.float32, np.float16):
        raise ValueError(
            f"{doing}: want rows (n, {dim}) float32 or float16, got {vectors.shape} {vectors.dtype}; were they made by another model?"
        )
    block = np.ascontiguousarray(vectors, np.float32)
    off = np.abs(np.einsum("nd,nd->n", block, block, dtype=np.float32) ** 0.5 - 1)
    if not (off <= UNIT_TOLERANCE).all():
        row = int(np.argmin(off <= UNIT_TOLERANCE))
        length = float(np.linalg.norm(block[row]))
        raise ValueError(f"{doing}: row {first + row} has length {length:.4g}; want finite rows of unit length")
    return block


def checked_ids(doing: str, ids: np.ndarray, count: int) -> np.ndarray:
    """(count,) int64, from 0, no two alike."""
    ids = np.asarray(ids)
    if ids.shape != (count,) or ids.dtype != np.int64:
        raise ValueError(f"{doing}: {count} rows with ids {ids.shape} {ids.dtype}; want ({count},) int64")
    rising = np.sort(ids)
    if count and rising[0] < 0:
        raise ValueError(f"{doing}: id {rising[0]} is negative; -1 stands for no row")
    again = np.flatnonzero(rising[1:] == rising[:-1])
    if len(again):
        raise ValueError(f"{doing}: id {rising[again[0]]} stands for several rows ({len(again)} such); want each once")
    return ids


def _check_rows(numbers: Sequence[np.ndarray]) -> None:
    """All of 0 … N - 1, once each. Memory: N bytes."""
    seen = np.zeros(sum(map(len, numbers)), bool)
    for part, rows in enumerate(numbers):
        if len(rows) and (rows.max() >= len(seen) or seen[rows].any() or len(np.unique(rows)) < len(rows)):
            raise ValueError(
                f"merge: part {part} has row numbers beyond {len(seen):,} rows in all, or some twice; is a part missing or given twice?"
            )
        seen[rows] = True


# ----------------------------------------------------------------------------------------------------------------------
# Indexes before any row.


def _untrained(made: Plan, seed: int) -> tuple[Any, Any]:
    """An index of no rows, and what must be held until it is trained."""
    width = made.code_dim or made.dim
    centres = faiss.IndexFlatIP(width)
    if not made.code_bytes:
        index = faiss.IndexIVFFlat(centres, width, made.n_lists, faiss.METRIC_INNER_PRODUCT)
    else:
        index = faiss.IndexIVFPQ(centres, width, made.n_lists, made.code_bytes, 8, faiss.METRIC_INNER_PRODUCT)
        _patient(index.pq.cp, seed, CODE_ROUNDS, CODE_SAMPLE // 256)
    index.own_fields = True
    centres.this.disown()
    _patient(index.cp, seed, LIST_ROUNDS, 256)
    return _rotated(made, index, seed) if made.code_bytes else (index, None)


def _rotated(made: Plan, index: Any, seed: int) -> tuple[Any, Any]:
    rotation = faiss.OPQMatrix(made.dim, made.code_bytes, made.code_dim)
    rotation.niter, rotation.niter_pq, rotation.niter_pq_0 = ROTATION_ROUNDS, ROTATION_STEPS, CODE_ROUNDS
    rotation.max_train_points = CODE_SAMPLE
    book = faiss.ProductQuantizer(made.code_dim, made.code_bytes, 8)
    _patient(book.cp, seed, CODE_ROUNDS, CODE_SAMPLE // 256)
    rotation.pq = book  # FAISS only borrows it: the caller holds it while the rotation learns
    return faiss.IndexPreTransform(rotation, index), book


def _patient(clustering: Any, seed: int, rounds: int, most: int) -> None:
    """Settings of one k-means; a small sample is allowed, and the caller was told how many rows are wanted."""
    clustering.seed, clustering.niter = seed & 0x7FFFFFFF, rounds
    clustering.min_points_per_centroid, clustering.max_points_per_centroid = 1, most


def _empty_graph(made: Plan, seed: int) -> Any:
    index = faiss.IndexHNSWSQ(made.dim, faiss.ScalarQuantizer.QT_fp16, made.links, faiss.METRIC_INNER_PRODUCT)
    index.train(np.zeros((1, made.dim), np.float32))  # float16 has nothing to learn
    index.hnsw.efConstruction = made.ef_build
    index.hnsw.rng = faiss.RandomGenerator(seed & 0x7FFFFFFF)
    return index


def grown(index: Any, made: Plan, vectors: np.ndarray) -> Any:
    """A graph, which may be mapped and stays as it is, with more rows: a copy in memory."""
    copy = faiss.deserialize_index(faiss.serialize_index(index))
    copy.hnsw.efConstruction = made.ef_build
    return _grown(copy, vectors)


def _grown(index: Any, vectors: np.ndarray) -> Any:
    """The graph with more rows, put in by one thread: with several, the links would depend on their race."""
    with faiss_threads(1):
        for start in range(0, len(vectors), FILL_BLOCK):
            index.add(unit_block("build", vectors[start : start + FILL_BLOCK], index.d, start))
    return index


# ----------------------------------------------------------------------------------------------------------------------
# Clusters' rows, from a part or from an index, and back into one file.


class Lists(Protocol):
    sizes: np.ndarray  # (clusters,) int64
    code_size: int

    def read(self, cluster: int) -> tuple[np.ndarray, np.ndarray]:
        """codes (n, code_size) uint8, row numbers (n,) int64"""
        ...


class _FaissLists:
    """Of an IVF index in memory or mapped."""

    def __init__(self, index: Any) -> None:
        self._index, self._lists = index, faiss.extract_index_ivf(index).invlists
        self.code_size = self._lists.code_size
        self.sizes = np.array([self._lists.list_size(i) for i in range(self._lists.nlist)], np.int64)

    def read(self, cluster: int) -> tuple[np.ndarray, np.ndarray]:
        n = int(self.sizes[cluster])
        if not n:
            return np.empty((0, self.code_size), np.uint8), np.empty(0, np.int64)
        codes = faiss.rev_swig_ptr(self._lists.get_codes(cluster), n * self.code_size)
        return codes.reshape(n, self.code_size), faiss.rev_swig_ptr(self._lists.get_ids(cluster), n)


class _PartLists:
    """Of `fill`'s bytes in a file, mapped; FAISS never sees them."""

    def __init__(self, path: Path, training: bytes) -> None:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(PART_HEAD.size)
        if len(head) < PART_HEAD.size or head[:8] != PART_MAGIC:
            raise ValueError(f"{path}: no part of an index ({size} bytes); want a file with the bytes of fill")
        _, owner, n_lists, self.code_size, n = PART_HEAD.unpack(head)
        want = PART_HEAD.size + 8 * n_lists + (8 + self.code_size) * n + 16
        if size != want or _file_digest(path, size - 16)[0] != _tail(path, 16):
            raise ValueError(f"{path}: spoiled ({size} bytes, {want} by its head); fill it again")
        if owner != training:
            raise ValueError(f"{path}: filled after another training; fill all parts with the same trained bytes")
        data = np.memmap(path, np.uint8, "r")
        at = PART_HEAD.size + 8 * n_lists
        self.sizes = data[PART_HEAD.size : at].view(np.int64)
        self.rows = data[at : at + 8 * n].view(np.int64)
        self._codes = data[at + 8 * n : size - 16].reshape(n, self.code_size)
        self._starts = np.cumsum(self.sizes) - self.sizes

    def read(self, cluster: int) -> tuple[np.ndarray, np.ndarray]:
        some = slice(self._starts[cluster], self._starts[cluster] + self.sizes[cluster])
        return self._codes[some], self.rows[some]


class Renumbered:
    """An index's rows under new numbers; those whose new number is -1 are left out. `numbers` is (N,) int64."""

    def __init__(self, index: Any, numbers: np.ndarray) -> None:
        self._lists, self._numbers = _FaissLists(index), numbers
        self.code_size = self._lists.code_size
        self.sizes = np.array([(self._new(i) >= 0).sum() for i in range(len(self._lists.sizes))], np.int64)

    def read(self, cluster: int) -> tuple[np.ndarray, np.ndarray]:
        new = self._new(cluster)
        return self._lists.read(cluster)[0][new >= 0], new[new >= 0]

    def _new(self, cluster: int) -> np.ndarray:
        return self._numbers[self._lists.read(cluster)[1]]


def part_lists(path: Path, trained: bytes) -> Lists:
    return _PartLists(path, _digest(trained))


def emptied(index: Any) -> bytes:
    """The bytes `train` gave for an index, which may be mapped: all of it but its rows."""
    inverted = faiss.extract_index_ivf(index)
    kept, held = inverted.invlists, (inverted.ntotal, index.ntotal)
    inverted.own_invlists = False
    none = faiss.ArrayInvertedLists(inverted.nlist, inverted.code_size)
    inverted.invlists, inverted.ntotal, index.ntotal = none, 0, 0
    try:
        return sealed(faiss.serialize_index(index).tobytes())
    finally:
        inverted.invlists, inverted.ntotal, index.ntotal = kept, *held
        inverted.own_invlists = True


def write_lists(trained: bytes, sources: Sequence[Lists], out: Path) -> None:
    """An index file of the clusters' rows, source by source, as FAISS itself writes it: faiss/impl/index_write.cpp, `ilar`."""
    index = opened("trained", trained)
    inverted = faiss.extract_index_ivf(index)
    sizes: np.ndarray = sum((source.sizes for source in sources), np.zeros(inverted.nlist, np.int64))
    index.ntotal = inverted.ntotal = int(sizes.sum())
    head = faiss.serialize_index(index).tobytes()[
        :-32
    ]  # less the lists: name, clusters, code size, name, an empty table
    used = np.flatnonzero(sizes)
    dense = len(used) > len(sizes) // 2
    table = sizes if dense else np.stack([used, sizes[used]], axis=1).ravel()

    def write(file: BinaryIO) -> None:
        copy = _Hashed(file)
        copy.write(head)
        copy.write(
            struct.pack("<4sQQ4sQ", b"ilar", len(sizes), inverted.code_size, b"full" if dense else b"sprs", len(table))
        )
        copy.write(table.tobytes())
        for cluster in used.tolist():
            read = [source.read(cluster) for source in sources]
            for codes, _ in read:
                copy.write(codes.tobytes())
            for _, rows in read:
                copy.write(rows.tobytes())
        file.write(MAGIC + copy.hash.digest())

    publish(out, write)


# ----------------------------------------------------------------------------------------------------------------------
# Files: whole or not at all, and known by their digest.


class _Hashed:
    def __init__(self, file: BinaryIO) -> None:
        self.file, self.hash = file, hashlib.blake2b(digest_size=16)

    def write(self, data: bytes) -> None:
        self.hash.update(data)
        self.file.write(data)


def publish(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Let `write` fill a file beside `path`, which becomes `path` when it is safely on disk."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_rows(path: Path, shape: tuple[int, ...], dtype: np.dtype, blocks: Iterable[np.ndarray]) -> None:
    """A .npy file of `shape` from its rows block by block."""

    def write(file: BinaryIO) -> None:
        np.lib.format.write_array_header_1_0(
            file, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        )
        for block in blocks:
            file.write(np.ascontiguousarray(block, dtype).data)

    publish(path, write)


def write_index(index: Any, path: Path) -> None:
    """An index in memory to its file, without a second copy of it in memory."""

    def write(file: BinaryIO) -> None:
        copy = _Hashed(file)
        faiss.write_index(index, faiss.PyCallbackIOWriter(copy.write))
        file.write(MAGIC + copy.hash.digest())

    publish(path, write)


def read_array(path: Path, axes: int, dtypes: Sequence[type]) -> np.ndarray:
    """A .npy file, mapped.

    Raises:
        ValueError: not such a file, or of another shape or type.
    """
    try:
        array: np.ndarray = np.lib.format.open_memmap(path, mode="r")  # np.load would also try archives and pickles
    except (ValueError, EOFError, OSError, SyntaxError) as error:
        if isinstance(error, FileNotFoundError):
            raise ValueError(f"{path}: no such file; the gallery keeps it beside its index") from None
        raise ValueError(f"{path}: no array that numpy can map: {str(error).splitlines()[0]}") from None
    if array.ndim != axes or array.dtype.type not in dtypes or not array.flags.c_contiguous:
        raise ValueError(
            f"{path}: want {axes} axes of {' or '.join(t.__name__ for t in dtypes)}, got {array.shape} {array.dtype}"
        )
    return array


def read_index(path: Path, digest: str | None = None) -> Any:
    """index.faiss, mapped; its own digest is checked first, and the caller's: damaged bytes can crash FAISS."""
    if not path.exists():
        raise ValueError(f"{path}: no such file; build the index, or open the folder with the plan it was built by")
    size = path.stat().st_size
    tail = _tail(path, 24)
    own, whole = _file_digest(path, max(0, size - 24))
    if len(tail) < 24 or tail[:8] != MAGIC or tail[8:] != own:
        raise ValueError(f"{path}: {size} bytes that are no index of ours, or spoiled; build it again")
    if digest is not None and whole.hex() != digest:
        raise ValueError(f"{path}: digest {whole.hex()}, want {digest}; was it built again since?")
    kind = _first_bytes(path)
    flags = faiss.IO_FLAG_MMAP_IFC if kind == b"IHNs" else faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY
    return faiss.read_index(str(path), flags)


def check_digest(path: Path, digest: str) -> None:
    found = _file_digest(path, path.stat().st_size)[1].hex() if path.exists() else "none, no such file"
    if found != digest:
        raise ValueError(f"{path}: digest {found}, want {digest}; fetch it again")


def sealed(data: bytes) -> bytes:
    return data + MAGIC + _digest(data)


def opened(what: str, data: bytes) -> Any:
    """The FAISS index of `sealed` bytes."""
    if len(data) < 24 or data[-24:-16] != MAGIC or data[-16:] != _digest(memoryview(data)[:-24]):
        raise ValueError(f"{what}: {len(data)} bytes that are no index of ours, or spoiled; train again")
    return faiss.deserialize_index(np.frombuffer(data, np.uint8)[:-24])


def _digest(data: bytes | memoryview) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _file_digest(path: Path, until: int) -> tuple[bytes, bytes]:
    """BLAKE2b-128 of the first `until` bytes of a file, and of all of it."""
    hash_ = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        for block in _blocks(file, until):
            hash_.update(block)
        first = hash_.digest()
        for block in _blocks(file, 1 << 62):
            hash_.update(block)
    return first, hash_.digest()


def _blocks(file: BinaryIO, until: int) -> Iterator[bytes]:
    while until > 0 and (block := file.read(min(COPY_BYTES, until))):
        until -= len(block)
        yield block


def _tail(path: Path, count: int) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - count))
        return file.read()


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4)
