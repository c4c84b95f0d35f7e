"""Objects by key, on disk or in a bucket: read, write-then-publish, list, create-if-absent, swap-if-unchanged.

In: a local path, `file://…` or `s3://bucket/prefix`. Out: an `ObjectStore` whose keys are relative paths with '/'. A
key either holds all the bytes of one write or does not exist: local files are written under a hidden name, flushed
and renamed; S3 publishes when the last byte is in. S3 speaks boto3 (any S3-compatible endpoint; credentials, region
and AWS_ENDPOINT_URL by the SDK's own chain). Throttling, time-outs, 5xx, dropped connections and answers cut short are
retried with backoff and jitter; what remains is a `StorageError` that names the object, the attempts and the reason.
What is written to a bucket carries the digest of its bytes as metadata, and `read` compares: a length that lies is
found out.

Stores can be pickled (connections are made where they are used) and shared between threads.
"""

import contextlib
import errno
import fcntl
import hashlib
import io
import mimetypes
import os
import random
import secrets
import stat
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    import pyarrow

HIDDEN = ".tmp-"  # a file name that begins so is being written, and is never listed
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 5, 60
ATTEMPTS, PROBE_ATTEMPTS = 6, 2
MULTIPART_BYTES, PART_BYTES = 32 << 20, 16 << 20
READ_AHEAD = 64 << 10  # bytes; of an image set without its pictures a range this long holds many columns
DIGEST = "blake2b"  # the metadata of an object that holds the BLAKE2b-128 of its bytes, hex


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
    etag: str = field(default="", compare=False)  # of this version, as a bucket tells it; "" in a folder


Objects = list[ObjectInfo]


def open_store(uri: str | Path, *, endpoint_url: str | None = None) -> "ObjectStore":
    """The store at `uri`; nothing is contacted or created yet.

    Args:
        uri: a local path (`~` is expanded), `file:///path` or `s3://bucket/prefix`.
        endpoint_url: address of an S3-compatible server; None leaves it to the SDK (AWS_ENDPOINT_URL …).

    Raises:
        StorageError: for any other scheme, an address without a bucket, or one that is no path.
    """
    text = os.fspath(uri)
    scheme, separator, _ = text.partition("://")
    if isinstance(uri, Path) or not separator:
        if not text:
            raise StorageError("empty address: want a folder, file:///folder or s3://bucket/prefix")
        try:
            return LocalStore(Path(text).expanduser().absolute())
        except RuntimeError as error:  # `~nobody/x`
            raise StorageError(f"{text}: {error}") from error
    if scheme == "file":
        parts = urlsplit(text)
        if parts.netloc not in ("", "localhost") or not parts.path:
            raise StorageError(f"{text}: want file:///absolute/path")
        return LocalStore(Path(unquote(parts.path)))
    if scheme == "s3":
        bucket, _, prefix = text.removeprefix("s3://").partition("/")
        if not bucket:
            raise StorageError(f"{text}: no bucket; want s3://bucket/prefix")
        prefix = prefix.strip("/")
        try:
            return S3Store(bucket, _checked(prefix) if prefix else "", _Connection(endpoint_url))
        except ValueError as error:
            raise StorageError(f"{text}: {error}") from error
    raise StorageError(f"{text}: unknown scheme {scheme!r}; want a local folder, file:// or s3://")


class ObjectStore(ABC):
    """What every back end does. Keys are relative, with '/', without '.', '..' or empty parts; others: ValueError."""

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
        """Publish the bytes of a local file, read in pieces."""

    @abstractmethod
    def open(self, key: str) -> "pyarrow.NativeFile":
        """A seekable file for reading ranges. Raises ObjectMissing."""

    @abstractmethod
    def size(self, key: str) -> int:
        """Bytes. Raises ObjectMissing."""

    @abstractmethod
    def list(self, prefix: str = "") -> Objects:
        """Every object whose key begins with `prefix` (end it with '/' to mean a folder), all levels, sorted by key."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove; an absent key is no error."""

    @abstractmethod
    def create(self, key: str, data: bytes) -> bool:
        """Publish only if `key` is absent: of many racing callers exactly one gets True.

        Put something unique into `data` (a lock's token): after a lost reply that is how a retry knows its own object.
        """

    @abstractmethod
    def swap(self, key: str, data: bytes, expected: bytes) -> bool:
        """Publish only if `key` holds exactly `expected`: of many racing callers that expect the same, exactly one gets True.

        As with `create`, put something unique into `data`.
        """

    @abstractmethod
    def sub(self, prefix: str) -> "ObjectStore":
        """The store of the keys under `prefix/`."""

    @abstractmethod
    def probe(self, write: bool) -> None:
        """Can it be read (and written)? Raises StorageError with the reason within seconds; leaves nothing behind."""

    def exists(self, key: str) -> bool:
        try:
            self.size(key)
        except ObjectMissing:
            return False
        return True

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.uri!r})"


