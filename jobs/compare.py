"""Train and judge variants of an embedder side by side: losses, descriptors, sizes, backbones, mixtures; one table in the end.

    python jobs/compare.py VARIANTS.yaml --output runs/compare/losses
    python jobs/compare.py VARIANTS.yaml --output runs/compare/losses --minutes 90     # the same line again goes on

VARIANTS.yaml, its keys the flags of jobs/train_embedder.py without the dashes before them:

    base: {model: lite0-sg, imageset: [runs/ccp-train], validation: runs/ccp-val, input-size: 128, steps: 150}
    seeds: [0, 1, 2]
    variants:
      triplet: {}
      multi-similarity: {loss: multi-similarity}
      spoc: {descriptors: spoc}
    against: [triplet]                             # optional, what the others are compared with: else the first one
    final: {input-size: 160, steps: 600}           # optional: the winner once more, at full size

Each variant and seed is a Ray task with a folder OUTPUT/runs/VARIANT/seed-N of its own, laid out as jobs/training/run.py says.
The winner is chosen by what is held out of training; the validation set is only reported. OUTPUT/compare.json holds the rows,
OUTPUT/compare.md the table: every seed, mean and spread, and the paired difference from the variants of `against` with its interval.
"""

import argparse
import contextlib
import io
import json
import shutil
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__" and (Path(__file__).resolve().parents[1] / "jobs" / "cli.py").is_file():
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from jobs import cli

if TYPE_CHECKING:
    from store.objects import ObjectStore

DONE = "compared.json"
CROPS = "crops"  # folder under OUTPUT, while there are trainings to do
MEASURES = ("acc@1", "acc@10")


@dataclass(frozen=True)
class Trial:
    """One variant with one seed: its folder under OUTPUT, and the command line of its training without --output."""

    variant: str
    seed: int
    folder: str
    argv: tuple[str, ...]


# ---------------------------------------------------------------------------------------------------------------------
# What is to be compared.


def read_plan(path: Path) -> dict[str, Any]:
    """The file's mapping, its shape checked.

    Raises:
        UserError: not readable, not YAML, or not laid out so.
    """
    from jobs import config

    plan = config.read_yaml(path, "comparison")
    if not isinstance(plan.get("variants"), dict) or not plan["variants"]:
        raise cli.UserError(f"{path}: want a mapping with `variants: {{NAME: {{flag: value}}}}`")
    unknown = sorted(map(str, set(plan) - {"base", "seeds", "variants", "against", "final"}))
    if unknown:
        raise cli.UserError(f"{path}: unknown key {unknown[0]!r}; allowed: base, seeds, variants, against, final")
    seeds = plan.get("seeds", [0])
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise cli.UserError(f"{path}: seeds want a list of whole numbers, got {seeds!r}")
    for name, flags in {"base": plan.get("base"), "final": plan.get("final"), **plan["variants"]}.items():
        if not isinstance(flags, dict | None):
            raise cli.UserError(f"{path}: {name} wants a mapping of flags, got {flags!r}")
        if not isinstance(name, str) or not set(name) <= NAME_LETTERS or name.strip(".") == "":
            raise cli.UserError(
                f"{path}: variant {name!r} becomes a folder; want letters, digits, '-', '_', '+' and '.'"
            )
    against = plan.get("against", [next(iter(plan["variants"]))])
    if not isinstance(against, list) or not all(name in list(plan["variants"]) for name in against):
        raise cli.UserError(f"{path}: against wants a list of variants, got {against!r}")
    return {**plan, "seeds": list(dict.fromkeys(seeds)), "against": against}


NAME_LETTERS = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_+.")


def trials(plan: Mapping[str, Any]) -> list[Trial]:
    """Every variant with every seed, a seed of all variants before the next seed: a budget that ends early still compares."""
    base = plan.get("base") or {}
    return [
        Trial(name, seed, f"runs/{name}/seed-{seed}", line_of(name, {**base, **(flags or {})}, seed))
        for seed in plan["seeds"]
        for name, flags in plan["variants"].items()
    ]


