"""Objects of a bucket kept on this machine by their content: fetched once, checked, shared by every process.

In: a store, a key and the sha256 its bytes must have. Out: a local file with those bytes. A file lies under its own digest, so a
new version never meets an old one, and what was damaged on the disk is fetched again.
"""

import fcntl
import hashlib
import os
import tempfile
from pathlib import Path, PurePosixPath

from store.objects import ObjectStore, StorageError


def cached(store: ObjectStore, key: str, sha256: str, folder: Path | None = None) -> Path:
    """The object as a local file.

    Args:
        store: where it is fetched from when it is not here; a folder's file is taken as it lies.
        key: of the object.
        sha256: hex, of its bytes.
        folder: of the cache; None: `cache_folder()`.

    Raises:
        ObjectMissing: the store has no such object.
        StorageError: it cannot be fetched, or has other bytes than asked for.
    """
    if store.local_path is not None:
        return store.local_path / key
    place = (folder or cache_folder()) / sha256
    place.mkdir(parents=True, exist_ok=True)
    path = place / PurePosixPath(key).name
    with open(place / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # given back when the process ends, however it ends
        if path.is_file() and _sha256(path) == sha256:
            return path
        part = path.with_name(f"{path.name}.part")
        part.write_bytes(store.read(key))
        found = _sha256(part)
        if found != sha256:
            part.unlink()
            raise StorageError(
                f"{store.uri}/{key} has sha256 {found}, want {sha256}; restore it, or start again with what is there now"
            )
        os.replace(part, path)
    return path


def cache_folder() -> Path:
    """`clothes-retrieval` under $XDG_CACHE_HOME or ~/.cache, or under the temporary folder where there is no home to write to."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clothes-retrieval"
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.gettempdir()) / f"clothes-retrieval-{os.getuid()}"
    return home


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
