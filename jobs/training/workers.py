"""Several processes that train one model together, on Ray Train; or one, without Ray.

    launch("jobs.train_embedder", argv, workers=2, device="cpu")   calls jobs.train_embedder.train(argv, world) in each

The batch of a step is the same for any number of workers: each takes its `World.part` of the rows, what a loss needs of
the others is gathered, and gradients are summed. So a training may go on with another number of workers than it began with.
A worker that dies takes its group down; Ray Train starts the group again and it goes on from the last checkpoint.
"""

import importlib
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobs.cli import UserError

if TYPE_CHECKING:
    import torch

MAX_FAILURES = 3  # deaths of a group of workers before the training gives up


@dataclass(frozen=True)
class World:
    """Which of how many workers this process is."""

    rank: int = 0
    size: int = 1

    def part(self, n: int) -> slice:
        """This worker's rows of a batch of n, a multiple of `size`.

        Raises:
            UserError: it is none.
        """
        if n % self.size:
            raise UserError(f"a batch of {n} does not divide into {self.size} workers; take fewer, or a larger set")
        share = n // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def gather(self, rows: "torch.Tensor") -> "torch.Tensor":
        """(n / size, …) rows of each worker -> (n, …) of all, in order; gradients flow into this worker's own.

        Each worker then computes the whole loss; its backward pass gives the gradient by way of its own rows, and
        `sum_gradients` over all workers gives the whole one.
        """
        if self.size == 1:
            return rows
        import torch
        import torch.distributed as dist

        every = [torch.empty_like(rows) for _ in range(self.size)]
        dist.all_gather(every, rows.detach().contiguous())
        every[self.rank] = rows
        return torch.cat(every)

    def sum_gradients(self, parameters: "Iterable[torch.nn.Parameter]", *, mean: bool = False) -> None:
        """Replace each gradient by the sum (or mean) over all workers, in one exchange."""
        if self.size == 1:
            return
        import torch
        import torch.distributed as dist

        learns = [p for p in parameters if p.requires_grad]
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in learns]
        flat = torch.cat([grad.reshape(-1).float() for grad in grads])
        dist.all_reduce(flat)
        if mean:
            flat /= self.size
        for parameter, grad, piece in zip(learns, grads, flat.split([g.numel() for g in grads]), strict=True):
            parameter.grad = piece.reshape(grad.shape).to(grad.dtype)

    def mean(self, values: "dict[str, float]") -> "dict[str, float]":
        """Each figure averaged over the workers."""
        if self.size == 1:
            return values
        import torch
        import torch.distributed as dist

        flat = torch.tensor(list(values.values()), dtype=torch.float64)
        if dist.get_backend() == "nccl":
            flat = flat.cuda()
        dist.all_reduce(flat)
        return dict(zip(values, (flat / self.size).tolist(), strict=True))

    def agrees(self, yes: bool) -> bool:
        """Whether the first worker says so: clocks differ, and all must stop at the same step."""
        if self.size == 1:
            return yes
        import torch.distributed as dist

        said = [yes]
        dist.broadcast_object_list(said, src=0)
        return said[0]

    def wait(self) -> None:
        """Until every worker has come this far: the first measures and writes alone."""
        if self.size > 1:
            import torch.distributed as dist

            dist.barrier()


def launch(module: str, argv: list[str], *, workers: int, device: str, threads: int) -> int:
    """Run `module.train(argv, world)` in this process, or in `workers` processes of Ray Train; returns the exit status.

    Raises:
        UserError: one that a worker raised.
    """
    if workers == 1:
        status: int = importlib.import_module(module).train(argv, World())
        return status
    from jobs import ray_cluster

    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # it prints what is redirected, as around pycocotools
    ray_cluster.join_ray(workers * threads, show_workers=True)
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    needs: dict[str, float] = {"CPU": threads, "GPU": 1} if device.startswith("cuda") else {"CPU": threads}
    have = ray.cluster_resources()
    for kind, each in needs.items():
        if have.get(kind, 0) < each * workers:
            raise UserError(
                f"--workers {workers} want {each * workers:g} {kind}, the cluster has {have.get(kind, 0):g}; "
                "fewer workers, or fewer --threads each"
            )
    with tempfile.TemporaryDirectory() as scratch:
        loop: Any = _worker
        trainer = TorchTrainer(
            loop,
            train_loop_config={"module": module, "argv": argv, "folder": os.getcwd()},
            scaling_config=ScalingConfig(
                num_workers=workers, use_gpu=device.startswith("cuda"), resources_per_worker=needs
            ),
            run_config=RunConfig(
                name="training", storage_path=scratch, failure_config=FailureConfig(max_failures=MAX_FAILURES)
            ),
        )
        done: Any = trainer.fit()
    result = done.return_value  # its metrics are those reported with checkpoints, of which Ray gets none
    if "user_error" in result:
        raise UserError(result["user_error"])
    return int(result["status"])


def _worker(config: dict[str, Any]) -> dict[str, Any]:
    """One worker's process. A mistake of the user's comes back as a result: tried again it would be the same mistake."""
    import ray.train

    if os.path.isdir(config["folder"]):  # Ray Train put us elsewhere, where the arguments' relative paths lead nowhere
        os.chdir(config["folder"])
    context = ray.train.get_context()
    world = World(context.get_world_rank(), context.get_world_size())
    try:
        return {"status": importlib.import_module(config["module"]).train(config["argv"], world)}
    except Exception as error:
        if not (isinstance(error, UserError) or getattr(error, "user_facing", False)):
            raise
        return {"user_error": str(error)}
