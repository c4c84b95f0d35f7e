"""An exponential moving average of a model's weights: steadier than those of the last step, so it is what is shipped.

average = MovingAverage(model, decay=0.998)
average.update_parameters(model)     # after each step of the optimiser
average.tensors                      # what to measure, keep and ship
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class MovingAverage(AveragedModel):
    """torch's averaged model with a warm-up: step n counts with a decay of at most (1 + n) / (10 + n).

    Early steps count more, so that the start, the model's present weights, is soon forgotten. `decay` is in [0, 1); 0
    keeps the weights of the last step. Buffers such as BatchNorm's statistics are averaged like the parameters, whole
    numbers are copied.
    """

    def __init__(self, model: nn.Module, decay: float = 0.998) -> None:
        super().__init__(model, multi_avg_fn=self._average, use_buffers=True)
        self.decay = decay
        # torch copies the first model it is shown, whatever the decay: that is the start, not the first step
        self.update_parameters(model)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The averaged state of the model by name; the tensors change with the next update."""
        tensors: dict[str, Tensor] = self.module.state_dict()
        return tensors

    def load(self, tensors: Mapping[str, Tensor], updates: int) -> None:
        """Continue from the `tensors` of an average that has seen `updates` steps.

        Raises RuntimeError for a tensor that is missing, unknown or of another shape.
        """
        self.module.load_state_dict(tensors)
        self.n_averaged.fill_(1 + updates)

    def _average(self, averaged: Any, current: Any, _: Tensor | int) -> None:
        """Update tensors of one dtype in place."""
        if averaged[0].is_floating_point():
            updates = int(self.n_averaged)
            decay = min(self.decay, (1 + updates) / (10 + updates))
            get_ema_multi_avg_fn(decay)(averaged, current, updates)
        else:
            for own, tensor in zip(averaged, current, strict=True):
                own.copy_(tensor)
