"""Checked records: what a value may be, and the one line that refuses it, made of the first error that pydantic finds.

A check of ours raises a ValueError that says what it wants; the place of the value is put before it.
"""

import difflib
import re
from collections.abc import Collection
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, InstanceOf, ValidationError

from store.errors import UserError

Schema = dict[str, Any]  # JSON schema, as pydantic writes it


class SettingsRecord(BaseModel):
    """Checked when it is made, and frozen: no unknown fields, no NaN, nothing converted but whole numbers to floats."""

    # defer_build: --help needs no validators.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, defer_build=True)

    def replace(self, **changes: Any) -> Self:
        """A copy with other values in some fields, which are checked too."""
        return type(self)(**{name: getattr(self, name) for name in self.model_fields_set} | changes)


def _text(value: str) -> str:
    if not value or "\0" in value:
        raise ValueError(f"want a text, got {value!r}")
    return value


def _address(value: str) -> str:
    if "@" in value.partition("://")[2].partition("/")[0]:
        raise ValueError("credentials do not belong in settings; use the environment, a profile or a role")
    return value


def _model(value: str | dict) -> str | dict:
    if isinstance(value, dict):
        name = value.get("name")
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]*", name):
            raise ValueError(f"want a name of letters, digits and _ . + -, as it goes into file names, got {name!r}")
    return value


def _gpus(value: float) -> float:
    if value > 1 and value != int(value):
        raise ValueError(f"want a share of one GPU (0.01 to 1) or a whole number of them, got {value!r}")
    return value


def _distinct(values: tuple) -> tuple:
    if any(value in values[:i] for i, value in enumerate(values)):
        raise ValueError(f"want each one once, got {list(values)!r}")
    return values


T = TypeVar("T")
Several = Annotated[tuple[T, ...], Field(strict=False, min_length=1)]  # not strict, as YAML gives a list
Distinct = Annotated[Several[T], AfterValidator(_distinct)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
Gpus = Annotated[float, Field(ge=0.01, le=64), AfterValidator(_gpus)]
Count = Annotated[int, Field(ge=1, le=2**31)]
Actors = Literal["auto"] | Count
# A path need not be valid Unicode, which `str` alone would want.
Text = Annotated[InstanceOf[str], AfterValidator(_text)]
# A path or URI without a user name or password in it.
Address = Annotated[Text, AfterValidator(_address)]
OwnModel = Annotated[dict, Field(examples=["{name: mine, base: SHIPPED, weights: mine.safetensors}"])]
# Names of shipped models, and mappings whose other fields `jobs.runs.catalogue` reads.
Models = Distinct[Annotated[Text | OwnModel, AfterValidator(_model)]]
ModelsOrNone = Annotated[
    tuple[Annotated[Text | OwnModel, AfterValidator(_model)], ...], Field(strict=False), AfterValidator(_distinct)
]
Step = Annotated[dict, Field(examples=["{step: k_reciprocal, k1: 20}"])]
Steps = Annotated[tuple[Step, ...], Field(strict=False)]  # `retrieval.steps.parse` checks them


def allowed(schema: Schema) -> str:
    """What a value may be, in words, e.g. `a number from 0 to 1`. That an optional value may be null is left out."""
    if "anyOf" in schema:
        return " or ".join(allowed(option) for option in schema["anyOf"] if option.get("type") != "null")
    if "enum" in schema:
        return " or ".join(map(str, schema["enum"]))
    match schema.get("type"):
        case _ if "const" in schema:
            return str(schema["const"])
        case "boolean":
            return "true or false"
        case "integer" | "number" as kind:
            low, high = schema["minimum"], schema.get("maximum", 2**31)
            if low == high:
                return str(low)
            return f"a {'whole ' * (kind == 'integer')}number from {low} " + (f"to {high}" if high < 2**31 else "up")
        case "array":
            least = f" of at least {schema['minItems']}" if "minItems" in schema else ""
            return f"a list{least}, each {allowed(schema['items'])}"
        case "object" if "properties" in schema:
            return f"a mapping with {', '.join(schema['properties'])}"
        case "object":
            return f"a mapping such as {schema['examples'][0]}"
    return "a text"


R = TypeVar("R", bound=SettingsRecord)


def build(kind: type[R], values: Any, where: str = "") -> R:
    """A record of `kind` from a mapping, every value checked; `where` is the place of the mapping in the settings.

    A UserError refuses an unknown key or impossible value, with its place, the value and what is allowed there.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UserError(_refusal(kind.model_json_schema(), dict(error.errors()[0]), where)) from None


def _refusal(schema: Schema, error: dict[str, Any], place: str) -> str:
    """An error of pydantic's as one line of ours. The schema at the error's place tells what is wanted there."""
    here, steps = schema, list(error["loc"])
    # Steps that lead nowhere name the member of a union that pydantic tried.
    while steps and (inner := _inside(here, steps[0])) is not None:
        step = steps.pop(0)
        place += f"[{step}]" if isinstance(step, int) else f".{step}" if place else step
        here = schema["$defs"][inner["$ref"].rpartition("/")[2]] if "$ref" in inner else inner
    if "properties" in here and error["type"] in ("extra_forbidden", "invalid_key", "string_unicode"):
        key = str(steps[0] if steps else error["input"])
        within = f"{place}." if place else ""
        close = difflib.get_close_matches(key, here["properties"], n=1)
        close = close or [f"{group}.{key}" for group in here["properties"] if key in _fields(schema, here, group)]
        hint = f"did you mean {within + close[0]!r}? " if close else ""
        unknown = within + key
        return f"unknown setting {unknown!r}; {hint}allowed here: {', '.join(here['properties'])}"
    if error["type"] == "value_error":
        return f"{place}: {error['ctx']['error']}"
    return f"{place}: want {allowed(here)}, got {error['input']!r}"


def _fields(schema: Schema, here: Schema, group: str) -> Collection[str]:
    """The names of a group's fields; none for a field that is no group."""
    inner = _inside(here, group) or {}
    return schema["$defs"][inner["$ref"].rpartition("/")[2]].get("properties", {}) if "$ref" in inner else ()


def _inside(schema: Schema, step: int | str) -> Schema | None:
    """The schema of a list's entries or of a field, or None."""
    for option in schema.get("anyOf", [schema]):
        if isinstance(step, int) and "items" in option:
            return option["items"]
        if step in option.get("properties", {}):
            return option["properties"][step]
    return None
