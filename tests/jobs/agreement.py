"""What two runs over the same photos must agree in, byte for byte (architecture, section 4)."""

import json
from pathlib import Path

FOLDERS = ("fused", "items", "embeddings", "index", "rankings")


def contract(output: Path) -> dict[str, bytes]:
    """Name under OUTPUT -> bytes; the metrics without their seconds."""
    files = {
        str(path.relative_to(output)): path.read_bytes()
        for folder in FOLDERS
        for path in (output / folder).rglob("*.*")
    }
    files |= {name: (output / name).read_bytes() for name in ("submission.json", "failures.parquet")}
    metrics = json.loads((output / "metrics.json").read_text())
    del metrics["seconds"]
    return files | {"metrics.json": json.dumps(metrics, sort_keys=True).encode()}
