"""What every script of this folder shares: where it imports from, how it reads its arguments, and how it ends.

A script begins, right after its standard-library imports, with these two lines, so that `python jobs/NAME.py` imports
from the repository and not from jobs/, where `report` or `search` would hide other modules of that name. A copy of the
script elsewhere, as `ray submit` makes one, imports the installed packages, and importing a script changes nothing.

    if __name__ == "__main__" and (Path(__file__).resolve().parents[1] / "jobs" / "cli.py").is_file():
        sys.path[0] = str(Path(__file__).resolve().parents[1])

and ends with

    if __name__ == "__main__":
        cli.run(main)

Exit status: what `main` returns (None: 0); 2 and one line for a mistake of the user's; 130 after Ctrl-C or SIGTERM; 1
for anything else.
"""

import argparse
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TextIO, cast

import jobs

LONGEST_LINE = 1000  # characters
ANSWERS = ("--print-config", "--list-models")  # flags with which a command prints something and stops


def one_line(text: str) -> str:
    """Text of unknown origin made safe for a terminal: one line, control characters escaped, a long middle cut out."""
    line = " ".join(text.split())
    if len(line) > LONGEST_LINE:  # the end often holds the reason
        line = f"{line[: LONGEST_LINE // 2]} … {line[-LONGEST_LINE // 2 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


class Parser(argparse.ArgumentParser):
    """A parser whose `description` is shown as it is written, line by line. It knows --version."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter} | how)
        if self.add_help:
            self.add_argument("--version", action=ShowVersion, nargs=0, help="print the version and stop")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's own; beside a flag that only asks for something to read, nothing is required."""
        if set(ANSWERS) & set(sys.argv[1:] if args is None else args):
            for action in self._actions:
                action.required = False
        return super().parse_known_args(args, namespace)


class ShowVersion(argparse.Action):
    """The action of --version."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(f"clothes {jobs.__version__}")
        parser.exit()


class Once(argparse.Action):
    """The action of a flag that takes one image set beside flags that take several: it is refused when given twice."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        if option and getattr(self, "given_to", None) is namespace:
            parser.error(f"{option} is given twice, and takes one value")
        self.given_to = namespace
        setattr(namespace, self.dest, values)


class _Output:
    """Standard output or error that is full, or closed, costs what is printed and not the work that prints it.

    `reader_ends_work`: a reader that closes the pipe, as `| head` does, ends the work with a BrokenPipeError.
    """

    def __init__(self, stream: TextIO | None, *, reader_ends_work: bool) -> None:
        self.stream, self.failed, self.reader_ends_work = stream or io.StringIO(), "", reader_ends_work
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a path need not be valid Unicode

    def write(self, text: str) -> int:
        self._try(self.stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._try(self.stream.flush)

    def _try(self, work: Callable[..., Any], *arguments: Any) -> None:
        try:
            if not self.failed:
                work(*arguments)
        except OSError as error:
            if self.reader_ends_work and isinstance(error, BrokenPipeError):
                raise
            self.failed = error.strerror or str(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _stop(number: int, frame: FrameType | None) -> None:
    """SIGTERM ends a command as Ctrl-C does: locks are released, and the same line continues."""
    raise KeyboardInterrupt


def run(main: Callable[[list[str] | None], int | None]) -> NoReturn:
    """Call `main(None)`, which reads sys.argv, and end the process.

    An exception whose class has `user_facing = True` is printed as one line on standard error, since the user can do
    something about it: a bad argument (`store.errors.UserError`), storage out of reach, a folder that is no image set.
    """
    name = Path(sys.argv[0]).name
    output = _Output(sys.stdout, reader_ends_work=True)
    sys.stdout = cast(TextIO, output)
    sys.stderr = cast(TextIO, _Output(sys.stderr, reader_ends_work=False))
    try:
        os.getcwd()
    except FileNotFoundError:
        print(f"{name}: error: the working folder has been deleted; change to one that exists", file=sys.stderr)
        sys.exit(2)
    signal.signal(signal.SIGTERM, _stop)
    try:
        status = main(None) or 0
        output.flush()
        if output.failed:
            print(f"{name}: the work is done, but standard output was cut: {output.failed}", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"{name}: stopped", file=sys.stderr)
        status = 130
    except BrokenPipeError:  # `… | head` has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        status = 1
    except Exception as error:
        if getattr(error, "user_facing", False):
            print(f"{name}: error: {one_line(str(error))}", file=sys.stderr)
            status = 2
        else:
            traceback.print_exc()
            status = 1
    sys.exit(status)
