"""The flags that several commands have, each defined once, so that it means the same everywhere.

Nothing heavy is imported here: --help of every command comes through this file. A spelling that was given up goes on
working (`renamed`); --help lists the new one alone.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

from sources.arguments import whole

DEVICES = ("auto", "cpu", "cuda")
MOST_SHOWN = 1000  # shop items of a garment
Add = Callable[..., argparse.Action]  # `add_argument` of a parser or of a group


def renamed(argv: Sequence[str] | None, prog: str, old: str, new: str) -> list[str]:
    """A command line with the old spelling of a flag that takes a value replaced; standard error is told, once a line.

    The old flag without a value stays: it may mean something else by now.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    for i, word in enumerate(words):
        with_value = i + 1 < len(words) and not words[i + 1].startswith("-")
        if word.startswith(f"{old}=") or (word == old and with_value):
            words[i] = new + word.removeprefix(old)
            print(f"{prog}: {old} VALUE is now {new} VALUE; the old spelling goes on working", file=sys.stderr)
            break
    return words


def add_imageset(add: Add, *, text: str) -> None:
    add("--imageset", action="append", default=[], metavar="IMAGESET", help=text)


def add_device(add: Add, *, default: str | None = None, numbered: bool = False) -> None:
    """--device. With `default` None the settings decide; `numbered` takes cuda:N too, one of several GPUs."""
    text = f"where networks run: auto (cuda if there is a GPU), cpu or cuda{' or cuda:N' if numbered else ''}"
    text += f" ({default or 'the setting `device`'})"
    limits: dict[str, Any] = {"metavar": "DEVICE"} if numbered else {"choices": DEVICES}
    add("--device", default=default, help=text, **limits)


def add_weights_dir(add: Add, *, otherwise: str) -> None:
    add("--weights-dir", metavar="PLACE", help=f"folder or s3:// of the weight files ({otherwise})")


def add_endpoint_url(add: Add) -> None:
    add("--endpoint-url", metavar="URL", help="of an S3-compatible store (AWS_ENDPOINT_URL, else AWS)")


def add_dry_run(add: Add, *, text: str = "say what would be done and write nothing") -> None:
    add("--dry-run", action="store_true", help=text)


def add_top(add: Add, *, default: int | None = None, most: int = MOST_SHOWN, otherwise: str = "") -> None:
    shown = otherwise or str(default)
    add("--top", type=whole(1, most), default=default, metavar="N", help=f"shop items shown for each garment ({shown})")


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Everything that changes settings, for commands that read them with `jobs.runs.settings.load`."""
    add = parser.add_argument_group("settings").add_argument
    add("--profile", choices=("tiny", "paper"), help="models and sizes to start from (tiny)")
    add("--config", metavar="RUN.yaml", help="settings on top of the profile's")
    add(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
        help="one setting on top of both, dotted key, YAML value, e.g. fusion.method=nms; may be repeated",
    )  # fmt: skip
    add_device(add)
    add_weights_dir(add, otherwise="weights/PROFILE, as shipped")
    add_endpoint_url(add)
    add("--print-config", action="store_true", help="print every setting with where it comes from, and stop")
    add("--list-models", action="store_true", help="print the models that can be named, and whose weights are here")
