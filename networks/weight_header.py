"""What a file of safetensors says of itself in its header, read without torch: the names of a detector's categories."""

import contextlib
import json
from collections.abc import Callable

from store.categories import problem

CATEGORIES = "categories"  # key of the header's `__metadata__`: the names, id 1 first, as a JSON list
LONGEST = 100_000_000  # bytes of a header, as safetensors itself limits it


def metadata_of(categories: tuple[str, ...]) -> dict[str, str]:
    """The `__metadata__` to save a detector's weights with."""
    return {CATEGORIES: json.dumps(list(categories))}


def read_categories(read: Callable[[int], bytes]) -> tuple[str, ...] | None:
    """The names that a detector's weights were saved with; `read` gives the next bytes of the file.

    None where it names none, as weights trained before November 2026, or is no file of safetensors: loading it says so.
    Raises ValueError for names that cannot be categories'.
    """
    names = None
    with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
        size = int.from_bytes(read(8), "little")
        if size <= LONGEST:
            names = json.loads(json.loads(read(size))["__metadata__"][CATEGORIES])
    if names is None:
        return None
    reason = problem(names) if isinstance(names, list) and names else "want a list of at least one name"
    if reason:
        raise ValueError(f"its header names categories {str(names)[:200]}: {reason}")
    return tuple(names)
