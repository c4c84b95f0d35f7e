"""The files of a gallery's index, read and written whole: .npy arrays that are mapped, and index.faiss with its digest.

index.faiss is FAISS' own format, then 8 bytes of MAGIC and 16 of BLAKE2b-128 of all before them: damaged bytes can
crash FAISS, so nothing reaches it unchecked.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import faiss as _faiss
import numpy as np

from store.files import file_digest, hasher, publish_file

faiss: Any = _faiss  # FAISS' type stubs are incomplete
MAGIC = b"CR-ANN-1"
TAIL = len(MAGIC) + 16  # bytes behind FAISS' own
COPY_BYTES = 1 << 22  # read and hashed at once


# --- arrays -----------------------------------------------------------------------------------------------------------


def write_rows(path: Path, shape: tuple[int, ...], dtype: np.dtype, blocks: Iterable[np.ndarray]) -> None:
    """Write a .npy file of `shape` from its rows, block by block."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    with publish_file(path, durable=True) as part, part.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for block in blocks:
            file.write(np.ascontiguousarray(block, dtype).data)


def read_array(path: Path, axes: int, dtypes: Sequence[type]) -> np.ndarray:
    """A .npy file, mapped; raises ValueError where it is no such file, or of another shape or type."""
    try:
        array: np.ndarray = np.lib.format.open_memmap(path, mode="r")  # np.load would also try archives and pickles
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; the gallery keeps it beside its index") from None
    except (ValueError, EOFError, OSError, SyntaxError) as error:
        raise ValueError(f"{path}: no array that numpy can map: {str(error).splitlines()[0]}") from None
    if array.ndim != axes or array.dtype.type not in dtypes or not array.flags.c_contiguous:
        types = " or ".join(dtype.__name__ for dtype in dtypes)
        raise ValueError(f"{path}: want {axes} axes of {types}, got {array.shape} {array.dtype}")
    return array


def check_digest(path: Path, digest: str) -> None:
    """Raise ValueError where the file does not exist, or its BLAKE2b-128 in hex is another."""
    actual = file_digest(path) if path.exists() else "none, no such file"
    if actual != digest:
        raise ValueError(f"{path}: digest {actual}, want {digest}; fetch it again")


# --- indexes, as bytes and as files -----------------------------------------------------------------------------------


def sealed(index: Any) -> bytes:
    """An index as FAISS' bytes with our digest behind them."""
    data: bytes = faiss.serialize_index(index).tobytes()
    return data + MAGIC + hasher(data).digest()


def opened(name: str, data: bytes) -> Any:
    """The FAISS index of `sealed` bytes; raises ValueError, with `name`, where they are no such bytes."""
    body = memoryview(data)[:-TAIL]
    if len(data) < TAIL or data[-TAIL:-16] != MAGIC or data[-16:] != hasher(body).digest():
        raise ValueError(f"{name}: {len(data)} bytes that are no index of ours, or spoiled; train again")
    return faiss.deserialize_index(np.frombuffer(body, np.uint8))


@contextmanager
def writing_sealed(path: Path) -> Iterator[Callable[[bytes], object]]:
    """Write FAISS' bytes of an index through the function given; the file appears, with its digest, at the end."""
    with publish_file(path, durable=True) as part, part.open("wb") as file:
        digest = hasher()

        def write(data: bytes) -> None:
            digest.update(data)
            file.write(data)

        yield write
        file.write(MAGIC + digest.digest())


def write_index(index: Any, path: Path) -> None:
    """Write an index to its file, without a second copy of it in memory."""
    with writing_sealed(path) as write:
        faiss.write_index(index, faiss.PyCallbackIOWriter(write))


def read_index(path: Path, digest: str | None = None) -> Any:
    """index.faiss, mapped; its own digest is checked first, and the caller's, BLAKE2b-128 of the file in hex.

    Raises ValueError where there is no such file, it is damaged, or has another digest.
    """
    if not path.exists():
        raise ValueError(f"{path}: no such file; build the index, or open the folder with the plan it was built by")
    size = path.stat().st_size
    with path.open("rb") as file:
        own = hash_of(file, size - TAIL)
        tail = file.read()
    if len(tail) < TAIL or tail[: len(MAGIC)] != MAGIC or tail[len(MAGIC) :] != own.digest():
        raise ValueError(f"{path}: {size} bytes that are no index of ours, or spoiled; build it again")
    own.update(tail)
    if digest is not None and own.hexdigest() != digest:
        raise ValueError(f"{path}: digest {own.hexdigest()}, want {digest}; was it built again since?")
    with path.open("rb") as file:
        is_graph = file.read(4) == b"IHNs"
        flags = faiss.IO_FLAG_MMAP_IFC if is_graph else faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY
        # FAISS maps only what it opens by name, and takes no name that is not UTF-8
        return faiss.read_index(str(path) if str(path).isprintable() else f"/dev/fd/{file.fileno()}", flags)


def hash_of(file: BinaryIO, count: int) -> Any:
    """The BLAKE2b-128 hash of the next `count` bytes of a file."""
    hash_ = hasher()
    while count > 0 and (block := file.read(min(COPY_BYTES, count))):
        hash_.update(block)
        count -= len(block)
    return hash_
