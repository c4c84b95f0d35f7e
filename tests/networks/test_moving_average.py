"""The moving average of a model's weights: its formula, what it copies, and continuing from a checkpoint."""

import pytest
import torch
from torch import Tensor, nn

from networks.moving_average import MovingAverage


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def train_a_step(model: nn.Module) -> None:
    """Change every parameter, and BatchNorm's statistics and counter."""
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter))
    model(torch.randn(5, 3))


def averaged_by_hand(states: list[dict[str, Tensor]], decay: float) -> dict[str, Tensor]:
    """The oracle: the states after 0, 1, 2 … steps, tensor by tensor."""
    tensors = {name: tensor.clone() for name, tensor in states[0].items()}
    for update, state in enumerate(states[1:], 1):
        for name, tensor in state.items():
            if tensor.is_floating_point():
                tensors[name].lerp_(tensor, 1 - min(decay, (1 + update) / (10 + update)))
            else:
                tensors[name].copy_(tensor)
    return tensors


def test_the_average_follows_its_formula() -> None:
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(0.0)
    average = MovingAverage(model, decay=0.2)
    model.weight.data.fill_(1.0)
    average.update_parameters(model)
    first = 1 - 2 / 11  # decay min(0.2, (1 + 1) / (10 + 1))
    assert average.tensors["weight"].item() == pytest.approx(first)
    average.update_parameters(model)
    assert average.tensors["weight"].item() == pytest.approx(1 - (1 - first) * 0.2)  # (1 + 2) / (10 + 2) is 0.25


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.998])
@pytest.mark.parametrize("continue_after", [None, 4])
def test_it_equals_the_average_by_hand_to_the_bit(decay: float, continue_after: int | None) -> None:
    """Also where another average continues from its tensors; buffers are averaged, whole numbers copied."""
    model = small_model()
    average = MovingAverage(model, decay)
    states = [{name: tensor.clone() for name, tensor in model.state_dict().items()}]
    for step in range(1, 13):
        train_a_step(model)
        average.update_parameters(model)
        states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        if step == continue_after:
            tensors = average.tensors
            average = MovingAverage(small_model(), decay)
            average.load(tensors, step)
    by_hand = averaged_by_hand(states, decay)
    assert list(average.tensors) == list(by_hand) and by_hand["1.num_batches_tracked"] == 12
    assert all(torch.equal(tensor, by_hand[name]) for name, tensor in average.tensors.items())


def test_the_model_itself_is_left_alone() -> None:
    model = small_model()
    average = MovingAverage(model, decay=0.5)
    train_a_step(model)
    trained = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    average.update_parameters(model)
    assert all(torch.equal(trained[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("tensors", [{}, nn.Linear(3, 5).state_dict()])
def test_tensors_of_another_model_are_refused(tensors: dict[str, Tensor]) -> None:
    with pytest.raises(RuntimeError):
        MovingAverage(small_model()).load(tensors, 2)
