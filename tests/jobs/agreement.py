"""What two runs over the same photos must agree in, byte for byte (architecture, section 4)."""

import json
from pathlib import Path

from store.objects import ObjectStore, open_store

FOLDERS = ("fused/", "items/", "embeddings/", "index/", "rankings/")
FILES = ("submission.json", "failures.parquet", "metrics.json")


def contract(output: str | Path | ObjectStore) -> dict[str, bytes]:
    """Name under OUTPUT, a folder or a bucket, -> bytes; the metrics without their seconds."""
    store = output if isinstance(output, ObjectStore) else open_store(output)
    found = {info.key: store.read(info.key) for folder in FOLDERS for info in store.list(folder)}
    found |= {name: store.read(name) for name in FILES}
    metrics = json.loads(found["metrics.json"])
    del metrics["seconds"]
    return found | {"metrics.json": json.dumps(metrics, sort_keys=True).encode()}
