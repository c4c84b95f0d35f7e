"""Training a detector: samples with boxes in, a trained model out. `jobs.training.loop` drives it.

    learner = DetectorLearner(model, spec, rate=1e-3)
    figures = learner.gradients(samples, shape, seed=step)     # forward and backward
    learner.update(rate_share=1.0)                             # clip, step, average

Samples come from `detection.training_photos`; losses are mmdetection's own.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from detection.batches import normalise
from detection.detector import build
from detection.models import DetectorSpec, with_categories
from detection.training_photos import Sample, Shape, corners
from networks import checkpoints
from networks.moving_average import MovingAverage
from networks.weight_files import WeightsError
from networks.weight_header import read_categories
from store.categories import DEEPFASHION2

CLIP = 20.0  # greatest norm of a step's gradient


class InitError(ValueError):
    """The weights to start from cannot be read, or are of another network."""

    user_facing = True  # jobs.cli prints it as one line


class DetectorLearner:
    """A model with its optimiser and averaged weights, and the state a checkpoint keeps of them.

    `rate` is the highest learning rate of the heads, `backbone_share` the backbone's over the heads', `weight_decay`
    that of AdamW, and `ema_decay` that of the averaged weights, which are measured and shipped; 0 keeps those of the
    last step. `precision` is "fp32", or "bf16": convolutions in bfloat16, losses in float32.
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
        self.average = MovingAverage(model, ema_decay)
        if precision == "bf16":
            heads_in_float32(model)

    def gradients(self, samples: list[Sample], shape: Shape, *, seed: int, accumulate: int = 1) -> dict[str, float]:
        """Set the parameters' `grad` to that of the mean loss over the samples.

        Args:
            samples: this worker's photos, all of one canvas.
            shape: (height, width) of that canvas.
            seed: of the model's own random numbers: R-CNNs sample the boxes they learn from.
            accumulate: equal parts that go through the model one after the other, to save memory; part k has the seed
                `seed + k`. Each is normalised by its own positives, so the gradient is near that of all at once.

        Returns:
            Each loss, and "loss", their sum; means over the parts.
        """
        self.optimiser.zero_grad(set_to_none=True)
        share = len(samples) // accumulate
        totals: list[Tensor] = []
        for number in range(accumulate):
            torch.manual_seed(seed + number)
            part = samples[number * share : (number + 1) * share]
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                parts = losses(self.model, *to_model(part, shape, self.spec, self.device))
            values = torch.stack([value.float() for value in parts.values()])
            (values.sum() / accumulate).backward()
            totals.append(values.detach())
        means = torch.stack(totals).mean(0).tolist()
        return {"loss": sum(means), **dict(zip(parts, means, strict=True))}

    def update(self, rate_share: float) -> None:
        """One step of the optimiser at this share of the highest learning rates."""
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        for group, highest in zip(self.optimiser.param_groups, self.highest, strict=True):
            group["lr"] = highest * rate_share
        self.optimiser.step()
        self.average.update_parameters(self.model)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: tensors and plain values only."""
        model, optimiser = self.model.state_dict(), self.optimiser.state_dict()
        return {"model": model, "optimiser": optimiser, "average": self.average.tensors}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint; its "step" is the number of steps that were made."""
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.average.load(state["average"], state["step"])


# ---- one step --------------------------------------------------------------------------------------------------
def to_model(samples: list[Sample], shape: Shape, spec: DetectorSpec, device: torch.device) -> tuple[Tensor, list[Any]]:
    """The arguments of mmdetection's losses. For a mask head, a garment without an outline is its box."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import PolygonMasks
    from mmengine.structures import InstanceData

    records = []
    for sample in samples:
        meta = dict(img_shape=shape, ori_shape=shape, pad_shape=shape, batch_input_shape=shape, scale_factor=(1.0, 1.0))
        boxes, labels = (torch.from_numpy(array).to(device) for array in (sample.boxes, sample.labels))
        truth = InstanceData(bboxes=boxes, labels=labels)
        if spec.model["type"] == "CascadeRCNN":
            outlines = [rings or [corners(box)] for rings, box in zip(sample.polygons, sample.boxes, strict=True)]
            truth.masks = PolygonMasks(outlines, *shape)
        record = DetDataSample(metainfo=meta)
        record.gt_instances, record.ignored_instances = truth, InstanceData(bboxes=boxes[:0], labels=labels[:0])
        records.append(record)
    images = normalise([sample.image for sample in samples], shape, spec, device)
    return images.to(memory_format=torch.channels_last), records  # a third faster than planes first, on CPU and GPU


def losses(model: nn.Module, images: Tensor, records: list[Any]) -> dict[str, Tensor]:
    """Each loss of the model as a scalar; their sum is minimised."""
    values: Any = model(images, records, mode="loss")
    return {
        name: value.mean() if isinstance(value, Tensor) else torch.stack([v.mean() for v in value]).sum()
        for name, value in values.items()
        if "loss" in name
    }


def heads_in_float32(model: nn.Module) -> None:
    """Make the heads' outputs under autocast float32: eight bits of mantissa are too few for boxes of 1,333 px."""
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
    from mmdet.models.roi_heads.bbox_heads import BBoxHead
    from mmdet.models.roi_heads.mask_heads import FCNMaskHead

    for module in model.modules():
        if isinstance(module, BaseDenseHead | BBoxHead | FCNMaskHead):
            module.register_forward_hook(lambda _module, _inputs, output: _in_float32(output))


