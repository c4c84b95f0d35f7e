"""What each technique is worth on your own data: over a finished run's stored boxes and rows, no model is run.

    python jobs/ablate.py runs/first
    python jobs/ablate.py runs/first --only 'whiten*' --only 'dba*'      # some techniques only
    python jobs/ablate.py s3://BUCKET/runs/0142 --tune-fusion            # and look for weights and thresholds of the detectors

In: OUTPUT of a finished `jobs/full_eval.py` and its image set. Every technique of `postproc/` is judged alone beside plain
concatenation (top-10, paired 95 % interval over consumer photos, seconds, peak memory); those that helped are combined greedily, chosen on
one half of the consumer photos and told on the other; each is taken out of the best combination again. Ways to fuse boxes are judged by
AP10; what they do to retrieval only a run with that setting can say. Out: a table here, OUTPUT/ablation.parquet, a page of the report, and
OUTPUT/ablation/, from which the same line goes on after it was stopped.

Exit status: 0 done; 2 a mistake in the line or its input; 3 done, but a technique could not be judged; 1 anything else.
"""

import argparse
import dataclasses
import fnmatch
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__" and (Path(__file__).resolve().parents[1] / "jobs" / "cli.py").is_file():
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from jobs import cli, ray_cluster
from jobs.progress import say

if TYPE_CHECKING:
    from jobs.ablation.folder import Folder
    from jobs.ablation.ranking import Option, Variant

CODE = 1  # raise it when the same variant would be judged otherwise
TABLE = "ablation.parquet"
NEED_MB = 800.0  # of a task that judges boxes
TUNING_SEED = 0  # of the halves and the order in which numbers are tried
KEPT = "ablation/"  # folder of what is judged already, a file a variant


@dataclass
class Bench:
    """Where variants are judged: what is known already, and the Ray tasks for the rest.

    Attributes:
        known: fingerprint -> what was judged, as stored under OUTPUT/ablation/. used: fingerprints this run asked for.
        failed: variant -> why it could not be judged.
    """

    folder: "Folder"
    basis: str
    n_parallel: int | None
    known: dict[str, dict[str, Any]] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)

    def judge(
        self,
        on: str,
        what: Mapping[str, Mapping[str, Any]],
        task: Callable[..., Any],
        shared: Callable[[], Any],
        need_mb: float,
    ) -> dict[str, dict[str, Any]]:
        """Judge what is not known yet, on Ray.

        Args:
            on: which part of the run `shared` is: the kind of boxes.
            what: name -> keyword arguments of the task, plain JSON: they and the basis are what the answer follows from.
            task: a function of a module, called with what `shared` gives first; returns plain JSON.
            shared: called once, and only when there is something to do; goes to Ray's object store.
            need_mb: memory of one task besides what is shared.

        Returns:
            name -> answer; a variant that failed is not in it.
        """
        from jobs.ledger import fingerprint

        where = f"{task.__module__}.{task.__name__}"
        keys = {
            name: fingerprint({"basis": self.basis, "on": on, "task": where, "arguments": how})
            for name, how in what.items()
        }
        self.used |= set(keys.values())
        todo = {name: what[name] for name, key in keys.items() if key not in self.known}
        if todo:
            self._run(on, todo, keys, task, shared(), need_mb)
        return {name: self.known[key] for name, key in keys.items() if key in self.known}

    def _run(
        self,
        on: str,
        todo: Mapping[str, Any],
        keys: Mapping[str, str],
        task: Callable[..., Any],
        shared: Any,
        need_mb: float,
    ) -> None:
        import ray

        from jobs.ledger import as_json

        ray_cluster.join_ray()
        reference = ray.put(shared)
        del shared
        remote = ray.remote(task).options(
            num_cpus=1, max_retries=1, runtime_env=ray_cluster.our_code({"OMP_NUM_THREADS": "1"})
        )
        waiting, n, started = list(todo), self._at_once(need_mb), time.monotonic()
        running: dict[Any, str] = {}
        while waiting or running:
            while waiting and len(running) < n:
                name = waiting.pop(0)
                running[remote.remote(reference, **todo[name])] = name
            (done,), _ = ray.wait(list(running), num_returns=1)
            name = running.pop(done)
            try:
                answer = ray.get(done)
            except ray.exceptions.RayError as error:
                self.failed[f"{on}, {name}"] = reason_of(error)
                say(f"ablation: {on}, {name} could not be judged: {self.failed[f'{on}, {name}']}")
                continue
            self.folder.store.write(f"{KEPT}{keys[name]}.json", as_json(answer))
            self.known[keys[name]] = answer
            left = len(waiting) + len(running)
            say(f"ablation: {on}, {name} judged, {left} to go, {time.monotonic() - started:.0f} s")

    def _at_once(self, need_mb: float) -> int:
        """As many as there are cores, and as their memory allows."""
        import ray

        cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
        room = 0.8 * ray.cluster_resources().get("memory", 4e9) / 1e6
        return self.n_parallel or max(1, min(cores, int(room / need_mb)))


