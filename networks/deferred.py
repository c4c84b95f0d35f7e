"""Packages that another package imports and that inference never calls: they are imported when they are first used.

    with deferred("sklearn", "scipy.optimize"):
        import mmdet.models

mmdetection and torchvision import plotting, statistics and torch's compiler for functions that we seldom or never call;
together they take longer than all that is needed (benchmarks/start.py).
"""

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


class _Name:
    """Stands for something in a deferred module; a call or an attribute imports the module."""

    def __init__(self, module: str, name: str) -> None:
        self._module, self._name = module, name

    def _real(self) -> Any:
        if isinstance(sys.modules.get(self._module), _Module):
            raise ImportError(f"{self._module}.{self._name} is used while its import is deferred")
        return getattr(importlib.import_module(self._module), self._name)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._real()(*arguments, **named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked for by whoever looks at a value's kind, such as `typing`
            raise AttributeError(name)
        return getattr(self._real(), name)


class _Module(ModuleType):
    """Stands for a deferred module."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:  # `from module import name`, while it is deferred
            return _Name(self.__name__, name)
        return getattr(importlib.import_module(self.__name__), name)


class _Finder(MetaPathFinder, Loader):
    """Finds stand-ins for installed packages and what is below them."""

    def __init__(self, packages: Sequence[str]) -> None:
        self.packages = packages

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        below = any(name.startswith(f"{package}.") for package in self.packages)
        if below or (name in self.packages and PathFinder.find_spec(name, path) is not None):
            return ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


@contextmanager
def deferred(*packages: str) -> Iterator[None]:
    """Within the block, an import of these packages or of what is below them waits until a name of it is used.

    After the block everyone imports them as ever. One that is not installed is missing, and one that is imported
    already is used. A name that the block takes from a package may be called and asked for attributes; to derive a
    class from it is a TypeError.
    """
    finder = _Finder(packages)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name, module in sys.modules.items() if isinstance(module, _Module)]:
            module = sys.modules.pop(name)
            parent, _, child = name.rpartition(".")
            if parent in sys.modules and vars(sys.modules[parent]).get(child) is module:
                delattr(sys.modules[parent], child)
