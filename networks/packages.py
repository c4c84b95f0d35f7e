"""timm and torchvision, imported from here: without torch's compiler, which takes as long as all the rest of them.

torchvision imports it for the case that it has no operators of its own, timm to keep it away from some of its
functions; nothing here is compiled. Whoever imports the compiler later gets it.
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from networks.deferred import deferred


@contextmanager
def _nothing_to_disable() -> Iterator[None]:
    """`torch.compiler.disable`, which imports the compiler to mark a function, leaves functions as they are."""
    kept: Any = torch.compiler.disable
    torch.compiler.disable = lambda fn=None, *_, **__: (lambda each: each) if fn is None else fn  # type: ignore
    try:
        yield
    finally:
        torch.compiler.disable = kept


def __getattr__(name: str) -> Any:
    """`timm` and `torchvision`, each imported when it is first asked for."""
    if name not in ("timm", "torchvision"):
        raise AttributeError(name)
    with deferred("torch._dynamo"), _nothing_to_disable():
        return importlib.import_module(name)
