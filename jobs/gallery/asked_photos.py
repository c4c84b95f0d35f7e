"""The photos that a search is asked with: files and folders by the names the user gave, read as what they are.

In: paths or s3:// addresses. Out: bytes and sizes, or why there are none.
"""

import os
from collections.abc import Iterator, Sequence

from sources.files import MAX_PHOTO_BYTES, read_photo
from sources.folder import open_folder
from store.decode import DecodeError, probe_size
from store.objects import open_store


def photo_names(names: Sequence[str], endpoint_url: str | None) -> Iterator[tuple[str, str]]:
    """Each photo's name and "", a folder's pictures in its place, by path; or a folder's name and what it left out.

    A folder without a picture stands for itself, and `read_asked` says so.
    """
    for name in names:
        if not _is_folder(name):
            yield name, ""
            continue
        folder = open_folder(name, "user", endpoint_url=endpoint_url)
        pictures = sorted(photo.name for photo in folder.list())
        if left_out := ", ".join(f"{n} {what}" for what, n in folder.skipped.items()):
            yield name, f"{len(pictures)} pictures; left out: {left_out}"
        yield from ((f"{name.rstrip('/')}/{picture}", "") for picture in pictures)
        if not pictures:
            yield name, ""


def _is_folder(name: str) -> bool:
    """One on disk, or s3://BUCKET/PREFIX/ with a slash at its end."""
    return os.path.isdir(name) or ("://" in name and name.endswith("/"))


def read_asked(name: str, max_pixels: int, endpoint_url: str | None) -> tuple[bytes, int, int] | str:
    """A photo's bytes, and width and height of the upright photo in px; or why it cannot be read."""
    if _is_folder(name):
        return "no picture in this folder"
    try:
        folder, key = os.path.split(name)
        store = open_store(folder or ".", endpoint_url=endpoint_url)
        if store.local_path is None and store.size(key) > MAX_PHOTO_BYTES:
            return f"more than {MAX_PHOTO_BYTES} bytes"
        data = store.read(key) if store.local_path is None else read_photo(store.local_path / key)
        return data, *probe_size(data, max_pixels=max_pixels)
    except DecodeError as error:
        return str(error)
    except OSError as error:  # of the storage too
        return error.strerror or str(error)
    except (ValueError, RuntimeError) as error:  # a key with '..' in it, `~nobody`
        return str(error)
