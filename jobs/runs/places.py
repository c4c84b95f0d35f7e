"""What a place holds: image set, run, gallery, training or comparison, told by the files that only that kind has."""

from store.errors import UserError
from store.objects import ObjectStore

# Written out: the modules that name these files import NumPy and pyarrow, which --help of a training does without. An
# ablation and a report lie in the folder of their run.
KINDS = {
    "an image set": ("manifest.json", "shard-00000.arrow"),
    "a run": ("run.json",),
    "a gallery": ("CURRENT", "versions/"),
    "a training": ("log.jsonl",),
    "a comparison": ("compare.json",),
}


def refuse_other_kinds(store: ObjectStore, own: str) -> None:
    """Raise a UserError where the place holds another kind than `own`, whose files the command would mix or overwrite.

    Only the place itself counts, not the folders below it. Nothing is written; a bucket out of reach is a StorageError.
    """
    if store.local_path is None:
        store.probe(write=False)  # ends within seconds, the questions below only after many attempts
    for kind, keys in KINDS.items():
        for key in keys if kind != own else ():
            if store.list(key) if key.endswith("/") else store.exists(key):
                raise UserError(f"{store.uri} holds {kind} ({key}), want {own} or an empty place; choose another")
