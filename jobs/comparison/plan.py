"""What is to be compared: VARIANTS.yaml as trainings, each variant with each seed."""

import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.runs.yaml_text import read_yaml
from store.errors import UserError

KEYS = ("base", "seeds", "variants", "against", "final")
SHIPPED = Path(__file__).resolve().parents[1] / "comparisons"  # the plans behind docs/results.md
NAME_LETTERS = set(string.ascii_letters + string.digits + "-_+.")


@dataclass(frozen=True)
class SeedRun:
    """The training of one variant with one seed."""

    variant: str
    seed: int
    folder: str  # under OUTPUT
    argv: tuple[str, ...]  # the training's command line without --output


def read_plan(path: Path) -> dict[str, Any]:
    """The file's mapping, checked, with `seeds` and `against` filled in; a name without a file is of a shipped plan.

    Raises a UserError where it cannot be read, is not YAML, or has another shape.
    """
    shipped = {plan.stem: plan for plan in SHIPPED.glob("*.yaml")}
    if not path.exists():
        path = shipped.get(str(path), path)
    plan = read_yaml(path, "comparison")
    variants = plan.get("variants")
    if not isinstance(variants, dict) or not variants:
        raise UserError(f"{path}: want a mapping with `variants: {{NAME: {{flag: value}}}}`")
    unknown = sorted(map(str, set(plan) - set(KEYS)))
    if unknown:
        raise UserError(f"{path}: unknown key {unknown[0]!r}; allowed: {', '.join(KEYS)}")
    seeds = plan.get("seeds", [0])
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise UserError(f"{path}: seeds want a list of whole numbers, got {seeds!r}")
    for name, flags in {"base": plan.get("base"), "final": plan.get("final"), **variants}.items():
        if not isinstance(flags, dict | None):
            raise UserError(f"{path}: {name} wants a mapping of flags, got {flags!r}")
        if not isinstance(name, str) or not set(name) <= NAME_LETTERS or name.strip(".") == "":
            raise UserError(f"{path}: variant {name!r} becomes a folder; want letters, digits, '-', '_', '+' and '.'")
    against = plan.get("against", [next(iter(variants))])
    if not isinstance(against, list) or not all(name in list(variants) for name in against):
        raise UserError(f"{path}: against wants a list of variants, got {against!r}")
    return {**plan, "seeds": list(dict.fromkeys(seeds)), "against": against}


def seed_runs(plan: Mapping[str, Any]) -> list[SeedRun]:
    """Every variant with every seed; raises a UserError at a flag that is not the plan's to set.

    A seed of all variants comes before the next seed, so that a budget of time that ends early still compares them all.
    """
    return [
        SeedRun(name, seed, f"runs/{name}/seed-{seed}", _argv(name, _flags(plan, name), seed))
        for seed in plan["seeds"]
        for name in plan["variants"]
    ]


def final_run(plan: Mapping[str, Any], winner: str) -> SeedRun:
    """The winner once more, with the flags of `final`."""
    seed = plan["seeds"][0]
    return SeedRun(winner, seed, "final", _argv("final", {**_flags(plan, winner), **plan["final"]}, seed))


def _flags(plan: Mapping[str, Any], variant: str) -> dict[str, Any]:
    return {**(plan.get("base") or {}), **(plan["variants"][variant] or {})}


def _argv(variant: str, flags: Mapping[str, Any], seed: int) -> tuple[str, ...]:
    words = ["--seed", str(seed)]
    for flag, value in flags.items():
        if flag in ("seed", "output", "workers", "minutes"):
            raise UserError(f"variant {variant}: jobs/compare.py itself sets {flag}; take it out")
        if isinstance(value, Mapping):
            value = [f"{key}={number}" for key, number in value.items()]
        for word in value if isinstance(value, list) else [value]:
            words += [f"--{flag}", str(word)]
    return tuple(words)
