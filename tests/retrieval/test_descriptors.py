"""Pooling against arithmetic, in both precisions and at the extremes."""

import pytest
import torch

from retrieval.descriptors import DESCRIPTORS, EPS, MAC, GeM, SPoC

MAP = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]], [[0.0, 0.0], [0.0, 4.0]]]])  # (1, 2, 2, 2)


@pytest.mark.parametrize(
    "pool, want",
    [
        (SPoC(), [(1 + 2 + 3 + 6) / 4, 4 / 4]),
        (MAC(), [6.0, 4.0]),
        (GeM(p=1.0), [(1 + 2 + 3 + 6) / 4, 4 / 4]),  # p = 1 is the mean
        (GeM(p=3.0), [((1 + 8 + 27 + 216) / 4) ** (1 / 3), (64 / 4) ** (1 / 3)]),
        (GeM(p=200.0), [6 * (1 / 4) ** (1 / 200), 4 * (1 / 4) ** (1 / 200)]),  # towards the maximum
    ],
)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 1e-2)])
def test_values(pool, want, dtype, tolerance):
    got = pool(MAP.to(dtype))
    assert got.dtype == dtype and got.shape == (1, 2)
    torch.testing.assert_close(got.float(), torch.tensor([want]), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", DESCRIPTORS)
@pytest.mark.parametrize("value", [0.0, -5.0, 1e-7, 60000.0])
def test_no_map_breaks_half_precision(name, value):
    x = torch.full(
        (2, 3, 50, 50), value, dtype=torch.float16, requires_grad=True
    )  # the plain sum of 60000s is no float16
    out = DESCRIPTORS[name]()(x)
    out.float().sum().backward()
    assert torch.isfinite(out).all() and torch.isfinite(x.grad).all()
    seen = float(torch.tensor(value, dtype=torch.float16))
    want = max(seen, EPS) if name == "gem" else seen
    torch.testing.assert_close(out.float(), torch.full((2, 3), want), rtol=2e-3, atol=1e-6)


def test_the_gradient_is_that_of_the_plain_formula():
    x = torch.rand(2, 3, 4, 5, dtype=torch.float32, generator=torch.Generator().manual_seed(0)) + 0.1
    ours, plain = x.clone().requires_grad_(), x.clone().requires_grad_()
    pool = GeM(p=2.5)
    p = torch.tensor([2.5], requires_grad=True)
    weights = torch.arange(6.0).view(2, 3)
    (pool(ours) * weights).sum().backward()
    (plain.clamp(min=EPS).pow(p).mean((2, 3)).pow(1 / p) * weights).sum().backward()
    torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(pool.p.grad, p.grad, rtol=1e-4, atol=1e-6)


def test_p_learns_only_if_asked_to():
    assert [p.requires_grad for p in GeM(learn_p=True).parameters()] == [True]
    assert not GeM(learn_p=False).p.requires_grad and "p" in GeM(learn_p=False).state_dict()
    with pytest.raises(ValueError, match="p > 0, got 0"):
        GeM(p=0)
