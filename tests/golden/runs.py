"""Contract files of an evaluation and of a three-night gallery: what moving code must not change.

The stand-in embedders here return rows of +1/4 and -1/4. Four of them joined still have exact products, so the bytes of
rankings and figures do not depend on a processor's instructions. Times, versions of packages and random names are left
out.

    python tests/golden/runs.py          # writes golden.json anew; read the difference before a commit
    python tests/golden/runs.py --demo   # demo.json as well: figures of the shipped models, some two minutes
"""

import argparse
import contextlib
import functools
import io
import json
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

if __name__ == "__main__":
    sys.path[:1] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1] / "jobs")]

import galleries
import stand_ins

from jobs import full_eval, ingest, reindex_gallery
from jobs.runs import shards
from jobs.runs.models import Catalogue
from store.objects import open_store

HERE = Path(__file__).resolve().parent
PASSING = {  # keys of JSON files whose values follow from the moment or the machine
    "age_s", "at", "created", "finished", "notes", "photo_s", "photos_per_s", "published", "recorded", "seconds",
    "stamps", "token", "uri", "versions",
}  # fmt: skip
LINE = [
    "--set", "detectors=[near, far]", "--set", "embedders=[signs0, signs1, signs2, signs3]", "--set", "device=cpu",
    "--set", "gallery.copies=0",
]  # fmt: skip


@dataclass(frozen=True)
class SignsSpec:
    """An embedder of 16 numbers, the signs of 4 x 4 cells of one colour or of their sum, over or under a grey."""

    name: str
    number: int
    input_size: int = 16
    dim: int = 16
    weights: str = ""
    sha256: str = ""


class Signs:
    """Rows of +1/4 and -1/4, so of unit length exactly."""

    def __init__(self, spec: SignsSpec) -> None:
        self.spec = spec

    def embed(self, crops: np.ndarray, *, batch_size: int = 32) -> np.ndarray:
        cells = crops.reshape(len(crops), 4, 4, 4, 4, 3).astype(np.int64).sum(axis=(2, 4)).reshape(len(crops), 16, 3)
        sums = cells.sum(axis=2) if self.spec.number == 3 else cells[:, :, self.spec.number]
        grey = (1 if self.spec.number < 3 else 3) * 16 * (70 + 5 * np.arange(16))
        return np.where(sums > grey, 0.25, -0.25).astype(np.float32)


EMBEDDERS = {spec.name: spec for spec in (SignsSpec(f"signs{i}", i) for i in range(4))}
CATALOGUE = Catalogue(
    stand_ins.DETECTORS.__getitem__,
    EMBEDDERS.__getitem__,
    stand_ins.load_detector,
    lambda spec, device, **_: Signs(spec),
)


def evaluation(folder: Path) -> dict[str, str]:
    """File under OUTPUT -> digest, of an evaluation of 48 photos with failures."""
    odd = {5: stand_ins.STUMBLER, 30: stand_ins.STUMBLER}
    stand_ins.imageset(folder / "imageset", 48, odd=odd, max_images=9)
    line = [
        *LINE,
        "--set",
        "max_failed_share=1",
        "--imageset",
        str(folder / "imageset"),
        "--output",
        str(folder / "run"),
    ]
    with in_this_process():
        assert full_eval.main(line, CATALOGUE) == 0
    unequal = ("report/", "logs/", "lock.json", "done/evaluate/", "done/report/")  # those marks name digests of seconds
    return digests(folder / "run", skip=unequal) | {
        f"imageset/{name}": digest for name, digest in digests(folder / "imageset").items()
    }


def nights(folder: Path) -> dict[str, str]:
    """File under GALLERY -> digest, after each of three nights.

    On the first all photos are new. On the second some are added, changed, removed or renamed. On the third nothing is
    new.
    """
    first = galleries.shop(range(1, 31))
    changed = [galleries.Goods(3, 90, "sku-3"), galleries.Goods(4, 4, "sku-other"), galleries.Goods(31, 31, "sku-31")]
    second = [goods for goods in first if goods.number not in (3, 4, 7, 8)] + changed
    found = {}
    for number, goods in enumerate((first, second, second[5:]), start=1):
        galleries.stock(goods, folder / "imageset", max_images=8)
        line = [*LINE, "--imageset", str(folder / "imageset"), "--gallery", str(folder / "gallery")]
        with in_this_process():
            assert reindex_gallery.main(line, CATALOGUE) == 0
        found |= {f"night {number}/{name}": digest for name, digest in digests(folder / "gallery").items()}
    return found


def demo(folder: Path) -> dict[str, Any]:
    """Figures of the shipped models on 84 synthetic photos: metrics.json without its seconds."""
    line = ["drawn", str(folder / "imageset"), "--users", "12", "--shops", "72", "--seed", "1", "--shard-images", "21"]
    with contextlib.redirect_stdout(io.StringIO()):
        assert ingest.main(line) == 0
        assert full_eval.main(["--imageset", str(folder / "imageset"), "--output", str(folder / "run")]) == 0
    return lasting(json.loads((folder / "run" / "metrics.json").read_text()))


@contextlib.contextmanager
def in_this_process() -> Iterator[None]:
    """No Ray, and nothing printed."""
    here = functools.partial(stand_ins.here, [])
    with mock.patch.object(shards, "run_on_actors", here), contextlib.redirect_stdout(io.StringIO()), \
         contextlib.redirect_stderr(io.StringIO()):  # fmt: skip
        yield


def digests(folder: Path, skip: Sequence[str] = ()) -> dict[str, str]:
    """Name -> digest of every file; names and contents without what follows from the moment."""
    store = open_store(folder)
    found = {}
    for info in store.list():
        if not info.key.startswith(tuple(skip)):
            found[undated(info.key)] = digest(info.key, store.read(info.key))
    return dict(sorted(found.items()))


def digest(name: str, data: bytes) -> str:
    if name.endswith(".json") or name == "CURRENT":
        data = json.dumps(lasting(json.loads(data)), sort_keys=True).encode()
    return blake2b(data, digest_size=8).hexdigest()


def lasting(value: Any) -> Any:
    """JSON without what passes: times, places, versions."""
    if isinstance(value, dict):
        return {undated(key): lasting(entry) for key, entry in value.items() if key not in PASSING}
    if isinstance(value, list):
        return [lasting(entry) for entry in value]
    if isinstance(value, str):
        return re.sub(r"^/.*/", "FOLDER/", undated(value))
    return value


def undated(text: str) -> str:
    """000017-20261126T031500Z -> 000017."""
    return re.sub(r"(\d{6})-\d{8}T\d{6}Z", r"\1", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", action="store_true", help="write demo.json too")
    args = parser.parse_args()
    if args.demo:
        with tempfile.TemporaryDirectory() as folder:
            (HERE / "demo.json").write_text(json.dumps(demo(Path(folder)), indent=1) + "\n")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "e").mkdir()
        (Path(folder) / "n").mkdir()
        golden = {"evaluation": evaluation(Path(folder) / "e"), "nights": nights(Path(folder) / "n")}
    (HERE / "golden.json").write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
