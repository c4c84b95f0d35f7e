"""Benchmarks take the flags that the documents and they themselves use; nothing else would say so for hours."""

import ast
import re
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
SCRIPTS = {path.stem: path for path in sorted((REPO / "benchmarks").glob("*.py"))}
DOCUMENTS = [*sorted((REPO / "docs").glob("*.md")), *sorted(REPO.glob("*.md")), REPO / "benchmarks" / "README.md"]
OF_A_RUN = {"--profile", "--imageset", "--set", "--config"}  # some that `jobs.runs.settings.add_arguments` adds
FLAG = r"--[a-z][a-z0-9-]*"


def flags(source: str) -> set[str]:
    """What a script's parser knows: named where `add_argument` is called, or in the loop around it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call | ast.For) and "add_argument(" in (text := ast.unparse(node)):
            head = text if isinstance(node, ast.Call) else ast.unparse(node.iter)
            found |= set(re.findall(rf"'({FLAG}|[a-z]\w*)'", head))
    return found | (OF_A_RUN if "add_arguments(" in source else set())


def used(text: str) -> list[tuple[str, str]]:
    """Script and flag of every command line in a text, but those of an earlier commit; a backslash continues a line."""
    of_today = re.sub(r"python benchmarks/[^`]*` of that commit", "", text)
    lines = re.findall(r"python benchmarks/(\w+)\.py((?:[^\n`\\]|\\\n)*)", of_today)
    return [(name, flag) for name, rest in lines for flag in re.findall(rf"(?<!\S){FLAG}", rest.split("#")[0])]


@pytest.mark.parametrize("path", [*DOCUMENTS, *SCRIPTS.values()], ids=lambda path: path.name)
def test_every_flag_of_a_command_line_exists(path: Path) -> None:
    wrong = [(name, flag) for name, flag in used(path.read_text()) if flag not in flags(SCRIPTS[name].read_text())]
    assert not wrong


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_value_that_a_script_takes_is_of_a_flag(name: str) -> None:
    source = SCRIPTS[name].read_text()
    known = {flag.removeprefix("--").replace("-", "_") for flag in flags(source)}
    assert set(re.findall(r"\bargs\.(\w+)", source)) <= known


def test_a_flag_that_is_gone_would_be_found() -> None:
    assert used("`python benchmarks/x.py run --old \\\n   --two 3  # --not`") == [("x", "--old"), ("x", "--two")]
    source = 'p.add_argument("--a")\nfor name in ("--b", "--c"):\n    p.add_argument(name)\nline = ["--d"]'
    assert flags(source) == {"--a", "--b", "--c"}
