"""One call for every embedder: square RGB crops in, embeddings of unit length out.

    embedder = load(models.LITE0_SG, "cpu", weights=Path("weights/tiny/lite0-sg.safetensors"))
    embeddings = embedder.embed(crops.crop(photo, boxes, embedder.spec.input_size))

Weight files are safetensors: nothing in them is executed. On a CPU all is float32; on CUDA half precision, channels
last.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from networks import efficientnet_lite, weight_files
from networks.weight_files import WeightsError
from retrieval.cgd import CGD, fine_map
from retrieval.models import EmbedderSpec

TRAINER = "jobs/train_embedder.py"


def build(spec: EmbedderSpec, *, classes: int | None = None, pretrained_backbone: bool = False) -> CGD:
    """The network of a spec, at random but the same in every process.

    `classes` is the number of training identities; None: without a classifier. With `pretrained_backbone` the backbone
    has its published ImageNet weights, and WeightsError is raised where none are installed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = fine_map(spec.timm_id, stride=spec.stride, blocks=spec.blocks)
        model = CGD(backbone, spec.branches, spec.dim, classes)
    if pretrained_backbone:
        efficientnet_lite.load_into(backbone.body, _published_name(spec))
    return model


def _published_name(spec: EmbedderSpec) -> str:
    return spec.timm_id.partition(".")[0]


def load(spec: EmbedderSpec, device: str, *, weights: Path | None, allow_random_weights: bool = False) -> "Embedder":
    """An embedder ready for crops.

    Raises WeightsError for no weights, another digest, or tensors that do not fit.

    Args:
        spec: which one.
        device: "cpu", "cuda" or "cuda:0".
        weights: a file of safetensors, float16 or float32, checked against `spec.sha256` where that is given. None with
            `spec.weights` empty: the backbone as published, under an untrained head.
        allow_random_weights: build it untrained when there are no weights: for tests of the machinery, not for results.
    """
    if weights is None and not allow_random_weights and spec.weights:
        raise WeightsError(f"{spec.name}: no weights given; train them with {TRAINER}, or set allow_random_weights")
    published = weights is None and not spec.weights and _published_name(spec) in efficientnet_lite.NAMES
    if weights is None and not published and not allow_random_weights:
        raise WeightsError(
            f"{spec.name}: no published weights of {spec.timm_id} are installed; give a weight file or set "
            "allow_random_weights"
        )
    model = build(spec, pretrained_backbone=published)
    if weights is not None:
        tensors = weight_files.read(Path(weights), model=spec.name, sha256=spec.sha256, trainer=TRAINER)
        weight_files.fill(model, tensors, f"{spec.name}: {weights}")
    return Embedder(spec, model, device)


class Embedder:
    """A loaded model; `notes` has one line for each batch halved for lack of GPU memory."""

    def __init__(self, spec: EmbedderSpec, model: CGD, device: str) -> None:
        self.spec = spec
        self.device = torch.device(device)
        self.dtype = torch.float16 if self.device.type == "cuda" else torch.float32
        model = model.to(self.device, self.dtype).to(memory_format=torch.channels_last)
        self.model = model.eval().requires_grad_(False)
        self.notes: list[str] = []
        self._full_batches = self.device.type == "cuda"  # cuDNN takes seconds to plan for each new batch size
        self._mean = torch.tensor(spec.mean, device=self.device).view(1, 3, 1, 1)
        self._std = torch.tensor(spec.std, device=self.device).view(1, 3, 1, 1)

    def view(self, spec: EmbedderSpec) -> "Embedder":
        """Another view of the same embedder (`retrieval.models.viewed`), around the same network."""
        return Embedder(spec, self.model, str(self.device))

    def embed(self, crops: np.ndarray, *, batch_size: int = 32) -> np.ndarray:
        """Embeddings of crops, the same for the same crops and batches: (N, D) float32 of unit length.

        `crops` (N, S, S, 3) are uint8, RGB, S = `spec.input_size`, cut with the margin `spec.margin`, not mirrored; N
        may be 0. `batch_size` of them go through at once; it is halved, and noted, when the GPU runs out of memory.
        Raises ValueError for another shape or type, or a batch size under 1.
        """
        size = self.spec.input_size
        if crops.dtype != np.uint8 or crops.ndim != 4 or crops.shape[1:] != (size, size, 3):
            raise ValueError(
                f"{self.spec.name}: want crops (N, {size}, {size}, 3) uint8, got {crops.shape} {crops.dtype}"
            )
        if batch_size < 1:
            raise ValueError(f"{self.spec.name}: want a batch size of at least 1, got {batch_size}")
        crops = crops[:, :, ::-1] if self.spec.flip else crops
        rows = np.empty((len(crops), self.spec.dim), np.float32)
        start = 0
        while start < len(crops):
            try:
                batch = crops[start : start + batch_size]
                if missing := self._full_batches * (batch_size - len(batch)):
                    batch = np.concatenate([batch, np.zeros((missing, *batch.shape[1:]), np.uint8)])
                rows[start : start + batch_size] = self._run(batch)[: len(crops) - start]
            except torch.OutOfMemoryError:
                if batch_size == 1:
                    raise
                batch_size //= 2
                self.notes.append(f"{self.spec.name}: out of GPU memory, batches of {batch_size} from here on")
            else:
                start += batch_size
                continue
            torch.cuda.empty_cache()  # after the except block: the failed call's tensors are gone only now
        return rows

    @torch.inference_mode()
    def _run(self, crops: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(np.ascontiguousarray(crops)).to(self.device).permute(0, 3, 1, 2).float()
        images: Tensor = ((pixels - self._mean) / self._std).to(self.dtype, memory_format=torch.channels_last)
        rows: np.ndarray = self.model(images).float().cpu().numpy()
        return rows
