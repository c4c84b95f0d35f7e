"""docs/cli.md is what the commands say of themselves; one flag has one meaning in all of them."""

import re
from pathlib import Path

import pytest

from jobs.cli_page import COMMANDS, help_text, page, parser_of
from jobs.ingestion.adapters import ADAPTERS
from jobs.runs.marks import STAGES

REPO = Path(__file__).resolve().parents[2]
LINES = [(name,) for name in COMMANDS if name not in STAGES] + [("ingest", kind) for kind in ADAPTERS]
SHARED = {  # what --help says of a flag wherever there is one, but for the default in brackets
    "--device": r"where networks run: auto \(cuda if there is a GPU\), cpu or cuda",
    "--dry-run": r"--dry-run (say|with --update: (say|tell)) ",
    "--endpoint-url": r"--endpoint-url URL of an S3-compatible store \(AWS_ENDPOINT_URL, else AWS\)",
    "--imageset": r"--imageset (IMAGESET|URI\[:WEIGHT\]) ",
    "--json": "--json print (one )?JSON",
    "--set": "--set KEY=VALUE one setting on top of both, dotted key, YAML value",
    "--top": "--top N shop items shown for each garment ",
    "--version": "--version print the version and stop",
    "--weights-dir": r"--weights-dir PLACE folder or s3:// of the weight files \(",
}  # fmt: skip


def test_the_page_is_current() -> None:
    assert (REPO / "docs" / "cli.md").read_text(encoding="utf-8") == page(), "run `python -m jobs.cli_page`"


def test_every_command_is_on_the_page() -> None:
    scripts = {path.stem for path in (REPO / "jobs").glob("*.py") if "    cli.run(main)" in path.read_text()}
    assert set(COMMANDS) == scripts - {"cli"}


@pytest.mark.parametrize("line", LINES)
def test_a_shared_flag_is_described_in_the_same_words(line: tuple[str, ...]) -> None:
    usage, _, text = help_text(*line).partition("\n\n")
    said = " ".join(text.split())
    for flag in SHARED.keys() & set(re.findall(r"--[\w-]+", usage)):
        assert re.search(SHARED[flag], said), (line, flag)


def test_help_does_not_follow_the_terminal_or_the_programs_name() -> None:
    assert help_text("status").startswith("usage: status.py [-h] [--version]")
    assert parser_of("ingest", ["folder"]).prog == "ingest.py"
