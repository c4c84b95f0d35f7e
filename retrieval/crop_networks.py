"""An embedder's network as torch runs it: square RGB crops in, rows of unit length out.

On a CPU all is float32; on CUDA half precision, channels last, from CUDA graphs where they are the engine.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from networks.cuda_graphs import GraphedNetwork
from networks.engines import TORCH, Engine


class CropNetwork(nn.Module):
    """A network behind the normalisation of its images: crops (B, S, S, 3) uint8 to rows (B, D) float32.

    `spec` has `mean` and `std`, of RGB values 0 to 255; `model` takes images (B, 3, S, S).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, spec: Any) -> None:
        super().__init__()
        self.model = model
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(spec, name)).view(1, 3, 1, 1), persistent=False)
        self.dtype = torch.float32

    def forward(self, crops: Tensor) -> Tensor:
        images = ((crops.permute(0, 3, 1, 2).float() - self.mean) / self.std).to(self.dtype)
        rows: Tensor = self.model(images.contiguous(memory_format=torch.channels_last)).float()
        return rows


class TorchCrops:
    """Rows of crops by torch; `notes` has a line for each batch halved for lack of GPU memory, and for a network that
    cannot be captured."""

    def __init__(self, name: str, module: CropNetwork, device: str, engine: Engine = TORCH) -> None:
        self.name, self.device, self.notes = name, torch.device(device), list[str]()
        on_gpu = self.device.type == "cuda"
        self._full_batches = on_gpu  # cuDNN takes seconds to plan for each new batch size
        module.dtype = torch.float16 if on_gpu else torch.float32
        module.model.to(module.dtype)
        self.module = module.to(self.device).to(memory_format=torch.channels_last).eval().requires_grad_(False)
        self._network: Any = self.module
        if engine.name == "cudagraph":
            self._network = GraphedNetwork(name, self.module, self.notes)

    @property
    def engine(self) -> str:
        """torch or cudagraph."""
        return getattr(self._network, "engine", "torch")

    def rows(self, crops: np.ndarray, batch_size: int) -> np.ndarray:
        """(N, D) float32 of crops (N, S, S, 3) uint8, `batch_size` of them at a time, on a GPU always as many."""
        found = []
        for start in range(0, len(crops), batch_size):
            batch = crops[start : start + batch_size]
            if missing := self._full_batches * (batch_size - len(batch)):
                batch = np.concatenate([batch, np.zeros((missing, *batch.shape[1:]), np.uint8)])
            found.append(self._run(batch)[: len(crops) - start])
        return np.concatenate(found)

    def _run(self, crops: np.ndarray) -> np.ndarray:
        """One batch; when the GPU's memory is too small, its two halves, and a note."""
        try:
            return self._forward(crops)
        except torch.OutOfMemoryError:
            if len(crops) == 1:
                raise
            self.notes.append(f"{self.name}: out of GPU memory at {len(crops)} crops, halved")
        torch.cuda.empty_cache()  # after the except block: the failed call's tensors are gone only now
        half = len(crops) // 2
        return np.concatenate([self._run(crops[:half]), self._run(crops[half:])])

    @torch.inference_mode()
    def _forward(self, crops: np.ndarray) -> np.ndarray:
        rows: np.ndarray = self._network(torch.from_numpy(np.ascontiguousarray(crops)).to(self.device)).cpu().numpy()
        return rows
