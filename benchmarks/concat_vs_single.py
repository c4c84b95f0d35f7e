"""Do several embedders together find more than each alone, beyond what another draw of photos would change?

    python benchmarks/concat_vs_single.py runs/ccp-eval

Reads a finished run with ground truth and its image set; runs no model. Prints Acc@1 and Acc@10 of every embedder
and of the final list (their concatenation, or what further steps made of it) on detected and on true boxes, and the
paired difference with its 95 % interval over consumer photos.
"""

import argparse
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from jobs.runs.reader import read_rankings
from jobs.runs.run_record import read_record
from postproc.bootstrap import paired_interval
from retrieval.metrics import first_hit_ranks, ground_truth
from store.joined import open_imagesets
from store.objects import ObjectStore, open_store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", metavar="OUTPUT", help="folder or s3:// of a finished run with ground truth")
    args = parser.parse_args()
    store = open_store(args.output)
    images = open_imagesets([entry["uri"] for entry in read_record(store)["imagesets"]])
    query_gt, gallery_gt = ground_truth(images.truth())
    photo = np.array([entry["query_image_id"] for entry in query_gt if entry["style"] > 0])

    def ranks_of(name: str) -> np.ndarray:
        return first_hit_ranks(read_rankings(store, name).results, query_gt, gallery_gt)

    final = "steps" if "concat" in models_of(store, "true") else "concat"
    print(f"{len(photo)} queries on {len(set(photo.tolist()))} photos\n")
    print(f"| boxes | model | Acc@1 | {final} less this | Acc@10 | {final} less this |\n|---|---|--:|--:|--:|--:|")
    for kind in ("detected", "true"):
        together = ranks_of(kind)
        for name in models_of(store, kind):
            alone = ranks_of(f"{kind}/{name}")
            cells = []
            for k in (1, 10):
                ours, theirs = (((ranks > 0) & (ranks <= k)).astype(float) for ranks in (together, alone))
                mean, low, high = paired_interval(ours, theirs, photo)
                cells += [f"{theirs.mean():.3f}", f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"]
            print(f"| {kind} | {name} | {' | '.join(cells)} |", flush=True)
        top = [f"{((together > 0) & (together <= k)).mean():.3f}" for k in (1, 10)]
        print(f"| {kind} | {final} | {top[0]} | – | {top[1]} | – |", flush=True)


def models_of(store: ObjectStore, kind: str) -> list[str]:
    return sorted(Path(info.key).stem for info in store.list(f"rankings/{kind}/"))


if __name__ == "__main__":
    main()