def _in_float32(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.float()
    return type(output)(_in_float32(part) for part in output) if isinstance(output, list | tuple) else output


# ---- what learns, and from which weights ----------------------------------------------------------------------
def freeze(model: nn.Module) -> None:
    """Freeze the backbone's first stages, so that they get no gradient; mmdetection's ResNets do so themselves."""
    backbone: Any = model.backbone
    frozen = getattr(backbone, "frozen_stages", 0)
    if hasattr(backbone, "conv_stem") and frozen > 0:
        for module in (backbone.conv_stem, backbone.bn1, *backbone.blocks[:frozen]):
            module.requires_grad_(False)


def parameter_groups(model: nn.Module, rate: float, backbone_share: float, weight_decay: float) -> list[dict[str, Any]]:
    """Optimiser groups: the backbone learns more slowly, and vectors (norms, biases) do not decay."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            share = backbone_share if name.startswith("backbone.") else 1.0
            groups.setdefault((rate * share, weight_decay if parameter.ndim > 1 else 0.0), []).append(parameter)
    return [{"params": members, "lr": lr, "weight_decay": decay} for (lr, decay), members in groups.items()]


def start_from(model: nn.Module, spec: DetectorSpec, path: Path) -> tuple[int, int, int]:
    """Copy what fits of a file of weights, as `take_matching` does; `networks.checkpoints` says what can be read.

    What tells categories apart is left out where the file's are not the spec's: those it names, DeepFashion2's where it
    names none. It would tell apart the wrong ones.

    Returns:
        How many tensors were taken, how many the model has, and how many start anew for their categories.

    Raises:
        InitError: no such file, or nothing in it that can be read or fits.
    """
    try:
        tensors = checkpoints.read(path, model=spec.name)
    except WeightsError as error:
        raise InitError(str(error)) from None
    named = {key.removeprefix("module."): value for key, value in tensors.items()}
    try:
        with path.open("rb") as file:
            stored = read_categories(file.read) or DEEPFASHION2
    except ValueError as error:
        raise InitError(f"{path}: {error}") from None
    anew: set[str] = set()
    if stored != spec.categories:
        other = build(with_categories(spec, [*spec.categories, "one more"])).state_dict()
        anew = {key for key, value in model.state_dict().items() if value.shape != other[key].shape}
    kept = {key: value for key, value in named.items() if key not in anew}
    return *take_matching(model, kept), len(anew & named.keys())


def take_matching(model: nn.Module, tensors: Mapping[str, Tensor]) -> tuple[int, int]:
    """Copy every tensor of the same name and shape from other weights: how many were taken, how many the model has.

    Names count as they are (another detector of ours or of mmdetection; heads for another number of classes have
    another shape and are left out) or below `backbone.` (a classifier of timm or torchvision), whichever matches more.
    Raises InitError where none matches.
    """
    own = model.state_dict()
    named = {key.removeprefix("module."): value for key, value in tensors.items()}
    candidates = (named, {f"backbone.{key}": value for key, value in named.items()})
    fitting = [{k: v for k, v in c.items() if k in own and own[k].shape == v.shape} for c in candidates]
    matching = max(fitting, key=len)
    if not matching:
        begins = f"it begins with {next(iter(tensors), 'nothing')}, the model with {next(iter(own))}"
        count = f"none of its {len(tensors)} tensors fits by name and shape"
        raise InitError(f"{count} ({begins}); is it of another network?")
    model.load_state_dict({key: value.to(own[key].dtype) for key, value in matching.items()}, strict=False)
    return len(matching), len(own)
