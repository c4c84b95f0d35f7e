"""Reading the files of a data set that others made: plain files only, and JSON that is no trap. Used by every adapter."""

import errno
import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

MAX_PHOTO_BYTES = (
    1 << 29
)  # 50 MP of 16-bit RGBA are 400 MB; a file may say that it has terabytes and take no room on the disk


def read_photo(path: Path) -> bytes:
    """The bytes of a photo. A link is followed.

    Raises:
        FileNotFoundError: there is none.
        OSError: no plain file (a pipe would keep us waiting, a device has no end), too large, or not to be read.
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
    """What a JSON file holds.

    Raises:
        OSError: it cannot be read.
        ValueError: no JSON, or nested too deeply.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a plain file", str(path))
    try:
        return json.loads(path.read_bytes(), object_hook=object_hook)
    except RecursionError:
        raise ValueError("nested too deeply") from None
