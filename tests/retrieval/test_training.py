"""A step of training: the same gradients whole, in pieces, and over workers; rates by layer, freezing, averaging."""

import numpy as np
import pytest
import torch
from torch import nn

from retrieval.cgd import CGD, fine_map
from retrieval.losses import RankingLoss
from retrieval.training import EmbedderLearner, Objective, backward, freeze, parameter_groups, shared_parameters


def small_model(classes: int | None = 4) -> CGD:
    torch.manual_seed(1)
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU())
    return CGD(backbone, ("spoc", "gem"), 8, classes)


IMAGES = torch.randn(8, 3, 20, 20, generator=torch.Generator().manual_seed(0))
IDENTITIES = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])


def gradients(model: CGD, objective: Objective, **how) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    parts = backward(model, objective, IMAGES, IDENTITIES, **how)
    every = {**dict(model.named_parameters()), **{f"loss.{n}": p for n, p in objective.ranking.named_parameters()}}
    return parts, {name: p.grad.clone() for name, p in every.items() if p.grad is not None}


@pytest.mark.parametrize("loss", ["batch-hard-triplet", "multi-similarity", "proxy-anchor", "arcface"])
@pytest.mark.parametrize("micro", [2, 3, 8])
def test_a_batch_in_pieces_has_the_gradients_of_the_whole(loss, micro):
    torch.manual_seed(2)
    objective = Objective(RankingLoss(loss, dim=8, classes=4))
    want_parts, want = gradients(small_model(), objective)
    objective.ranking.zero_grad()
    parts, found = gradients(small_model(), objective, micro=micro)
    assert parts == pytest.approx(want_parts, rel=1e-5)
    assert sorted(found) == sorted(want)
    for name in want:
        torch.testing.assert_close(found[name], want[name], rtol=1e-4, atol=1e-5)


def test_workers_together_have_the_gradients_of_one():
    """Two workers with half the batch each, one after the other: what they gather is known from a first pass."""
    objective = Objective(RankingLoss("proxy-anchor", dim=8, classes=4))
    want_parts, want = gradients(small_model(), objective)
    with torch.no_grad():
        known = small_model().describe(IMAGES)
    summed: dict[str, torch.Tensor] = {}
    for part in (slice(0, 4), slice(4, 8)):
        model = small_model()
        calls = iter(known)

        def gather(own: torch.Tensor, part: slice = part, calls=calls) -> torch.Tensor:
            whole = next(calls)
            return torch.cat([whole[: part.start], own, whole[part.stop :]])

        assert backward(model, objective, IMAGES[part], IDENTITIES, gather=gather) == pytest.approx(
            want_parts, rel=1e-5
        )
        shared = {id(p) for p in shared_parameters(model)}
        for name, p in model.named_parameters():
            if id(p) in shared:
                summed[name] = summed.get(name, torch.zeros_like(p)) + p.grad
            else:  # the classifier saw the whole batch
                torch.testing.assert_close(p.grad, want[name], rtol=1e-4, atol=1e-6)
    for name, grad in summed.items():
        torch.testing.assert_close(grad, want[name], rtol=1e-4, atol=1e-6)


def test_without_the_classifier_only_the_ranking_counts():
    parts, _ = gradients(small_model(None), Objective(RankingLoss("batch-hard-triplet", dim=8, classes=4), auxiliary=0))
    assert list(parts) == ["ranking"]


def test_a_loss_that_is_not_finite_stops():
    with pytest.raises(FloatingPointError, match="the loss is nan"):
        backward(small_model(), Objective(RankingLoss("triplet", dim=8, classes=4)), IMAGES * torch.nan, IDENTITIES)


def test_half_precision_comes_near():
    objective = Objective(RankingLoss("multi-similarity", dim=8, classes=4))
    whole, half = backward(small_model(), objective, IMAGES, IDENTITIES), None
    half = backward(small_model(), objective, IMAGES, IDENTITIES, half=True)
    assert half == pytest.approx(whole, rel=0.05)


def test_rates_fall_with_depth_and_vectors_do_not_decay():
    model = CGD(fine_map("resnet18"), ("gem",), 8, 4)
    ranking = RankingLoss("proxy-anchor", dim=8, classes=4)
    groups = parameter_groups(
        model, ranking, rate=1.0, backbone_share=0.5, layer_decay=0.1, proxy_share=7.0, weight_decay=0.01
    )
    rate = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    by_name = {name: rate[id(p)] for name, p in model.named_parameters()}
    assert by_name["backbone.body.layer4.0.conv1.weight"] == (0.5, 0.01)
    assert by_name["backbone.body.layer3.0.conv1.weight"] == (pytest.approx(0.05), 0.01)
    assert by_name["backbone.body.layer1.0.bn1.weight"] == (pytest.approx(0.0005), 0.0)
    assert by_name["backbone.body.conv1.weight"][0] == pytest.approx(0.0005)  # the stem as the first stage
    assert by_name["reductions.0.weight"] == (1.0, 0.01) and by_name["pools.0.p"] == (1.0, 0.0)
    assert rate[id(next(ranking.parameters()))] == (7.0, 0.01)
    assert len(rate) == len(list(model.parameters())) + 1

    learner = EmbedderLearner(model, Objective(ranking), rate=1.0, backbone_share=0.5, layer_decay=0.1)
    learner.gradients(torch.randn(4, 3, 32, 32), torch.tensor([0, 0, 1, 1]), seed=0)
    learner.update(0.5)
    assert {round(g["lr"] / g["peak"], 6) for g in learner.optimiser.param_groups} == {0.5}


