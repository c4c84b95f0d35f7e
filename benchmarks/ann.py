"""Approximate search beside exact search, an older commit and autofaiss: memory, queries a second and recall.

    python benchmarks/ann.py --rank 32 --rows 1000000 --work /tmp/ann --old ../1ab111c --autofaiss /tmp/af/bin/python
    python benchmarks/ann.py --embeddings runs/eval/embeddings/true runs/eval/embeddings/detected --rows 100000 \
        --work /tmp/families --kinds ivf_pq ivf_flat hnsw
    python benchmarks/ann.py --embeddings runs/eval/embeddings/true runs/eval/embeddings/detected --work /tmp/real
    python benchmarks/ann.py --rank 32 --rows 10000000 --dim 256 --half --queries 100 --work /tmp/ten

The rows are one of three kinds, always of unit length, and the queries are more of the same, not in the gallery:
--rank R: low rank plus noise, without families. R Gaussian factors, the i-th with standard deviation i ** -0.25, in
  random directions, plus white noise whose length is NOISE of the row's.
--embeddings with --rows: families of near-copies. An embedding of a photo, in turn, plus such noise.
--embeddings alone: the embeddings themselves.

Every build and every search is a process of its own, whose peak resident memory is its own too. Each search takes
turns with FAISS' exact search (`faiss.knn`, 100 queries at once), so that a ratio is of one minute on one machine.
--old takes the code of an older checkout (of 1ab111c or later) through the same steps, on the same files. autofaiss
(its own environment) gets the same vectors and, as `max_index_memory_usage`, the bytes of our ivf_pq index unless
--autofaiss-mb says otherwise.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[0] = os.environ.get("CHECKOUT", str(Path(__file__).resolve().parents[1]))

import numpy as np

K, ROUNDS = 10, 3
EXACT_QUERIES = 100  # asked of exact search in each round
BLOCK = 1 << 14  # rows drawn at once
FILES = ("vectors.npy", "ids.npy", "queries.npy", "tuning.npy", "exact.npy")
Draw = Callable[[int, int], np.ndarray]  # first row, how many -> unit rows


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def low_rank(rank: int, dim: int, noise: float, rng: np.random.Generator) -> Draw:
    basis = np.linalg.qr(rng.standard_normal((dim, rank)))[0].T.astype(np.float32)
    deviations = np.arange(1, rank + 1, dtype=np.float32) ** -0.25
    deviations /= np.linalg.norm(deviations)

    def draw(_: int, count: int) -> np.ndarray:
        rows = (rng.standard_normal((count, rank), np.float32) * deviations) @ basis
        return unit(rows + noise / dim**0.5 * rng.standard_normal((count, dim), np.float32))

    return draw


def families(bases: np.ndarray, noise: float, rng: np.random.Generator) -> Draw:
    def draw(start: int, count: int) -> np.ndarray:
        rows = bases[np.arange(start, start + count) % len(bases)]
        return unit(rows + noise / rows.shape[1] ** 0.5 * rng.standard_normal(rows.shape, np.float32))

    return draw


def embeddings_of(folders: list[Path], model: str) -> np.ndarray:
    """(N, D) float32: the embeddings of finished runs."""
    import pyarrow.parquet as pq

    files = [file for each in folders for file in sorted((each / model).glob("*.parquet"))]
    if not files:
        raise SystemExit(f"no {model}/*.parquet under {', '.join(map(str, folders))}")
    columns = [pq.read_table(file, columns=["embedding"])["embedding"].combine_chunks() for file in files]
    return np.concatenate([np.asarray(c.values, np.float32).reshape(len(c), -1) for c in columns if len(c)])


def write_gallery(args: argparse.Namespace) -> None:
    """vectors.npy, ids.npy, queries.npy and tuning.npy of the work folder."""
    from retrieval.ann_files import write_rows

    rng, rows = np.random.default_rng(args.seed), args.rows or 100_000
    if args.rank:
        draw, dim = low_rank(args.rank, args.dim, args.noise, rng), args.dim
        what = f"rank {args.rank} plus noise {args.noise} of their length"
    else:
        bases = embeddings_of(args.embeddings, args.model)
        dim = bases.shape[1]
        what = f"from {len(bases):,} embeddings of {args.model}"
        if args.rows:
            draw = families(bases, args.noise, rng)
            what += f", noise {args.noise} of their length"
        else:
            rows = len(bases) - args.queries - 200
            bases = unit(bases[rng.permutation(len(bases))])
            draw = lambda start, count: bases[start : start + count]  # noqa: E731
    blocks = (draw(start, min(BLOCK, rows - start)) for start in range(0, rows, BLOCK))
    args.work.mkdir(parents=True, exist_ok=True)
    write_rows(args.work / "vectors.npy", (rows, dim), np.dtype(np.float16 if args.half else np.float32), blocks)
    ids = rng.permutation(rows).astype(np.int64) * 4_611_686 + 7
    write_rows(args.work / "ids.npy", ids.shape, ids.dtype, [ids])
    np.save(args.work / "queries.npy", draw(rows, args.queries))
    np.save(args.work / "tuning.npy", draw(rows + args.queries, 200))
    print(f"{rows:,} x {dim} rows, {what}, seed {args.seed}")


def truth(folder: Path) -> dict[str, Any]:
    """exact.npy: the row numbers of each query's K nearest; and how far apart neighbours are."""
    import faiss

    vectors, queries = np.load(folder / "vectors.npy", mmap_mode="r"), np.load(folder / "queries.npy")
    similarity, rows = np.zeros((len(queries), 0), np.float32), np.zeros((len(queries), 0), np.int64)
    for start in range(0, len(vectors), 1 << 18):
        block = np.asarray(vectors[start : start + (1 << 18)], np.float32)
        more, places = faiss.knn(queries, block, min(100, len(block)), metric=faiss.METRIC_INNER_PRODUCT)
        similarity, rows = np.concatenate([similarity, more], axis=1), np.concatenate([rows, places + start], axis=1)
        best = np.argsort(-similarity, axis=1, kind="stable")[:, :100]
        similarity, rows = np.take_along_axis(similarity, best, axis=1), np.take_along_axis(rows, best, axis=1)
    np.save(folder / "exact.npy", rows[:, :K])
    return {f"similarity_{place}": float(similarity[:, place - 1].mean()) for place in (1, 10, 11, 100)}


