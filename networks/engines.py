"""What runs a network: torch, torch's kernels from CUDA graphs (`networks.cuda_graphs`), or on a CPU OpenVINO, which
gives the same numbers in half the time or less.

    engine = choose(settings.engine, device, settings.threads_per_actor)
    examples = noise((2, 3, 320, 256), (1, 3, 192, 320))      # two batches: only the number of channels is fixed
    dense = CompiledNetwork("atss-tiny", lambda: module, describe(spec, weights), examples, engine)
    levels = dense(batch)      # tensors in, a tuple of tensors out; `run` takes and gives arrays

What was compiled, a plan, is kept on disk (`networks.plan_files`). With it there, torch is not imported here and the
network is not built.
"""

import contextlib
import dataclasses
import functools
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from networks import plan_files
from store.errors import UserError
from store.files import file_sha256, hasher

if TYPE_CHECKING:
    from torch import Tensor, nn

Arrays = tuple[np.ndarray, ...]

AGREEMENT = (
    1e-3  # largest difference from torch's outputs that is taken for rounding, as a share of their largest value
)
PACKAGES = ("openvino", "torch", "torchvision", "timm", "open_clip_torch", "onedl-mmdetection", "onedl-mmcv")
SOURCES = ("networks", "detection", "retrieval")  # our packages that define networks
NO_MATTER = ("name", "licence", "flip", "margin")  # fields of a spec that its network, which views share, is without


@dataclass(frozen=True)
class Engine:
    """What runs networks."""

    name: str  # torch, openvino or cudagraph
    threads: int = 1  # of the CPU, for OpenVINO; torch's own setting holds for torch


TORCH = Engine("torch")


def choose(setting: str, device: str, threads: int) -> Engine:
    """The engine on `device`, "cpu", "cuda" or "cuda:0", by the setting `engine`: auto, torch, openvino or cudagraph.

    `auto` is OpenVINO on a CPU, where it is installed, and torch on a GPU. UserError: OpenVINO was asked for where
    there is a GPU or no OpenVINO, or CUDA graphs where there is no GPU.
    """
    device = device.partition(":")[0]
    refuse_device(setting, device)
    installed = util.find_spec("openvino") is not None
    if setting == "auto":
        setting = "openvino" if device == "cpu" and installed else "torch"
    elif setting == "openvino" and not installed:
        raise UserError("engine: openvino is not installed; install it, or set engine=auto")
    return Engine(setting, threads)


def refuse_device(setting: str, device: str) -> None:
    """UserError: the engine does not run on such a device; "auto", of either, may yet fit."""
    for engine, place, fitting, other in (("openvino", "CPU", "cpu", "cuda"), ("cudagraph", "GPU", "cuda", "cpu")):
        if setting == engine and device == other:
            want = f"set engine=auto or device={fitting}"
            raise UserError(f"engine: {engine} runs networks on a {place} and device is {device}; {want}")


def describe(spec: Any, weights: Path | None) -> dict[str, Any] | None:
    """What decides the outputs of a model besides code, for `CompiledNetwork`: its spec, a frozen dataclass, and the
    file of its weights. None without a file."""
    if weights is None:
        return None
    fields = dataclasses.asdict(spec)
    fields = {name: value for name, value in fields.items() if name not in NO_MATTER}
    return {"kind": type(spec).__name__, "spec": fields, "weights": file_sha256(weights)}