def _checked(key: str) -> str:
    if not key or "\0" in key or any(part in ("", ".", "..") or part.startswith(HIDDEN) for part in key.split("/")):
        raise ValueError(
            f"bad object key {key!r}: want a relative path with '/', without empty, '.', '..', {HIDDEN}* parts"
        )
    return key


def _checked_prefix(prefix: str) -> str:
    if prefix:
        _checked(prefix.removesuffix("/"))
    return prefix


def _is_hidden(key: str) -> bool:
    return any(part.startswith(HIDDEN) for part in key.split("/"))


# ------------------------------------------------------------------------------------------------ a folder


class LocalStore(ObjectStore):
    """Keys are files under one folder, which is made on the first write."""

    local_path: Path

    def __init__(self, root: Path) -> None:
        self.local_path = root
        self.uri = str(root)

    def read(self, key: str) -> bytes:
        with self._saying("reading", key):
            return self._path(key).read_bytes()

    def write(self, key: str, data: bytes | memoryview) -> None:
        self._publish(key, lambda file: file.write(data), os.replace)

    def write_file(self, key: str, path: str | Path) -> None:
        def copy(file: io.BufferedWriter) -> None:
            with open(path, "rb") as source:
                while piece := source.read(1 << 20):
                    file.write(piece)

        self._publish(key, copy, os.replace)

    def open(self, key: str) -> "pyarrow.NativeFile":
        import pyarrow

        with self._saying("opening", key):
            path = str(self._path(key))
            return pyarrow.memory_map(path) if os.path.getsize(path) else pyarrow.BufferReader(b"")

    def size(self, key: str) -> int:
        with self._saying("looking at", key):
            info = self._path(key).stat()
        if not stat.S_ISREG(info.st_mode):
            raise ObjectMissing(f"no object {key} in {self.uri}")
        return info.st_size

    def list(self, prefix: str = "") -> Objects:
        folder = _checked_prefix(prefix).rpartition("/")[0]
        found = []
        for parent, folders, names in os.walk(self.local_path / folder):
            folders[:] = [name for name in folders if not name.startswith(HIDDEN)]
            for name in names:
                path = Path(parent, name)
                key = path.relative_to(self.local_path).as_posix()
                if not key.startswith(prefix) or name.startswith(HIDDEN):
                    continue
                with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                    info = path.stat()
                    if stat.S_ISREG(info.st_mode):
                        found.append(ObjectInfo(key, info.st_size))
        return sorted(found)

    def delete(self, key: str) -> None:
        with contextlib.suppress(ObjectMissing), self._saying("deleting", key):
            self._path(key).unlink()

    def create(self, key: str, data: bytes) -> bool:
        try:
            self._publish(key, lambda file: file.write(data), _link)
        except StorageError as error:
            if isinstance(error.__cause__, FileExistsError) and self._path(key).exists():
                return False
            raise
        return True

    def swap(self, key: str, data: bytes, expected: bytes) -> bool:
        path = self._path(key)
        if not path.exists():
            return False
        with self._saying("writing", key):
            lock = os.open(path.with_name(f"{HIDDEN}swap-{path.name}"), os.O_CREAT | os.O_RDWR, 0o666)
        try:  # the system gives the lock back when its holder dies
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
        return LocalStore(self.local_path / _checked(prefix))

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
        return self.local_path / _checked(key)

    def _publish(self, key: str, fill: Callable[[Any], object], place: Callable[[Path, Path], None]) -> None:
        """Fill a hidden file beside the target, flush it to the disk, put it in place, flush the folder."""
        path = self._path(key)
        hidden = path.with_name(HIDDEN + secrets.token_hex(8))
        with self._saying("writing", key):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with open(hidden, "xb") as file:
                    fill(file)
                    file.flush()
                    os.fsync(file.fileno())
                place(hidden, path)
            finally:
                hidden.unlink(missing_ok=True)
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    @contextlib.contextmanager
    def _saying(self, doing: str, key: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            if doing == "writing":
                raise StorageError(f"{doing} {key} in {self.uri}: {error.strerror}") from error
            raise ObjectMissing(f"no object {key} in {self.uri}") from error
        except OSError as error:
            raise StorageError(f"{doing} {key} in {self.uri}: {error.strerror or error}") from error


def _link(hidden: Path, path: Path) -> None:
    """Give the file its name unless the name is taken; where links are unknown, open exclusively and copy."""
    try:
        os.link(hidden, path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        with open(path, "xb") as file:
            file.write(hidden.read_bytes())
            file.flush()
            os.fsync(file.fileno())


# ------------------------------------------------------------------------------------------------ a bucket


class _Connection:
    """The clients of one endpoint, made once per process and shared by a store and its `sub` stores."""

    def __init__(self, endpoint_url: str | None) -> None:
        self.endpoint_url = endpoint_url
        self._made: dict[Any, Any] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, str | None]:
        return {"endpoint_url": self.endpoint_url}

    def __setstate__(self, state: dict[str, str | None]) -> None:
        self.__init__(state["endpoint_url"])  # type: ignore[misc]

    def client(self, attempts: int = ATTEMPTS) -> Any:
        return self._once(("boto3", os.getpid(), attempts), lambda: self._new_client(attempts))

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        with self._lock:
            if key not in self._made:
                self._made[key] = make()
            return self._made[key]

    def _new_client(self, attempts: int) -> Any:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        config = Config(
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
            # Exponential backoff with jitter: up to 1, 2, 4 … seconds. The newer modes give each client some hundred
            # retries in all, which come back with success alone: a bad hour would leave the night's run with none.
            retries={"mode": "legacy", "total_max_attempts": attempts},
            max_pool_connections=32,
            # Many S3-compatible servers know no trailing checksums, and image sets carry digests of their own.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        try:
            return boto3.session.Session().client("s3", endpoint_url=self.endpoint_url, config=config)
        except (BotoCoreError, ValueError) as error:
            raise StorageError(f"cannot set up S3: {error}") from error


class S3Store(ObjectStore):
    """Keys are objects under `s3://bucket/prefix/`."""

    def __init__(self, bucket: str, prefix: str, connection: _Connection) -> None:
        self.bucket, self.prefix, self._connection = bucket, prefix, connection
        self.uri = f"s3://{bucket}/{prefix}".rstrip("/")

    def read(self, key: str) -> bytes:
        return self._get(key, _not_as_written)[1]

    def read_range(self, key: str, at: int, n: int, etag: str) -> bytes:
        """`n` bytes from byte `at` of the version with this ETag."""

        def wrong(reply: dict[str, Any], data: bytes) -> str:
            return "" if len(data) == n else f"{len(data)} bytes where {n} lie"

        return self._get(key, wrong, Range=f"bytes={at}-{at + n - 1}", IfMatch=etag)[1]

    def write(self, key: str, data: bytes | memoryview) -> None:
        if len(data) > MULTIPART_BYTES:
            self._upload(key, io.BytesIO(data), _digest(data))
            return
        with self._saying("writing", key) as client:
            client.put_object(
                Bucket=self.bucket, Key=self._name(key), Body=bytes(data), **_described(key, _digest(data))
            )

    def write_file(self, key: str, path: str | Path) -> None:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
            file.seek(0)
            self._upload(key, file, digest)

    def open(self, key: str) -> "pyarrow.NativeFile":
        import pyarrow

        with self._saying("opening", key) as client:
            head = client.head_object(Bucket=self.bucket, Key=self._name(key))
        ranges = _Ranges(self, key, head["ContentLength"], head["ETag"])
        return pyarrow.PythonFile(io.BufferedReader(ranges, READ_AHEAD), "r")

    def size(self, key: str) -> int:
        with self._saying("looking at", key) as client:
            return client.head_object(Bucket=self.bucket, Key=self._name(key))["ContentLength"]

    def list(self, prefix: str = "") -> Objects:
        root = f"{self.prefix}/" if self.prefix else ""
        found = []
        with self._saying("listing", _checked_prefix(prefix) or "objects") as client:
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=root + prefix)
            for page in pages:
                for entry in page.get("Contents", ()):
                    key = entry["Key"].removeprefix(root)
                    if key and not key.endswith("/") and not _is_hidden(key):  # "folder/": some consoles' marker
                        found.append(ObjectInfo(key, entry["Size"], entry.get("ETag", "")))
        return sorted(found)

    def delete(self, key: str) -> None:
        with self._saying("deleting", key) as client:
            client.delete_object(Bucket=self.bucket, Key=self._name(key))

    def create(self, key: str, data: bytes) -> bool:
        from botocore.exceptions import ClientError

        for attempt in range(1, ATTEMPTS + 1):
            with self._saying("creating", key) as client:
                try:
                    more = _described(key, _digest(data))
                    client.put_object(
                        Bucket=self.bucket, Key=self._name(key), Body=bytes(data), IfNoneMatch="*", **more
                    )
                    return True
                except ClientError as error:
                    status = error.response["ResponseMetadata"].get("HTTPStatusCode")
                    if status == 412:  # taken; by ourselves, if the reply to an earlier attempt was lost
                        if attempt == 1 and not error.response["ResponseMetadata"].get("RetryAttempts", 0):
                            return False
                        with contextlib.suppress(ObjectMissing):  # given back since
                            return self.read(key) == bytes(data)
                    if status not in (409, 412) or attempt == ATTEMPTS:  # 409: another writer is at it right now
                        raise
            time.sleep(_pause_s(attempt))
        raise AssertionError("unreachable")

    def swap(self, key: str, data: bytes, expected: bytes) -> bool:
        from botocore.exceptions import ClientError

        for attempt in range(1, ATTEMPTS + 1):
            try:
                reply, found = self._get(key, _not_as_written)
            except ObjectMissing:
                return False
            if found != expected:
                return False
            with self._saying("swapping", key) as client:
                more = _described(key, _digest(data)) | {"IfMatch": reply["ETag"]}
                try:
                    client.put_object(Bucket=self.bucket, Key=self._name(key), Body=bytes(data), **more)
                    return True
                except ClientError as error:
                    status = error.response["ResponseMetadata"].get("HTTPStatusCode")
                    if status not in (404, 409, 412):
                        raise
            # changed since it was read: by another, or by ourselves where the reply to an earlier attempt was lost
            with contextlib.suppress(ObjectMissing):
                if self.read(key) == bytes(data):
                    return True
            time.sleep(_pause_s(attempt))
        return False

    def sub(self, prefix: str) -> "S3Store":
        return S3Store(self.bucket, f"{self.prefix}/{_checked(prefix)}".lstrip("/"), self._connection)

    def probe(self, write: bool) -> None:
        client = self._connection.client(PROBE_ATTEMPTS)
        with self._saying("listing", "objects", PROBE_ATTEMPTS):
            client.list_objects_v2(Bucket=self.bucket, Prefix=self.prefix, MaxKeys=1)
        if write:
            name = f"{self.prefix}/{HIDDEN}probe-{secrets.token_hex(8)}".lstrip("/")
            with self._saying("writing", "a trial object", PROBE_ATTEMPTS):
                client.put_object(Bucket=self.bucket, Key=name, Body=b"")
            with self._saying("deleting", "a trial object", PROBE_ATTEMPTS):
                client.delete_object(Bucket=self.bucket, Key=name)

    def _name(self, key: str) -> str:
        return f"{self.prefix}/{_checked(key)}".lstrip("/")

    def _get(
        self, key: str, wrong: Callable[[dict[str, Any], bytes], str], **which: str
    ) -> tuple[dict[str, Any], bytes]:
        """The reply about an object and its bytes, asked for again while the answer breaks off or `wrong` says what is wrong with it."""
        from botocore.exceptions import BotoCoreError, HTTPClientError

        reason: object = ""
        for attempt in range(1, ATTEMPTS + 1):
            with self._saying("reading", key) as client:
                reply = client.get_object(Bucket=self.bucket, Key=self._name(key), **which)
                try:
                    data = reply["Body"].read()  # the client retries requests, not a body that breaks off
                except (BotoCoreError, HTTPClientError, OSError) as error:
                    reason = error
                else:
                    reason = wrong(reply, data)
                    if not reason:
                        return reply, data
            if attempt < ATTEMPTS:
                time.sleep(_pause_s(attempt))
        raise StorageError(f"reading {key} in {self.uri}: {_line(reason)} {_tries(ATTEMPTS)}")

    def _upload(self, key: str, file: Any, digest: str) -> None:
        from boto3.s3.transfer import TransferConfig

        plan = TransferConfig(multipart_threshold=MULTIPART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=4)
        with self._saying("writing", key) as client:
            more = _described(key, digest)
            client.upload_fileobj(file, self.bucket, self._name(key), ExtraArgs=more, Config=plan)

    @contextlib.contextmanager
    def _saying(self, doing: str, key: str, attempts: int = ATTEMPTS) -> Iterator[Any]:
        """The client; whatever it raises becomes ObjectMissing or StorageError in one line."""
        from boto3.exceptions import Boto3Error
        from botocore import exceptions as boto

        client = self._connection.client(attempts)
        place = f"{doing} {key} in {self.uri}"
        try:
            yield client
        except boto.ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            if code in ("NoSuchKey", "404", "NotFound"):
                raise ObjectMissing(f"no object {key} in {self.uri}") from error
            if code == "NoSuchBucket":
                raise StorageError(f"{place}: no bucket {self.bucket} at {client.meta.endpoint_url}") from error
            raise StorageError(f"{place}: {_refusal(code, error)}") from error
        except (boto.NoCredentialsError, boto.PartialCredentialsError) as error:
            want = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"
            raise StorageError(f"{place}: no credentials found; {want}") from error
        except (boto.EndpointConnectionError, boto.ConnectTimeoutError, boto.ProxyConnectionError) as error:
            address = client.meta.endpoint_url
            raise StorageError(f"{place}: {address} cannot be reached {_tries(attempts)}; is it right?") from error
        except (boto.BotoCoreError, Boto3Error) as error:
            raise StorageError(f"{place}: {_line(error)} {_tries(attempts)}") from error


class _Ranges(io.RawIOBase):
    """One version of an object as a file. pyarrow.fs would do, but takes a range cut short for a whole one."""

    def __init__(self, store: S3Store, key: str, size: int, etag: str) -> None:
        self.store, self.key, self.size, self.etag, self.at = store, key, size, etag, 0

    def readinto(self, buffer: Any) -> int:
        n = max(0, min(len(buffer), self.size - self.at))
        if n:
            buffer[:n] = self.store.read_range(self.key, self.at, n, self.etag)
            self.at += n
        return n

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.size}[whence]
        return self.at

    def tell(self) -> int:
        return self.at

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


