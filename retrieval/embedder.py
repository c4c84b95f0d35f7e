"""One call for every embedder: square RGB crops in, unit rows out.

    embedder = load(models.LITE0_SG, "cpu", weights=Path("weights/tiny/lite0-sg.safetensors"))
    rows = embedder.embed(crops.crop(photo, boxes, embedder.spec.input_size))

Weight files are safetensors: nothing in them is executed. On a CPU all is float32; on CUDA half precision, channels last.
"""

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pretrained import efficientnet_lite
from retrieval.cgd import CGD, FeatureMap, fine_map
from retrieval.models import EmbedderSpec


class WeightsError(ValueError):
    """Weights are absent, are not the ones named, or do not fit the model."""

    user_facing = True  # jobs.cli prints it as one line


def build(spec: EmbedderSpec, *, classes: int | None = None, pretrained_backbone: bool = False) -> CGD:
    """The network of a spec with a head that is the same in every process; the backbone too, or ImageNet's where we have it.

    Raises:
        WeightsError: no published weights of that backbone are installed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = fine_map(spec.timm_id, stride=spec.stride, blocks=spec.blocks)
        model = CGD(backbone, spec.branches, spec.dim, classes)
    if pretrained_backbone:
        _fill_backbone(backbone, spec)
    return model


def load(spec: EmbedderSpec, device: str, *, weights: Path | None, allow_random_weights: bool = False) -> "Embedder":
    """An embedder ready for crops.

    Args:
        spec: which one.
        device: "cpu", "cuda" or "cuda:0".
        weights: a file of safetensors, float16 or float32, checked against `spec.sha256` where that is given. None with
            `spec.weights` empty: the backbone as published, under an untrained head.
        allow_random_weights: build it untrained when there are no weights: for tests of the machinery, not for results.

    Raises:
        WeightsError: no weights, another digest, or tensors that do not fit.
    """
    if weights is None and not allow_random_weights and spec.weights:
        raise WeightsError(
            f"{spec.name}: no weights given; train them with jobs/train_embedder.py, or set allow_random_weights"
        )
    published = weights is None and not spec.weights and _is_published(spec)
    if weights is None and not published and not allow_random_weights:
        raise WeightsError(
            f"{spec.name}: no published weights of {spec.timm_id} are installed; give a weight file or set allow_random_weights"
        )
    model = build(spec, pretrained_backbone=published)
    if weights is not None:
        fill(model, read(Path(weights), spec), f"{spec.name}: {weights}")
    return Embedder(spec, model, device)


class Embedder:
    """A loaded model.

    Attributes:
        spec: what it is.
        notes: what went differently from planned, such as a batch halved for lack of GPU memory; one line each.
    """

    def __init__(self, spec: EmbedderSpec, model: CGD, device: str) -> None:
        self.spec = spec
        self.device = torch.device(device)
        self.dtype = torch.float16 if self.device.type == "cuda" else torch.float32
        model = model.to(self.device, self.dtype).to(memory_format=torch.channels_last)
        self.model = model.eval().requires_grad_(False)
        self.notes: list[str] = []
        self._full_batches = self.device.type == "cuda"  # cuDNN takes seconds to plan for a batch size it has not met
        self._mean = torch.tensor(spec.mean, device=self.device).view(1, 3, 1, 1)
        self._std = torch.tensor(spec.std, device=self.device).view(1, 3, 1, 1)

    def view(self, spec: EmbedderSpec) -> "Embedder":
        """Another view of the same embedder (`retrieval.models.viewed`), around the same network."""
        return Embedder(spec, self.model, str(self.device))

    def embed(self, crops: np.ndarray, *, batch_size: int = 32) -> np.ndarray:
        """Rows of crops, the same for the same crops and batches.

        Args:
            crops: (N, S, S, 3) uint8, RGB, S = `spec.input_size`, of the margin `spec.margin`; N may be 0. A view that
                mirrors does so itself.
            batch_size: crops at once; halved, and noted, when the GPU's memory does not suffice.

        Returns:
            (N, D) float32 of unit length, rows as in `crops`.

        Raises:
            ValueError: another shape or type, or a batch size under 1.
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


def read(path: Path, spec: EmbedderSpec) -> dict[str, Tensor]:
    """The tensors of a weight file, after its digest has been compared with the spec's.

    Raises:
        WeightsError: no such file, another digest, or not safetensors.
    """
    from safetensors.torch import load as load_tensors

    try:
        data = path.read_bytes()
    except OSError as error:
        reason = error.strerror or error
        raise WeightsError(
            f"{spec.name}: cannot read weights {path}: {reason}; train them with jobs/train_embedder.py"
        ) from None
    digest = hashlib.sha256(data).hexdigest()
    if spec.sha256 and digest != spec.sha256:
        raise WeightsError(
            f"{spec.name}: {path} has sha256 {digest[:16]}…, want {spec.sha256[:16]}…; fetch the weights again"
        )
    try:
        return load_tensors(data)
    except Exception as error:
        raise WeightsError(f"{spec.name}: {path} is not a safetensors file: {str(error)[:300]}") from None


def fill(model: nn.Module, tensors: dict[str, Tensor], who: str) -> None:
    """Put tensors into a model, converted to its types; all of them or none.

    Raises:
        WeightsError: the first tensor that is missing, unknown or of another shape.
    """
    wanted = model.state_dict()
    for key in sorted(wanted.keys() | tensors.keys()):
        theirs, ours = tensors.get(key), wanted.get(key)
        if theirs is None or ours is None or theirs.shape != ours.shape:
            want = "nothing" if ours is None else tuple(ours.shape)
            have = "nothing" if theirs is None else tuple(theirs.shape)
            raise WeightsError(f"{who}: {key[:200]} wants {want}, has {have}; were they trained for another model?")
        if theirs.is_floating_point() != ours.is_floating_point() or theirs.is_complex():
            raise WeightsError(
                f"{who}: {key} wants {ours.dtype}, has {theirs.dtype}; were they trained for another model?"
            )
        if not torch.isfinite(theirs.to(ours.dtype)).all():
            raise WeightsError(f"{who}: {key} is not all finite numbers; train again, at a lower rate")
    model.load_state_dict({key: tensors[key].to(wanted[key].dtype) for key in wanted})


def _is_published(spec: EmbedderSpec) -> bool:
    return spec.timm_id.split(".")[0] in efficientnet_lite.NAMES


def _fill_backbone(backbone: FeatureMap, spec: EmbedderSpec) -> None:
    try:
        efficientnet_lite.load_into(backbone.body, spec.timm_id.split(".")[0])
    except efficientnet_lite.PretrainedError as error:
        raise WeightsError(f"{spec.name}: {error}") from None
