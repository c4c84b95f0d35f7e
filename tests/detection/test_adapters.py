"""Detectors of torchvision behind `call`, beside torchvision's own answers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco
from torchvision.models import get_model

from detection.adapters import Torchvision
from detection.calls import CalledDetector

SMALL: dict[str, dict[str, Any]] = {
    "fasterrcnn_mobilenet_v3_large_320_fpn": {"box_score_thresh": 0.0, "min_size": 96, "max_size": 128},
    "ssdlite320_mobilenet_v3_large": {"score_thresh": 0.0},
    "maskrcnn_resnet50_fpn": {"box_score_thresh": 0.0, "min_size": 64, "max_size": 96, "box_detections_per_img": 5},
}


def photos() -> list[np.ndarray]:
    numbers = np.random.default_rng(0)
    return [numbers.integers(0, 256, shape, np.uint8) for shape in ((90, 70, 3), (64, 110, 3))]


def saved(model: str, path: Path, n_labels: int, **options: Any) -> Any:
    torch.manual_seed(3)
    network = get_model(model, weights=None, weights_backbone=None, num_classes=n_labels, **options).eval()
    torch.save(network.state_dict(), path)
    return network


@pytest.mark.parametrize("model", SMALL)
def test_boxes_are_torchvisions_own(tmp_path: Path, model: str) -> None:
    names = ("coat", "skirt", "dress")
    network = saved(model, tmp_path / "tv.pth", 4, **SMALL[model])
    adapter = Torchvision(model, str(tmp_path / "tv.pth"), names, **SMALL[model])
    assert adapter.class_names == names
    answers = adapter.detect(photos())
    with torch.inference_mode():
        want = network([torch.from_numpy(image.transpose(2, 0, 1) / np.float32(255)) for image in photos()])
    assert sum(map(len, answers)) > 0
    for answer, own in zip(answers, want, strict=True):
        np.testing.assert_allclose(answer.boxes, own["boxes"].numpy(), atol=1e-4)
        np.testing.assert_allclose(answer.scores, own["scores"].numpy(), atol=1e-6)
        assert answer.categories.tolist() == own["labels"].tolist()
    door = CalledDetector("tv", adapter, np.array([1, 0, 3], np.int16), 0.0, 4).detect(photos())
    for checked, answer, image in zip(door, answers, photos(), strict=True):
        assert len(checked) <= 4 and 2 not in checked.categories
        assert (checked.masks is not None) is ("mask" in model)
        if checked.masks:
            kept = np.flatnonzero(answer.categories != 2)
            first = kept[np.argmax(answer.scores[kept])]
            assert (coco.decode(checked.masks[0]) == np.asarray(answer.masks[first])).all()
            assert checked.masks[0]["size"] == list(image.shape[:2])


def test_cocos_labels_lose_their_gaps(tmp_path: Path) -> None:
    """Of 91 labels 80 have a name: traffic light is label 10 and the tenth, stop sign label 13 and the twelfth."""
    model = "ssdlite320_mobilenet_v3_large"
    saved(model, tmp_path / "tv.pth", 91)
    adapter = Torchvision(model, str(tmp_path / "tv.pth"))
    assert len(adapter.class_names) == 80 and adapter.class_names[9:12] == (
        "traffic light",
        "fire hydrant",
        "stop sign",
    )
    assert adapter._class_of[[0, 10, 11, 12, 13]].tolist() == [0, 10, 11, 0, 12]


def test_the_version_follows_the_weights(tmp_path: Path) -> None:
    model = "ssdlite320_mobilenet_v3_large"
    network = saved(model, tmp_path / "one.pth", 3)
    state = network.state_dict()
    name = next(key for key in state if key.endswith("bias"))
    torch.save(state | {name: state[name] + 1}, tmp_path / "two.pth")
    versions = [
        Torchvision(model, str(tmp_path / file), ["a", "b"]).version for file in ("one.pth", "one.pth", "two.pth")
    ]
    assert versions[0] == versions[1] != versions[2]


@pytest.mark.parametrize("arguments, reason", [
    (("resnet18", "tv.pth"), "torchvision has no detector 'resnet18'"),
    (("ssdlite320_mobilenet_v3_large", "absent.pth"), "no weights"),
    (("ssdlite320_mobilenet_v3_large", "tv.pth", ["a"]), "do not fit ssdlite320_mobilenet_v3_large with 2 labels"),
    (("ssdlite320_mobilenet_v3_large", "code.pth"), "cannot be read as tensors"),
    (("ssdlite320_mobilenet_v3_large", "text.pth"), "cannot be read as tensors"),
    (("ssdlite320_mobilenet_v3_large", "list.pth"), "holds no state_dict"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(tmp_path: Path, arguments: tuple[Any, ...], reason: str) -> None:
    import pickle

    saved("ssdlite320_mobilenet_v3_large", tmp_path / "tv.pth", 3)
    (tmp_path / "code.pth").write_bytes(pickle.dumps(print))
    (tmp_path / "text.pth").write_text("no")
    torch.save([1, 2], tmp_path / "list.pth")
    model, file, *more = arguments
    with pytest.raises(ValueError, match=reason) as error:
        Torchvision(model, str(tmp_path / file), *more)
    assert "\n" not in str(error.value)
