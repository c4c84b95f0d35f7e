"""What an embedder in training is worth: measured on what is held out, the best kept, the page about it in the end.

OUTPUT/best.safetensors   the averaged weights that did best on what is held out
OUTPUT/ranks.json         {"photo": [...], "rank": [...]}: of each query judged last, where its first right garment came
                          (0: not among the first 20); what `jobs/compare.py` takes its intervals from
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from detection.categories import CATEGORIES
from jobs.training import report as training_report
from jobs.training import run as training_run
from jobs.training.run import TrainingRun
from retrieval import embedder, held_out
from retrieval.held_out import Answers
from retrieval.training_crops import Garments

if TYPE_CHECKING:
    from torch import Tensor

    from retrieval.models import EmbedderSpec

BEST, RANKS = "best.safetensors", "ranks.json"


def shipped_model(spec: "EmbedderSpec", tensors: "Mapping[str, Tensor]", device: str) -> Any:
    """The weights as they are shipped, float16, in a model of their own."""
    import torch

    model = embedder.build(spec)
    embedder.fill(model, training_run.shipped(tensors), spec.name)
    return model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def measure(spec: "EmbedderSpec", tensors: "Mapping[str, Tensor]", garments: Garments, device: str) -> dict[str, float]:
    """Weights on what is held out: "acc@1" …, "queries"."""
    found = held_out.answer(shipped_model(spec, tensors, device), garments, device=device)
    return summary_of(held_out.judge(garments, found)) if len(found.queries) else {"queries": 0}


def summary_of(figures: dict[str, Any]) -> dict[str, float]:
    return {f"acc@{k}": round(v, 4) for k, v in figures["top"].items()} | {"queries": figures["queries"]}


def keep_best(
    run: TrainingRun, best: dict[str, Any] | None, step: int, figures: dict[str, float], tensors: "Mapping[str, Tensor]"
) -> dict[str, Any]:
    """The better of the best so far and these figures, whose weights are then written."""
    worth = (
        figures["acc@1"] + figures["acc@10"] if figures["queries"] else 0.0
    )  # nothing held out: the last is the best
    if best is not None and worth < best["worth"]:
        return best
    run.write(BEST, training_run.to_bytes(tensors))
    return {"worth": worth, "step": step, "held_out": figures}


def finish(
    run: TrainingRun,
    spec: "EmbedderSpec",
    facts: dict[str, Any],
    best: dict[str, Any],
    garments: Garments,
    validation: Garments | None,
    device: str,
) -> None:
    """The best weights under the model's name, what they are worth, and a page about it; the summary last."""
    from safetensors.torch import load

    data = run.read(BEST)
    run.write(f"{spec.name}.safetensors", data)
    summary = facts | {
        "crops": len(garments), "identities": len(garments.classes), "held_out": best["held_out"],
        "weights": f"{spec.name}.safetensors", "bytes": len(data), "sha256": training_run.sha256(data),
    }  # fmt: skip
    judged = garments if validation is None else validation
    found = held_out.answer(
        shipped_model(spec, load(data), device), judged, device=device, every=judged is not garments
    )
    figures = held_out.judge(judged, found, CATEGORIES) if len(found.queries) else None
    if figures and validation is not None:
        summary["validation"] = summary_of(figures)
    ranks = held_out.first_right(judged, found)
    run.write(RANKS, json.dumps({"photo": judged.photo[found.queries].tolist(), "rank": ranks.tolist()}).encode())
    address = training_report.write(
        run.store, title=f"Training of {spec.name}", facts=summary, log=run.lines,
        tables=_by_category(figures), mistakes=_mistakes(judged, found),
    )  # fmt: skip
    print(f"report: {address}", flush=True)
    run.finish(summary)


def _by_category(figures: dict[str, Any] | None) -> dict[str, list[dict[str, Any]]]:
    if figures is None:
        return {}
    rows = [("all", figures), *((name, part) for name, part in figures["per_category"].items() if part["queries"])]
    return {
        "Accuracy by category": [
            {"category": name, "queries": part["queries"], **{f"top-{k}": v for k, v in part["top"].items()}}
            for name, part in rows
        ]
    }


def _mistakes(judged: Garments, found: Answers) -> list[training_report.Mistake]:
    """The surest ones: what was asked for, what came first, and what was right."""

    def picture(row: int) -> Any:
        width, height = judged.extent[row].int().tolist()
        return judged.canvas(row)[:height, :width]

    mistakes = []
    for query, first, best, similarity in held_out.worst(judged, found):
        pictures = [("asked for", picture(query)), ("found first", picture(first))]
        pictures += [("right one", picture(best))] if best >= 0 else []
        said = f"{CATEGORIES[int(judged.category_id[query]) - 1]}: a stranger at similarity {similarity:.3f}"
        mistakes.append(training_report.Mistake(said + ("" if best >= 0 else ", right one not found"), tuple(pictures)))
    return mistakes
