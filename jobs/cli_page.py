"""docs/cli.md and the shells' completion of `clothes`, made of the commands' own parsers.

python -m jobs.cli_page
clothes --print-completion bash
"""

import argparse
import contextlib
import functools
import importlib
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import shtab

from jobs.__main__ import JOBS, module_of
from jobs.ingestion.adapters import ADAPTERS
from jobs.runs.marks import STAGES
from jobs.stages import order

PAGE = Path(__file__).resolve().parents[1] / "docs" / "cli.md"
WIDTH = "100"  # columns of the terminal
COMMANDS = tuple(map(module_of, JOBS))
HEAD = """# Command lines

What `--help` of every command prints; this page is made by `python -m jobs.cli_page`.

One flag means one thing, in every command that has it:

| flag | means |
|---|---|
| `--device` | where networks run: `auto` (cuda if there is a GPU), `cpu` or `cuda`; trainings take `cuda:N` too |
| `--weights-dir` | the folder or bucket of the weight files |
| `--endpoint-url` | address of an S3-compatible store, for every place of the line |
| `--dry-run` | say what would be done and write nothing |
| `--set KEY=VALUE` | one setting, on top of the profile and the run file ([settings](settings.md)) |
| `--top` | how many shop items are shown for each garment |
| `--print-config` | every setting with its source: default, profile, run file, command line; saved, it is a run file |
| `--list-models` | the models that a run file can name: kind, size of input, whether their weights are here |
| `--json` | the answer as JSON instead of text |
| `--version` | the version of the project |

`--print-config` and `--list-models` need no other flag. Old spellings go on working and say the new one on standard
error: `search.py --version NAME` is `--gallery-version NAME`. The command `clothes` has completion by the shell, of
jobs and their flags: `eval "$(clothes --print-completion bash)"` in `~/.bashrc`; `zsh` and `tcsh` likewise.
"""


def page() -> str:
    return HEAD + "".join(_sections())


def _sections() -> Iterator[str]:
    for name in COMMANDS:
        yield f"\n## {name}.py\n\n"
        if name in STAGES:
            yield f"{_module_text(name)}\n\nThe flags are those of [full_eval.py](#full_evalpy).\n"
            continue
        yield _block(name)
        for kind in ADAPTERS if name == "ingest" else ():
            yield f"\n### ingest.py {kind}\n\n{_block(name, kind)}"


def _module_text(name: str) -> str:
    """The first paragraph of a stage's own words."""
    return " ".join((importlib.import_module(f"jobs.{name}").__doc__ or "").partition("\n\n")[0].split())


def _block(name: str, *kind: str) -> str:
    return f"```text\n{help_text(name, *kind)}```\n"


@functools.cache
def help_text(name: str, *kind: str) -> str:
    """What `python jobs/NAME.py [KIND] --help` prints on a terminal of 100 columns."""
    parser = parser_of(name, kind)
    said, columns = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = WIDTH
    try:
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            parser.parse_args([*kind, "--help"])
    finally:
        os.environ.pop("COLUMNS") if columns is None else os.environ.update(COLUMNS=columns)
    return said.getvalue()


def parser_of(name: str, kind: Sequence[str] = ()) -> argparse.ArgumentParser:
    """A command's parser; of ingest.py, that with the arguments of one kind of source."""
    module = importlib.import_module(f"jobs.{name}")
    if name == "ingest":
        parser: argparse.ArgumentParser = module.parser(list(kind))
    else:
        stage = name in (*STAGES, "full_eval")
        parser = order.parser(module.__doc__) if stage else module.parser()
    parser.prog = f"{name}.py"
    return parser


# --- completion -------------------------------------------------------------------------------------------------------


def completion(shell: str) -> str:
    """The script that completes `clothes` in this shell; values are completed as names of files, but where a flag has
    choices."""
    whole = argparse.ArgumentParser(prog="clothes")
    verbs = whole.add_subparsers(dest="job")
    for job in JOBS:
        one = parser_of(module_of(job))
        if job == "ingest":
            kinds = _kinds(one)
            kinds |= {kind: _kinds(parser_of("ingest", [kind]))[kind] for kind in ADAPTERS}
            for parser in kinds.values():
                _complete_files(parser)
        _complete_files(one)
        verbs.add_parser(job, parents=[one], add_help=False, help="")
    return shtab.complete(whole, shell)


def _kinds(ingest: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers of ingest.py's kinds of sources, by name, as argparse holds them."""
    action = next(action for action in ingest._actions if isinstance(action, argparse._SubParsersAction))
    return action.choices  # type: ignore[return-value]


def _complete_files(parser: argparse.ArgumentParser) -> None:
    for action in parser._actions:
        if action.nargs != 0 and not action.choices:
            action.complete = shtab.FILE  # type: ignore[attr-defined]


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
