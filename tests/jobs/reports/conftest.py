"""A run with four queries."""

from pathlib import Path

import pytest
import report_runs as runs

from store.imageset import ImageSet
from store.objects import ObjectStore, open_store


@pytest.fixture
def four(tmp_path: Path) -> tuple[ObjectStore, ImageSet]:
    """`report_runs.four`: 1 right at once, 2 right at rank 2, 3 wrong, 4 missed."""
    output = open_store(tmp_path / "run")
    return output, runs.four(tmp_path / "set", output)
