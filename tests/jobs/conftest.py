"""Fixtures of the jobs' tests: a small set for the stand-in models, and a pool that works in this process."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))  # stand_ins

import stand_ins

from jobs import full_eval
from jobs.runs import cluster, shards


@pytest.fixture(scope="session")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """25 photos in 5 shards, one of them cut off in the middle."""
    folder = tmp_path_factory.mktemp("small") / "imageset"
    stand_ins.imageset(folder)
    return folder


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, Any]]:
    """No Ray: jobs are done in this process, one after the other. The list names them: stage, shard, models."""
    done: list[tuple[str, str, Any]] = []
    monkeypatch.setattr(shards, "run_on_actors", functools.partial(stand_ins.here, done))
    monkeypatch.setattr(cluster, "start_ray", lambda settings: pytest.fail("started Ray"))
    return done


@pytest.fixture
def full() -> Callable[..., int]:
    """`full_eval` with stand-in models: (imageset, output, *arguments) -> exit status."""

    def run(imageset: Path | str, output: Path | str, *more: str) -> int:
        return full_eval.main(
            [*stand_ins.SETTINGS, "--imageset", str(imageset), "--output", str(output), *more], stand_ins.CATALOGUE
        )

    return run
