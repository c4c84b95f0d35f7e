"""Detections that another program computed: `{name: yolo, from: boxes.json}` in a run file.

Either COCO results, JSON: `[{image_id, category_id, bbox: [x, y, width, height], score, segmentation}]`, the last one
run lengths or absent. Or Parquet tables as a run writes them: image_id, bbox (x1 y1 x2 y2), score, category_id or
`category`, a name; mask is optional. Image ids are those of the image set; where `images: truth.json` names a COCO
ground truth they are its own, and its photos are found in the set by file name. Category ids are named by that file, by
`categories: [name of id 1, …]`, or else they are those of the run.
"""

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from networks import stored
from networks.stored import StoredFile
from store.categories import problem
from store.errors import UserError

FIELDS = ("images", "categories", "classes", "fusion_weight")


@dataclass(frozen=True)
class StoredDetectorSpec:
    """A detector whose boxes are read."""

    LOADER: ClassVar[str] = "networks.stored:refuse"
    stored: ClassVar[bool] = True

    name: str
    source: tuple[str, ...]
    images: str = ""  # COCO ground truth that the image ids and category ids are of; "" where they are ours
    categories: tuple[str, ...] = ()  # of category id 1, 2 …; (): the ids are the run's
    ids: tuple[int, ...] = ()  # the file's own id of each of `categories`; (): 1, 2 …
    classes: Mapping[str, str | None] = field(default_factory=dict)
    fusion_weight: float = 1.0
    weights: str = ""
    sha256: str = ""

    def found(self, endpoint_url: str | None) -> tuple["StoredDetectorSpec", str]:
        """The spec with the categories that its files name, and the digest of the files. UserError: no such file."""
        files = stored.find(self.source, endpoint_url)
        truth = stored.find([self.images], endpoint_url) if self.images else []
        spec, digest = self, stored.digest_of([*files, *truth])
        if truth:
            listed = {entry["id"]: str(entry["name"]) for entry in _truth(truth[0])["categories"]}
            spec = dataclasses.replace(spec, categories=tuple(listed.values()), ids=tuple(listed))
        elif not spec.categories:
            names: dict[str, None] = {}
            for file in files:
                if not file[1].endswith(".json"):
                    column = stored.read_table(file, ("image_id",), ("category",))
                    names |= dict.fromkeys(column["category"].to_pylist() if "category" in column.column_names else ())
            spec = dataclasses.replace(spec, categories=tuple(map(str, names)))
        if reason := problem(spec.categories):
            raise UserError(f"{self.name}: {reason}")
        return spec, digest


def from_fields(entry: Mapping[str, Any]) -> StoredDetectorSpec:
    """The detector of a run file's entry. Raises ValueError for a field of the wrong kind."""
    who, source = f"detector {entry.get('name', '?')!r}", stored.sources_of(entry, FIELDS, "detector")
    classes, weight, images = (
        entry.get(name, default) for name, default in (("classes", {}), ("fusion_weight", 1.0), ("images", ""))
    )
    names = entry.get("categories", ())
    if not isinstance(classes, Mapping):
        raise ValueError(f"{who}: classes want a mapping of its names to the run's, got {classes!r}")
    if type(weight) not in (int, float) or not weight >= 0:
        raise ValueError(f"{who}: fusion_weight wants a number from 0 up, got {weight!r}")
    if not isinstance(images, str) or not isinstance(names, list | tuple):
        raise ValueError(f"{who}: images wants a file and categories a list of names, got {images!r} and {names!r}")
    plain = {str(name): ours for name, ours in classes.items()}
    return StoredDetectorSpec(entry["name"], source, images, tuple(names), (), plain, float(weight))


@dataclass(frozen=True)
class StoredBoxes:
    """All boxes of the files, row by row; what is wrong with a row is said, and it is left out later."""

    image: np.ndarray  # (N,) object: the image's id, int; its file name where a ground truth was given; None: neither
    boxes: np.ndarray  # (N, 4) float64, px x1 y1 x2 y2
    scores: np.ndarray  # (N,) float64
    categories: np.ndarray  # (N,) int64, from 1: a place in the spec's categories, or the run's own id
    masks: list[Any]  # run lengths, None for none
    wrong: list[str]  # "" for a sound row