@pytest.mark.parametrize("timm_id, n, first_that_learns", [
    ("tf_efficientnet_lite0", 2, "body.blocks.2.0.conv_pw.weight"),
    ("tf_efficientnet_lite0", 0, "body.conv_stem.weight"),
    ("resnet18", 1, "body.layer2.0.conv1.weight"),
    ("convnext_atto", 2, "body.stages_2.downsample.0.weight"),
])  # fmt: skip
def test_freezing_stops_the_first_stages(timm_id, n, first_that_learns):
    backbone = fine_map(timm_id)
    freeze(backbone, n)
    assert next(name for name, p in backbone.named_parameters() if p.requires_grad) == first_that_learns


def test_what_follows_the_stages_learns_as_the_last_of_them_does():
    """As a transformer of timm has it: a stem, blocks, a last norm. Each block learns at half the next one's rate."""
    linear = torch.nn.Linear
    backbone = torch.nn.ModuleDict({"patch_embed": linear(1, 1), "blocks": torch.nn.ModuleList()})
    backbone["blocks"].extend([linear(1, 1), linear(1, 1), linear(1, 1)])
    backbone["norm"] = linear(1, 1)
    model = torch.nn.ModuleDict({"backbone": torch.nn.ModuleDict({"body": backbone}), "reductions": linear(1, 1)})
    ranking = RankingLoss("triplet", dim=1, classes=2)
    groups = parameter_groups(model, ranking, rate=1.0, backbone_share=0.5, layer_decay=0.5)
    rate_of = {id(p): group["peak"] for group in groups for p in group["params"]}
    rates = {name: rate_of[id(p)] for name, p in model.named_parameters() if name.endswith("weight")}
    assert {name.removeprefix("backbone.body.").removesuffix(".weight"): rate for name, rate in rates.items()} == {
        "patch_embed": 0.125, "blocks.0": 0.125, "blocks.1": 0.25, "blocks.2": 0.5, "norm": 0.5, "reductions": 1.0,
    }  # fmt: skip


def test_a_learner_continues_from_its_state_to_the_bit():
    def steps(learner: EmbedderLearner, numbers: range) -> dict[str, torch.Tensor]:
        for step in numbers:
            learner.gradients(IMAGES, IDENTITIES, seed=step)
            learner.update(0.5)
        return learner.average.tensors

    def new() -> EmbedderLearner:
        torch.manual_seed(3)
        return EmbedderLearner(small_model(), Objective(RankingLoss("proxy-anchor", dim=8, classes=4)), rate=0.1)

    straight = steps(new(), range(4))
    first, second = new(), new()
    steps(first, range(2))
    second.load({**first.state(), "step": 2})
    continued = steps(second, range(2, 4))
    assert all(torch.equal(straight[name], tensor) for name, tensor in continued.items())
    assert set(continued) == {name for name in small_model().state_dict() if not name.startswith("classifier.")}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet152-gm", "seresnext101-sgm"])
def test_one_step_of_the_papers_embedders(name):
    """Crops of 64 pixels move the last stage (its last norms start at zero), the reductions and GeM's p."""
    from retrieval import cgd_networks, models

    spec = models.named(name)
    model = cgd_networks.build(spec, classes=4)
    freeze(model.backbone, 2)
    objective = Objective(RankingLoss("batch-hard-triplet", dim=spec.dim, classes=4))
    optimiser = torch.optim.AdamW(parameter_groups(model, objective.ranking, rate=1e-3, layer_decay=0.5))
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    model.train()
    model.backbone.eval()
    images = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    parts = backward(model, objective, images, IDENTITIES, micro=2)
    optimiser.step()
    assert all(np.isfinite(value) for value in parts.values())
    moved = {key for key, p in model.named_parameters() if not torch.equal(p, before[key])}
    wanted = ["layer4.2.bn3.weight", "reductions.0.weight", "classifier.1.weight", "pools"]
    assert all(any(part in key for key in moved) for part in wanted), sorted(moved)[-5:]
    assert not any(".layer1." in key or ".conv1.0" in key for key in moved)
