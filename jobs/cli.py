"""What every script of this folder shares: where it imports from, and how it ends.

A script begins, right after its standard-library imports, with these two lines, so that `python jobs/NAME.py` imports
from the repository and not from jobs/ (where `config` or `report` would hide other modules of that name). A copy of the
script somewhere else, as `ray submit` makes one, finds the installed packages, and importing a script changes nothing.

    if __name__ == "__main__" and (Path(__file__).resolve().parents[1] / "jobs" / "cli.py").is_file():
        sys.path[0] = str(Path(__file__).resolve().parents[1])

and ends with

    if __name__ == "__main__":
        cli.run(main)

Exit status: what `main` returns (None: 0); 2 for a mistake of the user's, said in one line; 130 after Ctrl-C; 1
anything else.
"""

import io
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

LONGEST_LINE = 1000  # letters


class UserError(Exception):
    """A bad argument or input. The message is one line: what was wanted, the value seen, what to try."""


def one_line(text: str) -> str:
    """Text of unknown origin for a terminal: line ends become blanks, what would steer the terminal is spelt out, the middle may be cut."""
    line = " ".join(text.split())
    if len(line) > LONGEST_LINE:  # what is wrong is said at the end
        line = f"{line[: LONGEST_LINE // 2]} … {line[-LONGEST_LINE // 2 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def run(main: Callable[[list[str] | None], int | None]) -> NoReturn:
    """Call `main(None)` (which reads sys.argv) and leave the process.

    Besides UserError, any exception whose class says `user_facing = True` is the user's to mend: storage that cannot be
    reached, an image set that is not one. It is printed as one line on standard error.
    """
    name = Path(sys.argv[0]).name
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path need be no text
    try:
        status = main(None) or 0
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(f"{name}: stopped", file=sys.stderr)
        status = 130
    except BrokenPipeError:  # `… | head`: whoever read us has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except Exception as error:
        if isinstance(error, UserError) or getattr(error, "user_facing", False):
            print(f"{name}: error: {one_line(str(error))}", file=sys.stderr)
            status = 2
        else:
            traceback.print_exc()
            status = 1
    sys.exit(status)
