"""torch and FAISS in one process: both at work in several threads give what each gives alone, whichever came first.

Each wheel brings an OpenMP of its own, both GNU's on Linux. macOS, where both are LLVM's, is not tested.
"""

import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
ROUNDS = 6  # of all the work, in each of four Python threads
CODE = """
import sys
from concurrent.futures import ThreadPoolExecutor
first, threads, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
if first == "torch":
    import torch
    import faiss
else:
    import faiss
    import torch
import numpy as np
import openvino
from networks.packages import torchvision

rng = np.random.default_rng(0)
rows = rng.standard_normal((8000, 64), dtype=np.float32)
queries = rows[::100] + rng.standard_normal((80, 64), dtype=np.float32) / 10
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 8, 3), torch.nn.Flatten())
photos = torch.rand(4, 3, 48, 48)
corners = torch.rand(500, 2) * 100
boxes, scores = torch.cat([corners, corners + 20], dim=1), torch.rand(500)
compiled = openvino.Core().compile_model(
    openvino.convert_model(torch.jit.trace(net, photos), example_input=photos), "CPU", {"INFERENCE_NUM_THREADS": 1}
)


def features():
    with torch.inference_mode():
        return net(photos).numpy()


def gradients():
    grown = photos.clone().requires_grad_()
    net(grown).square().mean().backward()
    return grown.grad.numpy()


def suppressed():
    return torchvision.ops.nms(boxes, scores, 0.3).numpy()


def inferred():
    return compiled.create_infer_request().infer(photos.numpy())[0]


def found(kind):
    index = faiss.index_factory(64, kind, faiss.METRIC_INNER_PRODUCT)
    index.train(rows[:4000])
    index.add(rows)
    return index.search(queries, 10)[1]


WORK = [features, gradients, suppressed, inferred, lambda: found("Flat"), lambda: found("IVF32,PQ16x4fs"),
        lambda: found("HNSW16")]
alone = None


def all_work(shift):
    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    for step in range(rounds * len(WORK)):
        k = (shift + step) % len(WORK)
        result = WORK[k]()
        if result.dtype == np.float32:
            np.testing.assert_allclose(result, alone[k], atol=1e-5)
        else:
            assert (result == alone[k]).all(), k
    return step + 1


torch.set_num_threads(threads)
faiss.omp_set_num_threads(threads)
alone = [work() for work in WORK]
with ThreadPoolExecutor(4) as pool:
    print(sum(pool.map(all_work, range(0, 8, 2))))
"""


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("first", ["torch", "faiss"])
def test_torch_and_faiss_work_side_by_side(first: str, threads: int) -> None:
    command = [sys.executable, "-c", CODE, first, str(threads), str(ROUNDS)]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0 and done.stdout.split() == [str(4 * ROUNDS * 7)], done.stderr[-2000:]
