"""The categories of a run, and which of them each detector's classes become.

In: the image set and the detectors. Out: names, category id 1 first, and the detectors with their `category_ids`. A
class becomes the category of its name, or the one that the detector's `classes` names for it; letter case does not
count where it decides nothing. One that fits nothing is left out, which `remarks` says.
"""

import dataclasses
import difflib
from collections import Counter
from collections.abc import Iterator, Sequence

from jobs.runs.models import Model
from store.categories import DEEPFASHION2
from store.errors import UserError
from store.imageset import ImageSet

MOST_NAMED = 10  # names in a line


def resolve(images: ImageSet, detectors: Sequence[Model]) -> tuple[tuple[str, ...], tuple[Model, ...]]:
    """The categories of a run over an image set, and the detectors as they serve it.

    They are the set's; where it states none, what the detectors find, in order of first appearance.
    """
    found = (name for model in detectors for name in found_by(model).values() if name is not None)
    categories = images.categories or tuple(dict.fromkeys(found))
    return categories, with_category_ids(detectors, categories)


def with_category_ids(detectors: Sequence[Model], categories: Sequence[str]) -> tuple[Model, ...]:
    """The detectors with the category id that each of their classes becomes, 0 where it is none of the categories.

    Raises:
        UserError: `classes` names no class of the detector or no category of the run, or none of its classes fits.
    """
    exact = {name: i for i, name in enumerate(categories, 1)}
    folded = Counter(name.casefold() for name in categories)
    caseless = {name.casefold(): i for name, i in exact.items() if folded[name.casefold()] == 1}

    def id_of(name: str | None) -> int:
        return 0 if name is None else exact.get(name) or caseless.get(name.casefold(), 0)

    models = []
    for model in detectors:
        for ours in _renamed(model).values():
            if ours is not None and not id_of(ours):
                raise UserError(f"{model.name}: classes: {ours!r} is no category of this run; {near(ours, categories)}")
        # a detector that names no classes has the run's own ids
        became = tuple(map(id_of, found_by(model).values())) or tuple(exact.values())
        if not any(became):
            raise UserError(
                f"{model.name}: none of its classes ({listed(classes_of(model))}) is a category of this run "
                f"({listed(categories)}); say with `classes: {{its name: ours}}` which become which"
            )
        models.append(dataclasses.replace(model, category_ids=became))
    return tuple(models)


def remarks(detectors: Sequence[Model], categories: Sequence[str]) -> Iterator[str]:
    """What is left out and what cannot be found, a line each; `detectors` have their category ids."""
    for model in detectors:
        named = _renamed(model)  # what is left out by name needs no remark
        pairs = zip(classes_of(model), model.category_ids, strict=False)  # none of a detector without names
        unused = [own for own, i in pairs if not i and own not in named]
        if unused:
            yield f"{model.name}: boxes of {listed(unused)} are left out; no category of this run has such a name"
    spelt: dict[str, list[str]] = {}
    for name in categories:
        spelt.setdefault(name.casefold(), []).append(name)
    for alike in (names for names in spelt.values() if len(names) > 1):
        yield f"categories {' and '.join(map(repr, alike))} differ in letter case alone: they are {len(alike)} here"
    found = {i for model in detectors for i in model.category_ids}
    missing = [name for i, name in enumerate(categories, 1) if i not in found]
    if missing and detectors:
        yield f"no detector finds {listed(missing)}"


def classes_of(model: Model) -> tuple[str, ...]:
    """A detector's own names of what it finds, in the order of its outputs."""
    return tuple(getattr(model.spec, "categories", DEEPFASHION2))


def found_by(model: Model) -> dict[str, str | None]:
    """A detector's class -> the name it goes by in the run, None where its boxes are left out."""
    return {own: own for own in classes_of(model)} | _renamed(model)


def _renamed(model: Model) -> dict[str, str | None]:
    """The detector's `classes`; a UserError refuses one that it does not have."""
    renamed, own = dict(getattr(model.spec, "classes", {})), classes_of(model)
    for name in renamed:
        if name not in own:
            raise UserError(f"{model.name}: classes: it has no class {name!r}; {near(name, own)}")
    return renamed


def near(name: str, names: Sequence[str]) -> str:
    """Advice for an unknown name."""
    by_fold = {known.casefold(): known for known in names}
    close = [by_fold[one] for one in difflib.get_close_matches(name.casefold(), by_fold, n=3)]
    return f"did you mean {' or '.join(map(repr, close))}?" if close else f"there are: {listed(names)}"


def listed(names: Sequence[str]) -> str:
    """Names for one line; of many the first.

    >>> listed(("cape", "dress")), listed([str(i) for i in range(300)])
    ('cape, dress', '0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 290 more')
    """
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more or "none"
