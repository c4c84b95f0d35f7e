"""Data for a static page: a script file that lays one value into `window.REPORT`, for a page opened from a folder may not fetch.

In: plain JSON content. Out: ASCII bytes of JavaScript. Names and reasons in it are whatever somebody called their photos, so the
signs that could end a script element or begin markup are spelt as \\u escapes; the page lays texts in by textContent alone.
"""

import json
from collections.abc import Iterable
from typing import Any

import numpy as np


def as_script(name: str, content: Any) -> bytes:
    """One file of data.

    Args:
        name: its key in `window.REPORT`; ours, never a name of somebody's.
        content: what `json.dumps` takes, without NaN. Ids of photos are 63 bits long: they go in as texts.

    Raises:
        ValueError: a number that JSON does not have.

    >>> as_script("one", ["</script>"])
    b'(window.REPORT ??= {})["one"] = ["\\\\u003c/script\\\\u003e"];\\n'
    """
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))  # ASCII: U+2028 and half letters are escaped
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return f'(window.REPORT ??= {{}})["{name}"] = {text};\n'.encode("ascii")


def content_of(script: bytes) -> Any:
    """The value of such a file.

    >>> content_of(as_script("one", {"a": [1, None]}))
    {'a': [1, None]}
    """
    return json.loads(script.partition(b" = ")[2].rstrip(b";\n"))


def rounded(values: Iterable[float | None] | np.ndarray, digits: int = 4) -> list[float | None]:
    """Figures short enough for a chart.

    >>> rounded([0.123456, None])
    [0.1235, None]
    """
    return [None if value is None else round(float(value), digits) for value in values]
