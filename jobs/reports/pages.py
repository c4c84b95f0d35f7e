"""What all pages share: the jinja environment, how numbers are spelt, and how a page and its files are published.

A page is report/NAME.html. Its style and scripts lie in report/assets/, the data of its scripts in report/data/*.js: a
page opened from a folder may not fetch, so each data file is a script that sets one entry of `window.REPORT`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jinja2

from store.categories import DEEPFASHION2, category_name
from store.objects import ObjectStore

FOLDER = "report/"
FIRST_PAGE = "report/index.html"
PLOTLY = "report/assets/plotly.min.js"
TEMPLATES = Path(__file__).resolve().parent / "templates"
PLAIN_NAMES = ("imageset", "images", "set", "run")  # of folders; the folder around one says more
ASSETS = ("report.css", "charts.js", "queries.js", "pictures.js")


@dataclass(frozen=True)
class Cell:
    """One figure of a table: what to print, and whether it is the best of its column."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Table:
    """What the macro `figures` prints."""

    head: list[str]  # names of the columns after the first
    rows: list[tuple[str, list[Cell]]]  # name of the row and its cells, as many as `head` has entries
    groups: tuple[tuple[str, int], ...] = ()  # a line over the head: names, and how many columns each spans


def environment(
    categories: Sequence[str] = DEEPFASHION2, names: Mapping[str, Callable[[int], str]] | None = None
) -> jinja2.Environment:
    """The templates with their filters. Everything is escaped; a name that a page is not given is an error.

    `categories` are the names that the filter `category` gives for ids, id 1 first; `names` are further filters, from
    a photo's id to what it is called.
    """
    loader = jinja2.FileSystemLoader(TEMPLATES)
    env = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    env.filters |= {
        "percent": percent,
        "signed": signed,
        "count": count,
        "category": partial(category_name, categories),
        **(names or {}),
    }
    return env


# ---- how numbers are spelt ---------------------------------------------------------------------------------------


def percent(fraction: float | None) -> str:
    """0.4567 -> 45.7; None, nothing measured -> a dash."""
    return "–" if fraction is None else f"{100 * fraction:.1f}"


def signed(fraction: float | None) -> str:
    """A difference in percentage points, with its sign; what rounds to zero has none.

    >>> signed(0.0123), signed(-0.5), signed(0.0), signed(None)
    ('+1.2', '−50.0', '0.0', '–')
    """
    if fraction is None:
        return "–"
    points = round(100 * fraction, 1)
    return "0.0" if points == 0 else f"{'+' if points > 0 else '−'}{abs(points):.1f}"


def interval(bounds: tuple[float, float] | None) -> str:
    """Two fractions in percent; nothing where there is no interval.

    >>> interval((0.6193, 0.7081)), interval(None)
    ('61.9 to 70.8', '')
    """
    return "" if bounds is None else f"{percent(bounds[0])} to {percent(bounds[1])}"


def count(number: int | None) -> str:
    return "–" if number is None else f"{number:,}"


def ordinal(number: int) -> str:
    """
    >>> [ordinal(n) for n in (1, 2, 3, 4, 11, 112, 1021)]
    ['1st', '2nd', '3rd', '4th', '11th', '112th', '1,021st']
    """
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number:,}{ending}"


def duration(seconds: float | None) -> str:
    """8.4 s, 12 min 05 s or 3 h 07 min; None -> a dash."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def title_of(uri: str) -> str:
    """What to call a folder: its name, or that of the folder around it where it is called what all are.

    >>> title_of("s3://bucket/runs/0142/"), title_of("runs/demo/imageset")
    ('0142', 'demo')
    """
    parts = [part for part in uri.split("/") if part and not part.endswith(":")] or ["image set"]
    named = [part for part in parts if part not in PLAIN_NAMES]
    return (named or parts)[-1]


# ---- publishing --------------------------------------------------------------------------------------------------


def publish_page(output: ObjectStore, name: str, text: str) -> str:
    """Write report/NAME.html; returns its key. A lone surrogate, which UTF-8 cannot hold, becomes a question mark."""
    key = f"{FOLDER}{name}.html"
    output.write(key, text.encode("utf-8", "replace"))
    return key


def publish_data(output: ObjectStore, name: str, content: Any) -> str:
    """Write report/data/NAME.js (see `as_script`); returns its key."""
    key = f"{FOLDER}data/{name}.js"
    output.write(key, as_script(name, content))
    return key


def publish_assets(output: ObjectStore, *, plotly: bool, names: Sequence[str] = ASSETS) -> set[str]:
    """Write the style and the scripts of the pages; returns their keys. plotly.js, 4.5 MB, only for charts."""
    for name in names:
        output.write(f"{FOLDER}assets/{name}", (TEMPLATES / name).read_bytes())
    keys = {f"{FOLDER}assets/{name}" for name in names}
    if plotly:
        from plotly.offline import get_plotlyjs

        script = get_plotlyjs().encode()
        if not output.exists(PLOTLY) or output.size(PLOTLY) != len(script):
            output.write(PLOTLY, script)
        keys.add(PLOTLY)
    return keys


def address(output: ObjectStore) -> str:
    """URI or path of the first page."""
    return f"{str(output.uri).rstrip('/')}/{FIRST_PAGE}"


# ---- data for scripts --------------------------------------------------------------------------------------------


def as_script(name: str, content: Any) -> bytes:
    """One file of data as ASCII JavaScript: sets `window.REPORT[name]`, where `name` is ours, never a user's.

    `content` is what `json.dumps` takes; NaN and infinity raise a ValueError. Ids of photos have 63 bits, more than
    JavaScript's numbers hold: pass them as texts. Names and reasons in it are whatever somebody called their photos, so
    the characters that could end a script element or begin markup are spelt as \\u escapes; the pages insert texts by
    textContent alone.

    >>> as_script("one", ["</script>"])
    b'(window.REPORT ??= {})["one"] = ["\\\\u003c/script\\\\u003e"];\\n'
    """
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))  # ASCII: U+2028 and lone surrogates are escaped
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return f'(window.REPORT ??= {{}})["{name}"] = {text};\n'.encode("ascii")


def content_of(script: bytes) -> Any:
    """The value of such a file.

    >>> content_of(as_script("one", {"a": [1, None]}))
    {'a': [1, None]}
    """
    return json.loads(script.partition(b" = ")[2].rstrip(b";\n"))