def final_trial(plan: Mapping[str, Any], winner: str) -> Trial:
    flags = {**(plan.get("base") or {}), **(plan["variants"][winner] or {}), **plan["final"]}
    return Trial(winner, plan["seeds"][0], "final", line_of("final", flags, plan["seeds"][0]))


def line_of(name: str, flags: Mapping[str, Any], seed: int) -> tuple[str, ...]:
    """Flags as a command line, tried out on the training job's own parser.

    Raises:
        UserError: a flag it does not know or a value it does not take.
    """
    from jobs import train_embedder

    words = ["--seed", str(seed)]
    for flag, value in flags.items():
        if flag in ("seed", "output", "workers", "minutes"):
            raise cli.UserError(f"variant {name}: {flag} is jobs/compare.py's own to say")
        if isinstance(value, Mapping):
            value = [f"{key}={number}" for key, number in value.items()]
        for one in value if isinstance(value, list) else [value]:
            words += [f"--{flag}", str(one)]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            args = train_embedder.parse([*words, "--output", "-"])
    except SystemExit:
        reason = said.getvalue().strip().rpartition("error: ")[2] or f"want flags that train, got {' '.join(words)}"
        raise cli.UserError(f"variant {name}: {reason}") from None
    train_embedder.spec_of(args)
    return tuple(words)


# ---------------------------------------------------------------------------------------------------------------------
# Training them.


def train_one(argv: list[str]) -> str:
    """One training in a Ray task's process; returns "" or why it could not be done."""
    from jobs import train_embedder
    from jobs.training.workers import World

    try:
        train_embedder.train(argv, World())
    except Exception as error:  # another variant may well do; the table says what became of this one
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return ""


