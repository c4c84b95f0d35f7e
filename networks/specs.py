"""What the specs of detectors and embedders share: names, views, and a user's own fields. Plain data, without torch.

A view is one more model, of the same weights on changed photos: NAME@flip sees them mirrored, NAME@NUMBER changed by a
number (detectors: another size, embedders: `marginNUMBER`), NAME@flip@NUMBER both.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
LITE_MEAN, LITE_STD = (127.5, 127.5, 127.5), (127.5, 127.5, 127.5)
Spec = TypeVar("Spec", bound=Any)  # a frozen dataclass with `name`, `mean`, `std`, `weights`, `sha256` and `licence`


def find(specs: Sequence[Spec], name: str, noun: str) -> Spec:
    """The spec of that name; `noun` is what the specs are, "detector" or "embedder".

    Raises ValueError for no such name, and lists those there are.
    """
    for spec in specs:
        if spec.name == name:
            return spec
    raise ValueError(f"no {noun} named {name!r}; there are: {', '.join(spec.name for spec in specs)}")


def parse_view(view: str, prefix: str, limits: tuple[float, float], unchanged: float) -> tuple[bool, float] | None:
    """Whether a view mirrors, and its number; None where it is no view.

    A view is `flip`, `PREFIXNUMBER` or `flip@PREFIXNUMBER`, the number within `limits` and as Python writes it (0.8,
    not 0.80). It may not name `unchanged`, the number that changes nothing, which is returned where it names none.

    >>> parse_view("flip@margin0.1", "margin", (-0.2, 1.0), 0.0), parse_view("margin0", "margin", (-0.2, 1.0), 0.0)
    ((True, 0.1), None)
    """
    parts = view.split("@")
    flip = parts[0] == "flip"
    if parts == ["flip"]:
        return True, unchanged
    try:
        number = float(parts[-1].removeprefix(prefix))
    except ValueError:
        return None
    usable = limits[0] <= number <= limits[1] and number != unchanged
    return (flip, number) if usable and parts[flip:] == [f"{prefix}{number:g}"] else None


def own(
    fields: Mapping[str, Any],
    kind: type[Spec],
    shipped: Sequence[Spec],
    noun: str,
    *,
    needs: str,
    hidden: Sequence[str],
) -> Spec:
    """A user's own spec from the run file, with `base: NAME` to start from a shipped one. Values are not checked.

    Args:
        fields: those of `kind`, lists for tuples; besides them `base`, and `view`, which is left to the caller.
        kind: `DetectorSpec` or `EmbedderSpec`.
        needs: the field that a spec without base needs besides `name`.
        hidden: fields that only views set.

    Raises:
        ValueError: unknown or missing field, unknown base, a shipped name without a base.
    """
    allowed = [*(f.name for f in dataclasses.fields(kind) if f.name not in hidden), "view"]
    if unknown := sorted(str(key) for key in set(fields) - {*allowed, "base"}):
        who = f"{noun} {fields.get('name', '?')!r}"
        raise ValueError(f"{who}: unknown field {unknown[0]!r}; allowed: base, {', '.join(allowed)}")
    own_fields = {key: value for key, value in fields.items() if key not in ("base", "view")}
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in own_fields.items()}
    if "base" in fields:
        if "weights" in values:
            values.setdefault("sha256", "")  # the base's digest is of the base's file
        return dataclasses.replace(find(shipped, fields["base"], noun), **values)
    if not {"name", needs} <= set(values):
        if values.get("name") in [spec.name for spec in shipped]:
            raise ValueError(
                f"{noun} {values['name']!r} ships with the program: to change its fields, add `base: {values['name']}`"
            )
        raise ValueError(f"{noun}: one of your own needs at least `name` and `{needs}`, or `name` and `base`")
    return kind(**values)


def check(spec: Any, noun: str) -> str:
    """Refuse text fields that are none, and mean and std that are not three numbers: ValueError, with the value.

    Returns how further messages about the spec begin.
    """
    who = f"{noun} {spec.name!r}"
    for name in ("name", "weights", "sha256", "licence"):
        if not isinstance(getattr(spec, name), str):
            raise ValueError(f"{who}: {name} wants text, got {getattr(spec, name)!r}")
    for name in ("mean", "std"):
        value = getattr(spec, name)
        numbers = isinstance(value, tuple) and len(value) == 3 and all(type(v) in (int, float) for v in value)
        if not numbers or (name == "std" and min(value) <= 0):
            raise ValueError(f"{who}: {name} wants three numbers for RGB values 0 to 255, got {value!r}")
    return who
