"""What embedders are trained with: a ranking loss on the embeddings, a classification loss on the first branch.

Ranking losses come from pytorch-metric-learning by name and arguments (`LOSSES`, `MINERS`); `PRESETS` are the settings
of their papers. The classification loss is CGD's (arXiv:1903.10663, §3.2): temperature 0.5, label smoothing 0.1.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from pytorch_metric_learning import losses, miners, reducers
from torch import Tensor, nn

LOSSES: dict[str, Callable[..., nn.Module]] = {
    "angular": losses.AngularLoss,
    "arcface": losses.ArcFaceLoss,
    "circle": losses.CircleLoss,
    "contrastive": losses.ContrastiveLoss,
    "cosface": losses.CosFaceLoss,
    "margin": losses.MarginLoss,
    "multi-similarity": losses.MultiSimilarityLoss,
    "n-pairs": losses.NPairsLoss,
    "normalised-softmax": losses.NormalizedSoftmaxLoss,
    "nt-xent": losses.NTXentLoss,
    "proxy-anchor": losses.ProxyAnchorLoss,
    "proxy-nca": losses.ProxyNCALoss,
    "smooth-ap": losses.SmoothAPLoss,
    "soft-triple": losses.SoftTripleLoss,
    "sub-centre-arcface": losses.SubCenterArcFaceLoss,
    "sup-con": losses.SupConLoss,
    "triplet": losses.TripletMarginLoss,
}
MINERS: dict[str, Callable[..., nn.Module]] = {
    "batch-easy-hard": miners.BatchEasyHardMiner,
    "batch-hard": miners.BatchHardMiner,
    "distance-weighted": miners.DistanceWeightedMiner,
    "multi-similarity": miners.MultiSimilarityMiner,
    "pair-margin": miners.PairMarginMiner,
    "triplet-margin": miners.TripletMarginMiner,
}


@dataclass(frozen=True)
class Preset:
    """A loss with the arguments it is known for."""

    loss: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    miner: str = ""
    miner_arguments: Mapping[str, Any] = field(default_factory=dict)


PRESETS: dict[str, Preset] = {
    # CGD's: margin 0.1, the mean over all anchors, satisfied ones too (arXiv:1703.07737, §2)
    "batch-hard-triplet": Preset("triplet", {"margin": 0.1, "reducer": reducers.MeanReducer()}, "batch-hard"),
    # arXiv:1904.06627, §4.1: alpha 2, beta 50, lambda 1, epsilon 0.1
    "multi-similarity": Preset(
        "multi-similarity", {"alpha": 2, "beta": 50, "base": 1.0}, "multi-similarity", {"epsilon": 0.1}
    ),
    # arXiv:2003.13911, §4.2: alpha 32, delta 0.1
    "proxy-anchor": Preset("proxy-anchor", {"margin": 0.1, "alpha": 32}),
    # arXiv:1801.07698, §3.1: scale 64, margin 0.5 radian
    "arcface": Preset("arcface", {"margin": 28.65, "scale": 64}),
}


class RankingLoss(nn.Module):
    """A loss of pytorch-metric-learning with its miner; proxies, where it has them, are parameters of this module.

    Raises ValueError where there is no loss or miner of that name, or for an argument it does not take; the message
    lists those there are.

    Args:
        name: of a preset, else of a loss; a name that is both means the preset.
        arguments: replace the preset's, or go to the loss as they are.
        miner: replaces the preset's miner; "none" for none.
        dim: D of the embeddings. classes: number of identities. Both go to the losses that take them.
    """

    def __init__(
        self, name: str, arguments: Mapping[str, Any] | None = None, *, miner: str = "", dim: int, classes: int
    ) -> None:
        super().__init__()
        preset = PRESETS.get(name) or Preset(name)
        if preset.loss not in LOSSES:
            raise ValueError(f"no loss {name!r}; there are: {', '.join(sorted({*PRESETS, *LOSSES}))}")
        sizes = {"embedding_size": dim, "num_classes": classes}
        self.loss = _make(LOSSES[preset.loss], preset.loss, {**preset.arguments, **(arguments or {})}, sizes)
        chosen, more = (miner, {}) if miner else (preset.miner, preset.miner_arguments)
        if chosen not in ("", "none", *MINERS):
            raise ValueError(f"no miner {chosen!r}; there are: none, {', '.join(sorted(MINERS))}")
        self.miner = MINERS[chosen](**more) if chosen in MINERS else None

    def forward(self, rows: Tensor, identities: Tensor) -> Tensor:
        """Unit rows (B, D) and identities (B,) int64 -> a scalar; 0 where the batch has nothing to compare."""
        if rows.ndim != 2 or identities.shape != rows.shape[:1]:
            raise ValueError(
                f"ranking loss: want rows (B, D) and identities (B,), got {tuple(rows.shape)} and "
                f"{tuple(identities.shape)}"
            )
        rows = rows.float()
        mined = () if self.miner is None else (self.miner(rows, identities),)
        value: Tensor = self.loss(rows, identities, *mined)
        return value


def _make(make: Callable[..., nn.Module], name: str, arguments: dict[str, Any], sizes: dict[str, int]) -> nn.Module:
    """Call a constructor with these arguments and those of the sizes that it takes."""
    bases: tuple[Any, ...] = inspect.getmro(make)[:-1]  # type: ignore[arg-type]
    takes = {p for base in bases for p in inspect.signature(base.__init__).parameters} - {"self", "args", "kwargs"}
    for argument in arguments:
        if argument not in takes - sizes.keys():
            raise ValueError(
                f"loss {name!r} takes no {argument!r}; it takes: {', '.join(sorted(takes - sizes.keys()))}"
            )
    return make(**{size: value for size, value in sizes.items() if size in takes}, **arguments)


def tempered_cross_entropy(
    logits: Tensor, identities: Tensor, temperature: float = 0.5, smoothing: float = 0.1
) -> Tensor:
    """Mean cross entropy of logits / temperature against labels that give `smoothing` evenly to all classes.

    `logits` are (B, classes) float, `identities` (B,) int64 class numbers. The temperature is above 0; below 1 it
    widens the differences between logits, so that small ones have a gradient. `smoothing` is in [0, 1).
    """
    if not temperature > 0:
        raise ValueError(f"cross entropy: want a temperature above 0, got {temperature}")
    return F.cross_entropy(logits.float() / temperature, identities, label_smoothing=smoothing)