def build(folder: Path, kind: str, budget_mb: float, threads: int) -> dict[str, Any]:
    """Plan, build and tune; what the search needs goes to KIND.json."""
    from retrieval import ann, ann_build
    from retrieval.ann_plan import plan

    try:
        from retrieval.ann_tune import tune
    except ModuleNotFoundError:
        tune = vars(ann)["tune"]  # at 1ab111c
    vectors = np.load(folder / "vectors.npy", mmap_mode="r")
    chosen = plan(kind, *vectors.shape, budget_mb=budget_mb, threads=threads, vector_bytes=vectors.dtype.itemsize)
    start, used = time.perf_counter(), time.process_time()
    ann_build.build(chosen, folder)
    took, spent, peak = time.perf_counter() - start, time.process_time() - used, peak_mb()
    index = ann.AnnIndex.open(folder, chosen)
    parameters = tune(index, np.load(folder / "tuning.npy"), 0.95)
    (folder / f"{kind}.json").write_text(json.dumps({**vars(chosen), **parameters, "kind": kind}))
    size = (folder / "index.faiss").stat().st_size / 1e6 if kind != "flat" else 0.0
    chosen_parameters = {
        name: value for name, value in parameters.items() if name in ("nprobe", "k_factor", "ef_search")
    }
    sizes = f"building {chosen.build_mb:,.0f} MB, searching {chosen.memory_mb:,.0f} MB, disk {chosen.disk_mb:,.0f} MB"
    print(f"{kind} planned: {chosen.n_lists} clusters, {chosen.code_bytes} bytes a row, {sizes}", file=sys.stderr)
    return {"build_s": took, "cpu_s": spent, "build_mb": peak, "index_mb": size, "said": chosen_parameters}


