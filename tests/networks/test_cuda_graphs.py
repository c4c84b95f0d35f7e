"""Networks replayed from CUDA graphs: which are captured, kept and given up. A stand-in captures on the CPU."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from networks import cuda_graphs
from networks.cuda_graphs import GraphedNetwork, Replay


class StandIn(GraphedNetwork):
    """Every capture overwrites its own outputs when it is replayed, and spoils those of the others, which share memory
    on a GPU."""

    def __init__(self, *rest: Any) -> None:
        super().__init__(*rest)
        self.captured: list[tuple[int, ...]] = []
        self.outputs: list[Tensor] = []  # of all captures

    def _capture(self, batch: Tensor) -> Replay:
        self.captured.append(tuple(batch.shape))
        outputs = self.module(batch)
        own = tuple(map(torch.empty_like, _all_of(outputs)))
        self.outputs += own

        def replay(given: Tensor) -> Any:
            for one in self.outputs:
                one.fill_(torch.nan)
            for one, value in zip(own, _all_of(self.module(given)), strict=True):
                one.copy_(value)
            return own[0] if isinstance(outputs, Tensor) else own

        return replay


def _all_of(outputs: Any) -> Any:
    return (outputs,) if isinstance(outputs, Tensor) else outputs


class OutOfMemory(StandIn):
    """Captures one graph, and no second one."""

    def _capture(self, batch: Tensor) -> Replay:
        if self.captured:
            raise torch.OutOfMemoryError("CUDA out of memory.\n Tried to allocate 2 GiB")
        return super()._capture(batch)


class Doubled(nn.Module):
    def forward(self, batch: Tensor) -> tuple[Tensor, ...]:
        return 2 * batch, batch.sum((1, 2, 3))


def batch(n: int, value: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full((n, 3, 2, 2), value, dtype=dtype)


def test_each_shape_and_dtype_is_captured_once_and_replayed_with_every_batch() -> None:
    notes: list[str] = []
    network = StandIn("small", Doubled(), notes)
    for n, value in ((2, 1.0), (1, 4.0), (2, 3.0), (1, 5.0)):
        doubled, sums = network(batch(n, value))
        torch.testing.assert_close(doubled, batch(n, 2 * value))
        torch.testing.assert_close(sums, torch.full((n,), 12 * value))  # of 3 x 2 x 2 numbers
    network(batch(2, dtype=torch.float16))
    assert network.captured == [(2, 3, 2, 2), (1, 3, 2, 2), (2, 3, 2, 2)]
    assert (network.engine, notes) == ("cudagraph", [])


def test_the_graph_used_longest_ago_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "MOST", 2)
    network = StandIn("small", Doubled(), [])
    for n in (1, 2, 1, 3, 1, 2):  # 3 takes the place of 2, and 2 that of 3
        network(batch(n))
        assert len(network._graphs) <= 2
    assert [shape[0] for shape in network.captured] == [1, 2, 3, 2]


def test_what_cannot_be_captured_is_run_by_torch_with_one_note() -> None:
    notes: list[str] = []
    network = OutOfMemory("small", Doubled(), notes)
    for n in (1, 2, 1, 3):
        doubled, _ = network(batch(n, 4.0))
        torch.testing.assert_close(doubled, batch(n, 8.0))
    assert (network.engine, network.captured, len(network._graphs)) == ("torch", [(1, 3, 2, 2)], 0)
    (note,) = notes
    assert note == (
        "small: torch runs it, for it cannot be captured as a CUDA graph: CUDA out of memory. Tried to allocate 2 GiB"
    )


def test_an_error_of_the_network_itself_reaches_the_caller() -> None:
    network = StandIn("small", nn.Linear(4, 1), [])
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        network(torch.zeros(1, 5))
