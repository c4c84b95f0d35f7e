"""What a step of training an embedder is: gradients over several workers or micro-batches, rates by layer, averaged weights.

torch; the loop itself is `jobs/train_embedder.py`, what it learns from `retrieval.training_crops`.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from retrieval.cgd import CGD
from retrieval.losses import RankingLoss, tempered_cross_entropy


@dataclass(frozen=True)
class Objective:
    """What is minimised: the ranking loss, and `auxiliary` times the first branch's cross entropy.

    temperature, smoothing: of the cross entropy, CGD arXiv:1903.10663 §3.2.
    """

    ranking: RankingLoss
    auxiliary: float = 1.0
    temperature: float = 0.5
    smoothing: float = 0.1

    def parts(self, model: CGD, rows: Tensor, first: Tensor, identities: Tensor) -> dict[str, Tensor]:
        """Each part, weighted; their sum is the loss."""
        found = {"ranking": self.ranking(rows, identities)}
        if self.auxiliary and model.classifier is not None:
            logits = model.classifier(first.float())
            found["cross_entropy"] = self.auxiliary * tempered_cross_entropy(
                logits, identities, self.temperature, self.smoothing
            )
        return found


def backward(
    model: CGD,
    objective: Objective,
    images: Tensor,
    identities: Tensor,
    *,
    gather: Callable[[Tensor], Tensor] = lambda rows: rows,
    micro: int = 1,
    half: bool = False,
) -> dict[str, float]:
    """Add the gradients of one step; returns each part of the loss.

    The loss compares all rows of a batch, so a batch that is too large for the memory cannot simply be cut up. With
    `micro` > 1 the rows are computed without a graph first, the loss is taken over all of them, and each micro-batch is
    computed again with the gradient of its own rows (GradCache, arXiv:2101.06983, §3.2): the same gradients for one
    more forward pass.

    Args:
        images: (n, 3, S, S), this worker's share of the batch.
        identities: (B,) int64 of the whole batch, B = n * workers.
        gather: this worker's rows -> those of all workers, gradients flowing into its own.
        micro: into how many pieces the share is cut.
        half: compute the backbone in bfloat16.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    pieces = images.chunk(micro)
    if len(pieces) == 1:
        rows, first = _describe(model, images, half)
    else:
        with torch.no_grad():
            kept = [_describe(model, piece, half) for piece in pieces]
        rows, first = (torch.cat(part).requires_grad_() for part in zip(*kept, strict=True))
    parts = objective.parts(model, gather(rows), gather(first), identities)
    loss = torch.stack(list(parts.values())).sum()
    if not torch.isfinite(loss):
        raise FloatingPointError(f"the loss is {loss.item()}: {', '.join(f'{k} {v.item()}' for k, v in parts.items())}")
    if loss.requires_grad:
        loss.backward()
    if len(pieces) > 1:
        sizes = [len(piece) for piece in pieces]
        grads = [torch.zeros_like(t) if t.grad is None else t.grad for t in (rows, first)]
        for piece, *wanted in zip(pieces, *(g.split(sizes) for g in grads), strict=True):
            torch.autograd.backward(_describe(model, piece, half), wanted)
    return {name: float(value.detach()) for name, value in parts.items()}


def _describe(model: CGD, images: Tensor, half: bool) -> tuple[Tensor, Tensor]:
    with torch.autocast(images.device.type, torch.bfloat16, enabled=half):
        rows, first = model.describe(images)
    return rows.float(), first.float()


# ------------------------------------------------------------------------------------------------ what learns, how fast


def freeze(backbone: nn.Module, n_stages: int) -> None:
    """Stop the stem and the first stages from learning; batch-norm statistics are frozen by keeping the backbone in eval mode.

    The stem is what comes before the first stage; stages are `blocks.I` (EfficientNets), `layerI` (ResNets) or `stages.I`.
    n_stages = 0 freezes nothing, not even the stem.
    """
    if not n_stages:
        return
    for name, parameter in backbone.named_parameters():
        stage = _stage_of(name)
        if stage is None or stage < n_stages:
            parameter.requires_grad_(False)


def _stage_of(name: str) -> int | None:
    parts = name.replace("body.", "", 1).replace("stages_", "stages.").split(".")
    if parts[0] in ("blocks", "stages") and parts[1].isdigit():
        return int(parts[1])
    found = re.fullmatch(r"layer(\d+)", parts[0])
    return int(found[1]) - 1 if found else None


def parameter_groups(
    model: CGD,
    ranking: RankingLoss,
    *,
    rate: float,
    backbone_share: float = 1.0,
    layer_decay: float = 1.0,
    proxy_share: float = 1.0,
    weight_decay: float = 0.0,
) -> list[dict[str, Any]]:
    """Optimiser groups with their highest rate as `lr` and `peak`.

    Heads learn at `rate`; the last stage of the backbone at rate * backbone_share, each stage before it at `layer_decay`
    of the one after it, the stem as the first stage; proxies of the ranking loss at rate * proxy_share. Vectors (norms,
    biases, GeM's p) do not decay.
    """
    last = max((_stage_of(name) or 0 for name, _ in model.backbone.named_parameters()), default=0)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}

    def take(parameter: nn.Parameter, lr: float) -> None:
        if parameter.requires_grad:
            groups.setdefault((lr, weight_decay if parameter.ndim > 1 else 0.0), []).append(parameter)

    for name, parameter in model.named_parameters():
        inside = name.removeprefix("backbone.")
        depth = last - (_stage_of(inside) or 0)
        take(parameter, rate * backbone_share * layer_decay**depth if inside != name else rate)
    for parameter in ranking.parameters():
        take(parameter, rate * proxy_share)
    return [{"params": p, "lr": lr, "peak": lr, "weight_decay": decay} for (lr, decay), p in groups.items()]


def shared_parameters(model: CGD) -> Iterable[nn.Parameter]:
    """Those each worker has a part of the gradient of; the classifier and the proxies see the whole batch everywhere."""
    return (p for name, p in model.named_parameters() if not name.startswith("classifier."))


def set_rates(optimiser: torch.optim.Optimizer, share: float) -> None:
    """Every group at `share` of its highest rate."""
    for group in optimiser.param_groups:
        group["lr"] = group["peak"] * share


class Average:
    """Exponential moving average of a model's tensors: steadier than the last step's. decay 0 keeps the last."""

    def __init__(self, tensors: Mapping[str, Tensor], decay: float = 0.998) -> None:
        self.decay = decay
        self.updates = 0
        self.tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}

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
    def update(self, tensors: Mapping[str, Tensor]) -> None:
        """Take a step's tensors in; early steps count more, so that the start is soon forgotten."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, kept in self.tensors.items():
            if kept.is_floating_point():
                kept.lerp_(tensors[name], 1 - decay)
            else:
                kept.copy_(tensors[name])
