"""A network on a GPU as CUDA graphs: one call starts all its kernels, which otherwise start one by one from Python.

    network = GraphedNetwork("atss-tiny", module, notes)
    levels = network(batch)      # what module(batch) returns, valid until the next call

A graph belongs to one shape and dtype of batch. It is captured at the first such batch and replayed at the others.
"""

import functools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

MOST = 16  # graphs of a network: each keeps its input and its outputs, up to some 0.3 GB for a batch of large photos
WARM_UP = 3  # passes before a capture, in which libraries load their kernels and choose among them

Replay = Callable[[Tensor], Any]


class GraphedNetwork:
    """A module on a GPU, replayed from CUDA graphs; where it cannot be captured torch runs it, and a note says so.

    Args:
        name: the model's, for the note.
        module: in eval mode, of one batch. Its kernels and shapes may depend on the batch's shape and dtype, not on its
            values. It is captured as it is called: in the caller's autocast.
        notes: a list that takes the note.

    Not for two threads at once: all graphs of a network compute in the same memory.
    """

    def __init__(self, name: str, module: nn.Module, notes: list[str]) -> None:
        self.name, self.module, self.notes = name, module, notes
        self.engine = "cudagraph"  # torch once a capture has failed
        self._graphs: OrderedDict[tuple[torch.Size, torch.dtype], Replay] = OrderedDict()  # the last used at the end

    @torch.inference_mode()
    def __call__(self, batch: Tensor) -> Any:
        """What the module returns for a batch on its GPU. The next call, of any shape, may overwrite it."""
        key = batch.shape, batch.dtype
        if self.engine == "cudagraph" and key not in self._graphs:
            self._add(key, batch)
        if self.engine == "torch":
            return self.module(batch)
        self._graphs.move_to_end(key)
        return self._graphs[key](batch)

    def _add(self, key: tuple[torch.Size, torch.dtype], batch: Tensor) -> None:
        """Capture a graph in the place of the one that was used longest ago; give all up where that fails."""
        while len(self._graphs) >= MOST:
            self._graphs.popitem(last=False)  # its memory is the next graph's
        try:
            self._graphs[key] = self._capture(batch)
            return
        except RuntimeError as error:  # CUDA's own, out of memory too
            reason = " ".join(str(error).split())[:300]
        self.notes.append(f"{self.name}: torch runs it, for it cannot be captured as a CUDA graph: {reason}")
        self.engine = "torch"
        self._graphs.clear()
        torch.cuda.empty_cache()  # after the except block: the failed capture's tensors are gone only now

    def _capture(self, batch: Tensor) -> Replay:
        """A function that replays the module on batches like this one."""
        given = batch.clone()  # of the same layout in memory
        # After a failed capture some versions of torch leave the stream of the capture as the current one.
        restored = torch.cuda.stream(torch.cuda.current_stream(batch.device))
        with torch.cuda.device(batch.device), restored, _without_cached_casts():
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    self.module(given)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # thread_local: what other threads ask of the GPU meanwhile does not spoil the capture
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                outputs = self.module(given)

        def replay(batch: Tensor) -> Any:
            given.copy_(batch)
            graph.replay()
            return outputs

        return replay

    @functools.cached_property
    def _pool(self) -> Any:
        """The memory that all graphs share: that of the largest, not of all together."""
        return torch.cuda.graph_pool_handle()


def _without_cached_casts() -> torch.autocast:
    """The caller's autocast without its cache: a cached copy of a weight would be gone when the graph is replayed."""
    enabled, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    return torch.autocast("cuda", dtype, enabled=enabled, cache_enabled=False)
