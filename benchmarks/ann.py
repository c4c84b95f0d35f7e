"""Approximate search beside exact search and autofaiss: memory, queries a second and recall at one size.

    python benchmarks/ann.py --embeddings runs/ccp-eval/embeddings/true runs/ccp-eval/embeddings/detected --model
    lite0-sg \
        --rows 100000 --work /tmp/ann --kinds ivf_pq ivf_flat hnsw --autofaiss /tmp/autofaiss-env/bin/python

No gallery of that size is here, so rows are drawn: an embedding of a photo by a shipped model, in turn, plus Gaussian
noise whose length is NOISE of the row's, brought to unit length; queries are drawn the same way and are not in the
gallery. Every build and every search is a process of its own, whose peak resident memory is its own too. Each search
takes turns with FAISS' exact search (`faiss.knn`, all queries at once, when it is fastest), so that a ratio is of one
minute on one machine. autofaiss (its own environment, --autofaiss) gets the same vectors and, as
`max_index_memory_usage`, the bytes of our ivf_pq index unless --autofaiss-mb says otherwise.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

K, ROUNDS = 10, 3


def draw(folder: Path, embeddings: list[Path], model: str, rows: int, n_queries: int, noise: float, seed: int) -> None:
    """vectors.npy, ids.npy and queries.npy of a folder."""
    import pyarrow.parquet as pq

    from retrieval.ann_files import write_rows

    files = [file for each in embeddings for file in sorted((each / model).glob("*.parquet"))]
    if not files:
        raise SystemExit(f"no {model}/*.parquet under {', '.join(map(str, embeddings))}")
    columns = [pq.read_table(file, columns=["embedding"])["embedding"].combine_chunks() for file in files]
    bases = np.concatenate([np.asarray(c.values, np.float32).reshape(len(c), -1) for c in columns if len(c)])
    rng = np.random.default_rng(seed)
    dim = bases.shape[1]

    def noisy(numbers: np.ndarray) -> np.ndarray:
        vectors = bases[numbers] + noise / dim**0.5 * rng.standard_normal((len(numbers), dim), np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def blocks() -> Iterator[np.ndarray]:
        for start in range(0, rows, 1 << 14):
            yield noisy(np.arange(start, min(rows, start + (1 << 14))) % len(bases))

    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "vectors.npy", (rows, dim), np.dtype(np.float32), blocks())
    ids = rng.permutation(rows).astype(np.int64) * 4_611_686 + 7
    write_rows(folder / "ids.npy", ids.shape, ids.dtype, [ids])
    for name, count in (("queries", n_queries), ("tuning", 200)):
        np.save(folder / f"{name}.npy", noisy(rng.integers(0, len(bases), count)))
    print(
        f"{rows:,} x {dim} rows from {len(bases):,} embeddings of {model}, noise {noise} of their length, seed {seed}"
    )


def truth(folder: Path) -> dict[str, Any]:
    """exact.npy: the row numbers of each query's K nearest; and how far apart neighbours are."""
    import faiss

    vectors, queries = np.load(folder / "vectors.npy", mmap_mode="r"), np.load(folder / "queries.npy")
    similarity, rows = faiss.knn(queries, np.asarray(vectors), 100, metric=faiss.METRIC_INNER_PRODUCT)
    np.save(folder / "exact.npy", rows[:, :K])
    return {f"similarity_{place}": float(similarity[:, place - 1].mean()) for place in (1, 10, 11, 100)}


def build(folder: Path, kind: str, budget_mb: float, threads: int) -> dict[str, Any]:
    """Plan, build and tune; what the search needs goes to KIND.json."""
    from retrieval import ann_build
    from retrieval.ann import AnnIndex
    from retrieval.ann_plan import plan
    from retrieval.ann_tune import tune

    vectors = np.load(folder / "vectors.npy", mmap_mode="r")
    chosen = plan(kind, *vectors.shape, budget_mb=budget_mb, threads=threads)
    start, used = time.perf_counter(), time.process_time()
    ann_build.build(chosen, folder)
    took, spent, peak = time.perf_counter() - start, time.process_time() - used, peak_mb()
    index = AnnIndex.open(folder, chosen)
    parameters = tune(index, np.load(folder / "tuning.npy"), 0.95)
    (folder / f"{kind}.json").write_text(json.dumps({**vars(chosen), **parameters, "kind": kind}))
    size = (folder / "index.faiss").stat().st_size / 1e6 if kind != "flat" else 0.0
    chosen_parameters = {
        name: value for name, value in parameters.items() if name in ("nprobe", "k_factor", "ef_search")
    }
    return {"build_s": took, "cpu_s": spent, "build_mb": peak, "index_mb": size, "said": chosen_parameters}


