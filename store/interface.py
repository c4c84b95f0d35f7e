"""What every object store does, and how it fails; `store.objects` opens one.

A key is a relative path with '/'. It either holds all the bytes of one write or does not exist.
"""

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow

HIDDEN = ".tmp-"  # a file name that begins so is being written, and is never listed
_BAD_KEY = re.compile(rf"\0|/\.?\.?/|/{re.escape(HIDDEN)}")


class StorageError(OSError):
    """Object storage that cannot be used: one line with the place and the reason."""

    user_facing = True  # jobs.cli prints it as one line


class ObjectMissing(FileNotFoundError):
    """There is no object under this key."""

    user_facing = True


@dataclass(frozen=True, order=True)
class ObjectInfo:
    key: str
    size: int  # bytes
    # of these bytes, another one once they are replaced: a bucket's ETag; in a folder the time of change, ns since 1970
    etag: str = field(default="", compare=False)

    @property
    def stamp(self) -> str:
        """Of these bytes, told without reading them: another one once the object is replaced."""
        return f"{self.size} {self.etag}"


Objects = list[ObjectInfo]  # within ObjectStore, `list` is a method


class ObjectStore(ABC):
    """Bytes by key. A key with empty, '.' or '..' parts is a ValueError. Stores pickle, and threads may share one."""

    uri: str
    local_path: Path | None = None

    @abstractmethod
    def read(self, key: str) -> bytes:
        """All bytes. Raises ObjectMissing."""

    @abstractmethod
    def write(self, key: str, data: bytes | memoryview) -> None:
        """Publish `data` under `key`, whole or not at all; an older object is replaced."""

    @abstractmethod
    def write_file(self, key: str, path: str | Path) -> None:
        """Publish the bytes of a local file without holding them in memory."""

    @abstractmethod
    def copy(self, source: str, key: str) -> None:
        """Publish the bytes under `source` under `key` too; a bucket copies them itself. Raises ObjectMissing."""

    @abstractmethod
    def open(self, key: str) -> "pyarrow.NativeFile":
        """A seekable file for reading ranges. Raises ObjectMissing."""

    @abstractmethod
    def info(self, key: str) -> ObjectInfo:
        """What `list` says of one object. Raises ObjectMissing."""

    @abstractmethod
    def digest(self, key: str) -> str:
        """BLAKE2b-128 of the bytes, hex; a bucket that was told it is asked for no bytes. Raises ObjectMissing."""

    @abstractmethod
    def list(self, prefix: str = "") -> Objects:
        """Every object whose key begins with `prefix` (end it with '/' to mean a folder), all levels, sorted by key."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove; an absent key is no error."""

    @abstractmethod
    def create(self, key: str, data: bytes) -> bool:
        """Publish only if `key` is absent: of many racing callers exactly one gets True.

        Put something unique into `data` (a lock's token): after a lost reply, a retry knows its own object by it.
        """

    @abstractmethod
    def swap(self, key: str, data: bytes, expected: bytes) -> bool:
        """Publish only if `key` holds exactly `expected`: of many racing callers that expect the same, one gets True.

        As with `create`, put something unique into `data`.
        """

    @abstractmethod
    def sub(self, prefix: str) -> "ObjectStore":
        """The store of the keys under `prefix/`."""

    @abstractmethod
    def probe(self, write: bool) -> None:
        """Raise StorageError with the reason, within seconds, unless it can be read (and written). Leaves no object."""

    def read_stamped(self, key: str) -> tuple[bytes, str]:
        """All bytes, and the stamp of exactly these; "" where the store does not tell it. Raises ObjectMissing."""
        return self.read(key), ""

    def write_stamped(self, key: str, data: bytes | memoryview) -> str:
        """`write`, and the stamp of exactly these bytes; "" where the store does not tell it."""
        self.write(key, data)
        return ""

    def size(self, key: str) -> int:
        """Bytes. Raises ObjectMissing."""
        return self.info(key).size

    def exists(self, key: str) -> bool:
        try:
            self.size(key)
        except ObjectMissing:
            return False
        return True

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.uri!r})"


def checked_key(key: str) -> str:
    """The key itself. Raises ValueError if it is none."""
    if _BAD_KEY.search(f"/{key}/"):
        raise ValueError(
            f"bad object key {key!r}: want a relative path with '/', without empty, '.', '..', {HIDDEN}* parts"
        )
    return key


def checked_prefix(prefix: str) -> str:
    if prefix:
        checked_key(prefix.removesuffix("/"))
    return prefix


def is_hidden(key: str) -> bool:
    return f"/{HIDDEN}" in f"/{key}"
