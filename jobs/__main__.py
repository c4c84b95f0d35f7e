"""Every job as a verb of one command, which the installed package has.

clothes --help                                                  # the jobs
clothes full-eval --imageset runs/set --output runs/first       # as python jobs/full_eval.py in the repository
python -m jobs full-eval --help                                 # the same without the command on the PATH
clothes --version
eval "$(clothes --print-completion bash)"                       # the shell completes jobs and flags (or zsh, tcsh)
"""

import argparse
import ast
import importlib
import sys
from pathlib import Path
from typing import Any, NoReturn

from jobs import cli

JOBS = (
    "ingest", "full-eval", "detect", "fuse", "embed", "rank", "evaluate", "report", "status", "reindex-gallery",
    "search", "ablate", "export", "train-detector", "train-embedder", "compare", "fit-categories",
)  # fmt: skip


def main() -> NoReturn:
    parser = cli.Parser(prog="clothes", description=_description())
    shells = ("bash", "zsh", "tcsh")
    parser.add_argument("--print-completion", action=PrintCompletion, choices=shells, help="for the shell, and stop")
    parser.add_argument("job", choices=JOBS, metavar="JOB", help="one of the above")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="…", help="of the job; JOB --help lists them")
    args = parser.parse_args()
    sys.argv = [f"clothes {args.job}", *args.arguments]  # messages and usage begin with it
    cli.run(importlib.import_module(f"jobs.{module_of(args.job)}").main)


class PrintCompletion(argparse.Action):
    """The action of --print-completion."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, shell: Any, option: str | None = None) -> None:
        print(importlib.import_module("jobs.cli_page").completion(shell))  # by name: it imports every job
        parser.exit()


def module_of(job: str) -> str:
    """The name of a job's file without .py."""
    return job.replace("-", "_")


def _description() -> str:
    """One line a job, the first of its file, which is not imported."""
    lines = ["Given a consumer's photo, find the very garment among shop photos. The jobs:\n"]
    for job in JOBS:
        text = (Path(__file__).parent / f"{module_of(job)}.py").read_text(encoding="utf-8")
        lines.append(f"  {job:16} {(ast.get_docstring(ast.parse(text)) or '').partition(chr(10))[0]}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
