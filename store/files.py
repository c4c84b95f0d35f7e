"""Files that appear whole or not at all, the digests that identify their bytes, and a cache of a bucket's objects.

The project's digest is BLAKE2b-128, in hex. SHA-256 is used for model weights alone, because publishers print it.
"""

import contextlib
import fcntl
import hashlib
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from store.interface import HIDDEN, ObjectStore, StorageError


def hasher(data: bytes | memoryview = b"") -> hashlib.blake2b:
    """A BLAKE2b-128 hash that has been fed `data`."""
    return hashlib.blake2b(data, digest_size=16)


def digest(data: bytes | memoryview) -> str:
    """BLAKE2b-128 of some bytes, hex.

    >>> digest(b"")
    'cae66941d9efbd404e4d88758ea67670'
    """
    return hasher(data).hexdigest()


def file_digest(path: str | Path) -> str:
    """BLAKE2b-128 of a file's bytes, hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, hasher).hexdigest()


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def publish_file(
    path: Path, *, durable: bool = False, sole_writer: bool = False, place: Callable[[Path, Path], None] = os.replace
) -> Iterator[Path]:
    """Write a file under a hidden name beside `path`; it takes its place when the block ends without an error.

        with publish_file(path) as part:
            part.write_bytes(data)

    Args:
        durable: flush the file and its folder to the disk before the block's caller goes on.
        sole_writer: nobody else writes `path` now, so the hidden name can be a fixed one: what a killed process left
            behind is written over, where otherwise it would stay.
        place: called with the hidden path and `path` once the bytes are safe.
    """
    part = path.with_name(HIDDEN + (path.name if sole_writer else secrets.token_hex(8)))
    try:
        yield part
        if durable:
            _flush(part)
        place(part, path)
    finally:
        part.unlink(missing_ok=True)
    if durable:
        _flush(path.parent)


def cached(store: ObjectStore, key: str, sha256: str, folder: Path | None = None) -> Path:
    """An object as a local file. A bucket's is fetched once and shared by every process of this machine.

    A cached file lies under its own SHA-256 (hex) in `folder`, by default `cache_folder()`, so two versions never meet;
    one that was damaged is fetched again. A folder's file is used where it lies, unchecked. Raises ObjectMissing where
    the store has none, and StorageError where it cannot be fetched or has other bytes than asked for.
    """
    if store.local_path is not None:
        return store.local_path / key
    place = (folder or cache_folder()) / sha256
    place.mkdir(parents=True, exist_ok=True)
    path = place / PurePosixPath(key).name
    with open(place / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the system releases it when the process ends, however it ends
        if path.is_file() and file_sha256(path) == sha256:
            return path
        with publish_file(path, sole_writer=True) as part:
            part.write_bytes(store.read(key))
            if (actual := file_sha256(part)) != sha256:
                advice = "restore it, or start again with what is there now"
                raise StorageError(f"{store.uri}/{key} has sha256 {actual}, want {sha256}; {advice}")
    return path


def cache_folder() -> Path:
    """`clothes-retrieval` under $XDG_CACHE_HOME or ~/.cache; under the temporary folder if that cannot be written."""
    with contextlib.suppress(OSError, RuntimeError):  # the latter: no HOME, and no home in the system's list of users
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clothes-retrieval"
        home.mkdir(parents=True, exist_ok=True)
        if os.access(home, os.W_OK):
            return home
    return Path(tempfile.gettempdir()) / f"clothes-retrieval-{os.getuid()}"


def _flush(path: Path) -> None:
    """fsync a file or a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