def _described(key: str, digest: str) -> dict[str, Any]:
    """What goes with the bytes of an object."""
    return {"ContentType": _media_type(key), "Metadata": {DIGEST: digest}}


def _digest(data: bytes | memoryview) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _digest_of(reply: dict[str, Any]) -> str | None:
    """What was written with the object; None: another program wrote it. Some servers change the case of the name."""
    return {name.lower(): value for name, value in reply.get("Metadata", {}).items()}.get(DIGEST)


def _not_as_written(reply: dict[str, Any], data: bytes) -> str:
    if _digest_of(reply) in (None, _digest(data)):
        return ""
    return f"{len(data)} bytes that are not what was written; restore or delete it if that stays"


def _line(said: object) -> str:
    return " ".join(str(said).split())


def _tries(n: int) -> str:
    return f"({n} attempt{'s' * (n != 1)})"


def _media_type(key: str) -> str:
    """What a browser is told the object is: a page from a bucket opens as a page only if the bucket says that it is one."""
    return mimetypes.guess_type(key, strict=False)[0] or "application/octet-stream"


def _refusal(code: str, error: Any) -> str:
    """What the server said, in words, and what to do where that is known."""
    reply = error.response.get("ResponseMetadata", {})
    said = f"{code}: {_line(error.response.get('Error', {}).get('Message', ''))} {_tries(reply.get('RetryAttempts', 0) + 1)}"
    if code in ("403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"):
        return f"refused by the server, {said}; check the credentials and what they may do"
    if reply.get("HTTPStatusCode") == 507 or "QuotaExceeded" in code or "StorageFull" in code:
        return f"the storage is full, {said}; make room there or raise the quota"
    return f"the server answered {said}"


def _pause_s(attempt: int) -> float:
    """Backoff with full jitter: up to 0.5, 1, 2, 4 … seconds, 10 at most."""
    return random.uniform(0, min(10.0, 0.25 * 2**attempt))