def search(folder: Path, kind: str, threads: int) -> dict[str, Any]:
    from dataclasses import fields

    import faiss

    from retrieval import ann_plan
    from retrieval.ann import AnnIndex

    plan_class = vars(ann_plan).get("IndexPlan") or vars(ann_plan)["Plan"]  # at 1ab111c
    faiss.omp_set_num_threads(threads)
    saved = json.loads((folder / f"{kind}.json").read_text())
    start, used = time.perf_counter(), time.process_time()
    index = AnnIndex.open(folder, plan_class(**{f.name: saved[f.name] for f in fields(plan_class)}))
    opened = f"{kind} opened in {time.perf_counter() - start:.2f} s, {time.process_time() - used:.2f} CPU s"
    print(f"{opened}, {anonymous_mb():,.0f} MB of its own and mapped", file=sys.stderr)

    def rows(queries: np.ndarray) -> np.ndarray:
        order = np.argsort(index.ids)
        return order[np.searchsorted(index.ids, index.search(queries, K)[1], sorter=order)]

    return timed(folder, rows, lambda queries: index.search(queries, K))


def autofaiss(folder: Path, limit_mb: float, threads: int) -> dict[str, Any]:
    """Build, tune (its own way, towards the time a query that it is given) and search, in its own environment."""
    import faiss
    from autofaiss import build_index

    faiss.omp_set_num_threads(threads)
    start, used = time.perf_counter(), time.process_time()
    index, _ = build_index(
        np.load(folder / "vectors.npy"),
        save_on_disk=False,
        metric_type="ip",
        max_index_memory_usage=f"{limit_mb:.0f}MB",
        current_memory_available="2GB",  # trains on 31 rows a cluster, its fewest; with more it takes twice as long
        max_index_query_time_ms=10,
        nb_cores=threads,
        verbose=40,
    )
    took, spent, peak = time.perf_counter() - start, time.process_time() - used, peak_mb()
    if index is None:
        raise SystemExit(f"autofaiss built nothing in {limit_mb:.0f} MB; its line above says why")
    size = len(faiss.serialize_index(index)) / 1e6
    found = timed(folder, lambda queries: index.search(queries, K)[1], lambda queries: index.search(queries, K))
    return {
        "build_s": took,
        "cpu_s": spent,
        "build_mb": peak,
        "index_mb": size,
        "said": type(faiss.downcast_index(index)).__name__,
        **found,
    }


