"""What `detection.families` reads of a model beside its networks' outputs, kept so that the model need not be built.

    kept = facts_of(family, model)               # JSON
    family = from_facts(kept, left_out=[])       # the same boxes from the same outputs

Building five detectors and importing mmdetection takes longer than a photo does; with the plans of their networks on
disk (`networks.engines`) nothing else is needed of them.
"""

import json
from collections.abc import Sequence
from typing import Any

from detection import early
from detection.families import AnchorFamily, CascadeFamily, Family, PeakFamily


class ModelFacts(dict):
    """What stands for a model or a part of one: its facts under the names of its attributes."""

    __getattr__ = dict.__getitem__


def facts_of(family: Family, model: Any) -> bytes:
    """All that decoding reads of a model beside its networks' outputs, as JSON.

    Raises TypeError for limits that are no JSON.
    """
    facts: dict[str, Any]
    if isinstance(family, CascadeFamily):
        roi = model.roi_head
        facts = {"rpn_head": _head(model.rpn_head), "roi_head": {
            "test_cfg": roi.test_cfg, "with_mask": roi.with_mask, "mask_head": [],
            "bbox_head": [{"bbox_coder": _coder(head), "num_classes": head.num_classes} for head in roi.bbox_head],
            "bbox_roi_extractor": list(map(_extractor, roi.bbox_roi_extractor)),
            "mask_roi_extractor": list(map(_extractor, roi.mask_roi_extractor)) if roi.with_mask else [],
        }}  # fmt: skip
    elif isinstance(family, AnchorFamily):
        facts = {"bbox_head": _head(model.bbox_head)}
    else:
        facts = {"bbox_head": {"test_cfg": model.bbox_head.test_cfg}}
    facts["early"] = early.facts_of(model)
    return json.dumps({"kind": type(family).__name__, "model": facts}).encode()


def from_facts(facts: bytes, left_out: Sequence[int]) -> Family:
    """The family that `facts_of` was given. Its networks have to be compiled (`Family.compile`) before it is used."""
    read = json.loads(facts, object_hook=ModelFacts)
    kinds: dict[str, Any] = {kind.__name__: kind for kind in (AnchorFamily, PeakFamily, CascadeFamily)}
    family: Family = kinds[read.kind](read.model, left_out)
    return family


def _head(head: Any) -> dict[str, Any]:
    grid = head.prior_generator
    anchors = {"base_anchors": [base.tolist() for base in grid.base_anchors], "strides": grid.strides}
    facts = {"test_cfg": head.test_cfg, "cls_out_channels": head.cls_out_channels}
    return facts | {"bbox_coder": _coder(head), "prior_generator": anchors}


def _coder(head: Any) -> dict[str, Any]:
    return {"means": head.bbox_coder.means, "stds": head.bbox_coder.stds}


def _extractor(each: Any) -> dict[str, Any]:
    names = ("featmap_strides", "finest_scale", "out_channels")
    layer = {name: getattr(each.roi_layers[0], name) for name in ("output_size", "sampling_ratio")}
    return {name: getattr(each, name) for name in names} | {"roi_layers": [layer]}
