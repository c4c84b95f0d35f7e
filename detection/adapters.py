"""Detectors of other libraries for a run file's `call`; docs/models.md has two more as examples.

{name: tv, call: detection.adapters:Torchvision, args: {model: fasterrcnn_mobilenet_v3_large_fpn, weights: tv.pth}}
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detection.detections import Detections
from store.files import file_sha256

NO_CLASS = ("__background__", "N/A")  # names in torchvision's list of labels that stand for nothing


class Torchvision:
    """A detector of `torchvision.models.detection`, RGB from 0 to 1 at the sizes that the model itself chooses."""

    def __init__(
        self, model: str, weights: str, categories: Sequence[str] | None = None, device: str = "cpu", **options: Any
    ) -> None:
        """Build it and load its weights.

        Args:
            model: as torchvision names it, fasterrcnn_resnet50_fpn.
            weights: its state_dict, a file of safetensors or of `torch.save`, which is read with `weights_only`.
            categories: names of labels 1, 2, 3 …; None: COCO's 91 labels as torchvision numbers them.
            device: cpu or cuda.
            options: for torchvision's own function, box_score_thresh for one.

        Raises:
            ValueError: no such model, no file, or tensors that do not fit the model.
        """
        import torch
        import torchvision
        from torchvision.models import detection, get_model, list_models

        names = list_models(module=detection)
        if model not in names:
            raise ValueError(f"torchvision has no detector {model!r}; there are: {', '.join(names)}")
        if not Path(weights).is_file():
            raise ValueError(f"no weights {weights}; give the file of {model}'s state_dict")
        labels = ("__background__", *categories) if categories is not None else _coco_labels()
        network = get_model(model, weights=None, weights_backbone=None, num_classes=len(labels), **options)
        try:
            network.load_state_dict(_read(weights))
        except RuntimeError as error:
            first = str(error).strip().splitlines()[1:2] or [str(error)]
            reason = f"do not fit {model} with {len(labels)} labels: {first[0].strip()[:200]}"
            raise ValueError(f"{weights} {reason}") from None
        self.network, self.device = network.eval().to(device), torch.device(device)
        self.class_names = tuple(name for name in labels if name not in NO_CLASS)
        numbers = {name: number for number, name in enumerate(self.class_names, 1)}
        self._class_of = np.array([numbers.get(name, 0) for name in labels], np.int64)
        self.version = f"torchvision {torchvision.__version__.partition('+')[0]}, weights {file_sha256(weights)[:16]}"

    def detect(self, images: Sequence[np.ndarray]) -> list[Detections]:
        """One answer a photo, boxes in its pixels; boxes of labels without a name are left out."""
        import torch

        tensors = [torch.from_numpy(np.ascontiguousarray(image)).to(self.device) for image in images]
        with torch.inference_mode():
            answers = self.network([tensor.permute(2, 0, 1).float() / 255 for tensor in tensors])
        return [self._detections(answer) for answer in answers]

    def _detections(self, answer: dict[str, Any]) -> Detections:
        found = {name: tensor.float().cpu().numpy() for name, tensor in answer.items()}
        classes = self._class_of[found["labels"].astype(np.int64)]
        named = classes > 0
        masks: Any = list(found["masks"][named][:, 0] >= 0.5) if "masks" in found else None
        return Detections(found["boxes"][named], found["scores"][named], classes[named].astype(np.int16), masks)


def _coco_labels() -> tuple[str, ...]:
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    return tuple(FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"])


def _read(path: str) -> dict[str, Any]:
    """The tensors of a file; nothing in it is executed."""
    if path.endswith(".safetensors"):
        from safetensors.torch import load_file

        return load_file(path)
    import pickle

    import torch

    try:
        read = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} cannot be read as tensors: {reason}; save the model's state_dict") from None
    if isinstance(read, dict) and isinstance(read.get("model"), dict):  # as torchvision's own training writes it
        read = read["model"]
    if not isinstance(read, dict) or not all(torch.is_tensor(value) for value in read.values()):
        raise ValueError(f"{path} holds no state_dict: names and tensors")
    return read
