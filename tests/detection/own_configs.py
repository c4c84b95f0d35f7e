"""Small detectors after mmdetection's own configurations, and a checkpoint with which they find something.

They inherit from the files that the installed package ships; depth, classes and numbers of queries are cut, for speed.
"""

import re
from pathlib import Path
from typing import Any

import torch

NAMES = ("cape", "dress", "hat")
RESNET18 = "backbone=dict(depth=18), neck=dict(in_channels=[{}])"
PYRAMID, LAST_THREE = RESNET18.format("64, 128, 256, 512"), RESNET18.format("128, 256, 512")
LAYERS = "encoder=dict(num_layers=1), decoder=dict(num_layers=2), num_queries=120"
PROPOSALS = "test_cfg=dict(rpn=dict(nms_pre=60, max_per_img=60), rcnn=dict(score_thr=0.05, max_per_img=40))"
CONFIGS = {  # name -> the shipped configuration, and what is changed of its model
    "rtmdet": ("rtmdet/rtmdet_tiny_8xb32-300e_coco", "bbox_head=dict(num_classes=3)"),
    "rtmdet-ins": (
        "rtmdet/rtmdet-ins_tiny_8xb32-300e_coco",
        "bbox_head=dict(num_classes=3), test_cfg=dict(nms_pre=30)",
    ),
    "faster-rcnn": (
        "faster_rcnn/faster-rcnn_r50_fpn_1x_coco",
        f"{PYRAMID}, roi_head=dict(bbox_head=dict(num_classes=3)), {PROPOSALS}",
    ),
    "mask-rcnn": (
        "mask_rcnn/mask-rcnn_r50_fpn_1x_coco",
        f"{PYRAMID}, roi_head=dict(bbox_head=dict(num_classes=3), mask_head=dict(num_classes=3)), {PROPOSALS}",
    ),
    "yolox": ("yolox/yolox_tiny_8xb8-300e_coco", "bbox_head=dict(num_classes=3)"),
    "fcos": ("fcos/fcos_r50-caffe_fpn_gn-head_1x_coco", f"{PYRAMID}, bbox_head=dict(num_classes=3)"),
    "dino": ("dino/dino-4scale_r50_8xb2-12e_coco", f"{LAST_THREE}, {LAYERS}, bbox_head=dict(num_classes=3)"),
    "deformable-detr": (
        "deformable_detr/deformable-detr_r50_16xb2-50e_coco",
        f"{LAST_THREE}, {LAYERS}, bbox_head=dict(num_classes=3)",
    ),
}
DECIDES = re.compile(r"(rtm_cls|conv_cls|fc_cls|conv_obj|rpn_cls|rtm_obj|cls_branches\.\d+|memory_trans_fc)\b.*")


def write(name: str, folder: Path) -> Path:
    """The configuration file; its own classes are NAMES."""
    shipped, changed = CONFIGS[name]
    path = folder / f"{name}.py"
    names = f"test_dataloader = dict(dataset=dict(metainfo=dict(classes={NAMES})))"
    path.write_text(f"_base_ = 'mmdet::{shipped}.py'\nmodel = dict({changed})\n{names}\n")
    return path


def lively(model: Any) -> dict[str, torch.Tensor]:
    """Random weights whose classification is not the same everywhere, as it is before any training."""
    generator = torch.Generator().manual_seed(1)
    tensors = model.state_dict()
    for key, tensor in tensors.items():
        if DECIDES.search(key) and key.endswith("weight") and tensor.ndim > 1:
            gain = 60 if "rtm_" in key else 6  # RTMDet's features are small
            tensors[key] = torch.randn(tensor.shape, generator=generator) * (gain / tensor[0].numel()) ** 0.5
        elif DECIDES.search(key) and key.endswith("bias"):
            tensors[key] = torch.full_like(tensor, -1.0)
        elif "rtm_reg" in key and key.endswith("bias"):
            tensors[key] = torch.full_like(tensor, 3.0)  # cells from a place to each side; untrained boxes have no area
    return tensors
