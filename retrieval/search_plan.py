"""What a run searches with: its steps, its models, and the rankings and index files that follow from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from retrieval import steps


@dataclass(frozen=True)
class SearchPlan:
    """What a run searches with and writes."""

    steps: tuple[steps.Step, ...]  # parsed
    models: tuple[str, ...]  # the embedders' names
    joined: tuple[str, ...]  # what the steps join, in order: the models, or those whose views are averaged

    @classmethod
    def of(cls, entries: Sequence[Mapping], models: Sequence[str]) -> "SearchPlan":
        """From the setting `search.steps` and the embedders' names."""
        parsed = steps.parse(entries, models)
        averaged = any(step.name == "views" for step in parsed)
        return cls(parsed, tuple(models), tuple(steps.bases(models) if averaged else models))

    @property
    def own_models(self) -> tuple[str, ...]:
        """The models that plain concatenation joins: those that are no views of others."""
        return tuple(name for name in self.models if "@" not in name) or self.models

    @property
    def beside(self) -> tuple[str, ...]:
        """Names of the rankings besides the final one."""
        concat = ("concat",) if len(self.own_models) > 1 and not steps.plain(self.steps) else ()
        return (*self.models, *concat)

    @property
    def judged(self) -> dict[str, str]:
        """Name in metrics.json -> ranking, BOXES for its kind of boxes."""
        places = {name: f"BOXES/{name}" for name in self.beside}
        if not steps.plain(self.steps):
            return places | {"steps": "BOXES"}
        return places | ({"concat": "BOXES"} if len(self.models) > 1 else {})

    @property
    def index_files(self) -> tuple[str, ...]:
        """The FAISS files, one a model where lists are fused instead of rows, and what the steps learned."""
        fused = any(step.name == "rank_fusion" for step in self.steps) and len(self.joined) > 1
        learns = any(step.name in ("pca", "whiten") for step in self.steps)
        return (
            *((f"{name}.faiss" for name in self.joined) if fused else ("index.faiss",)),
            *(("steps.safetensors",) if learns else ()),
        )
