"""Training a detector: samples with boxes in, a model that sees garments out. `jobs/train_detector.py` drives it.

    learner = Learner(model, spec, rate=1e-3)
    figures = learner.gradients(samples, shape, seed=step)     # forward and backward
    learner.update(rate_share=1.0)                             # clip, step, average

What the model is shown comes from `detection.training_photos`; losses are mmdetection's own.
"""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from detection.detector import normalise
from detection.models import DetectorSpec
from detection.training_photos import Sample, Shape, corners

CLIP = 20.0  # greatest norm of a step's gradient


class InitError(ValueError):
    """Weights to start from that cannot be read, or that are of another network."""

    user_facing = True  # jobs.cli prints it as one line


class Learner:
    """A model that learns: optimiser, averaged weights, and the state a checkpoint keeps of them.

    Args:
        model: on its device.
        spec: what it was built from.
        rate: highest rate of the heads.
        backbone_share: the backbone's rate over the heads'.
        weight_decay: of AdamW.
        ema_decay: of the averaged weights, which are what is measured and shipped; 0: they are the last step's.
        precision: "fp32", or "bf16": convolutions in bfloat16, losses in float32.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: DetectorSpec,
        *,
        rate: float,
        backbone_share: float = 0.3,
        weight_decay: float = 0.02,
        ema_decay: float = 0.998,
        precision: str = "fp32",
    ) -> None:
        self.spec, self.model, self.precision = spec, model.train(), precision
        self.device = next(model.parameters()).device
        self.optimiser = torch.optim.AdamW(parameter_groups(model, rate, backbone_share, weight_decay))
        self.highest = [group["lr"] for group in self.optimiser.param_groups]
        self.average = Average(model, ema_decay)
        if precision == "bf16":
            heads_in_float32(model)

    def gradients(self, samples: list[Sample], shape: Shape, *, seed: int, accumulate: int = 1) -> dict[str, float]:
        """Put the gradient of the mean loss over the samples where the optimiser looks for it.

        Args:
            samples: this worker's photos, all of one canvas.
            shape: (height, width) of that canvas.
            seed: of what the model itself draws at random: R-CNNs sample the boxes they learn from.
            accumulate: equal parts that go through the model one after the other, for memory's sake; part k draws with
                `seed + k`. Each is normalised by its own positives, so this is near but not the same as all at once.

        Returns:
            Each loss, and "loss", their sum; means over the parts.
        """
        self.optimiser.zero_grad(set_to_none=True)
        share = len(samples) // accumulate
        totals: list[Tensor] = []
        names: list[str] = []
        for number in range(accumulate):
            torch.manual_seed(seed + number)
            with self._autocast():
                part = samples[number * share : (number + 1) * share]
                parts = losses(self.model, *to_model(part, shape, self.spec, self.device))
            values = torch.stack([value.float() for value in parts.values()])
            (values.sum() / accumulate).backward()
            totals.append(values.detach())
            names = list(parts)
        means = torch.stack(totals).mean(0).tolist()
        return {"loss": sum(means), **dict(zip(names, means, strict=True))}

    def update(self, rate_share: float) -> None:
        """One step of the optimiser at this share of the highest rate."""
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        for group, highest in zip(self.optimiser.param_groups, self.highest, strict=True):
            group["lr"] = highest * rate_share
        self.optimiser.step()
        self.average.update(self.model)

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: tensors and numbers only."""
        return {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": self.average.tensors,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint; `step` in it is the number of steps made."""
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.average.load(state["average"], state["step"])


class Average:
    """Exponential moving average of a model's tensors: steadier than the last step's. Twin of `retrieval.training.Average`."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    def load(self, tensors: Mapping[str, Tensor], updates: int) -> None:
        """Go on from these.

        Raises:
            ValueError: a tensor is missing, unknown or of another shape.
        """
        shapes = ({name: tensor.shape for name, tensor in some.items()} for some in (tensors, self.tensors))
        if next(shapes) != next(shapes):
            raise ValueError("its averaged tensors are of another model")
        self.tensors = {name: tensors[name].to(own.device, own.dtype) for name, own in self.tensors.items()}
        self.updates = updates

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take a step of the model in; early steps count more, so that the start is soon forgotten."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                self.tensors[name].lerp_(tensor, 1 - decay)
            else:
                self.tensors[name].copy_(tensor)


# ------------------------------------------------------------------------------------------------ one step


def to_model(samples: list[Sample], shape: Shape, spec: DetectorSpec, device: torch.device) -> tuple[Tensor, list[Any]]:
    """The tensors and records mmdetection's losses want. A garment without an outline is its box to a mask head."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import PolygonMasks
    from mmengine.structures import InstanceData

    records = []
    for one in samples:
        meta = dict(img_shape=shape, ori_shape=shape, pad_shape=shape, batch_input_shape=shape, scale_factor=(1.0, 1.0))
        truth = InstanceData(
            bboxes=torch.from_numpy(one.boxes).to(device), labels=torch.from_numpy(one.labels).to(device)
        )
        if spec.model["type"] == "CascadeRCNN":
            outlines = [rings or [corners(box)] for rings, box in zip(one.polygons, one.boxes, strict=True)]
            truth.masks = PolygonMasks(outlines, *shape)
        record = DetDataSample(metainfo=meta)
        record.gt_instances = truth
        record.ignored_instances = InstanceData(bboxes=truth.bboxes[:0], labels=truth.labels[:0])
        records.append(record)
    images = normalise([one.image for one in samples], shape, spec, device)
    return images.to(memory_format=torch.channels_last), records  # a third faster than planes first, on CPU and GPU


def losses(model: nn.Module, images: Tensor, records: list[Any]) -> dict[str, Tensor]:
    """Each loss of the model as a scalar; the sum of them is what to minimise."""
    found: Any = model(images, records, mode="loss")
    return {
        name: value.mean() if isinstance(value, Tensor) else torch.stack([v.mean() for v in value]).sum()
        for name, value in found.items()
        if "loss" in name
    }


def heads_in_float32(model: nn.Module) -> None:
    """What heads predict under autocast becomes float32: eight bits of mantissa are too few for boxes of 1,333 px."""
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
    from mmdet.models.roi_heads.bbox_heads import BBoxHead
    from mmdet.models.roi_heads.mask_heads import FCNMaskHead

    for module in model.modules():
        if isinstance(module, BaseDenseHead | BBoxHead | FCNMaskHead):
            module.register_forward_hook(lambda _module, _inputs, output: _in_float32(output))


def _in_float32(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.float()
    return type(output)(_in_float32(one) for one in output) if isinstance(output, list | tuple) else output


# ------------------------------------------------------------------------------------------------ what learns, and from where


def freeze(model: nn.Module) -> None:
    """Leave the backbone's first stages alone, so that no gradient is made for them. mmdetection's ResNets do so themselves."""
    backbone: Any = model.backbone
    frozen = getattr(backbone, "frozen_stages", 0)
    if hasattr(backbone, "conv_stem") and frozen > 0:
        for module in (backbone.conv_stem, backbone.bn1, *backbone.blocks[:frozen]):
            module.requires_grad_(False)


def parameter_groups(model: nn.Module, rate: float, backbone_share: float, weight_decay: float) -> list[dict[str, Any]]:
    """Optimiser groups: the backbone learns slower, and vectors (norms, biases) do not decay."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            share = backbone_share if name.startswith("backbone.") else 1.0
            groups.setdefault((rate * share, weight_decay if parameter.ndim > 1 else 0.0), []).append(parameter)
    return [{"params": members, "lr": lr, "weight_decay": decay} for (lr, decay), members in groups.items()]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of weights by name; nothing in it is executed.

    Reads safetensors, and files of torch.save: a dictionary of tensors, or one under "state_dict" or "model" as
    mmdetection and others write it.

    Raises:
        InitError: no such file, or none of these.
    """
    try:
        data = path.read_bytes()
        if path.suffix == ".safetensors":
            from safetensors.torch import load

            return load(data)
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        what = "holds more than tensors; save its state_dict alone" if "weights_only" in str(error).lower() else error
        raise InitError(f"{path}: {what}") from None
    for wrapped in ("state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(wrapped), Mapping):
            found = found[wrapped]
    tensors = (
        {key: value for key, value in found.items() if isinstance(value, Tensor)} if isinstance(found, Mapping) else {}
    )
    if not tensors:
        raise InitError(f"{path}: no tensors by name in it")
    return tensors


def take_matching(model: nn.Module, tensors: Mapping[str, Tensor]) -> tuple[int, int]:
    """Start from other weights: copy every tensor of the same name and shape.

    Names count as they are (another detector of ours or of mmdetection; heads for another number of classes have another
    shape and are left out) or below `backbone.` (a classifier of timm or torchvision), whichever matches more.

    Returns:
        How many were taken, and how many the model has.

    Raises:
        InitError: none matches.
    """
    own = model.state_dict()
    named = {key.removeprefix("module."): value for key, value in tensors.items()}
    candidates: Iterable[Mapping[str, Tensor]] = (named, {f"backbone.{key}": value for key, value in named.items()})
    fitting = [
        {k: v.to(own[k].dtype) for k, v in some.items() if k in own and own[k].shape == v.shape} for some in candidates
    ]
    matching = max(fitting, key=len)
    if not matching:
        raise InitError(
            f"none of its {len(tensors)} tensors fits by name and shape (it begins with {next(iter(tensors), 'nothing')}, "
            f"the model with {next(iter(own))}); is it of another network?"
        )
    model.load_state_dict(matching, strict=False)
    return len(matching), len(own)