def search(folder: Path, kind: str, threads: int) -> dict[str, Any]:
    from dataclasses import fields

    import faiss

    from retrieval.ann import AnnIndex
    from retrieval.ann_plan import IndexPlan

    faiss.omp_set_num_threads(threads)
    saved = json.loads((folder / f"{kind}.json").read_text())
    index = AnnIndex.open(folder, IndexPlan(**{f.name: saved[f.name] for f in fields(IndexPlan)}))
    row_of = {number: row for row, number in enumerate(index.ids.tolist())}
    return timed(
        folder, lambda queries: np.array([[row_of[i] for i in line] for line in index.search(queries, K)[1].tolist()]),
        lambda queries: index.search(queries, K),
    )  # fmt: skip


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
        current_memory_available="6GB",
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
    """Recall against exact.npy, then ROUNDS in turn with exact search: medians."""
    import faiss

    vectors, queries = np.asarray(np.load(folder / "vectors.npy", mmap_mode="r")), np.load(folder / "queries.npy")
    exact = np.load(folder / "exact.npy")
    ask(queries)  # once to touch the files
    peak = peak_mb()
    found = rows(queries)
    recall = float(np.mean([len(set(a) & set(b)) / K for a, b in zip(found.tolist(), exact.tolist(), strict=True)]))
    ours, flat = [], []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        faiss.knn(queries, vectors, K, metric=faiss.METRIC_INNER_PRODUCT)
        middle = time.perf_counter()
        ask(queries)
        flat.append(len(queries) / (middle - start))
        ours.append(len(queries) / (time.perf_counter() - middle))
    ratios = [a / b for a, b in zip(ours, flat, strict=True)]
    return {
        "search_mb": peak,
        "recall": recall,
        "queries_s": float(np.median(ours)),
        "flat_queries_s": float(np.median(flat)),
        "ratio": float(np.median(ratios)),
        "ratios": [min(ratios), max(ratios)],
    }


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def child(python: str, step: str, args: argparse.Namespace, *more: str) -> dict[str, Any]:
    """One step in a process of its own: its last line is its answer."""
    line = [python, __file__, "--work", str(args.work), "--threads", str(args.threads), "--step", step, *more]
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "OPENBLAS_NUM_THREADS": str(args.threads)}
    done = subprocess.run(line, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{step} {' '.join(more)}: exit status {done.returncode}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def report(name: str, built: dict[str, Any], found: dict[str, Any]) -> None:
    lowest, highest = found["ratios"]
    print(f"| {name} {built['said']} | {built['index_mb']:.0f} | {built['build_s']:.0f} | {built['cpu_s']:.0f} | "
          f"{built['build_mb'] / 1000:.2f} | {found['search_mb'] / 1000:.2f} | {found['recall']:.3f} | "
          f"{found['queries_s']:.0f} | {found['flat_queries_s']:.1f} | {found['ratio']:.1f} "
          f"({lowest:.1f} to {highest:.1f}) |", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--embeddings", type=Path, nargs="+", default=[], help="folders with MODEL/*.parquet of a finished run"
    )
    parser.add_argument("--model", default="lite0-sg", help="whose rows to take (lite0-sg)")
    parser.add_argument("--rows", type=int, default=100_000, help="of the gallery (100,000)")
    parser.add_argument("--queries", type=int, default=500, help="asked at once (500)")
    parser.add_argument("--noise", type=float, default=0.5, help="length of the noise over the row's (0.5)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--work", type=Path, required=True, help="a folder for the vectors: 4 x D x rows bytes; used again when there"
    )
    parser.add_argument("--kinds", nargs="*", default=["ivf_pq"], help="flat hnsw ivf_flat ivf_pq (ivf_pq)")
    parser.add_argument("--budget-mb", type=float, default=6000, help="for our plan (6,000)")
    parser.add_argument("--threads", type=int, default=2)
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
        draw(args.work, args.embeddings, args.model, args.rows, args.queries, args.noise, args.seed)
    gap = child(sys.executable, "truth", args)
    print("mean similarity of the " + ", ".join(f"{name.split('_')[1]}. {value:.4f}" for name, value in gap.items()))
    print(f"load {os.getloadavg()[0]:.1f}, {args.threads} threads\n")
    print(
        "| index | MB | built in s | CPU s | peak GB building | peak GB searching | recall@10 | queries/s "
        "| exact, queries/s | times exact |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|", flush=True)
    size = args.autofaiss_mb
    for kind in args.kinds:
        built = child(sys.executable, "build", args, "--kind", kind, "--budget-mb", str(args.budget_mb))
        report(kind, built, child(sys.executable, "search", args, "--kind", kind))
        size = size or (built["index_mb"] if kind == "ivf_pq" else 0)
    if args.autofaiss:
        answer = child(args.autofaiss, "autofaiss", args, "--autofaiss-mb", str(size or 4000))
        report("autofaiss", answer, answer)
    print(f"\nload {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
