"""Objects in a bucket, through boto3: any S3-compatible endpoint.

Credentials, region and AWS_ENDPOINT_URL come from the SDK's own chain. An object is published when its last byte is in.
Throttling, time-outs, 5xx, dropped connections and truncated replies are retried with backoff and jitter; what remains
is a `StorageError` that names the object, the attempts and the reason. Every object carries the digest of its bytes as
metadata, and `read` compares: a wrong length or damaged bytes are noticed.
"""

import contextlib
import io
import mimetypes
import os
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from store.files import digest, file_digest
from store.interface import (
    HIDDEN,
    ObjectInfo,
    ObjectMissing,
    Objects,
    ObjectStore,
    StorageError,
    checked_key,
    checked_prefix,
    is_hidden,
)

if TYPE_CHECKING:
    import pyarrow

CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 5, 60
MAX_CONNECTIONS = 32  # that a client keeps open: as many as threads of ours ask at once
ATTEMPTS, PROBE_ATTEMPTS = 6, 2
MULTIPART_BYTES, PART_BYTES = 32 << 20, 16 << 20
READ_AHEAD = 64 << 10  # bytes; of an image set without its pictures a range this long holds many columns
DIGEST = "blake2b"  # the metadata of an object that holds the BLAKE2b-128 of its bytes, hex
_NOT_FOUND = ("NoSuchKey", "404", "NotFound")
_REFUSED = ("403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken")

Reply = dict[str, Any]  # what boto3 answers


class Connection:
    """The clients of one endpoint, made once per process and shared by a store and its `sub` stores."""

    def __init__(self, endpoint_url: str | None) -> None:
        self.endpoint_url = endpoint_url
        self._clients: dict[tuple[int, int], Any] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return Connection, (self.endpoint_url,)

    def client(self, attempts: int) -> Any:
        """This process's client that sends a request at most `attempts` times."""
        key = os.getpid(), attempts
        with self._lock:
            if key not in self._clients:
                self._clients[key] = self._new_client(attempts)
            return self._clients[key]

    def _new_client(self, attempts: int) -> Any:
        import boto3
        import botocore.session
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        config = Config(
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
            # Exponential backoff with jitter: waits of at most 1, 2, 4 … seconds. The newer modes share one budget of
            # retries among all requests of a client, which only success refills: an outage of an hour would use it up.
            retries={"mode": "legacy", "total_max_attempts": attempts},
            max_pool_connections=MAX_CONNECTIONS,
            # Many S3-compatible servers do not support trailing checksums, and our objects carry digests of their own.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        try:
            session = botocore.session.Session()
            # Reading the time of change of every object took two thirds of a long listing.
            session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_timestamp)
            client = boto3.session.Session(botocore_session=session).client
            return client("s3", endpoint_url=self.endpoint_url, config=config)
        except (BotoCoreError, ValueError) as error:
            raise StorageError(f"cannot set up S3: {error}") from error


