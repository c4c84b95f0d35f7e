"""Files that a command line names one by one, on disk or in a bucket."""

import os
from pathlib import Path

import pyarrow as pa

from store.objects import open_store


def split_uri(uri: str | Path) -> tuple[str, str]:
    """The folder or bucket a file lies in, and its name there.

    >>> split_uri("s3://bucket/in/a.parquet"), split_uri("a.parquet"), split_uri("/a.parquet")
    (('s3://bucket/in', 'a.parquet'), ('.', 'a.parquet'), ('/', 'a.parquet'))
    """
    folder, slash, name = os.fspath(uri).rpartition("/")
    return folder or slash or ".", name


def open_file(uri: str | Path, endpoint_url: str | None = None) -> pa.NativeFile:
    """A local file, file:// or s3://, for reading. Raises ObjectMissing, StorageError, and ValueError for no file."""
    folder, name = split_uri(uri)
    store = open_store(folder, endpoint_url=endpoint_url)
    if not name:
        raise ValueError(f"{uri} is a folder; want the files in it")
    if store.local_path is None:
        return store.open(name)
    path = store.local_path / name
    if path.is_dir():
        raise ValueError(f"{uri} is a folder; want the files in it")
    store.size(name)  # raises as `open` does; a mapped file would count as memory of this process
    return pa.OSFile(os.fsencode(path))
