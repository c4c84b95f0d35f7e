"""One small set of photos in the forms that tools write, each by the real writer.

Four photos of 24 x 32 pixels: two with boxes of two categories, one with nothing, one with no known product.
"""

import csv
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import webdataset
from PIL import Image

WIDTH, HEIGHT = 24, 32
NAMES = ["scarf", "long sleeve top"]


@dataclass(frozen=True)
class Sample:
    key: str  # the picture's name without .png
    facts: dict[str, Any]
    items: list[tuple[str, list[float]]] = field(default_factory=list)  # category, x y width height

    @property
    def file_name(self) -> str:
        return f"{self.key}.png"

    @property
    def png(self) -> bytes:
        return png(sum(map(ord, self.key)) % 256)


SAMPLES = [
    Sample("a/1", {"product_id": "P1", "pair_id": 7, "price": 19.5, "sale": True}, [("scarf", [1.0, 2.0, 10.0, 20.5])]),
    Sample("a/2", {"product_id": "P2", "pair_id": 0, "price": 5.0, "sale": False}),
    Sample("b", {"product_id": "", "pair_id": 7, "title": "Übergröße \u2028 neu", "sale": True}),
    Sample(
        "c/d/1",
        {"product_id": "12", "pair_id": 2**62, "price": 0.1, "sale": False},
        [("long sleeve top", [0.0, 0.0, 24.0, 32.0]), ("scarf", [3.0, 4.0, 5.0, 6.0])],
    ),
]


def png(shade: int, size: tuple[int, int] = (WIDTH, HEIGHT)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (shade, 40, 90)).save(file, "PNG")
    return file.getvalue()


def pictures(folder: Path) -> Path:
    for sample in SAMPLES:
        (folder / sample.file_name).parent.mkdir(parents=True, exist_ok=True)
        (folder / sample.file_name).write_bytes(sample.png)
    return folder


def table(path: Path) -> Path:
    """The CSV of a folder: a row an item, or one row where there is none."""
    columns = ["file_name", "product_id", "pair_id", "price", "sale", "title", "category", "x1", "y1", "x2", "y2"]
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for sample in SAMPLES:
            facts = {"file_name": sample.file_name} | sample.facts | {"sale": str(sample.facts["sale"]).lower()}
            for category, (x, y, width, height) in sample.items:
                corners = {"x1": x, "y1": y, "x2": x + width, "y2": y + height}
                writer.writerow(facts | {"category": category} | corners)
            if not sample.items:
                writer.writerow(facts)
    return path


def coco(path: Path) -> Path:
    """Ids are sparse, annotations in no order of their images."""
    images = [
        {
            "id": 10 * n + 5,
            "file_name": sample.file_name,
            "width": WIDTH,
            "height": HEIGHT,
            "license": 1,
            **sample.facts,
        }
        for n, sample in enumerate(SAMPLES)
    ]
    categories = [{"id": 90 - n, "name": name, "supercategory": "clothes"} for n, name in enumerate(NAMES)]
    boxes = [(10 * n + 5, *item) for n, sample in enumerate(SAMPLES) for item in sample.items]
    annotations = [
        {
            "id": n,
            "image_id": image,
            "category_id": 90 - NAMES.index(name),
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": 0,
        }
        for n, (image, name, box) in enumerate(boxes)
    ]
    annotations.sort(key=lambda annotation: -annotation["image_id"])
    path.write_text(json.dumps({"info": {}, "images": images, "annotations": annotations, "categories": categories}))
    return path


def parquet(path: Path) -> Path:
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "product_id": datasets.Value("string"),
            "pair_id": datasets.Value("int64"),
            "price": datasets.Value("float64"),
            "sale": datasets.Value("bool"),
            "title": datasets.Value("string"),
            "objects": {
                "bbox": datasets.List(datasets.List(datasets.Value("float32"), length=4)),
                "category": datasets.List(datasets.ClassLabel(names=NAMES)),
            },
        }
    )
    rows = [
        dict.fromkeys(features)
        | sample.facts
        | {
            "image": {"bytes": sample.png, "path": sample.file_name},
            "objects": {
                "bbox": [box for _, box in sample.items],
                "category": [NAMES.index(name) for name, _ in sample.items],
            },
        }
        for sample in SAMPLES
    ]
    datasets.Dataset.from_list(rows, features=features).to_parquet(path)
    return path


def tar(path: Path) -> Path:
    with webdataset.TarWriter(str(path)) as writer:
        for sample in SAMPLES:
            items = [
                {"category": name, "bbox": [x, y, x + width, y + height]}
                for name, (x, y, width, height) in sample.items
            ]
            writer.write({"__key__": sample.key, "png": sample.png, "json": sample.facts | {"items": items}})
    return path
