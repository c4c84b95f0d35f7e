"""Objects by key, on disk or in a bucket: read, write-then-publish, list, create-if-absent, swap-if-unchanged.

In: a local path, `file://…` or `s3://bucket/prefix`. Out: an `ObjectStore` (store/interface.py): a folder
(store/local.py) or a bucket (store/s3.py).
"""

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from store.interface import HIDDEN, ObjectInfo, ObjectMissing, ObjectStore, StorageError, checked_key
from store.local import LocalStore
from store.s3 import Connection, S3Store

__all__ = [
    "HIDDEN",
    "LocalStore",
    "ObjectInfo",
    "ObjectMissing",
    "ObjectStore",
    "S3Store",
    "StorageError",
    "open_store",
]

# A scheme with a slash, a colon or both left out: as a path it would quietly make a folder named `s3:`.
_MISTYPED_SCHEME = re.compile(r"\s*([a-z][a-z0-9+.-]+:/|(s3|file|gs|https?)(:|//))", re.IGNORECASE)


def open_store(uri: str | Path, *, endpoint_url: str | None = None) -> ObjectStore:
    """The store at a local path (`~` is expanded), `file:///path` or `s3://bucket/prefix`; nothing is contacted yet.

    `endpoint_url` is that of an S3-compatible server; None leaves it to the SDK (AWS_ENDPOINT_URL …). Raises
    StorageError for any other scheme, a mistyped one, an address without a bucket, or one that is no path.
    """
    text = os.fspath(uri)
    scheme, separator, rest = text.partition("://")
    scheme = scheme.lower()
    if isinstance(uri, Path) or not separator:
        if not text:
            raise StorageError("empty address: want a folder, file:///folder or s3://bucket/prefix")
        if _MISTYPED_SCHEME.match(text) and not os.path.lexists(text):
            want = "want s3://bucket/prefix or file:///folder"
            raise StorageError(f"{text}: a mistyped address? {want}; a folder of this name is written ./{text}")
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
        bucket, _, prefix = rest.partition("/")
        if not bucket:
            raise StorageError(f"{text}: no bucket; want s3://bucket/prefix")
        prefix = prefix.strip("/")
        try:
            return S3Store(bucket, checked_key(prefix) if prefix else "", Connection(endpoint_url))
        except ValueError as error:
            raise StorageError(f"{text}: {error}") from error
    raise StorageError(f"{text}: unknown scheme {scheme!r}; want a local folder, file:// or s3://")