class CompiledNetwork:
    """A network as OpenVINO runs it on a CPU, in float32.

    Where it cannot be compiled torch runs it, and `notes` says so. The same batch gives the same bytes in every process
    on machines of one type.

    Args:
        name: the model's, for notes.
        build: makes the network, an `nn.Module` on the CPU in eval mode, from tensors to a tensor or a tuple of
            tensors. Called here where no plan is on disk; its errors are the caller's.
        description: all that decides the outputs besides packages and our code, as plain JSON (`describe`). None:
            nothing is kept on disk.
        examples: makes the inputs with which the plan is compared with torch, each a tuple of arrays (`noise`). A
            dimension in which they differ takes any size, which costs some 5 to 15 % of the speed.
        engine: its threads.
    """

    def __init__(
        self,
        name: str,
        build: "Callable[[], nn.Module]",
        description: Mapping[str, Any] | None,
        examples: Callable[[], Sequence[Arrays]],
        engine: Engine,
    ) -> None:
        self.name, self.notes, self._build = name, list[str](), build
        path, plan = None, None
        if description is not None:
            path = plan_files.path_of({"network": description} | surroundings())
            plan = plan_files.read(path)
        if plan is None and (plan := self._compiled(examples())) and path:
            plan_files.write(path, plan)
        self._run = self._run_in_torch if plan is None else _imported(plan, engine.threads)

    @functools.cached_property
    def module(self) -> "nn.Module":
        """The network in torch, built when it is asked for."""
        return self._build().requires_grad_(False)

    @property
    def engine(self) -> str:
        """What runs it: torch where OpenVINO could not."""
        return "torch" if self.notes else "openvino"

    def __call__(self, *batch: "Tensor") -> "tuple[Tensor, ...]":
        """Outputs of a batch, float32 on the CPU."""
        import torch

        return tuple(torch.from_numpy(output) for output in self.run(*(one.numpy() for one in batch)))

    def run(self, *batch: np.ndarray) -> Arrays:
        """Outputs of a batch, as arrays."""
        return self._run(*map(np.ascontiguousarray, batch))

    def _compiled(self, examples: Sequence[Arrays]) -> bytes | None:
        """A plan whose outputs agree with torch's on the examples; None, with a note, if OpenVINO cannot run it."""
        module = self.module  # outside of `try`: the caller sees why a network cannot be built
        try:
            shapes = [_any_size([one.shape for one in inputs]) for inputs in zip(*examples, strict=True)]
            plan = _exported(module, examples[0], shapes)
            run = _imported(plan, threads=1)
            for batch in examples:
                _compare(run(*batch), self._run_in_torch(*batch))
        except Exception as error:  # converters raise errors of all kinds
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            self.notes.append(f"{self.name}: it runs in torch, because OpenVINO cannot run it: {reason}")
            return None
        del self.module  # which the property keeps: the plan has the weights too
        return plan

    def _run_in_torch(self, *batch: np.ndarray) -> Arrays:
        import torch

        with torch.inference_mode():
            outputs = self.module(*map(torch.from_numpy, batch))
        return tuple(output.numpy() for output in (outputs if isinstance(outputs, tuple | list) else (outputs,)))


def noise(*shapes: tuple[int, ...], dtype: str = "float32") -> Callable[[], list[Arrays]]:
    """Examples of one input, float32 around 0 or uint8."""

    def examples() -> list[Arrays]:
        rng = np.random.default_rng(0)
        whole = dtype == "uint8"
        values = (rng.integers(0, 256, shape) if whole else rng.standard_normal(shape) for shape in shapes)
        return [(one.astype(dtype),) for one in values]

    return examples


def _any_size(shapes: Sequence[tuple[int, ...]]) -> list[int]:
    """Their common shape, -1 where they differ."""
    return [sizes[0] if len(set(sizes)) == 1 else -1 for sizes in zip(*shapes, strict=True)]


def _exported(module: "nn.Module", example: Arrays, shapes: Sequence[Sequence[int]]) -> bytes:
    """The network as it was traced on the example, compiled for inputs of the shapes, in which -1 is any size."""
    import openvino
    import torch

    batch, level = tuple(map(torch.from_numpy, example)), logging.root.level
    try:
        with torch.inference_mode(), warnings.catch_warnings(action="ignore"):  # torch's, of being traced
            model = openvino.convert_model(torch.jit.trace(module, batch, check_trace=False), example_input=batch)
    finally:
        logging.root.setLevel(level)  # a conversion that fails leaves it at ERROR
    model.reshape({number: openvino.PartialShape(list(shape)) for number, shape in enumerate(shapes)})
    plan: bytes = openvino.Core().compile_model(model, "CPU", _options(1)).export_model().getvalue()
    return plan


def _compare(found: Arrays, want: Arrays) -> None:
    """ValueError: outputs that differ by more than rounding."""
    for ours, torchs in zip(found, want, strict=True):
        if ours.shape != torchs.shape:
            raise ValueError(f"its outputs are {ours.shape}, torch's {torchs.shape}")
        apart, largest = np.abs(ours - torchs).max(initial=0), np.abs(torchs).max(initial=0)
        if not apart <= AGREEMENT * largest:
            raise ValueError(f"its outputs are {apart:.2g} from torch's, of {largest:.2g} at most")


def _imported(plan: bytes, threads: int) -> Callable[..., Arrays]:
    """A plan ready for batches."""
    import openvino

    request = openvino.Core().import_model(plan, "CPU", _options(threads)).create_infer_request()

    def run(*batch: np.ndarray) -> Arrays:
        outputs = request.infer(list(map(openvino.Tensor, batch)))  # copies: the request keeps what it is given
        return tuple(outputs[i] for i in range(len(outputs)))

    return run


def _options(threads: int) -> dict[str, Any]:
    return {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": False,  # all workers of a machine would be pinned to its first cores
        "CPU_RUNTIME_CACHE_CAPACITY": 100,  # kernels kept for sizes seen before; the default, 5000, takes 0.5 GB
    }


@functools.cache
def surroundings() -> dict[str, Any]:
    """What decides a plan besides the network: versions of packages, our own code, and the machine."""
    import openvino

    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    code, root = hasher(), Path(__file__).resolve().parents[1]
    for file in sorted(file for folder in SOURCES for file in (root / folder).glob("*.py")):
        code.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes())
    core = openvino.Core()
    machine = [core.get_property("CPU", name) for name in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")]
    return {"versions": versions, "code": code.hexdigest(), "machine": machine}