class S3Store(ObjectStore):
    """Keys are objects under `s3://bucket/prefix/`."""

    def __init__(self, bucket: str, prefix: str, connection: Connection) -> None:
        self.bucket, self.prefix, self._connection = bucket, prefix, connection
        self.uri = f"s3://{bucket}/{prefix}".rstrip("/")

    def read(self, key: str) -> bytes:
        return self._get(key, _damage)[1]

    def read_range(self, key: str, at: int, n: int, etag: str) -> bytes:
        """`n` bytes from byte `at` of the version with this ETag."""

        def wrong_length(reply: Reply, data: bytes) -> str:
            return "" if len(data) == n else f"{len(data)} bytes where {n} lie"

        return self._get(key, wrong_length, Range=f"bytes={at}-{at + n - 1}", IfMatch=etag)[1]

    def read_stamped(self, key: str) -> tuple[bytes, str]:
        reply, data = self._get(key, _damage)
        return data, _stamp(len(data), reply)

    def write(self, key: str, data: bytes | memoryview) -> None:
        self.write_stamped(key, data)

    def write_stamped(self, key: str, data: bytes | memoryview) -> str:
        if len(data) > MULTIPART_BYTES:
            self._upload(key, io.BytesIO(data), digest(data))
            return ""
        with self._client("writing", key) as client:
            return _stamp(len(data), self._put(client, key, data))

    def write_file(self, key: str, path: str | Path) -> None:
        with open(path, "rb") as file:
            self._upload(key, file, file_digest(path))

    def copy(self, source: str, key: str) -> None:
        about = _headers(key, self.digest(source)) | {
            "MetadataDirective": "REPLACE"
        }  # several pieces lose the source's
        with self._client("copying", source) as client:
            place = {"Bucket": self.bucket, "Key": self._name(source)}
            client.copy(place, self.bucket, self._name(key), ExtraArgs=about)

    def open(self, key: str) -> "pyarrow.NativeFile":
        import pyarrow

        head = self._head("opening", key)
        ranges = _Ranges(self, key, head["ContentLength"], head["ETag"])
        return pyarrow.PythonFile(io.BufferedReader(ranges, READ_AHEAD), "r")

    def info(self, key: str) -> ObjectInfo:
        head = self._head("looking at", key)
        return ObjectInfo(key, head["ContentLength"], head.get("ETag", ""))

    def digest(self, key: str) -> str:
        return _told_digest(self._head("looking at", key)) or digest(self.read(key))

    def list(self, prefix: str = "") -> Objects:
        root = f"{self.prefix}/" if self.prefix else ""
        objects = []
        with self._client("listing", checked_prefix(prefix) or "objects") as client:
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=root + prefix)
            for entry in (entry for page in pages for entry in page.get("Contents", ())):
                key = entry["Key"].removeprefix(root)
                if key and not key.endswith("/") and not is_hidden(key):  # "folder/" is some consoles' marker
                    objects.append(ObjectInfo(key, entry["Size"], entry.get("ETag", "")))
        return sorted(objects)

    def delete(self, key: str) -> None:
        with self._client("deleting", key) as client:
            client.delete_object(Bucket=self.bucket, Key=self._name(key))

    def create(self, key: str, data: bytes) -> bool:
        from botocore.exceptions import ClientError

        for attempt in range(1, ATTEMPTS + 1):
            with self._client("creating", key) as client:
                try:
                    self._put(client, key, data, IfNoneMatch="*")
                    return True
                except ClientError as error:
                    metadata = error.response["ResponseMetadata"]
                    status = metadata.get("HTTPStatusCode")
                    if status == 412:  # taken; by ourselves, if the reply to an earlier attempt was lost
                        if attempt == 1 and not metadata.get("RetryAttempts", 0):
                            return False
                        with contextlib.suppress(ObjectMissing):  # deleted since
                            return self.read(key) == bytes(data)
                    if status not in (409, 412) or attempt == ATTEMPTS:  # 409: another writer is at it right now
                        raise
            time.sleep(_pause_s(attempt))
        raise AssertionError("unreachable")

    def swap(self, key: str, data: bytes, expected: bytes) -> bool:
        from botocore.exceptions import ClientError

        for attempt in range(1, ATTEMPTS + 1):
            try:
                reply, current = self._get(key, _damage)
            except ObjectMissing:
                return False
            if current != expected:
                return False
            with self._client("swapping", key) as client:
                try:
                    self._put(client, key, data, IfMatch=reply["ETag"])
                    return True
                except ClientError as error:
                    if error.response["ResponseMetadata"].get("HTTPStatusCode") not in (404, 409, 412):
                        raise
            # Changed since it was read: by another, or by ourselves if the reply to an earlier attempt was lost.
            with contextlib.suppress(ObjectMissing):
                if self.read(key) == bytes(data):
                    return True
            time.sleep(_pause_s(attempt))
        return False

    def sub(self, prefix: str) -> "S3Store":
        return S3Store(self.bucket, f"{self.prefix}/{checked_key(prefix)}".lstrip("/"), self._connection)

    def probe(self, write: bool) -> None:
        with self._client("listing", "objects", PROBE_ATTEMPTS) as client:
            client.list_objects_v2(Bucket=self.bucket, Prefix=self.prefix, MaxKeys=1)
        if write:
            name = f"{self.prefix}/{HIDDEN}probe-{secrets.token_hex(8)}".lstrip("/")
            with self._client("writing", "a trial object", PROBE_ATTEMPTS) as client:
                client.put_object(Bucket=self.bucket, Key=name, Body=b"")
            with self._client("deleting", "a trial object", PROBE_ATTEMPTS) as client:
                client.delete_object(Bucket=self.bucket, Key=name)

    def _name(self, key: str) -> str:
        return f"{self.prefix}/{checked_key(key)}".lstrip("/")

    def _head(self, doing: str, key: str) -> Reply:
        with self._client(doing, key) as client:
            reply: Reply = client.head_object(Bucket=self.bucket, Key=self._name(key))
            return reply

    def _get(self, key: str, problem: Callable[[Reply, bytes], str], **which: str) -> tuple[Reply, bytes]:
        """The reply about an object, and its bytes; read again while the body breaks off or `problem` finds one."""
        from botocore.exceptions import BotoCoreError, HTTPClientError

        reason: object = ""
        for attempt in range(1, ATTEMPTS + 1):
            with self._client("reading", key) as client:
                reply = client.get_object(Bucket=self.bucket, Key=self._name(key), **which)
                try:
                    data = reply["Body"].read()  # the client retries requests, not a body that breaks off
                except (BotoCoreError, HTTPClientError, OSError) as error:
                    reason = error
                else:
                    if not (reason := problem(reply, data)):
                        return reply, data
            if attempt < ATTEMPTS:
                time.sleep(_pause_s(attempt))
        raise StorageError(f"reading {key} in {self.uri}: {_one_line(reason)} {_tries(ATTEMPTS)}")

    def _put(self, client: Any, key: str, data: bytes | memoryview, **condition: str) -> Reply:
        about = _headers(key, digest(data))
        put: Reply = client.put_object(Bucket=self.bucket, Key=self._name(key), Body=bytes(data), **about, **condition)
        return put

    def _upload(self, key: str, file: Any, digest: str) -> None:
        from boto3.s3.transfer import TransferConfig

        config = TransferConfig(multipart_threshold=MULTIPART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=4)
        with self._client("writing", key) as client:
            about = _headers(key, digest)
            client.upload_fileobj(file, self.bucket, self._name(key), ExtraArgs=about, Config=config)

    @contextlib.contextmanager
    def _client(self, doing: str, key: str, attempts: int = ATTEMPTS) -> Iterator[Any]:
        """The client; whatever it raises becomes ObjectMissing or StorageError in one line."""
        from boto3.exceptions import Boto3Error
        from botocore import exceptions as boto

        client = self._connection.client(attempts)
        place = f"{doing} {key} in {self.uri}"
        try:
            yield client
        except boto.ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            if code in _NOT_FOUND:
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
            raise StorageError(f"{place}: {_one_line(error)} {_tries(attempts)}") from error


