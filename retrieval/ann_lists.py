"""The rows of an inverted index, cluster by cluster: from parts, from indexes, and into one file of FAISS' own format.

FAISS' own tools do not give these files. `faiss.contrib.ondisk.merge_ondisk` leaves a second file that the index
names by its absolute path, so a version is neither one file nor equal bytes in two folders, and it peaked at 385 MB
for 600,000 rows of 264 bytes where `write_lists` takes 231 MB, mapped parts included; `write_index` of lists in
memory gives these very bytes and holds the whole index for it.
"""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import faiss as _faiss
import numpy as np

from retrieval.ann_files import hash_of, opened, sealed, writing_sealed
from retrieval.ann_plan import BLOCK_ROWS, CODE_BITS
from store.files import hasher

faiss: Any = _faiss  # FAISS' type stubs are incomplete
PART_MAGIC = b"CR-PART1"
PART_HEAD = struct.Struct("<8s16sQQQ")  # magic, digest of the trained bytes, clusters, bytes of a code, rows


class Lists(Protocol):
    """Clusters of rows; `sizes` is (clusters,) int64."""

    sizes: np.ndarray
    code_size: int

    def read(self, cluster: int) -> tuple[np.ndarray, np.ndarray]:
        """Codes (n, code_size) uint8, row numbers (n,) int64."""


class IndexLists:
    """The rows of an IVF index in memory or mapped."""

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


class Renumbered:
    """The rows of an index under new numbers (N,) int64; rows whose new number is -1 are left out."""

    def __init__(self, index: Any, numbers: np.ndarray) -> None:
        self._lists, self._numbers = IndexLists(index), numbers
        self.code_size = self._lists.code_size
        clusters = range(len(self._lists.sizes))
        self.sizes = np.array([(self._new_numbers(i) >= 0).sum() for i in clusters], np.int64)

    def read(self, cluster: int) -> tuple[np.ndarray, np.ndarray]:
        new = self._new_numbers(cluster)
        return self._lists.read(cluster)[0][new >= 0], new[new >= 0]

    def _new_numbers(self, cluster: int) -> np.ndarray:
        return self._numbers[self._lists.read(cluster)[1]]


class PartLists:
    """The rows of a part, a file with `part_bytes`, mapped; ValueError: damaged, no part, or of another training."""

    def __init__(self, path: Path, trained: bytes) -> None:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(PART_HEAD.size)
            if len(head) < PART_HEAD.size or not head.startswith(PART_MAGIC):
                raise ValueError(f"{path}: no part of an index ({size} bytes); want a file with the bytes of fill")
            _, training, n_lists, self.code_size, n = PART_HEAD.unpack(head)
            want = PART_HEAD.size + 8 * n_lists + (8 + self.code_size) * n + 16
            file.seek(0)
            if size != want or hash_of(file, size - 16).digest() != file.read():
                raise ValueError(f"{path}: spoiled ({size} bytes, {want} by its head); fill it again")
        if training != hasher(trained).digest():
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


def part_bytes(trained: bytes, index: Any) -> bytes:
    """The rows of an index that was filled from `trained`: head, sizes, row numbers, codes, BLAKE2b-128."""
    lists = IndexLists(index)
    clusters = [lists.read(i) for i in range(len(lists.sizes))]
    head = PART_HEAD.pack(PART_MAGIC, hasher(trained).digest(), len(clusters), lists.code_size, lists.sizes.sum())
    rows, codes = (rows.tobytes() for _, rows in clusters), (codes.tobytes() for codes, _ in clusters)
    data = b"".join([head, lists.sizes.tobytes(), *rows, *codes])
    return data + hasher(data).digest()


def packed(index: Any) -> Any:
    """A mapped index as it is searched: 4-bit codes are copied into the blocks that FastScan compares, in memory.

    FAISS neither maps such blocks nor takes rows out of them, so the file keeps plain codes. The copy needs the mapped
    index, for its rotation and centres. Any other index, codes of 8 bits of earlier releases included, is itself.
    """
    if not isinstance(index, faiss.IndexPreTransform):
        return index
    inverted = faiss.downcast_index(faiss.extract_index_ivf(index))
    if inverted.pq.nbits != CODE_BITS:
        return index
    return faiss.IndexPreTransform(index.chain.at(0), faiss.IndexIVFPQFastScan(inverted, BLOCK_ROWS))


def without_rows(index: Any) -> bytes:
    """The bytes that `train` gave for an index, which may be mapped: all of it but its rows."""
    inverted = faiss.extract_index_ivf(index)
    lists, counts = inverted.invlists, (inverted.ntotal, index.ntotal)
    inverted.own_invlists = False
    empty = faiss.ArrayInvertedLists(inverted.nlist, inverted.code_size)
    inverted.invlists, inverted.ntotal, index.ntotal = empty, 0, 0
    try:
        return sealed(index)
    finally:
        inverted.invlists, inverted.ntotal, index.ntotal = lists, *counts
        inverted.own_invlists = True


def write_lists(trained: bytes, sources: Sequence[Lists], out: Path) -> None:
    """Write index.faiss from the rows of several sources; within a cluster they follow the order of the sources.

    The format is FAISS' own: faiss/impl/index_write.cpp, `ilar`. One cluster is in memory at a time.
    """
    index = opened("trained", trained)
    inverted = faiss.extract_index_ivf(index)
    sizes: np.ndarray = sum((source.sizes for source in sources), np.zeros(inverted.nlist, np.int64))
    index.ntotal = inverted.ntotal = int(sizes.sum())
    # the last 32 bytes are the empty lists: name, clusters, code size, name, an empty table
    head = faiss.serialize_index(index).tobytes()[:-32]
    used = np.flatnonzero(sizes)
    dense = len(used) > len(sizes) // 2
    table = sizes if dense else np.stack([used, sizes[used]], axis=1).ravel()
    kind = b"full" if dense else b"sprs"
    with writing_sealed(out) as write:
        write(head + struct.pack("<4sQQ4sQ", b"ilar", len(sizes), inverted.code_size, kind, len(table)))
        write(table.tobytes())
        for cluster in used.tolist():
            parts = [source.read(cluster) for source in sources]
            for codes, _ in parts:
                write(codes.tobytes())
            for _, rows in parts:
                write(rows.tobytes())
