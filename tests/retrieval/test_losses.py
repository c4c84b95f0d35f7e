"""The losses against loops that do what the definitions say; names and arguments against the tables."""

import math

import pytest
import torch
import torch.nn.functional as F

from retrieval.losses import LOSSES, MINERS, PRESETS, RankingLoss, tempered_cross_entropy


def batch_hard_triplet(rows: torch.Tensor, identities: torch.Tensor, margin: float = 0.1) -> torch.Tensor:
    return RankingLoss("batch-hard-triplet", {"margin": margin}, dim=rows.shape[-1], classes=10)(rows, identities)


def by_hand(rows: torch.Tensor, identities: list[int], margin: float) -> float:
    terms = []
    for i, who in enumerate(identities):
        relatives = [math.dist(rows[i], rows[j]) for j, other in enumerate(identities) if other == who and j != i]
        strangers = [math.dist(rows[i], rows[j]) for j, other in enumerate(identities) if other != who]
        if relatives and strangers:
            terms.append(max(0.0, margin + max(relatives) - min(strangers)))
    return sum(terms) / len(terms) if terms else 0.0


@pytest.mark.parametrize(
    "identities",
    [
        [0, 0, 1, 1],
        [0, 1, 0, 1, 2, 2, 2],
        [5, 5, 9],  # 9 has no relative: it is only a stranger to others
        [1, 1, 1],
        [1, 2, 3],
        [4],  # nobody counts
    ],
)
def test_triplets_by_definition(identities):
    rows = F.normalize(torch.randn(len(identities), 6, generator=torch.Generator().manual_seed(0)))
    got = batch_hard_triplet(rows, torch.tensor(identities), margin=0.3).item()
    assert got == pytest.approx(by_hand(rows, identities, 0.3), abs=1e-3)


def test_triplets_with_known_distances():
    rows = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [-1, 0]])  # distances 2**0.5 and 2; the last two are one point
    got = batch_hard_triplet(rows, torch.tensor([0, 0, 1, 1]), margin=0.1).item()
    first = 0.1 + 2**0.5 - 2  # below 0: relative at sqrt 2, stranger at 2
    second = 0.1 + 2**0.5 - 2**0.5  # relative and stranger equally far
    third = 0.1 + 0 - 2**0.5  # below 0
    assert got == pytest.approx(sum(max(0, x) for x in (first, second, third, third)) / 4, abs=1e-3)


def test_equal_rows_have_finite_gradients():
    rows = torch.ones(4, 3).div(3**0.5).requires_grad_()
    batch_hard_triplet(rows, torch.tensor([0, 0, 1, 1])).backward()
    assert torch.isfinite(rows.grad).all()


def test_half_precision_rows_are_compared_in_single():
    rows = F.normalize(torch.randn(6, 32, generator=torch.Generator().manual_seed(3)))
    identities = torch.tensor([0, 0, 1, 1, 2, 2])
    assert batch_hard_triplet(rows.half(), identities).item() == pytest.approx(
        batch_hard_triplet(rows, identities).item(), abs=2e-3
    )


def test_cross_entropy_by_definition():
    logits, temperature, smoothing = torch.tensor([[1.0, 0.0, -1.0]]), 0.5, 0.1
    exps = [math.exp(v / temperature) for v in (1.0, 0.0, -1.0)]
    logs = [math.log(e / sum(exps)) for e in exps]
    share = [0.1 / 3 + 0.9, 0.1 / 3, 0.1 / 3]
    want = -sum(s * value for s, value in zip(share, logs, strict=True))
    assert tempered_cross_entropy(logits, torch.tensor([0]), temperature, smoothing).item() == pytest.approx(
        want, rel=1e-5
    )


@pytest.mark.parametrize("name", sorted({*LOSSES, *PRESETS}))
def test_every_loss_trains(name):
    """Built by its name alone; one step against the gradient lowers it, or it has nothing to lower."""
    torch.manual_seed(0)
    loss = RankingLoss(name, dim=8, classes=4)
    raw = torch.randn(8, 8, requires_grad=True)
    identities = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    before = loss(F.normalize(raw), identities)
    before.backward()
    assert torch.isfinite(before) and torch.isfinite(raw.grad).all()
    with torch.no_grad():
        after = loss(F.normalize(raw - 1e-3 * raw.grad), identities)
    assert after <= before + 1e-6


@pytest.mark.parametrize("miner", sorted(MINERS))
def test_every_miner_serves_a_pair_loss(miner):
    torch.manual_seed(0)
    rows = F.normalize(torch.randn(8, 8))
    loss = RankingLoss("triplet", miner=miner, dim=8, classes=4)
    assert torch.isfinite(loss(rows, torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])))


def test_proxies_are_parameters_of_the_loss():
    assert [tuple(p.shape) for p in RankingLoss("proxy-anchor", dim=6, classes=5).parameters()] == [(5, 6)]
    assert not list(RankingLoss("batch-hard-triplet", dim=6, classes=5).parameters())


@pytest.mark.parametrize("name, arguments, miner, message", [
    ("tripplet", {}, "", "no loss 'tripplet'; there are: angular, arcface, batch-hard-triplet"),
    ("triplet", {"margn": 0.1}, "", "loss 'triplet' takes no 'margn'; it takes: .*margin"),
    ("triplet", {}, "hard", "no miner 'hard'; there are: none, batch-easy-hard"),
])  # fmt: skip
def test_unknown_names_are_refused(name, arguments, miner, message):
    with pytest.raises(ValueError, match=message):
        RankingLoss(name, arguments, miner=miner, dim=4, classes=4)


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match=r"rows \(B, D\)"):
        batch_hard_triplet(torch.zeros(3, 2), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match="temperature above 0"):
        tempered_cross_entropy(torch.zeros(1, 2), torch.zeros(1, dtype=torch.long), temperature=0)
