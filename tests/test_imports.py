"""Who may know what: imports form floors and only fall, and each folder brings only what its trade needs."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "torchvision", "mmdet", "timm", "faiss", "ray", "boto3")
OURS = ("store", "sources", "networks", "detection", "retrieval", "postproc", "jobs")
FLOORS = (  # from the ground up: a room imports from its own floor's rooms of the same name and from the floors below
    ("postproc", "store"),
    ("networks", "sources"),
    ("detection", "retrieval"),
    ("jobs.cli",),
    ("jobs.runs",),
    ("jobs.reports",),
    ("jobs.stages",),
    ("jobs.ablation", "jobs.exports", "jobs.gallery", "jobs.ingestion", "jobs.training"),
    ("jobs.comparison",),
    ("jobs",),
)
ROOMS = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def imported(modules: list[str]) -> set[str]:
    """Top-level packages in sys.modules after importing `modules` alone."""
    code = (
        f"import sys, importlib\nfor m in {modules!r}: importlib.import_module(m)\n"
        "print(*{m.split('.')[0] for m in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, timeout=1000)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def modules_of(folder: str) -> list[str]:
    return [
        ".".join(p.relative_to(REPO).with_suffix("").parts)
        for p in sorted((REPO / folder).rglob("*.py"))
        if p.stem != "__init__"
    ]


@functools.cache
def imports() -> dict[str, set[str]]:
    """Module of the product -> modules of the product it imports, even inside functions and under TYPE_CHECKING."""
    modules = {module for folder in OURS for module in modules_of(folder)}
    found: dict[str, set[str]] = {}
    for module in sorted(modules):
        names: set[str] = set()
        for node in ast.walk(ast.parse((REPO / f"{module.replace('.', '/')}.py").read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        found[module] = (names & modules) - {module}
    return found


def room_of(module: str) -> str:
    """The longest room a module lies in."""
    return max((room for room in ROOMS if f"{module}.".startswith(f"{room}.")), key=len)


def test_imports_only_fall() -> None:
    upward = []
    for module, names in imports().items():
        for name in names:
            here, there = room_of(module), room_of(name)
            if ROOMS[there] > ROOMS[here] or (ROOMS[there] == ROOMS[here] and there != here):
                upward.append(f"{module} imports {name}")
    assert not upward


def test_no_circle_of_files() -> None:
    left = imports()
    while free := {module for module, names in left.items() if not names & left.keys()}:
        left = {module: names for module, names in left.items() if module not in free}
    assert not left, f"circles among {sorted(left)}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "may_know", "may_be_heavy"),
    [
        ("postproc", {"postproc"}, set()),
        ("store", {"store"}, set()),
        ("detection", {"detection", "postproc", "store", "networks"}, {"torch", "torchvision", "timm"}),
        ("sources", {"sources", "store"}, set()),
        ("networks", {"networks", "store"}, {"torch", "torchvision", "timm"}),
    ],
)
def test_a_folder_knows_only_its_neighbours(folder: str, may_know: set[str], may_be_heavy: set[str]) -> None:
    found = imported(modules_of(folder))
    assert found & set(OURS) <= may_know
    assert found & set(HEAVY) <= may_be_heavy


@pytest.mark.slow
def test_search_starts_without_torch_and_models_without_faiss() -> None:
    """Either takes seconds to import; they may share a process (tests/retrieval/test_with_torch.py)."""
    its_trade = [
        m for m in modules_of("retrieval") if m.startswith(("retrieval.index", "retrieval.ann", "retrieval.gallery"))
    ]
    with_faiss = imported(its_trade)
    assert "faiss" in with_faiss and "torch" not in with_faiss
    without = [m for m in modules_of("retrieval") if m not in its_trade]
    assert "faiss" not in imported(without)


def test_scripts_start_without_heavy_packages() -> None:
    scripts = [m for m in modules_of("jobs") if "__main__" in (REPO / f"{m.replace('.', '/')}.py").read_text()]
    assert "jobs.full_eval" in scripts and "jobs.status" in scripts
    assert not imported(scripts) & set(HEAVY)
