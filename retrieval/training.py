"""A step of an embedder's training: gradients over several workers or micro-batches, learning rates by layer.

`jobs.training.loop` drives it; what it learns from is in `retrieval.training_crops`.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from networks.moving_average import MovingAverage
from retrieval.cgd import CGD
from retrieval.losses import RankingLoss, tempered_cross_entropy

AFTER_STAGES = ("norm", "fc_norm", "norm_head", "attn_pool", "head", "conv_head", "bn2", "final_conv")  # of timm
LAST = 1_000_000  # their stage
CLIP = 10.0  # greatest norm of a step's gradient
Gather = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Objective:
    """The ranking loss, plus `auxiliary` times the first branch's cross entropy (CGD, arXiv:1903.10663, §3.2)."""

    ranking: RankingLoss
    auxiliary: float = 1.0
    temperature: float = 0.5
    smoothing: float = 0.1

    def parts(self, model: CGD, rows: Tensor, first: Tensor, identities: Tensor) -> dict[str, Tensor]:
        """Each part, weighted; their sum is the loss."""
        parts = {"ranking": self.ranking(rows, identities)}
        if self.auxiliary and model.classifier is not None:
            logits = model.classifier(first.float())
            entropy = tempered_cross_entropy(logits, identities, self.temperature, self.smoothing)
            parts["cross_entropy"] = self.auxiliary * entropy
        return parts


def backward(
    model: CGD,
    objective: Objective,
    images: Tensor,
    identities: Tensor,
    *,
    gather: Gather = lambda rows: rows,
    micro: int = 1,
    half: bool = False,
) -> dict[str, float]:
    """Add the gradients of one step; returns each part of the loss.

    The loss compares all rows of a batch, so a batch that is too large for the memory cannot simply be cut up. With
    `micro` > 1 the rows are computed without a graph first, the loss is taken over all of them, and each micro-batch is
    computed again with the gradient of its own rows (GradCache, arXiv:2101.06983, §3.2): the same gradients for one
    more forward pass.

    `images` (n, 3, S, S) are this worker's share of the batch, `identities` (B,) int64 those of the whole, B = n *
    workers. `gather` gives all workers' rows for this one's, gradients flowing into its own. `micro` is the number of
    pieces the share is cut into; `half` computes the backbone in bfloat16. FloatingPointError: the loss is not finite.
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


class EmbedderLearner:
    """A model with its objective, optimiser and averaged weights, and the state a checkpoint keeps of them.

    Batch norm of the model's backbone keeps the published statistics, for batches are small. The objective's ranking
    loss may have parameters of its own. `ema_decay` is of the moving average of the weights, which is what is measured
    and shipped; `rates` are those of `parameter_groups`.
    """

    def __init__(self, model: CGD, objective: Objective, *, ema_decay: float = 0.998, **rates: float) -> None:
        self.model, self.objective = model, objective
        self.optimiser = torch.optim.AdamW(parameter_groups(model, objective.ranking, **rates))
        # the classifier knows only the garments of the training set
        self._shipped = nn.ModuleDict({n: part for n, part in model.named_children() if n != "classifier"})
        self.average = MovingAverage(self._shipped, ema_decay)

    def gradients(
        self,
        images: Tensor,
        identities: Tensor,
        *,
        seed: int,
        gather: Gather = lambda rows: rows,
        micro: int = 1,
        half: bool = False,
    ) -> dict[str, float]:
        """`backward` with fresh gradients, `seed` for the miner's random numbers; adds "loss", the sum of the parts."""
        self.optimiser.zero_grad(set_to_none=True)
        self.model.train()
        self.model.backbone.eval()
        torch.manual_seed(seed)
        parts = backward(self.model, self.objective, images, identities, gather=gather, micro=micro, half=half)
        return {**parts, "loss": sum(parts.values())}

    def update(self, rate_share: float) -> None:
        """One step of the optimiser at this share of the highest learning rates."""
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak"] * rate_share
        torch.nn.utils.clip_grad_norm_([p for group in self.optimiser.param_groups for p in group["params"]], CLIP)
        self.optimiser.step()
        self.average.update_parameters(self._shipped)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: tensors and plain values only."""
        return {
            "model": self.model.state_dict(), "ranking": self.objective.ranking.state_dict(),
            "average": self.average.tensors, "optimiser": self.optimiser.state_dict(),
        }  # fmt: skip

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint; its "step" is the number of steps that were made."""
        self.model.load_state_dict(state["model"])
        self.objective.ranking.load_state_dict(state["ranking"])
        self.average.load(state["average"], state["step"])
        self.optimiser.load_state_dict(state["optimiser"])


# ---- what learns, how fast -------------------------------------------------------------------------------------
def freeze(backbone: nn.Module, n_stages: int) -> None:
    """Freeze the stem and the first stages; batch-norm statistics are frozen by keeping the backbone in eval mode.

    The stem is what comes before the first stage; stages are `blocks.I` (EfficientNets, transformers), `layerI`
    (ResNets), `layers.I` (Swin) or `stages.I`; what follows the stages counts as one more. n_stages = 0 freezes
    nothing, not even the stem.
    """
    if not n_stages:
        return
    for name, parameter in backbone.named_parameters():
        stage = _stage_of(name)
        if stage is None or stage < n_stages:
            parameter.requires_grad_(False)


def _stage_of(name: str) -> int | None:
    parts = name.replace("body.", "", 1).replace("stages_", "stages.").replace("layers_", "layers.").split(".")
    if parts[0] in ("blocks", "stages", "layers") and parts[1].isdigit():
        return int(parts[1])
    if parts[0] in AFTER_STAGES:
        return LAST
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

    Heads learn at `rate`; the last stage of the backbone at rate * backbone_share, each stage before it at
    `layer_decay` of the one after it, the stem as the first stage; proxies of the ranking loss at rate * proxy_share.
    Vectors (norms, biases, GeM's p) do not decay.
    """
    stages = [_stage_of(name) or 0 for name, _ in model.backbone.named_parameters()]
    last = max((stage for stage in stages if stage != LAST), default=0)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}

    def take(parameter: nn.Parameter, lr: float) -> None:
        if parameter.requires_grad:
            groups.setdefault((lr, weight_decay if parameter.ndim > 1 else 0.0), []).append(parameter)

    for name, parameter in model.named_parameters():
        inside = name.removeprefix("backbone.")
        depth = last - min(_stage_of(inside) or 0, last)
        take(parameter, rate * backbone_share * layer_decay**depth if inside != name else rate)
    for parameter in ranking.parameters():
        take(parameter, rate * proxy_share)
    return [{"params": p, "lr": lr, "peak": lr, "weight_decay": decay} for (lr, decay), p in groups.items()]


def shared_parameters(model: CGD) -> Iterable[nn.Parameter]:
    """Those of whose gradient each worker has a part; classifier and proxies see the whole batch everywhere."""
    return (p for name, p in model.named_parameters() if not name.startswith("classifier."))
