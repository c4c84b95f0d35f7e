"""Entries with a configuration: what is taken from its file, and the one line that refuses what cannot be used."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from detection import config_files, own_config
from detection.models import viewed

TINY = "rtmdet/rtmdet_tiny_8xb32-300e_coco.py"
STEPS = [
    {"type": "LoadImageFromFile"},
    {"type": "Resize", "scale": [640, 480], "keep_ratio": True},
    {"type": "LoadAnnotations", "with_bbox": True},
    {"type": "PackDetInputs"},
]
FLAT: dict[str, Any] = {
    "model": {
        "type": "FCOS",
        "data_preprocessor": {"type": "DetDataPreprocessor", "mean": [1, 2, 3], "std": [1, 1, 1], "bgr_to_rgb": True},
        "backbone": {"type": "ResNet", "init_cfg": {"type": "Pretrained", "checkpoint": "torchvision://resnet50"}},
        "bbox_head": {"type": "FCOSHead", "num_classes": 2},
    },
    "test_dataloader": {
        "dataset": {"type": "CocoDataset", "pipeline": STEPS, "metainfo": {"classes": ["cape", "hat"]}}
    },
}


def spec(content: Any, folder: Path, name: str = "x.json", **fields: Any) -> own_config.MmdetectionSpec:
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return own_config.from_fields({"name": "own", "config": str(folder / name), **fields})


def changed(**parts: Any) -> dict[str, Any]:
    """FLAT with other fields of its model."""
    return FLAT | {"model": FLAT["model"] | parts}


def test_what_is_taken_from_the_file(tmp_path: Path) -> None:
    own = spec(FLAT, tmp_path, checkpoint="s3://b/own.pth", classes={"hat": None}, fusion_weight=2.0)
    assert (own.scale_px, own.mean, own.std, own.channels) == ((640, 480), (1, 2, 3), (1, 1, 1), "RGB")
    assert (own.categories, own.weights, own.executes) == (("cape", "hat"), "s3://b/own.pth", "")
    assert [step["type"] for step in own.pipeline] == ["LoadImageFromFile", "Resize", "PackDetInputs"]
    assert "init_cfg" not in own.model["backbone"]  # nothing is downloaded
    assert own.with_names(None) is own
    assert spec(FLAT, tmp_path).weights == "own.pth"


def test_a_python_file_is_executed_and_said_to_be(tmp_path: Path) -> None:
    text = f"_base_ = 'mmdet::{TINY}'\nopen('{tmp_path}/ran', 'w').close()\n"
    text += "custom_imports = dict(imports=['shop.heads'])\n"
    own = spec(text, tmp_path, "x.py")
    assert (tmp_path / "ran").exists() and own.executes == f"{tmp_path}/x.py and module shop.heads"
    assert (own.scale_px, own.channels, own.imports, own.dataset) == ((640, 640), "BGR", ("shop.heads",), "CocoDataset")
    assert own.model["bbox_head"]["in_channels"] == 96  # of the file that the base inherits from


def test_the_shipped_file_itself_and_yaml_after_it(tmp_path: Path) -> None:
    shipped = own_config.from_fields({"name": "own", "config": f"mmdet::{TINY}"})
    text = f"_base_: mmdet::{TINY}\nmodel: {{bbox_head: {{num_classes: 2}}}}\n"
    own = spec(text, tmp_path, "x.yaml", categories=["cape", "hat"])
    assert own.executes == "" and own.model["bbox_head"]["num_classes"] == 2
    assert own.model["backbone"] == shipped.model["backbone"] and own.pipeline == shipped.pipeline
    (tmp_path / "y.yml").write_text("_base_: [x.yaml]\nmodel: {bbox_head: {num_classes: 3}}\n")
    third = {"name": "own", "config": str(tmp_path / "y.yml"), "categories": ["a", "b", "c"]}
    assert own_config.from_fields(third).model["bbox_head"]["num_classes"] == 3


def test_names_come_from_the_file_the_checkpoint_or_the_data_set(tmp_path: Path) -> None:
    import torch

    unnamed = changed(bbox_head={"type": "FCOSHead", "num_classes": 80})
    unnamed["test_dataloader"] = {"dataset": {"type": "CocoDataset", "pipeline": STEPS}}
    own = spec(unnamed, tmp_path)
    coco = own.with_names(None).categories
    assert own.categories == () and len(coco) == 80 and coco[0] == "person" and coco[-1] == "toothbrush"
    names = tuple(f"class {i}" for i in range(80))
    torch.save({"meta": {"dataset_meta": {"classes": names}}, "state_dict": {}}, tmp_path / "own.pth")
    assert own.with_names(tmp_path / "own.pth").categories == names
    unnamed["model"]["bbox_head"]["num_classes"] = 7
    with pytest.raises(ValueError, match=r"tells 7 classes apart, and own\.pth names 80; set `categories`"):
        spec(unnamed, tmp_path).with_names(tmp_path / "own.pth")


@pytest.mark.parametrize(
    ("kind", "n", "first"), [("CocoDataset", 80, "person"), ("DeepFashionDataset", 15, "top"), ("NoSuch", 0, None)]
)
def test_names_of_mmdetections_data_sets(kind: str, n: int, first: str | None) -> None:
    names = config_files.dataset_names(kind)
    assert (len(names), names[0] if names else None) == (n, first)


def test_another_size_reaches_every_step_that_has_one(tmp_path: Path) -> None:
    padded = [*STEPS[:2], {"type": "mmdet.Pad", "size": [700, 700]}, {"type": "Pad", "size_divisor": 32}]
    content = FLAT | {"test_dataloader": {"dataset": {"pipeline": padded}}}
    half = viewed(spec(content, tmp_path, categories=["a", "b"]), "flip@0.5")
    steps = own_config.resized(half.pipeline, half.scale_px)
    assert (half.name, half.scale_px, half.flip) == ("own@flip@0.5", (320, 240), True)
    assert (steps[1]["scale"], steps[2]["size"]) == ((320, 240), (320, 256)) and "size" not in steps[3]
    assert list(own_config.resized(half.pipeline, (640, 480))) == padded
    assert half.pipeline[1]["scale"] == [640, 480]


REFUSED: list[tuple[str, Any, str, dict[str, Any], str]] = [
    ("no such file", None, "absent.py", {}, "no file"),
    ("no such file of data", None, "absent.yaml", {}, "cannot be read (FileNotFoundError"),
    ("another kind of file", "", "x.txt", {}, "is no configuration file; want .py, .yaml or .json"),
    ("no package", None, "nowhere::a.py", {}, "package nowhere is not installed"),
    ("out of the package", None, "mmdet::../../x.py", {}, "is no PACKAGE::PATH.py"),
    ("Python that fails", "model = dict(x)", "x.py", {}, "NameError"),
    ("Python that ends the process", "raise SystemExit(3)", "x.py", {}, "SystemExit"),
    ("no Python", "model = dict(", "x.py", {}, "SyntaxError"),
    ("no JSON", "{", "x.json", {}, "JSONDecodeError"),
    ("deep JSON", "[" * 100_000, "x.json", {}, "RecursionError"),
    ("no YAML", "a: [", "x.yaml", {}, "ParserError"),
    ("YAML that would run", "a: !!python/object/apply:os.getcwd []", "x.yaml", {}, "ConstructorError"),
    ("YAML's anchors", "a: &b [1]\nc: *b\n", "x.yaml", {}, "anchors and aliases are refused, line 1"),
    ("data after Python", "_base_: x.py\n", "x.yaml", {}, "x.py is no configuration file; want .yaml or .json"),
    ("data after itself", "_base_: x.yaml\n", "x.yaml", {}, "RecursionError"),
    ("a list", "[1]", "x.json", {}, "wants keys and values, got a list"),
    ("an object in it", "import re\nmodel = dict(type='A', x=re.compile('a'))", "x.py", {}, "model.x is a Pattern"),
    ("no model", FLAT | {"model": {}}, "x.json", {}, "has no `model` with its type"),
    ("mmdetection 2", changed(data_preprocessor=None), "x.json", {}, "has no data_preprocessor"),
    ("no pipeline", FLAT | {"test_dataloader": None}, "x.json", {}, "has no test_dataloader.dataset.pipeline"),
    ("no scale", FLAT | {"test_dataloader": {"dataset": {"pipeline": STEPS[:1]}}}, "x.json", {}, "has no Resize"),
    ("imports of numbers", FLAT | {"custom_imports": {"imports": [1]}}, "x.json", {}, "custom_imports wants"),
    ("too few names", FLAT, "x.json", {"categories": ["a"]}, "tells 2 classes apart, and categories names 1"),
    ("one name twice", FLAT, "x.json", {"categories": ["a", "a"]}, "category 'a' is named twice"),
    ("names that are none", FLAT, "x.json", {"categories": 5}, "categories want a list of names, got 5"),
    ("no names", FLAT, "x.json", {"categories": []}, "categories: want at least one name"),
    ("a size of one side", FLAT, "x.json", {"scale_px": [5]}, "scale_px wants 2 sides"),
    ("a size that is none", FLAT, "x.json", {"scale_px": ["a", 5]}, "scale_px wants 2 sides"),
    ("a weight that is none", FLAT, "x.json", {"fusion_weight": "a"}, "fusion_weight wants a number"),
    ("classes that are none", FLAT, "x.json", {"classes": [1]}, "classes want a mapping"),
    ("a checkpoint that is none", FLAT, "x.json", {"checkpoint": 5}, "checkpoint wants text, got 5"),
    ("an unknown field", FLAT, "x.json", {"base": "atss-tiny"}, "unknown field 'base'; beside config there are"),
    ("no such view", FLAT, "x.json", {"view": "upside"}, "has no view 'upside'"),
]  # fmt: skip


@pytest.mark.parametrize(("why", "content", "name", "fields", "want"), REFUSED, ids=[row[0] for row in REFUSED])
def test_what_cannot_be_used_is_refused_in_one_line(
    why: str, content: Any, name: str, fields: dict[str, Any], want: str, tmp_path: Path
) -> None:
    config = name if "::" in name else str(tmp_path / name)
    if content is not None:
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match="detector 'own'") as raised:
        own_config.from_fields({"name": "own", "config": config, **fields})
    assert want in str(raised.value), str(raised.value)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 700


def test_no_torch_is_imported_to_plan(tmp_path: Path) -> None:
    code = (
        "import sys; from detection import own_config\n"
        f"own_config.from_fields({{'name': 'x', 'config': 'mmdet::{TINY}'}}).with_names(None)\n"
        "assert not {'torch', 'mmdet', 'mmcv'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
