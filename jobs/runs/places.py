"""What a place holds: image set, run, gallery, training or comparison, told by the files that only that kind has."""

import contextlib
from collections.abc import Iterator

from store.errors import UserError
from store.objects import ObjectStore

# Written out: the modules that name these files import NumPy and pyarrow, which --help of a training does without. An
# ablation and a report lie in the folder of their run.
KINDS = {
    "an image set": ("manifest.json", "shard-00000.arrow"),
    "a run": ("run.json",),
    "a gallery": ("CURRENT", "versions/", "results/"),  # the last alone: its first night has not built a version yet
    "a training": ("log.jsonl",),
    "a comparison": ("compare.json",),
}


def refuse_other_kinds(store: ObjectStore, own: str) -> None:
    """Raise a UserError where the place holds another kind than `own`, whose files the command would mix or overwrite.

    Only the place itself counts, not the folders below it. Nothing is written; a bucket out of reach is a StorageError.
    """
    if store.local_path is None:
        store.probe(write=False)  # ends within seconds, the questions below only after many attempts
    for kind in KINDS:
        if kind != own and (key := holds(store, kind)):
            raise UserError(f"{store.uri} holds {kind} ({key}), want {own} or an empty place; choose another")


def holds(store: ObjectStore, kind: str) -> str:
    """The key by which the place holds this kind; "" where it does not."""
    found = (key for key in KINDS[kind] if (store.list(key) if key.endswith("/") else store.exists(key)))
    return next(found, "")


@contextlib.contextmanager
def nothing_left(store: ObjectStore) -> Iterator[None]:
    """Folders on disk that the work made, and in which it left nothing, are removed: a refused start made them."""
    folder = store.local_path
    missing = [] if folder is None else [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    finally:
        for path in missing:  # the innermost first; one that holds something stays, and those around it
            with contextlib.suppress(OSError):
                path.rmdir()
