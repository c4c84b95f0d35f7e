"""Are fused boxes better than the best single detector's, beyond what another draw of photos would change?

    python benchmarks/fused_vs_single.py runs/ccp-eval

Reads a finished run and its image set; runs no model. Prints AP10 and AP10_50 of the fused boxes, of every
detector, and the paired difference with its 95 % interval over photos.
"""

import argparse
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from detection.ap_interval import paired_interval
from detection.metrics import truth_arrays
from jobs.runs.reader import read_boxes
from jobs.runs.run_record import read_record
from store.joined import open_imagesets
from store.objects import open_store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", metavar="OUTPUT", help="folder or s3:// of a finished run with ground truth")
    parser.add_argument("--draws", type=int, default=500, help="of photos, for the interval (500)")
    args = parser.parse_args()
    store = open_store(args.output)
    images = open_imagesets([entry["uri"] for entry in read_record(store)["imagesets"]])
    true = truth_arrays(images.truth())
    judged = true.pop("judged")

    def boxes(folder: str) -> dict[str, np.ndarray]:
        return read_boxes(store, folder, sorted(Path(info.key).stem for info in store.list(f"{folder}/")))

    fused = boxes("fused")
    print(f"{len(judged)} photos, {args.draws} draws\n")
    print("| detector | AP10 | fused less this | AP10_50 | fused less this |\n|---|--:|--:|--:|--:|")
    detectors = sorted({info.key.split("/")[1] for info in store.list("detections/")})
    ours: dict[bool, float] = {}
    for name in detectors:
        single = boxes(f"detections/{name}")
        cells = []
        for at_50 in (False, True):
            ap = paired_interval(true, fused, single, judged, at_50=at_50, n_draws=args.draws)
            ours[at_50] = ap.ours
            cells += [f"{ap.theirs:.3f}", f"{ap.difference:+.3f} [{ap.low:+.3f}, {ap.high:+.3f}]"]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    print(f"| fused | {ours[False]:.3f} | – | {ours[True]:.3f} | – |")


if __name__ == "__main__":
    main()
