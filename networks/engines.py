"""What runs a network: torch, or on a CPU OpenVINO, which gives the same numbers in half the time or less.

    engine = choose(settings.engine, device, settings.threads_per_actor)
    dense = CompiledNetwork("atss-tiny", lambda: module, describe(spec, weights), engine)
    levels = dense(batch)      # tensors in, a tuple of tensors out; `run` takes and gives arrays

A network is compiled for each shape of batch. What was compiled is kept on disk (`networks.plan_files`), and with it on
disk neither torch is imported here nor the network built.
"""

import contextlib
import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping
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

PLANS = 8  # that a network keeps in memory, each for one shape of batch; the one not used for longest goes first
AGREEMENT = (
    1e-3  # largest difference from torch's outputs that is taken for rounding, as a share of their largest value
)
PACKAGES = ("openvino", "torch", "torchvision", "timm", "open_clip_torch", "onedl-mmdetection", "onedl-mmcv")
SOURCES = ("networks", "detection", "retrieval")  # our packages that define networks
NO_MATTER = ("name", "licence", "flip", "margin")  # fields of a spec that its network, which views share, is without


@dataclass(frozen=True)
class Engine:
    """What runs networks."""

    name: str  # torch or openvino
    threads: int = 1  # of the CPU, for OpenVINO; torch's own setting holds for torch


TORCH = Engine("torch")


def choose(setting: str, device: str, threads: int) -> Engine:
    """The engine of a worker on `device`, "cpu" or "cuda", by the setting `engine`: auto, torch or openvino.

    `auto` is OpenVINO on a CPU, where it is installed, and torch on a GPU. UserError: OpenVINO was asked for where
    there is a GPU or no OpenVINO.
    """
    installed = util.find_spec("openvino") is not None
    if setting == "auto":
        setting = "openvino" if device == "cpu" and installed else "torch"
    elif setting == "openvino" and (device != "cpu" or not installed):
        reason = "it is not installed" if device == "cpu" else f"the device is {device}"
        raise UserError(f"engine: openvino runs networks on a CPU, and {reason}; set engine=auto or device=cpu")
    return Engine(setting, threads)


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
        build: makes the network, an `nn.Module` on the CPU in eval mode, from one batch, float32 or uint8, to a tensor
            or a tuple of tensors. Called where a plan is missing on disk; its errors are the caller's.
        description: all that decides the outputs besides packages and our code, as plain JSON (`describe`). None:
            nothing is kept on disk.
        engine: its threads.
    """

    def __init__(
        self, name: str, build: "Callable[[], nn.Module]", description: Mapping[str, Any] | None, engine: Engine
    ) -> None:
        self.name, self.notes = name, list[str]()
        self._build, self._description, self._threads = build, description, engine.threads
        self._plans: dict[tuple[tuple[int, ...], str], Callable[[np.ndarray], Arrays]] = {}
        self._converted: Any = None  # OpenVINO's model, from which a plan for another shape is compiled

    @functools.cached_property
    def module(self) -> "nn.Module":
        """The network in torch, built when it is asked for."""
        return self._build().requires_grad_(False)

    @property
    def engine(self) -> str:
        """What runs it: torch where OpenVINO could not."""
        return "torch" if self.notes else "openvino"

    def __call__(self, batch: "Tensor") -> "tuple[Tensor, ...]":
        """Outputs of a batch, float32 on the CPU."""
        import torch

        return tuple(torch.from_numpy(output) for output in self.run(batch.numpy()))

    def run(self, batch: np.ndarray) -> Arrays:
        """Outputs of a batch, as arrays."""
        self.prepare(batch.shape, batch.dtype.name)
        return self._plans[batch.shape, batch.dtype.name](np.ascontiguousarray(batch))

    def prepare(self, shape: tuple[int, ...], dtype: str) -> None:
        """Have the plan for batches of that shape and dtype, "float32" or "uint8", ready."""
        plan = self._plans.pop((shape, dtype), None) or self._plan(shape, dtype)
        self._plans[shape, dtype] = plan  # as the one used last
        if len(self._plans) > PLANS:
            del self._plans[next(iter(self._plans))]

    def _plan(self, shape: tuple[int, ...], dtype: str) -> Callable[[np.ndarray], Arrays]:
        """From disk, else compiled and kept there; torch where that fails."""
        path = None
        if self._description is not None:
            path = plan_files.path_of({"network": self._description, "shape": shape, "dtype": dtype} | _surroundings())
            if stored := plan_files.read(path):
                return _imported(stored, self._threads)
        if self.notes:  # as it was for another shape
            return self._run_in_torch
        module = self.module  # before, for its errors are the caller's
        try:
            stored = self._compiled(module, shape, dtype)
        except Exception as error:  # whatever a converter cannot do, and what it raises then, is its own affair
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            self.notes.append(f"{self.name}: OpenVINO does not run it, torch does, for a batch of {shape}: {reason}")
            return self._run_in_torch
        del self.module  # a second copy of the weights
        if path is not None:
            plan_files.write(path, stored)
        return _imported(stored, self._threads)

    def _compiled(self, module: "nn.Module", shape: tuple[int, ...], dtype: str) -> bytes:
        """A plan whose outputs agree with torch's on a batch of noise."""
        noise = np.random.default_rng(0)
        numbers = noise.integers(0, 256, shape) if dtype == "uint8" else noise.standard_normal(shape)
        example = numbers.astype(dtype)
        want = self._run_in_torch(example)
        if self._converted is not None:
            with contextlib.suppress(RuntimeError, ValueError):  # that was for its own shape alone: converted again
                return self._checked(example, want)
        self._converted = _convert(module, example)
        return self._checked(example, want)

    def _checked(self, example: np.ndarray, want: Arrays) -> bytes:
        """A plan of what was converted, for the example's shape. ValueError: its outputs are not those wanted."""
        stored = _exported(self._converted, example.shape)
        for found, output in zip(_imported(stored, self._threads)(example), want, strict=True):
            apart, largest = np.abs(found - output).max(initial=0), np.abs(output).max(initial=0)
            if found.shape != output.shape or not apart <= AGREEMENT * largest:
                raise ValueError(
                    f"its outputs differ from torch's by {apart:.2g}, the largest of which is {largest:.2g}"
                )
        return stored

    def _run_in_torch(self, batch: np.ndarray) -> Arrays:
        import torch

        with torch.inference_mode():
            outputs = self.module(torch.from_numpy(batch))
        return tuple(output.numpy() for output in (outputs if isinstance(outputs, tuple | list) else (outputs,)))


