"""Plans: sizes by hand, what a budget refuses and offers, what `auto` takes and says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from retrieval.ann_plan import IndexPlan, index_bytes, plan

REPO = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "made, want",
    [
        (IndexPlan("flat", 1000, 64), 0),  # vectors.npy is the index
        (IndexPlan("hnsw", 1000, 64, links=16), 1000 * (2 * 64 + 4 * 2 * 16 + 16)),
        (IndexPlan("ivf_flat", 1000, 64, n_lists=8), 1000 * (4 * 64 + 8) + 8 * (4 * 64 + 8)),
        (
            IndexPlan("ivf_pq", 1000, 64, n_lists=8, code_bytes=8, code_dim=64),
            1000 * (8 + 8) + 8 * (4 * 64 + 8) + 4 * 64 * 64 + 4 * 16 * 64,  # codes, centres, rotation, code book
        ),
    ],
)
def test_sizes_are_those_of_the_formats(made, want):
    assert index_bytes(made) == want


@pytest.mark.parametrize(
    "rows, dim, budget_mb, kind, said",
    [
        (0, 512, 100, "flat", "exact"),
        (20_000, 512, 200, "flat", "exact"),
        (20_000, 512, 60, "hnsw", "flat needs"),  # 20,000 x 2,048 bytes are 41 MB, the two blocks of 16,384 67 MB
        (20_001, 512, 200, "hnsw", "graph"),
        (200_000, 512, 200, "ivf_pq", "hnsw needs"),
        (200_001, 512, 6000, "ivf_pq", "64 bytes a row"),
        (100_000_000, 512, 16_000, "ivf_pq", "clusters"),
        (1_000_000, 2048, 6000, "ivf_pq", "96 bytes a row"),
    ],
)
def test_auto_takes_and_says(rows, dim, budget_mb, kind, said):
    made = plan("auto", rows, dim, budget_mb=budget_mb)
    assert made.kind == kind and said in made.why
    assert max(made.memory_mb, made.build_mb) <= budget_mb
    assert made == plan("auto", rows, dim, budget_mb=budget_mb)


def test_less_memory_means_fewer_bytes_a_row():
    sizes = [plan("ivf_pq", 10**8, 512, budget_mb=mb).code_bytes for mb in (16_000, 8_000, 5_000, 3_000)]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == 64 and sizes[-1] < 16


@pytest.mark.parametrize(
    "kind, rows, budget_mb, message",
    [
        ("hnsw", 10**6, 500, r"hnsw .* needs \d+ MB, the budget is 500 MB; what fits 500 MB: ivf_pq \(\d+ MB\)"),
        ("flat", 10**6, 6000, None),
        ("flat", 10**7, 6000, "flat .* what fits 6000 MB: ivf_pq"),
        ("ivf_pq", 999, 6000, r"too few rows to cluster \(want 1,000\); what fits 6000 MB: flat .*, hnsw"),
        ("auto", 10**9, 100, "fits as no kind; what fits 100 MB: nothing"),
        ("lsh", 10, 100, "kind 'lsh'; want one of flat, hnsw, ivf_flat, ivf_pq, auto"),
        ("flat", -1, 100, "rows -1"),
        ("flat", 1, 0, "budget_mb 0"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(kind, rows, budget_mb, message):
    if message is None:
        assert plan(kind, rows, 512, budget_mb=budget_mb).kind == kind
        return
    with pytest.raises(ValueError, match=message) as raised:
        plan(kind, rows, 512, budget_mb=budget_mb)
    assert "\n" not in str(raised.value)


MEASURE = """
import json, sys, re
from pathlib import Path
import numpy as np
from retrieval.ann import AnnIndex
from retrieval.ann_plan import IndexPlan

def resident():
    own, name = {}, ""
    for line in open("/proc/self/smaps"):
        head = re.match(r"[0-9a-f]+-[0-9a-f]+ \\S+ \\S+ \\S+ \\S+ *(.*)", line)
        if head: name = Path(head[1].strip()).name
        if line.startswith("Rss:"):
            own_memory = not name or name == "[heap]"
            kind = name if name.endswith((".npy", ".faiss")) else "anonymous" if own_memory else "code"
            own[kind] = own.get(kind, 0) + int(line.split()[1]) * 1024 / 1e6
    return own

folder = Path(sys.argv[1])
plan = IndexPlan(**json.loads(sys.argv[2]))
queries = np.load(folder / "queries.npy")
warm = queries @ queries.T
before = resident()["anonymous"]
index = AnnIndex.open(folder, plan)
np.asarray(index.ids).sum()
index.search(queries, 10)
now = resident()
flat = now.get("vectors.npy", 0) if plan.kind == "flat" else 0
print(now["anonymous"] - before + flat + now.get("ids.npy", 0) + now.get("index.faiss", 0))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind, rows", [("flat", 400_000), ("ivf_flat", 400_000), ("hnsw", 60_000)])
def test_memory_while_searching_is_as_planned(kind, rows, tmp_path):
    """Resident pages of a process that has read the whole index: its own, and those mapped from index and ids."""
    import dataclasses

    import numpy as np

    from retrieval import ann_build

    rng = np.random.default_rng(0)
    dim = 512 if kind == "hnsw" else 64
    vectors = rng.standard_normal((rows, dim), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ann_build.write_vectors(tmp_path, vectors, np.arange(rows))
    np.save(
        tmp_path / "queries.npy", vectors[:: 30 if kind == "hnsw" else rows // 64]
    )  # a graph is walked from many sides
    del vectors
    made = plan(kind, rows, dim, budget_mb=4000)
    if kind.startswith("ivf"):  # fewer clusters than planned: training is not what is measured
        made = dataclasses.replace(made, n_lists=256, train_rows=10_000, nprobe=256)
    if kind == "hnsw":
        made = dataclasses.replace(made, ef_build=16, ef_search=128)
    ann_build.build(made, tmp_path)
    line = [sys.executable, "-c", MEASURE, str(tmp_path), json.dumps(dataclasses.asdict(made))]
    done = subprocess.run(line, cwd=REPO, capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(made.memory_mb, rel=0.25)
