"""The names of classes that a file of weights holds, read without torch and without running anything in it.

mmengine's checkpoints have them in `meta.dataset_meta.classes`, older ones of mmdetection's in `meta.CLASSES`; a file
of safetensors may have them in its header (`networks.weight_header`). A checkpoint is a pickle; here its lists,
mappings, texts and numbers are read, and everything else, tensors included, becomes an empty mapping.
"""

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

from networks.weight_header import read_categories

LONGEST = 200_000_000  # bytes of the pickle in a checkpoint, which holds no tensors but their names and places


class _Nothing(dict):
    """What stands for every object of a class: it takes whatever a pickle does to one."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass

    def append(self, _: Any) -> None:
        pass

    add = extend = append


class _Values(pickle._Unpickler):  # type: ignore[name-defined, misc]
    """Reads plain values; no class or function is looked up, so that none can be called.

    It is Python's own form of the reader: the one in C makes room for whatever number a broken file gives an object.
    """

    def find_class(self, module: str, name: str) -> Any:
        return dict if (module, name) == ("collections", "OrderedDict") else _Nothing

    def persistent_load(self, _: Any) -> Any:
        return _Nothing()


def stored_names(path: Path) -> tuple[str, ...] | None:
    """The names of the classes, in the order of the model's outputs; None where the file has none or cannot be read.

    Loading the weights says what is wrong with a file. Raises ValueError for names that cannot be categories'.
    """
    with path.open("rb") as file:
        if (header := read_categories(file.read)) is not None:
            return header
        file.seek(0)
        try:
            content = _content(file)
            meta = {str(key).lower(): value for key, value in content["meta"].items()}
            meta |= {str(key).lower(): value for key, value in (meta.get("dataset_meta") or {}).items()}
            names = meta["classes"]
        except Exception:  # a broken pickle raises what it likes
            return None
    names = (names,) if isinstance(names, str) else names
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return None
    return tuple(names)


def _content(file: BinaryIO) -> Any:
    """What the checkpoint's pickle holds: of a zip the entry data.pkl, of torch's older form the fourth pickle."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            entry = next(entry for entry in archive.infolist() if entry.filename.rpartition("/")[2] == "data.pkl")
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > LONGEST:
                raise ValueError("torch writes it as it is")
            return _Values(io.BytesIO(archive.read(entry))).load()
    file.seek(0)
    pickles = io.BytesIO(file.read(LONGEST))
    for _ in range(3):  # magic number, version, byte order
        _Values(pickles).load()
    return _Values(pickles).load()
