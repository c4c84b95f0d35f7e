"""What changed since an earlier run over the same photos: its metrics.json beside this one's.

In: two runs' folders. Out: rows of figures with their differences; none where the two did not judge the same photos.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jobs.reporting.figures import BOXES, final_list, final_name, judged_models
from store.objects import ObjectMissing, ObjectStore

DETECTION = ("AP", "AP50", "AP10", "AP10_50")
TOPS = ("1", "10", "20")


@dataclass(frozen=True)
class Row:
    """One figure of both runs, a fraction in [0, 1]; None where a run did not measure it.

    Attributes:
        owner: whose it is: a detector, "fused", boxes and model, or boxes and their final list, whose model each run chose itself.
        measure: which figure.
    """

    owner: str
    measure: str
    now: float | None
    then: float | None

    @property
    def difference(self) -> float | None:
        return None if self.now is None or self.then is None else self.now - self.then


@dataclass(frozen=True)
class Earlier:
    """An earlier run as this one sees it.

    Attributes:
        uri: its folder.
        recorded: when it was started, empty when unknown.
        problem: why nothing is compared, empty where it is.
        rows: the figures that both or one of them measured.
    """

    uri: str
    recorded: str
    problem: str
    rows: tuple[Row, ...] = ()

    def difference(self, owner: str, measure: str) -> float | None:
        return next((row.difference for row in self.rows if (row.owner, row.measure) == (owner, measure)), None)

    def tables(self) -> list[tuple[list[str], list[tuple[str, list[Row | None]]]]]:
        """The rows laid out: measures over the columns, owners down the side; detection, then retrieval."""
        found = []
        for measures in (list(DETECTION), [f"top-{k}" for k in TOPS]):
            cells = {(row.owner, row.measure): row for row in self.rows if row.measure in measures}
            owners = dict.fromkeys(owner for owner, _ in cells)
            if owners:
                found.append((measures, [(o, [cells.get((o, measure)) for measure in measures]) for o in owners]))
        return found


def compare(metrics: dict[str, Any], run: dict[str, Any], earlier: ObjectStore) -> Earlier:
    """Lay an earlier run's figures beside this one's.

    Args:
        metrics, run: of this run.
        earlier: the other's folder. Without metrics.json, over an image set with another digest, or over other photos of it there is a
            `problem` and there are no rows: a difference would be of photos, not of models.
    """
    then, settings = read_json(earlier, "metrics.json"), read_json(earlier, "run.json")
    mine, theirs = run.get("imageset") or {}, settings.get("imageset") or {}
    problem = ""
    if not then:
        problem = "it has no metrics.json"
    elif mine.get("digest") != theirs.get("digest"):
        problem = f"it is over another image set (digest {str(theirs.get('digest'))[:12]}, here {str(mine.get('digest'))[:12]})"
    elif (mine.get("selected") or {}).get("rows") != (theirs.get("selected") or {}).get("rows"):
        problem = "it took other photos of the image set (another --limit)"
    rows = () if problem else tuple(_rows(_figures(metrics), _figures(then)))
    return Earlier(str(earlier.uri), str(settings.get("recorded") or ""), problem, rows)


def read_json(output: ObjectStore, key: str) -> dict[str, Any]:
    """A JSON file of a run; {} where it is not there yet."""
    try:
        content = json.loads(output.read(key))
    except ObjectMissing:
        return {}
    return content if isinstance(content, dict) else {}


def _rows(now: dict[tuple[str, str], float | None], then: dict[tuple[str, str], float | None]) -> Iterator[Row]:
    for owner, measure in dict.fromkeys([*now, *then]):
        row = Row(owner, measure, now.get((owner, measure)), then.get((owner, measure)))
        if row.now is not None or row.then is not None:
            yield row


def _figures(metrics: dict[str, Any]) -> dict[tuple[str, str], float | None]:
    """The figures worth a difference, by whose they are and what they measure."""
    found: dict[tuple[str, str], float | None] = {}
    for name, figures in (metrics.get("detection") or {}).items():
        found |= {(name, measure): figures.get(measure) for measure in DETECTION}
    for boxes in BOXES:
        models = judged_models(metrics, boxes)
        owners = {f"{boxes} boxes, {name}": figures for name, figures in models.items()}
        if name := final_name(models):
            owners = {final_list(boxes): models[name], **owners}
        found |= {(owner, f"top-{k}"): (row.get("top") or {}).get(k) for owner, row in owners.items() for k in TOPS}
    return found
