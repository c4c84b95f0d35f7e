"""Several processes that train one model together, on Ray Train; or one, without Ray.

    launch("jobs.train_embedder", argv, workers=2, device="cpu")   calls jobs.train_embedder.train(argv, world) in each

The batch of a step is the same for any number of workers: each takes its `World.part` of the rows, what a loss needs of
the others is gathered, and gradients are summed. So a training may go on with another number of workers than it began
with. A worker that dies takes its group down; Ray Train starts the group again and it goes on from the last checkpoint.
"""

import importlib
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from store.errors import UserError

if TYPE_CHECKING:
    import torch

NEEDED = ("pytorch_metric_learning", "tensorboard")  # packages of the extra `train`, besides published weights
MAX_FAILURES = 3  # deaths of a group of workers before the training gives up


@dataclass(frozen=True)
class World:
    """Which of how many workers this process is."""

    rank: int = 0
    size: int = 1

    def part(self, n: int) -> slice:
        """This worker's rows of a batch of n; UserError where n is no multiple of `size`."""
        if n % self.size:
            raise UserError(f"a batch of {n} does not divide into {self.size} workers; take fewer, or a larger set")
        share = n // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def gather(self, rows: "torch.Tensor") -> "torch.Tensor":
        """(n / size, …) rows of each worker -> (n, …) of all, in order; gradients flow into this worker's own.

        Each worker then computes the whole loss, and `sum_gradients` adds up the gradients through each one's own rows.
        """
        if self.size == 1:
            return rows
        import torch

        every = [torch.empty_like(rows) for _ in range(self.size)]
        torch.distributed.all_gather(every, rows.detach().contiguous())
        every[self.rank] = rows
        return torch.cat(every)

    def sum_gradients(self, parameters: "Iterable[torch.nn.Parameter]", *, mean: bool = False) -> None:
        """Replace each gradient by the sum (or mean) over all workers, in one exchange."""
        if self.size == 1:
            return
        import torch

        learns = [p for p in parameters if p.requires_grad]
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in learns]
        flat = torch.cat([grad.reshape(-1).float() for grad in grads])
        torch.distributed.all_reduce(flat)
        if mean:
            flat /= self.size
        for parameter, grad, piece in zip(learns, grads, flat.split([g.numel() for g in grads]), strict=True):
            parameter.grad = piece.reshape(grad.shape).to(grad.dtype)

    def mean(self, values: "dict[str, float]") -> "dict[str, float]":
        """Each figure averaged over the workers."""
        if self.size == 1:
            return values
        import torch

        flat = torch.tensor(list(values.values()), dtype=torch.float64)
        if torch.distributed.get_backend() == "nccl":
            flat = flat.cuda()
        torch.distributed.all_reduce(flat)
        return dict(zip(values, (flat / self.size).tolist(), strict=True))

    def broadcast(self, value: bool) -> bool:
        """The first worker's value in all workers: clocks differ, and all must stop at the same step."""
        if self.size == 1:
            return value
        import torch

        values = [value]
        torch.distributed.broadcast_object_list(values, src=0)
        return values[0]

    def wait(self) -> None:
        """Wait for all workers: the first measures and writes alone."""
        if self.size > 1:
            import torch

            torch.distributed.barrier()


def launch(module: str, argv: list[str], *, workers: int, device: str, threads: int) -> int:
    """Run `module.train(argv, world)` in this process, or in `workers` processes of Ray Train; returns the exit status.

    UserError: a worker raised it, or the cluster is too small.
    """
    for package in NEEDED:
        if find_spec(package) is None:
            name = package.replace("_", "-")
            raise UserError(f"training needs {name}, which is not installed; install the extra: pip install '.[train]'")
    if workers == 1:
        return importlib.import_module(module).train(argv, World())
    from jobs.runs import cluster  # brings NumPy, which --help does not need

    # Ray's patched print would also print output that is redirected, as around pycocotools
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    cluster.join_ray(workers * threads, show_workers=True)
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    have = ray.cluster_resources()
    if device == "auto":
        device = "cuda" if have.get("GPU") else "cpu"
        argv = [*argv, "--device", device]  # the same for every worker
    use_gpu = device.startswith("cuda")
    needs: dict[str, float] = {"CPU": threads, "GPU": 1} if use_gpu else {"CPU": threads}
    for kind, each in needs.items():
        if have.get(kind, 0) < each * workers:
            reason = f"want {each * workers:g} {kind}, the cluster has {have.get(kind, 0):g}"
            raise UserError(f"--workers {workers} {reason}; fewer workers, or fewer --threads each")
    with tempfile.TemporaryDirectory() as scratch:
        loop: Any = _worker
        failure = FailureConfig(max_failures=MAX_FAILURES)
        done: Any = TorchTrainer(
            loop,
            train_loop_config={"module": module, "argv": argv, "folder": os.getcwd()},
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=use_gpu, resources_per_worker=needs),
            run_config=RunConfig(name="training", storage_path=scratch, failure_config=failure),
        ).fit()
    result = done.return_value  # `metrics` are reported with Ray's checkpoints, and there are none
    if "user_error" in result:
        raise UserError(result["user_error"])
    return int(result["status"])


def _worker(config: dict[str, Any]) -> dict[str, Any]:
    """One worker's process. A user's mistake is a result, not an exception, for Ray Train would try it again."""
    import ray.train

    if os.path.isdir(config["folder"]):  # Ray Train changes it, and arguments may be relative paths
        os.chdir(config["folder"])
    context = ray.train.get_context()
    world = World(context.get_world_rank(), context.get_world_size())
    try:
        return {"status": importlib.import_module(config["module"]).train(config["argv"], world)}
    except Exception as error:
        if not getattr(error, "user_facing", False):
            raise
        return {"user_error": str(error)}
