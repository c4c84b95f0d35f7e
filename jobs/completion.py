"""Completion of the command line by the shell: `clothes --print-completion bash`, for all jobs and their flags.

In: the jobs' own parsers. Out: a script for bash, zsh or tcsh, made by shtab.
"""

import argparse

import shtab

from jobs import cli
from jobs.__main__ import JOBS, module_of
from jobs.cli_page import parser_of
from jobs.ingestion.adapters import ADAPTERS


def script(shell: str) -> str:
    """The script that completes `clothes` in this shell; values are completed as names of files, but where a flag has
    choices."""
    whole = cli.Parser(prog="clothes")
    jobs = whole.add_subparsers(dest="job")
    for job in JOBS:
        one = parser_of(module_of(job))
        if job == "ingest":
            kinds = _kinds(one)
            kinds |= {kind: _kinds(parser_of("ingest", [kind]))[kind] for kind in ADAPTERS}
            for parser in kinds.values():
                _complete_files(parser)
        _complete_files(one)
        jobs.add_parser(job, parents=[one], add_help=False, help="")
    return shtab.complete(whole, shell)


def _kinds(ingest: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers of ingest.py's kinds of sources, by name, as argparse holds them."""
    action = next(action for action in ingest._actions if isinstance(action, argparse._SubParsersAction))
    return action.choices  # type: ignore[return-value]


def _complete_files(parser: argparse.ArgumentParser) -> None:
    for action in parser._actions:
        if action.nargs != 0 and not action.choices:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
