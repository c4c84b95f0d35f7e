"""Global descriptors: a feature map in, one number per channel out; torch modules (B, C, H, W) -> (B, C).

They are the branches of the CGD head (arXiv:1903.10663, §3.1). Sums run in float32 whatever the input's type, so that
half-precision maps of any size pool without overflow; the result has the input's type again.
"""

import torch
from torch import Tensor, nn

EPS = 1e-6  # GeM: smaller responses, negative ones included, count as this much


class SPoC(nn.Module):
    """Mean over places (arXiv:1510.07493)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.float().mean(dim=(2, 3)).to(x.dtype)


class MAC(nn.Module):
    """Maximum over places (arXiv:1511.05879)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.amax(dim=(2, 3))


class GeM(nn.Module):
    """Generalised mean, (mean x^p)^(1/p) with x cut at `EPS` (arXiv:1711.02512, §3.2): p = 1 is SPoC, infinity MAC.

    All channels share p. Every channel is divided by its maximum before the power and multiplied by it afterwards: the
    value is the same, and nothing over- or underflows (60000^3 exceeds float16, and 0.001^20 is below float32).
    """

    def __init__(self, p: float = 3.0, learn_p: bool = True) -> None:
        super().__init__()
        if not p > 0:
            raise ValueError(f"GeM: want p > 0, got {p}; 1 is the mean, 3 the usual start")
        self.p = nn.Parameter(torch.tensor([float(p)]), requires_grad=learn_p)

    def forward(self, x: Tensor) -> Tensor:
        values = x.float().clamp(min=EPS)
        top = values.amax(dim=(2, 3), keepdim=True).detach()  # a constant, so the gradient is the plain formula's
        p = self.p.float()
        pooled = (values / top).pow(p).mean(dim=(2, 3)).pow(1.0 / p) * top[:, :, 0, 0]
        return pooled.to(x.dtype)

    def extra_repr(self) -> str:
        return f"p={self.p.item():.3f}, learned={self.p.requires_grad}"


DESCRIPTORS: dict[str, type[nn.Module]] = {"spoc": SPoC, "mac": MAC, "gem": GeM}
