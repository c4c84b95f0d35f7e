"""Packages that wait for their first use, and what that leaves out where torch, timm and mmdetection are imported."""

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from networks.deferred import deferred

REPO = Path(__file__).resolve().parents[2]
FILES = {
    "waits/__init__.py": "",
    "waits/figures.py": "def double(n):\n    return 2 * n\n\n\nclass Canvas:\n    width = 7\n",
    "takes.py": "import waits.figures as figures\nfrom waits.figures import Canvas, double\n",
    "derives.py": "from waits.figures import Canvas\n\n\nclass Mine(Canvas):\n    pass\n",
    "calls.py": "from waits.figures import double\n\nFOUR = double(2)\n",
    "guards.py": "try:\n    import absent\nexcept ImportError:\n    absent = None\n",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two packages and those that import them, on the path."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] in {"waits", "takes", "guards"}]:
        del sys.modules[name]


def test_a_deferred_package_is_imported_when_it_is_used(folder: None) -> None:
    with deferred("waits"):
        takes = importlib.import_module("takes")
    assert "waits" not in sys.modules
    assert takes.double(3) == 6 and "waits.figures" in sys.modules
    assert takes.Canvas.width == 7 and takes.figures.double(4) == 8
    assert importlib.import_module("waits.figures").double is takes.figures.double


def test_below_a_package_that_is_not_deferred(folder: None) -> None:
    with deferred("waits.figures"):
        takes = importlib.import_module("takes")
    assert not hasattr(sys.modules["waits"], "figures")
    assert takes.double(3) == 6 and hasattr(sys.modules["waits"], "figures")


def test_one_that_is_imported_already_is_used(folder: None) -> None:
    figures = importlib.import_module("waits.figures")
    with deferred("waits"):
        assert importlib.import_module("takes").figures is figures
    assert sys.modules["waits.figures"] is figures


def test_one_that_is_not_installed_is_missing(folder: None) -> None:
    with deferred("absent"):
        assert importlib.import_module("guards").absent is None


@pytest.mark.parametrize("module, error, told", [
    ("derives", TypeError, "_Name"),
    ("calls", ImportError, "waits.figures.double is used while its import is deferred"),
])  # fmt: skip
def test_what_cannot_wait_is_an_error_at_once(folder: None, module: str, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told), deferred("waits"):
        importlib.import_module(module)
    assert "waits" not in sys.modules


@pytest.mark.slow
def test_a_worker_imports_neither_compiler_nor_plots() -> None:
    code = """
import sys
from detection import backbones, mmcv_ops
mmcv_ops.install()
backbones.register()
import retrieval.embedder, retrieval.timm_networks
print(sorted({"torch._dynamo", "sympy", "triton", "sklearn", "matplotlib", "pandas", "rich"} & set(sys.modules)))

import torch, torch._dynamo, scipy.optimize
from mmdet.models.task_modules.assigners.hungarian_assigner import linear_sum_assignment
rows, columns = linear_sum_assignment([[4, 1], [2, 3]])
print(torch.compiler.disable(len)([1, 2]), columns.tolist(), scipy.optimize.__spec__.loader is not None)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, timeout=600)
    assert done.stdout.splitlines() == ["[]", "2 [1, 0] True"], done.stderr