class _Ranges(io.RawIOBase):
    """One version of an object as a file. pyarrow.fs would do, but takes a truncated range for a whole one."""

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


def _stamp(size: int, reply: Reply) -> str:
    """As `ObjectInfo.stamp`; "" of a server that tells no ETag, where a replaced object may have the same size."""
    etag = reply.get("ETag")
    return ObjectInfo("", size, etag).stamp if etag else ""


def _timestamp(value: Any) -> datetime:
    """As botocore reads it, in a fraction of the time where it is in ISO 8601, as in a listing."""
    try:
        return datetime.fromisoformat(value)
    except (TypeError, ValueError):
        from botocore.utils import parse_timestamp

        return parse_timestamp(value)


def _headers(key: str, digest: str) -> dict[str, Any]:
    """Media type and digest. A browser shows a page from a bucket as a page only if the bucket says that it is one."""
    media_type = mimetypes.guess_type(key, strict=False)[0] or "application/octet-stream"
    return {"ContentType": media_type, "Metadata": {DIGEST: digest}}


def _damage(reply: Reply, data: bytes) -> str:
    """What is wrong with an object's bytes; "" where nothing is, or another program wrote it and left no digest."""
    if _told_digest(reply) in (None, digest(data)):
        return ""
    return f"{len(data)} bytes that are not what was written; restore or delete it if that stays"


def _told_digest(reply: Reply) -> str | None:
    """The digest that whoever wrote the object left with it; None for another program's."""
    # Some servers change the case of names.
    return {name.lower(): value for name, value in reply.get("Metadata", {}).items()}.get(DIGEST)


def _refusal(code: str, error: Any) -> str:
    """What the server said, in words, and what to do where that is known."""
    reply = error.response.get("ResponseMetadata", {})
    message = _one_line(error.response.get("Error", {}).get("Message", ""))
    answer = f"{code}: {message} {_tries(reply.get('RetryAttempts', 0) + 1)}"
    if code in _REFUSED:
        return f"refused by the server, {answer}; check the credentials and what they may do"
    if reply.get("HTTPStatusCode") == 507 or "QuotaExceeded" in code or "StorageFull" in code:
        return f"the storage is full, {answer}; make room there or raise the quota"
    return f"the server answered {answer}"


def _one_line(message: object) -> str:
    return " ".join(str(message).split())


def _tries(n: int) -> str:
    return f"({n} attempt{'s' * (n != 1)})"


def _pause_s(attempt: int) -> float:
    """Backoff with full jitter: up to 0.5, 1, 2, 4 … seconds, 10 at most."""
    return random.uniform(0, min(10.0, 0.25 * 2**attempt))
