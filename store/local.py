"""Objects in a folder: keys are files, written under a hidden name, flushed to the disk and renamed."""

import contextlib
import errno
import fcntl
import operator
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from store.files import file_digest, publish_file
from store.interface import (
    HIDDEN,
    ObjectInfo,
    ObjectMissing,
    Objects,
    ObjectStore,
    StorageError,
    checked_key,
    checked_prefix,
)

if TYPE_CHECKING:
    import pyarrow

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class LocalStore(ObjectStore):
    """Keys are files under one folder, which is made on the first write."""

    local_path: Path

    def __init__(self, root: Path) -> None:
        self.local_path = root
        self.uri = str(root)

    def read(self, key: str) -> bytes:
        name = f"{self.local_path}/{checked_key(key)}"  # no Path: a run may read a hundred thousand marks
        with self._storage_errors("reading", key), open(name, "rb") as file:
            return file.read()

    def write(self, key: str, data: bytes | memoryview) -> None:
        with self._publish(key) as part:
            part.write_bytes(data)

    def write_file(self, key: str, path: str | Path) -> None:
        with self._publish(key) as part:
            shutil.copyfile(path, part)

    def copy(self, source: str, key: str) -> None:
        self.info(source)
        self.write_file(key, self._path(source))

    def open(self, key: str) -> "pyarrow.NativeFile":
        import pyarrow

        with self._storage_errors("opening", key):
            path = os.fsencode(self._path(key))  # Arrow takes a str for UTF-8 and refuses names that are not
            return pyarrow.memory_map(path) if os.path.getsize(path) else pyarrow.BufferReader(b"")

    def info(self, key: str) -> ObjectInfo:
        with self._storage_errors("looking at", key):
            status = self._path(key).stat()
        if not stat.S_ISREG(status.st_mode):
            raise ObjectMissing(f"no object {key} in {self.uri}")
        return ObjectInfo(key, status.st_size, str(status.st_mtime_ns))

    def digest(self, key: str) -> str:
        with self._storage_errors("reading", key):
            return file_digest(self._path(key))

    def list(self, prefix: str = "") -> Objects:
        folder = checked_prefix(prefix).rpartition("/")[0]
        objects = []
        for parent, folders, names in os.walk(self.local_path / folder):
            folders[:] = [name for name in folders if not name.startswith(HIDDEN)]
            inside = Path(parent).relative_to(self.local_path).as_posix()
            inside = "" if inside == "." else f"{inside}/"
            for name in names:
                key = inside + name
                if not key.startswith(prefix) or name.startswith(HIDDEN):
                    continue
                with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                    status = os.stat(f"{parent}/{name}")
                    if stat.S_ISREG(status.st_mode):
                        objects.append(ObjectInfo(key, status.st_size, str(status.st_mtime_ns)))
        return sorted(objects, key=operator.attrgetter("key"))

    def delete(self, key: str) -> None:
        with contextlib.suppress(ObjectMissing), self._storage_errors("deleting", key):
            self._path(key).unlink()

    def create(self, key: str, data: bytes) -> bool:
        try:
            with self._publish(key, _link) as part:
                part.write_bytes(data)
        except StorageError as error:
            if isinstance(error.__cause__, FileExistsError) and self._path(key).exists():
                return False
            raise
        return True

    def swap(self, key: str, data: bytes, expected: bytes) -> bool:
        path = self._path(key)
        if not path.exists():
            return False
        with self._storage_errors("writing", key):
            lock = os.open(path.with_name(f"{HIDDEN}swap-{path.name}"), os.O_CREAT | os.O_RDWR, 0o666)
        try:  # the system releases the lock when its holder dies
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                if self.read(key) != expected:
                    return False
            except ObjectMissing:
                return False
            self.write(key, data)
            return True
        finally:
            os.close(lock)

    def sub(self, prefix: str) -> "LocalStore":
        return LocalStore(self.local_path / checked_key(prefix))

    def probe(self, write: bool) -> None:
        root = self.local_path
        if write:
            token = f"probe-{secrets.token_hex(8)}"
            self.write(token, b"")
            self.delete(token)
        try:
            os.listdir(root)
        except OSError as error:
            raise StorageError(f"cannot read folder {root}: {error.strerror}") from error

    def _path(self, key: str) -> Path:
        return self.local_path / checked_key(key)

    @contextlib.contextmanager
    def _publish(self, key: str, place: Callable[[Path, Path], None] = os.replace) -> Iterator[Path]:
        path = self._path(key)
        with self._storage_errors("writing", key):
            path.parent.mkdir(parents=True, exist_ok=True)
            with publish_file(path, durable=True, place=place) as part:
                yield part

    @contextlib.contextmanager
    def _storage_errors(self, doing: str, key: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            if doing == "writing":
                raise StorageError(f"{doing} {key} in {self.uri}: {error.strerror}") from error
            raise ObjectMissing(f"no object {key} in {self.uri}") from error
        except OSError as error:
            raise StorageError(f"{doing} {key} in {self.uri}: {error.strerror or error}") from error


def _link(hidden: Path, path: Path) -> None:
    """Give the file its name unless the name is taken; where the disk has no links, open exclusively and copy."""
    try:
        os.link(hidden, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        with open(path, "xb") as file:
            file.write(hidden.read_bytes())
            file.flush()
            os.fsync(file.fileno())