def reason_of(error: Exception) -> str:
    """In one line what a Ray task ended with: what it raised, else the first line of what Ray says."""
    cause = getattr(error, "cause", None)
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return cli.one_line(f"{type(cause).__name__}: {cause}" if cause is not None else (lines or [repr(error)])[0])[:300]


def read_known(folder: "Folder") -> dict[str, dict[str, Any]]:
    """What was judged before, whatever it was judged on."""
    from jobs.ledger import read_json

    found = {}
    for info in folder.store.list(KEPT):
        if info.key.endswith(".json") and (answer := read_json(folder.store, info.key)):
            found[info.key.removeprefix(KEPT).removesuffix(".json")] = answer
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Retrieval.


def retrieval(bench: Bench, kind: str, only: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of one kind of boxes: base, each technique alone, the greedy combination, each taken out of it."""
    from jobs.ablation import ranking
    from jobs.ablation.ranking import Variant

    data = bench.folder.data(kind)
    if not len(data.asked):
        say(f"ablation: {kind} boxes: no query to judge by (no consumer garment with a style)")
        return []
    models = bench.folder.models
    dims = {name: rows.shape[1] for name, rows in data.gallery.items()}
    known = ranking.options(models, dims, kind, has_products=bool((data.facts.product >= 0).any()))
    chosen = [option for option in known if not only or any(fnmatch.fnmatch(option.name, pattern) for pattern in only)]
    size = sum(rows.nbytes for side in (data.gallery, data.queries) for rows in side.values()) / 1e6
    shared, photo, item = [data], data.photo, ranking.standing_items(data)
    del data

    def judged(variants: Sequence[Variant]) -> dict[str, dict[str, Any]]:
        pool = bench.folder.search["pool"]
        what = {
            one.name: {"entries": one.steps(models), "weights": one.weights and list(one.weights), "pool": pool}
            for one in variants
        }
        return bench.judge(kind, what, ranking.judge, lambda: shared[0], 500 + 6 * size)

    base = Variant("concat" if len(models) > 1 else models[0])
    alone = [Variant(option.name, (option,)) for option in chosen]
    alone = [one for one in alone if ranking.possible(one, models)]
    found = judged([base, *alone])
    if base.name not in found:
        return []
    best, rounds = greedily(alone, found, judged, base, models, photo)
    told = Told(kind, models, found[base.name], photo, item)
    rows = [told.row(base, found[base.name], "base")]
    rows += [told.row(one, found[one.name], "single") for one in alone if one.name in found]
    rows += [told.row(one, answer, "greedy") for one, answer in rounds]
    if len(best.options) > 1:
        without = [
            Variant(f"best without {option.name}", tuple(o for o in best.options if o is not option))
            for option in best.options
        ]
        answers = judged(without)
        rows += [told.row(one, answers[one.name], "removed") for one in without if one.name in answers]
    return rows


def greedily(
    alone: "Sequence[Variant]",
    found: Mapping[str, Mapping[str, Any]],
    judged: "Callable[[Sequence[Variant]], dict[str, dict[str, Any]]]",
    base: "Variant",
    models: Sequence[str],
    photo: Any,
) -> "tuple[Variant, list[tuple[Variant, dict[str, Any]]]]":
    """Add, round by round, the technique that helps most on the half that chooses, until none does.

    Only techniques that helped alone there are tried: the others would cost a round each and seldom come to help.
    """
    from jobs.ablation import verdict
    from jobs.ablation.ranking import Variant, possible

    half = verdict.chosen_half(photo)
    best, reached = base, verdict.worth(found[base.name]["ranks"], half)
    helpful: list[Option] = [
        one.options[0] for one in alone if one.name in found and verdict.worth(found[one.name]["ranks"], half) > reached
    ]
    rounds: list[tuple[Variant, dict[str, Any]]] = []
    while True:
        tried = [
            Variant(" + ".join(o.name for o in (*best.options, option)), (*best.options, option)) for option in helpful
        ]
        answers = judged([one for one in tried if possible(one, models)])
        scores = {one.name: verdict.worth(answers[one.name]["ranks"], half) for one in tried if one.name in answers}
        winner = max((one for one in tried if one.name in scores), key=lambda one: scores[one.name], default=None)
        if winner is None or scores[winner.name] <= reached:
            return best, rounds
        best, reached = winner, scores[winner.name]
        rounds.append((best, answers[best.name]))


@dataclass(frozen=True)
class Told:
    """What every row of one kind of boxes is told beside."""

    kind: str
    models: Sequence[str]
    base: Mapping[str, Any]
    photo: Any
    item: Any

    def row(self, one: "Variant", answer: Mapping[str, Any], group: str) -> dict[str, Any]:
        from jobs.ablation import verdict

        steps = json.dumps({"steps": one.steps(self.models)} | ({"weights": one.weights} if one.weights else {}))
        return verdict.row(self.kind, one.name, group, steps, answer, self.base, self.photo, self.item)


# ---------------------------------------------------------------------------------------------------------------------
# Boxes.


def boxes(bench: Bench, only: Sequence[str], *, tune: bool) -> list[dict[str, Any]]:
    """The rows of the ways to fuse boxes, and of the tuned weights and thresholds."""
    from jobs.ablation import boxes as fusions

    folder = bench.folder
    if not folder.record["detectors"]:
        return []
    shared = (folder.store, folder.images, dict(folder.record))
    if not folder.record["imageset"]["selected"]["items"]:
        say("ablation: boxes: no ground truth to judge by")
        return []
    known = fusions.variants(folder.record)
    kept = [one for one in known[1:] if not only or any(fnmatch.fnmatch(one.name, pattern) for pattern in only)]
    what = {one.name: {"variant": dataclasses.asdict(one)} for one in [known[0], *kept]}
    found = bench.judge("boxes", what, judge_boxes, lambda: shared, NEED_MB)
    rows = [box_row(found[name], "base" if name == known[0].name else "single") for name in what if name in found]
    if tune:
        found = bench.judge("boxes", {"tuned": {"seed": TUNING_SEED}}, tune_boxes, lambda: shared, NEED_MB)
        rows += [tuned_row(answer) for answer in found.values()]
        for answer in found.values():
            folder.store.write(f"{KEPT}tuned-fusion.yaml", answer["yaml"].encode())
            say(
                f"ablation: the tuned settings are in {folder.store.uri}/{KEPT}tuned-fusion.yaml; jobs/full_eval.py --config takes them:"
            )
            print(answer["yaml"], flush=True)
    return rows


def judge_boxes(shared: tuple, variant: Mapping[str, Any]) -> dict[str, Any]:
    """`jobs.ablation.boxes.judge` as a task: everything but what is shared is plain JSON."""
    from jobs.ablation import boxes as fusions
    from jobs.config import Fusion

    store, images, record = shared
    fusion = variant["fusion"] and Fusion(**variant["fusion"])
    one = fusions.BoxVariant(variant["name"], tuple(variant["detectors"]), fusion)
    return fusions.judge(store, images, record, one)


def tune_boxes(shared: tuple, seed: int) -> dict[str, Any]:
    from jobs.ablation import boxes as fusions

    store, images, record = shared
    return fusions.tune(store, images, record, seed)


def box_row(answer: Mapping[str, Any], group: str) -> dict[str, Any]:
    row = {
        "part": "boxes",
        "boxes": "",
        "group": group,
        "steps": "",
        "metric": "AP10",
        "value": answer["AP10"],
        "helped": [],
        "hurt": [],
    }
    kept = (
        ("name", "seconds", "peak_mb")
        if group == "base"
        else ("name", "seconds", "peak_mb", "difference", "low", "high")
    )
    return row | {name: answer[name] for name in kept}


def tuned_row(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Chosen on half A; what half B says is what counts."""
    told = {f"half_{name}": answer[name] for name in ("difference", "low", "high")} | {
        "half_value": answer["AP10"]["tuned"]["B"]
    }
    return {
        "part": "boxes", "boxes": "", "name": "weights and thresholds", "group": "tuned", "steps": json.dumps(answer["settings"]),
        "metric": "AP10", "value": answer["AP10"]["tuned"]["A"], "seconds": answer["seconds"], "peak_mb": answer["peak_mb"],
        "helped": [], "hurt": [],
    } | told  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------


def show(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The table a person reads, best difference first within each part."""
    from jobs.ablation.verdict import word

    order = {"base": 0, "single": 1, "greedy": 2, "removed": 3, "tuned": 4}
    parts = list(dict.fromkeys((row["part"], row["boxes"]) for row in rows))
    for part, boxes in parts:
        mine = [row for row in rows if (row["part"], row["boxes"]) == (part, boxes)]
        mine.sort(
            key=lambda row: (order[row["group"]], -(row.get("difference") or 0) if row["group"] == "single" else 0)
        )
        yield ""
        head = f"{part}, {boxes} boxes" if boxes else part
        yield f"{head:44}{mine[0]['metric']:>8}{'difference':>28}  {'':6}{'on the other half':>28}{'s':>9}{'MB':>8}"
        for row in mine:
            name = row["name"] if row["group"] in ("base", "single") else f"{row['group']}: {row['name']}"
            told = word(row.get("low"), row.get("high"))
            yield (
                f"{name[:43]:44}{row['value']:8.3f}{_interval(row, ''):>28}  {told:6}{_interval(row, 'half_'):>28}"
                f"{row['seconds']:9.2f}{row['peak_mb']:8.0f}"
            )


def _interval(row: Mapping[str, Any], prefix: str) -> str:
    values = [row.get(f"{prefix}{name}") for name in ("difference", "low", "high")]
    if any(value is None for value in values):
        return ""
    difference, low, high = map(float, values)  # type: ignore[arg-type]
    return f"{difference:+.3f} [{low:+.3f}, {high:+.3f}]"


def write(folder: "Folder", rows: Sequence[Mapping[str, Any]]) -> None:
    from jobs import tables
    from jobs.ablation.verdict import SCHEMA

    columns = {name: [row.get(name) for row in rows] for name in SCHEMA.names}
    tables.write(folder.store, TABLE, tables.table(SCHEMA, columns))


def renew_report(folder: "Folder") -> str:
    """The run's report again, with the ablation in it; pictures that are there are not drawn again. Returns where it lies."""
    from jobs.reporting import site

    asked = folder.record["settings"]["report"]
    return site.build(
        folder.store, folder.images, queries=asked["queries"], top=asked["top"], compare=asked.get("compare")
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", metavar="OUTPUT", help="folder of a finished run, or s3://BUCKET/PREFIX")
    parser.add_argument("--imageset", help="where the run's image set is now (default: where it was)")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="PATTERN",
        help="techniques by name, * and ? allowed; may be repeated (all)",
    )
    parser.add_argument("--part", choices=("boxes", "retrieval"), help="one half of it (both)")
    parser.add_argument(
        "--tune-fusion",
        action="store_true",
        help="look for the detectors' weights and thresholds on one half of the photos",
    )
    parser.add_argument("--parallel", type=int, metavar="N", help="variants judged at once (as cores and memory allow)")
    parser.add_argument("--endpoint-url", help="of an S3-compatible store (the SDK's own chain)")
    args = parser.parse_args(argv)
    if args.parallel is not None and args.parallel < 1:
        parser.error(f"--parallel wants 1 or more, got {args.parallel}")

    from jobs.ablation.folder import open_folder
    from jobs.ledger import fingerprint
    from jobs.lock import Lock

    folder = open_folder(args.output, args.imageset, args.endpoint_url)
    lock = Lock(folder.store)
    lock.take()
    try:
        basis = fingerprint({"code": CODE, "run": folder.fingerprint()})
        bench = Bench(folder, basis, args.parallel, read_known(folder))
        rows = []
        if args.part != "retrieval":
            rows += boxes(bench, args.only, tune=args.tune_fusion)
        if args.part != "boxes":
            rows += [row for kind in folder.kinds for row in retrieval(bench, kind, args.only)]
        if not rows:
            raise cli.UserError(
                f"{args.output}: nothing to judge; is there ground truth, and does --only name a technique?"
            )
        write(folder, rows)
        for line in show(rows):
            print(line, flush=True)
        print(f"\nreport: {renew_report(folder)}", flush=True)
    finally:
        ray_cluster.leave_ray()
        lock.release()
    for name, reason in bench.failed.items():
        print(f"{name}: could not be judged: {reason}")
    return 3 if bench.failed else 0


if __name__ == "__main__":
    cli.run(main)