def _convert(module: "nn.Module", example: np.ndarray) -> Any:
    """OpenVINO's model of a network as it was traced on the example."""
    import openvino
    import torch

    batch = torch.from_numpy(example)
    with torch.inference_mode(), warnings.catch_warnings(action="ignore"):  # torch's of its tracing, and the tracer's
        traced = torch.jit.trace(module, batch, check_trace=False)
        return openvino.convert_model(traced, example_input=batch)


def _exported(model: Any, shape: tuple[int, ...]) -> bytes:
    """The model compiled for one shape of batch, as bytes."""
    import openvino

    model = model.clone()
    model.reshape(openvino.PartialShape(shape))
    stored: bytes = openvino.Core().compile_model(model, "CPU", _options(1)).export_model().getvalue()
    return stored


def _imported(stored: bytes, threads: int) -> Callable[[np.ndarray], Arrays]:
    """A plan ready for batches."""
    import openvino

    request = openvino.Core().import_model(stored, "CPU", _options(threads)).create_infer_request()

    def run(batch: np.ndarray) -> Arrays:
        outputs = request.infer([batch], share_inputs=True)
        return tuple(outputs[i] for i in range(len(outputs)))

    return run


def _options(threads: int) -> dict[str, Any]:
    # Without pinning: the workers of a machine would all be pinned to its first cores.
    return {
        "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": "f32",
    }  # fmt: skip


@functools.cache
def _surroundings() -> dict[str, Any]:
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
