"""Who may know what: each folder imported in a fresh interpreter brings only what its trade needs."""

import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "torchvision", "mmdet", "timm", "faiss", "ray", "boto3")
OURS = ("store", "detection", "retrieval", "postproc", "jobs", "pretrained")


def imported(modules: list[str]) -> set[str]:
    """Top-level packages in sys.modules after importing `modules` alone."""
    code = f"import sys, importlib\nfor m in {modules!r}: importlib.import_module(m)\nprint(*{{m.split('.')[0] for m in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def modules_of(folder: str) -> list[str]:
    return [
        ".".join(p.relative_to(REPO).with_suffix("").parts)
        for p in sorted((REPO / folder).rglob("*.py"))
        if p.stem != "__init__"
    ]


@pytest.mark.parametrize(
    ("folder", "may_know", "may_be_heavy"),
    [
        ("postproc", {"postproc"}, set()),
        ("store", {"store"}, set()),
        ("detection", {"detection", "postproc", "store", "pretrained"}, {"torch", "torchvision", "timm"}),
        ("retrieval/datasets", {"retrieval", "store"}, set()),
        ("pretrained", {"pretrained"}, {"torch", "torchvision", "timm"}),
    ],
)
def test_a_folder_knows_only_its_neighbours(folder: str, may_know: set[str], may_be_heavy: set[str]) -> None:
    found = imported(modules_of(folder))
    assert found & set(OURS) <= may_know
    assert found & set(HEAVY) <= may_be_heavy


def test_torch_and_faiss_never_meet() -> None:
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


def test_nothing_imports_jobs() -> None:
    for folder in ("store", "detection", "retrieval", "postproc", "pretrained"):
        for path in (REPO / folder).rglob("*.py"):
            lines = path.read_text().splitlines()
            assert not [line for line in lines if line.lstrip().startswith(("from jobs", "import jobs"))], path