def read(spec: StoredDetectorSpec, endpoint_url: str | None) -> StoredBoxes:
    """Every box of the files. UserError: a file that is neither COCO results nor a table with the columns."""
    rows: list[tuple[Any, Any, Any, Any, Any]] = []
    for file in stored.find(spec.source, endpoint_url):
        rows += _json_rows(file) if file[1].endswith(".json") else _table_rows(file)
    names: dict[Any, str] = {}
    if spec.images:
        truth = _truth(stored.find([spec.images], endpoint_url)[0])
        names = {entry["id"]: str(entry["file_name"]) for entry in truth["images"]}
    numbers: dict[Any, int] = {id_: number for number, id_ in enumerate(spec.ids, 1)}
    if not spec.ids:
        numbers = {name: number for number, name in enumerate(spec.categories, 1)}
    n = len(rows)
    image, boxes = np.empty(n, object), np.full((n, 4), np.nan)
    scores, categories = np.full(n, np.nan), np.zeros(n, np.int64)
    masks: list[Any] = [None] * n
    wrong = [""] * n
    for i, (image_id, box, score, category, mask) in enumerate(rows):
        is_id = isinstance(image_id, int) and abs(image_id) < 2**63
        image[i] = (names.get(image_id) if spec.images else image_id) if is_id else None
        try:
            boxes[i], scores[i], masks[i] = box, score, mask
            categories[i] = numbers[category] if spec.ids or isinstance(category, str) else int(category)
            if spec.categories and not 1 <= categories[i] <= len(spec.categories):
                raise KeyError(category)
        except KeyError:
            wrong[i] = f"category {str(category)[:60]!r} is none of its categories"
        except (TypeError, ValueError, OverflowError):
            wrong[i] = f"bbox {str(box)[:80]}, score {str(score)[:20]}, category {str(category)[:20]}: want numbers"
        else:
            if not (np.isfinite(boxes[i]).all() and (boxes[i, 2:] >= boxes[i, :2]).all() and 0 <= scores[i] <= 1):
                wrong[i] = f"bbox {boxes[i].tolist()}, score {scores[i]}: want a box in pixels and a score from 0 to 1"
    return StoredBoxes(image, boxes, scores, categories, masks, wrong)


def _json_rows(file: StoredFile) -> list[tuple[Any, Any, Any, Any, Any]]:
    where = f"{file[0].uri}/{file[1]}"
    content = _json(file)
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        want = "[{image_id, category_id, bbox, score}]"
        raise UserError(f"{where}: want COCO results, {want}; a ground truth goes in `images`")
    rows = []
    for entry in content:
        box = entry.get("bbox")
        if isinstance(box, list) and len(box) == 4 and all(isinstance(side, int | float) for side in box):
            with contextlib.suppress(OverflowError):  # such a box is refused with the others that are none
                box = [box[0], box[1], box[0] + box[2], box[1] + box[3]]
        mask = entry.get("segmentation")
        mask = mask if isinstance(mask, dict) and "counts" in mask else None
        rows.append((entry.get("image_id"), box, entry.get("score"), entry.get("category_id"), mask))
    return rows


def _table_rows(file: StoredFile) -> list[tuple[Any, Any, Any, Any, Any]]:
    table = stored.read_table(file, ("image_id", "bbox", "score"), ("category_id", "category", "mask"))
    named = next((name for name in ("category", "category_id") if name in table.column_names), None)
    if named is None:
        raise UserError(f"{file[0].uri}/{file[1]}: neither a column category nor category_id")
    masks = table["mask"] if "mask" in table.column_names else pa.nulls(len(table))
    columns = [table[name] for name in ("image_id", "bbox", "score", named)]
    return list(zip(*(column.to_pylist() for column in (*columns, masks)), strict=True))


def _truth(file: StoredFile) -> dict[str, list[dict[str, Any]]]:
    """A COCO ground truth with its `images` and `categories`."""
    content = _json(file)
    for part, keys in (("images", {"id", "file_name"}), ("categories", {"id", "name"})):
        entries = content.get(part) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(one, dict) and keys <= one.keys() for one in entries):
            reason = f"no COCO ground truth: `{part}` wants a list of {', '.join(sorted(keys))}"
            raise UserError(f"{file[0].uri}/{file[1]}: {reason}")
        if not all(isinstance(one["id"], int) for one in entries):
            raise UserError(f"{file[0].uri}/{file[1]}: an id in `{part}` is no whole number")
    return content


def _json(file: StoredFile) -> Any:
    try:
        return json.loads(file[0].read(file[1]))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file[0].uri}/{file[1]}: no JSON: {str(error)[:100]}") from error