def run_trials(
    todo: list[Trial], crops: list[str], args: argparse.Namespace, ends: float
) -> Iterator[tuple[Trial, str]]:
    """Each trial as it ends, with why it failed or ""; none is begun when the time is over."""
    import ray

    from jobs import compare, ray_cluster

    ray_cluster.join_ray(args.threads, show_workers=True)
    slots = max(1, int(ray.cluster_resources().get("CPU", 1)) // args.threads)
    needs: dict[str, Any] = {"num_cpus": args.threads, "num_gpus": 1 if args.device.startswith("cuda") else 0}
    # max_calls: each training has a process of its own, so that memory goes back; imported by name, not copied from here
    task = ray.remote(max_calls=1, max_retries=0, **needs)(compare.train_one)
    waiting = list(todo)
    running: dict[Any, Trial] = {}
    while waiting or running:
        while waiting and len(running) < slots and time.monotonic() < ends:
            trial = waiting.pop(0)
            minutes = max(0.1, (ends - time.monotonic()) / 60)
            more = ["--output", f"{args.output.rstrip('/')}/{trial.folder}", "--minutes", f"{minutes:.2f}"]
            more += ["--threads", str(args.threads), "--device", args.device]
            running[task.remote([*crops, *trial.argv, *more])] = trial  # a plan's own --crops comes later and wins
        if not running:
            return
        for done in ray.wait(list(running), num_returns=1)[0]:
            trial = running.pop(done)
            try:
                yield trial, ray.get(done)
            except ray.exceptions.RayError as error:
                yield trial, f"its process died: {' '.join(str(error).split())[:200]}"


def compared(store: "ObjectStore", trial: Trial) -> dict[str, Any] | None:
    """The row of a finished trial; None where it is not finished or was another training."""
    from store.objects import ObjectMissing

    try:
        row: dict[str, Any] = json.loads(store.read(f"{trial.folder}/{DONE}"))
    except ObjectMissing:
        return None
    return row if row["argv"] == list(trial.argv) else None


def finish_trial(store: "ObjectStore", trial: Trial) -> dict[str, Any] | None:
    """Turn a training's summary into a row, written last; None where time was over before its last step."""
    summary = json.loads(store.read(f"{trial.folder}/summary.json"))
    if summary["stopped_at"] < summary["of_steps"]:
        return None
    row = {
        "variant": trial.variant, "seed": trial.seed, "argv": list(trial.argv), "held_out": summary["held_out"],
        "validation": summary.get("validation"), "seconds": summary["seconds"], "crops": summary["crops"],
        "ranks": json.loads(store.read(f"{trial.folder}/ranks.json")),
    }  # fmt: skip
    store.write(f"{trial.folder}/{DONE}", json.dumps(row).encode())
    return row


# ---------------------------------------------------------------------------------------------------------------------
# The table.


def table(rows: list[dict[str, Any]], variants: list[str], against: list[str]) -> list[dict[str, Any]]:
    """A line per variant: each seed's figures, mean and sample spread, and how it differs from those of `against`."""
    by_variant = {name: [row for row in rows if row["variant"] == name] for name in variants}
    lines = []
    for name, mine in by_variant.items():
        line: dict[str, Any] = {"variant": name, "seeds": [row["seed"] for row in mine]}
        for part in ("held_out", "validation"):
            for measure in MEASURES:
                values = [row[part][measure] for row in mine if row[part] and row[part].get("queries")]
                line[f"{part} {measure}"] = {"each": values, **spread(values)}
        line["minutes"] = round(sum(row["seconds"] for row in mine) / 60 / len(mine), 1) if mine else None
        line["against"] = {}
        for other in against:
            theirs = {row["seed"]: row for row in by_variant[other]} if other != name else {}
            pairs = [(row, theirs[row["seed"]]) for row in mine if row["seed"] in theirs]
            line["against"][other] = difference(pairs) if pairs else None
        lines.append(line)
    return lines


def spread(values: list[float]) -> dict[str, float | None]:
    return {
        "mean": statistics.fmean(values) if values else None,
        "spread": statistics.stdev(values) if len(values) > 1 else None,
    }


def difference(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any] | None:
    """Top-10 of what was judged last, less the other variant's on the same seeds: mean and 95 % interval over photos.

    A query's value is the share of seeds in which it was right.
    """
    import numpy as np

    from postproc.bootstrap import paired_interval

    photo = pairs[0][0]["ranks"]["photo"]
    if not photo or any(row["ranks"]["photo"] != photo for pair in pairs for row in pair):
        return None  # judged on other queries: nothing to pair

    def right(row: dict[str, Any]) -> "np.ndarray":
        ranks = np.array(row["ranks"]["rank"])
        return (ranks >= 1) & (ranks <= 10)

    ours, theirs = (np.mean([right(pair[side]) for pair in pairs], axis=0) for side in (0, 1))
    mean, low, high = paired_interval(ours, theirs, np.array(photo))
    return {"acc@10": round(mean, 4), "low": round(low, 4), "high": round(high, 4), "seeds": len(pairs)}


def as_markdown(lines: list[dict[str, Any]]) -> str:
    """The table a person reads."""
    parts = [f"{part} {measure}" for part in ("held_out", "validation") for measure in MEASURES]
    parts = [part for part in parts if any(line[part]["each"] for line in lines)]
    against = list(lines[0]["against"]) if lines else []
    head = [
        "variant",
        *(part.replace("_", " ") for part in parts),
        *(f"acc@10 against {name}" for name in against),
        "minutes",
    ]
    text = ["| " + " | ".join(head) + " |", "|---|" + "--:|" * (len(head) - 1)]
    for line in lines:
        cells = [line["variant"], *(_figure(line[part]) for part in parts)]
        cells += [_difference(line["against"].get(name)) for name in against]
        text.append("| " + " | ".join([*cells, "–" if line["minutes"] is None else f"{line['minutes']:.1f}"]) + " |")
    return "\n".join(text) + "\n"


def _figure(value: dict[str, Any]) -> str:
    if value["mean"] is None:
        return "–"
    each = ", ".join(f"{one:.3f}" for one in value["each"])
    return (
        f"{value['mean']:.3f}" if value["spread"] is None else f"{value['mean']:.3f} ± {value['spread']:.3f} ({each})"
    )


def _difference(found: dict[str, Any] | None) -> str:
    return "–" if found is None else f"{found['acc@10']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"


def winner(lines: list[dict[str, Any]]) -> str:
    """The variant with the best held-out mean of top-1 plus top-10, the first on ties."""
    worth = {line["variant"]: sum(line[f"held_out {measure}"]["mean"] or 0.0 for measure in MEASURES) for line in lines}
    return max(worth, key=lambda name: worth[name])


# ---------------------------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path, metavar="VARIANTS.yaml")
    parser.add_argument("--output", required=True, help="folder or s3:// for the trainings and the table")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin nothing new after so many (no end)")
    parser.add_argument("--threads", type=int, default=1, help="CPU cores of each training (1)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    args = parser.parse_args(argv)
    if args.threads < 1 or args.minutes < 0:
        parser.error(f"--threads wants 1 or more and --minutes 0 or more, got {args.threads} and {args.minutes}")

    from store.objects import open_store

    plan = read_plan(args.plan)
    wanted, variants = trials(plan), list(plan["variants"])
    store, ends = open_store(args.output), time.monotonic() + args.minutes * 60
    rows = {trial: row for trial in wanted if (row := compared(store, trial)) is not None}
    print(
        f"{len(variants)} variants, {len(plan['seeds'])} seeds: {len(rows)} of {len(wanted)} trained already",
        flush=True,
    )
    failed = run(store, [trial for trial in wanted if trial not in rows], rows, args, ends)

    lines = table(list(rows.values()), variants, plan["against"])
    unfinished = [trial for trial in wanted if trial not in rows and trial not in failed]
    if "final" in plan and not unfinished and rows:
        final = final_trial(plan, winner(lines))
        ended: dict[Trial, dict[str, Any]] = {}
        row = compared(store, final)
        if row is None:
            failed |= run(store, [final], ended, args, ends)
            row = ended.get(final)
        if row is not None:
            lines += table([{**row, "variant": f"{final.variant}, final"}], [f"{final.variant}, final"], [])
    store.write("compare.json", (json.dumps({"variants": lines}, indent=1) + "\n").encode())
    store.write("compare.md", as_markdown(lines).encode())
    print("\n" + as_markdown(lines), flush=True)
    for trial, reason in failed.items():
        print(f"{trial.variant}, seed {trial.seed}: {reason}")
    if not failed and not unfinished and store.local_path:
        shutil.rmtree(store.local_path / CROPS, ignore_errors=True)
    if unfinished:
        print(f"time is over with {len(unfinished)} of {len(wanted)} trainings to do; the same line goes on")
    return 3 if failed or unfinished else 0


def run(
    store: "ObjectStore", todo: list[Trial], rows: dict[Trial, dict[str, Any]], args: argparse.Namespace, ends: float
) -> dict[Trial, str]:
    """Train what is to do, putting finished ones into `rows`; returns the failed ones with the reason."""
    failed = {}
    crops = ["--crops", str(store.local_path / CROPS)] if store.local_path else []  # mapped files: not in a bucket
    for trial, reason in run_trials(todo, crops, args, ends) if todo else ():
        row = None if reason else finish_trial(store, trial)
        if reason:
            failed[trial] = reason
        elif row:
            rows[trial] = row
        said = reason or (f"held out {row['held_out']}" if row else "time is over before its last step")
        print(f"{trial.variant}, seed {trial.seed}: {said}", flush=True)
    return failed


if __name__ == "__main__":
    cli.run(main)
