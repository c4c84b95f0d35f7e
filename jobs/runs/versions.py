"""Versions of packages and of our own code on a node, and how Ray's processes find that code."""

import contextlib
import functools
import hashlib
import os
import platform
import types
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from networks import calls
from store.errors import UserError

ROOT = Path(__file__).resolve().parents[2]  # of the repository, or of the installed packages
PACKAGES = ("torch", "torchvision", "timm", "openvino", "onedl-mmdetection", "ray", "faiss-cpu", "pyarrow", "numpy")
SOURCES = ("detection", "jobs", "networks", "postproc", "retrieval", "sources", "store")


def versions() -> dict[str, str]:
    """Versions of what decides the numbers, the digest of our own code among them, without importing any of it."""
    return dict(_versions())


@functools.cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    source = hashlib.sha256()  # of every Python file of ours that workers run
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*.py")):
            source.update(f"{path.relative_to(ROOT).as_posix()}\0".encode() + path.read_bytes())
    return found | {"source": source.hexdigest()[:12]}


def refuse_other_versions(node: str, there: Mapping[str, Any]) -> None:
    """Refuse a node without the packages or code of this process: results would depend on which node a shard met."""
    here = versions()
    other = [name for name in here if name != "machine" and name in there and there[name] != here[name]]
    if other:
        told = ", ".join(f"{name} {there[name]} (here {here[name]})" for name in other)
        raise UserError(f"node {node} has {told}; install the same lock and copy the same code on every node")


def our_code(env: Mapping[str, str] = types.MappingProxyType({})) -> dict[str, Any]:
    """A runtime environment whose processes find our packages where this process has them, and these variables."""
    found = {calls.FOLDER: os.getcwd()} | dict(env)
    if "working_dir" not in os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", ""):  # a submitted job brings its own copy
        found["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    else:
        del found[calls.FOLDER]  # in which a worker starts
    return {"env_vars": found}
