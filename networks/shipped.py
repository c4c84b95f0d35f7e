"""The weights that ship, for whoever loads a model by its name without a job."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from store.errors import UserError

WEIGHTS = Path(__file__).resolve().parents[1] / "weights"  # PROFILE/NAME.safetensors below it


def shipped_file(spec: Any, profiles: Mapping[str, Sequence[Any]], folder: str | Path | None = None) -> Path:
    """The file of a model's weights: in `folder`, or where those of its profile ship.

    `profiles` are the module's of its spec, name -> specs. UserError: it is not there.
    """
    profile = next((name for name, specs in profiles.items() if any(one.weights == spec.weights for one in specs)), "")
    path = (Path(folder) if folder is not None else WEIGHTS / profile) / spec.weights
    if not path.is_file():
        raise UserError(f"{spec.name}: no weights {path}; give their folder as weights_dir, or train them")
    return path
