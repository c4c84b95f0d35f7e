"""Reading the files of a data set that others made: plain files only, and JSON that is not nested too deeply."""

import errno
import json
import stat
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

# Endings, in any case, of files that are looked into; which format a file has is told by its bytes (`store.formats`).
PICTURES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".tif", ".tiff", ".bmp", ".gif", ".heic", ".heif",
)  # fmt: skip
# 50 MP of 16-bit RGBA are 400 MB; a sparse file may claim terabytes and take no room on the disk.
MAX_PHOTO_BYTES = 1 << 29


def extension(name: str) -> str:
    """How a file's name ends, in small letters and with its dot.

    >>> extension("shop/A.TXT"), extension("shop/README")
    ('.txt', 'no extension')
    """
    return PurePosixPath(name).suffix.lower() or "no extension"


def read_photo(path: Path) -> bytes:
    """The bytes of a photo. A link is followed.

    Raises FileNotFoundError where there is none, and OSError for no plain file (a pipe would keep us waiting, a device
    has no end), one that is too large, or one that cannot be read.
    """
    try:
        info = path.stat()
    except ValueError as error:  # a name with a NUL in it
        raise FileNotFoundError(errno.ENOENT, "no such file", str(path)) from error
    if not stat.S_ISREG(info.st_mode):
        raise OSError(errno.EINVAL, "not a plain file", str(path))
    if info.st_size > MAX_PHOTO_BYTES:
        raise OSError(errno.EFBIG, f"{info.st_size} bytes are more than {MAX_PHOTO_BYTES}", str(path))
    return path.read_bytes()


def read_json(path: Path, *, object_hook: Callable[[dict], Any] | None = None) -> Any:
    """What a JSON file holds. Raises OSError if it cannot be read, ValueError for no JSON or one nested too deeply."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a plain file", str(path))
    try:
        return json.loads(path.read_bytes(), object_hook=object_hook)
    except RecursionError:
        raise ValueError("nested too deeply") from None
