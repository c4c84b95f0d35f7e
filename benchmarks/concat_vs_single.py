"""Do several embedding models together find more than each alone, beyond what another draw of photos would change?

    python benchmarks/concat_vs_single.py runs/ccp-eval

Reads a finished run with ground truth and its image set; runs no model. Prints top-1 and top-10 of every embedding model and of
the final list, their concatenation or what further steps made of it, on detected and on true boxes, and the paired difference with its
95 % interval over consumer photos.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from jobs import score, tables
from postproc.bootstrap import paired_interval
from retrieval.metrics import first_hit_ranks, ground_truth
from store import imageset
from store.objects import ObjectStore, open_store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", metavar="OUTPUT", help="folder or s3:// of a finished run with ground truth")
    args = parser.parse_args()
    store = open_store(args.output)
    settings = json.loads(store.read("run.json"))["settings"]
    query_gt, gallery_gt = ground_truth(imageset.open_imageset(settings["imageset"]).truth())
    photo = np.array([entry["query_image_id"] for entry in query_gt if entry["style"] > 0])

    def ranks(key: str) -> np.ndarray:
        return first_hit_ranks(score.results_of(tables.read(store, key)), query_gt, gallery_gt)

    final = "steps" if "concat" in models_of(store, "true") else "concat"
    print(f"{len(photo)} queries on {len(set(photo.tolist()))} photos\n")
    print(f"| boxes | model | top-1 | {final} less this | top-10 | {final} less this |\n|---|---|--:|--:|--:|--:|")
    for kind in ("detected", "true"):
        together = ranks(f"rankings/{kind}.parquet")
        for name in models_of(store, kind):
            alone = ranks(f"rankings/{kind}/{name}.parquet")
            cells = []
            for k in (1, 10):
                ours, theirs = (((found > 0) & (found <= k)).astype(float) for found in (together, alone))
                mean, low, high = paired_interval(ours, theirs, photo)
                cells += [f"{theirs.mean():.3f}", f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"]
            print(f"| {kind} | {name} | {' | '.join(cells)} |", flush=True)
        at = [f"{((together > 0) & (together <= k)).mean():.3f}" for k in (1, 10)]
        print(f"| {kind} | {final} | {at[0]} | – | {at[1]} | – |", flush=True)


def models_of(store: ObjectStore, kind: str) -> list[str]:
    return sorted(Path(found.key).stem for found in store.list(f"rankings/{kind}/"))


if __name__ == "__main__":
    main()
