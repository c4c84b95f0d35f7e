"""The golden runs: files and figures are what they were before the code was moved.

A difference that is meant is recorded by `python tests/golden/runs.py`, in the commit that means it.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "jobs")]

import runs  # noqa: E402


def recorded(name: str) -> dict[str, Any]:
    return json.loads((HERE / f"{name}.json").read_text())


def test_contract_files_of_an_evaluation(tmp_path: Path) -> None:
    assert runs.evaluation(tmp_path) == recorded("golden")["evaluation"]


def test_contract_files_of_a_gallery_over_three_nights(tmp_path: Path) -> None:
    assert runs.nights(tmp_path) == recorded("golden")["nights"]


@pytest.mark.slow
def test_figures_of_the_shipped_models(tmp_path: Path) -> None:
    """Networks round differently on other processors, so figures are compared, not bytes."""
    want, got = list(leaves(recorded("demo"))), list(leaves(runs.demo(tmp_path)))
    assert [place for place, _ in got] == [place for place, _ in want]
    for (place, found), (_, expected) in zip(got, want, strict=True):
        if isinstance(expected, int | float) and not isinstance(expected, bool):
            assert found == pytest.approx(expected, abs=1e-4), place
        else:
            assert found == expected, place


def leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of everything in a JSON document."""
    if isinstance(value, dict):
        for key in sorted(value):
            yield from leaves(value[key], f"{place}.{key}")
    elif isinstance(value, list):
        for i, entry in enumerate(value):
            yield from leaves(entry, f"{place}[{i}]")
    else:
        yield place, value
