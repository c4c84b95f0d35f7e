"""What a run says before it works and after: the plan, from the marks alone, and the answer, from metrics.json."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from jobs.ledger import Run, Unit, read_json


def lines(run: Run, units: Mapping[str, Sequence[Unit]]) -> Iterator[str]:
    """The plan: what there is, what is done, what is to do and why."""
    has, settings = run.selected, run.settings
    size = sum(shard.bytes for shard in has.shards) / 1e6
    yield f"{settings.imageset} -> {settings.output}"
    yield (
        f"  {has.images} images ({has.users} consumers', {has.shops} shops', {has.items} true items) in {len(has.shards)} shards, {size:.1f} MB"
    )
    yield f"  detectors: {', '.join(model.name for model in run.detectors)}"
    yield f"  embedders: {', '.join(model.name for model in run.embedders)}; boxes: {', '.join(run.box_kinds)}"
    yield f"  device: {settings.device}, actors: {settings.actors}, {settings.threads_per_actor} threads each"
    for name, of_stage in units.items():
        reasons = Counter(reason for unit in of_stage if (reason := run.why(unit)))
        todo = sum(reasons.values())
        words = "; ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        yield f"  {name:9}{len(of_stage) - todo:6} of {len(of_stage)} done" + (f", to do: {words}" if todo else "")


def answer(run: Run) -> Iterator[str]:
    """The figures, as a table for the terminal, and where the rest lies."""
    metrics = read_json(run.store, "metrics.json") or {}
    yield ""
    yield f"{'boxes':28}{'AP':>8}{'AP50':>8}{'AP10':>8}{'AP10_50':>8}{'AP10, consumers':>17}{'AP10_50, masks':>16}"
    for name, figures in metrics.get("detection", {}).items():
        apart = (figures["consumers"] or {}).get("AP10"), (figures["masks"] or {}).get("AP10_50")
        yield (
            f"{name:28}"
            + "".join(_figure(figures[key]) for key in ("AP", "AP50", "AP10", "AP10_50"))
            + (f"{_figure(apart[0]):>17}{_figure(apart[1]):>16}")
        )
    yield ""
    yield f"{'retrieval':28}{'top-1':>8}{'top-5':>8}{'top-10':>8}{'top-20':>8}{'missed':>8}{'queries':>8}"
    for kind, models in metrics.get("retrieval", {}).items():
        for name, figures in models.items():
            tops = "".join(_figure(figures["top"][k]) for k in ("1", "5", "10", "20"))
            yield f"{name + ', ' + kind:28}{tops}{figures['missed']:8}{figures['queries']:8}"
    for note in metrics.get("summary", {}).get("notes", ()):
        yield f"note: {note}"
    images = metrics.get("images", {})
    yield f"{images.get('done')} of {images.get('total')} images done, {images.get('failed')} failed"
    if run.store.exists("report/index.html"):
        yield f"report: {run.store.uri}/report/index.html"


def _figure(value: float | None) -> str:
    return f"{'-':>8}" if value is None else f"{value:8.3f}"
