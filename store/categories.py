"""Names of garment categories: an image set lists its own, and a category id is a place in such a list, counted from 1.

DeepFashion2's thirteen are those of its adapter, of the models shipped with this project, and of image sets made before
sets named their categories. Source: DeepFashion2, arXiv:1901.07973, section 3.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

DEEPFASHION2: tuple[str, ...] = (
    "short sleeve top",
    "long sleeve top",
    "short sleeve outwear",
    "long sleeve outwear",
    "vest",
    "sling",
    "shorts",
    "trousers",
    "skirt",
    "short sleeve dress",
    "long sleeve dress",
    "vest dress",
    "sling dress",
)
MOST = 2**15 - 1  # ids are int16
LONGEST = 200  # letters of a name


def category_name(names: Sequence[str], category_id: int) -> str:
    """The name of a category, `category 14` for an id that the list lacks, and `photo` for 0: no category, all of it.

    >>> category_name(DEEPFASHION2, 8), category_name(("cape",), 2), category_name((), 0)
    ('trousers', 'category 2', 'photo')
    """
    if not category_id:
        return "photo"
    return names[category_id - 1] if 1 <= category_id <= len(names) else f"category {category_id}"


def recorded(record: Mapping[str, Any]) -> tuple[str, ...]:
    """The categories of a run.json, metrics.json or version.json; DeepFashion2's in one from before they were data."""
    return tuple(record.get("categories") or DEEPFASHION2)


def problem(names: Sequence[str]) -> str | None:
    """Why these cannot be the categories of an image set, or None."""
    if len(names) > MOST:
        return f"{len(names)} categories, at most {MOST} are possible"
    for name in names:
        if (reason := name_problem(name)) is not None:
            return reason
    if len(set(names)) < len(names):
        return f"category {next(name for name in names if names.count(name) > 1)!r} is named twice"
    return None


def name_problem(name: object) -> str | None:
    """Why this cannot be a category's name, or None."""
    if not isinstance(name, str) or not name or name != name.strip() or not name.isprintable() or len(name) > LONGEST:
        return f"category {str(name)[:60]!r}: want a name of 1 to {LONGEST} printable letters, without spaces around it"
    return None


class CategoryList(Sequence[str]):
    """Names in order of their first use, which grows while photos are read."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._ids = {name: i for i, name in enumerate(dict.fromkeys(names), 1)}

    def id_of(self, name: str) -> int:
        """The id of a name, which is added where it is new. Raises ValueError for a name that cannot be one."""
        if name not in self._ids:
            if (reason := name_problem(name)) is not None:
                raise ValueError(reason)
            if len(self) == MOST:
                raise ValueError(f"category {name!r}: there are {MOST} already, more are not possible")
            self._ids[name] = len(self) + 1
        return self._ids[name]

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[str]: ...
    def __getitem__(self, place: int | slice) -> str | Sequence[str]:
        return list(self._ids)[place]

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._ids)