def timed(folder: Path, rows: Callable[[np.ndarray], Any], ask: Callable[[np.ndarray], Any]) -> dict[str, Any]:
    """Recall against exact.npy, then ROUNDS in turn with exact search, which FAISS has for float32 alone: medians."""
    import faiss

    vectors, queries = np.load(folder / "vectors.npy", mmap_mode="r"), np.load(folder / "queries.npy")
    exact, some = np.load(folder / "exact.npy"), queries[:EXACT_QUERIES]
    ask(queries)  # once to touch the files
    peak = peak_mb()
    found = rows(queries)
    recall = float(np.mean([len(set(a) & set(b)) / K for a, b in zip(found.tolist(), exact.tolist(), strict=True)]))
    ours, flat, spent = [], [], []
    for _ in range(ROUNDS):
        if vectors.dtype == np.float32:
            start = time.perf_counter()
            faiss.knn(some, np.asarray(vectors), K, metric=faiss.METRIC_INNER_PRODUCT)
            flat.append(len(some) / (time.perf_counter() - start))
        start, used = time.perf_counter(), time.process_time()
        ask(queries)
        ours.append(len(queries) / (time.perf_counter() - start))
        spent.append(len(queries) / (time.process_time() - used))
    ratios = [a / b for a, b in zip(ours, flat, strict=False)]
    return {
        "search_mb": peak,
        "recall": recall,
        "queries_s": float(np.median(ours)),
        "queries_cpu_s": float(np.median(spent)),
        "beside_exact": f"{np.median(flat):.1f} | {np.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"
        if flat
        else "– | –",
    }


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def anonymous_mb() -> float:
    """Resident memory of this process that no file stands behind."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("RssAnon"))


def child(
    python: str, step: str, args: argparse.Namespace, *more: str, work: Path | None = None, **environ: str
) -> dict[str, Any]:
    """One step in a process of its own: its last line is its answer."""
    folder = str(work or args.work)
    line = [python, __file__, "--work", folder, "--threads", str(args.threads), "--step", step, *more]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(args.threads))
    environment = {**os.environ, **threads, **environ}
    done = subprocess.run(line, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{step} {' '.join(more)}: exit status {done.returncode}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def older(args: argparse.Namespace) -> None:
    """ivf_pq of an older checkout, in a folder of links to the same files."""
    folder, checkout = args.work / "old", str(args.old.resolve())
    folder.mkdir(exist_ok=True)
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(args.work.resolve() / name)
    more = ("--kind", "ivf_pq", "--budget-mb", str(args.budget_mb))
    built = child(sys.executable, "build", args, *more, work=folder, CHECKOUT=checkout)
    report("older ivf_pq", built, child(sys.executable, "search", args, *more, work=folder, CHECKOUT=checkout))


def report(name: str, built: dict[str, Any], found: dict[str, Any]) -> None:
    print(f"| {name} {built['said']} | {built['index_mb']:.0f} | {built['build_s']:.0f} | {built['cpu_s']:.0f} | "
          f"{built['build_mb'] / 1000:.2f} | {found['search_mb'] / 1000:.2f} | {found['recall']:.3f} | "
          f"{found['queries_s']:.0f} | {found['queries_cpu_s']:.0f} | {found['beside_exact']} |",
          flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--embeddings", type=Path, nargs="+", default=[], help="folders with MODEL/*.parquet of a finished run"
    )
    parser.add_argument("--model", default="lite0-sg", help="whose rows to take (lite0-sg)")
    parser.add_argument("--rank", type=int, default=0, help="rows without families: number of factors")
    parser.add_argument("--dim", type=int, default=512, help="width of a row with --rank (512)")
    parser.add_argument("--half", action="store_true", help="store float16")
    parser.add_argument("--rows", type=int, default=0, help="of the gallery (100,000; the embeddings themselves)")
    parser.add_argument("--queries", type=int, default=500, help="asked at once (500)")
    parser.add_argument("--noise", type=float, default=0.5, help="length of the noise over the row's (0.5)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--work", type=Path, required=True, help="a folder for the vectors: 4 x D x rows bytes; used again when there"
    )
    parser.add_argument("--kinds", nargs="*", default=["ivf_pq"], help="flat hnsw ivf_flat ivf_pq (ivf_pq)")
    parser.add_argument("--budget-mb", type=float, default=6000, help="for our plan (6,000)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--old", type=Path, help="checkout of an older commit, whose ivf_pq is measured too")
    parser.add_argument("--autofaiss", help="the python of an environment with autofaiss; left out without")
    parser.add_argument("--autofaiss-mb", type=float, default=0, help="its index memory (that of our ivf_pq index)")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--kind", help=argparse.SUPPRESS)
    args = parser.parse_args()
    steps: dict[str, Callable[[], dict[str, Any]]] = {
        "truth": lambda: truth(args.work),
        "build": lambda: build(args.work, args.kind, args.budget_mb, args.threads),
        "search": lambda: search(args.work, args.kind, args.threads),
        "autofaiss": lambda: autofaiss(args.work, args.autofaiss_mb, args.threads),
    }
    if args.step:
        print(json.dumps(steps[args.step]()))
        return
    if not (args.work / "tuning.npy").exists():
        write_gallery(args)
    if not (args.work / "exact.npy").exists():
        gap = child(sys.executable, "truth", args)
        print("mean similarity of " + ", ".join(f"{name.split('_')[1]}. {value:.4f}" for name, value in gap.items()))
    print(f"load {os.getloadavg()[0]:.1f}, {args.threads} threads\n")
    print(
        "| index | MB | built in s | CPU s | peak GB building | peak GB searching | recall@10 | queries/s "
        "| queries a CPU s | exact, queries/s | times exact |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|", flush=True)
    size = args.autofaiss_mb
    for kind in args.kinds:
        built = child(sys.executable, "build", args, "--kind", kind, "--budget-mb", str(args.budget_mb))
        report(kind, built, child(sys.executable, "search", args, "--kind", kind))
        size = size or (built["index_mb"] if kind == "ivf_pq" else 0)
    if args.old:
        older(args)
    if args.autofaiss:
        answer = child(args.autofaiss, "autofaiss", args, "--autofaiss-mb", str(size or 4000))
        report("autofaiss", answer, answer)
    print(f"\nload {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
