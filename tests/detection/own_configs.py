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
BOX_HEAD = (
    "dict(type='Shared2FCBBoxHead', in_channels=256, fc_out_channels=64, roi_feat_size=7, num_classes=3, "
    "bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0.0] * 4, target_stds=[0.1, 0.1, 0.2, 0.2]), "
    "reg_class_agnostic=True, loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0), "
    "loss_bbox=dict(type='SmoothL1Loss', beta=1.0, loss_weight=1.0))"
)
CASCADE = ", ".join([BOX_HEAD] * 3)
CENTRED = """[
    dict(type='LoadImageFromFile', to_float32=True),
    dict(type='Resize', scale=(512, 512), keep_ratio=True),
    dict(type='RandomCenterCropPad', ratios=None, border=None, mean=[0, 0, 0], std=[1, 1, 1], to_rgb=True,
         test_mode=True, test_pad_mode=['logical_or', 31], test_pad_add_pix=1),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'border')),
]"""  # CenterNet's own pipeline resizes nothing
BATCHED = ("retinanet", "atss", "centernet", "cascade-mask-rcnn")  # whose heads `detection.families` reads
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
    "retinanet": ("retinanet/retinanet_r50_fpn_1x_coco", f"{PYRAMID}, bbox_head=dict(num_classes=3)"),
    "atss": ("atss/atss_r50_fpn_1x_coco", f"{PYRAMID}, bbox_head=dict(num_classes=3)"),
    "centernet": ("centernet/centernet_r18_8xb16-crop512-140e_coco", "bbox_head=dict(num_classes=3)"),
    "cascade-mask-rcnn": (
        "cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco",
        f"{PYRAMID}, roi_head=dict(mask_head=dict(num_classes=3), bbox_head=[{CASCADE}]), {PROPOSALS}",
    ),
    "dino": ("dino/dino-4scale_r50_8xb2-12e_coco", f"{LAST_THREE}, {LAYERS}, bbox_head=dict(num_classes=3)"),
    "deformable-detr": (
        "deformable_detr/deformable-detr_r50_16xb2-50e_coco",
        f"{LAST_THREE}, {LAYERS}, bbox_head=dict(num_classes=3)",
    ),
}
DECIDES = re.compile(
    r"(rtm_cls|retina_cls|atss_cls|heatmap_head\.2|conv_cls|fc_cls|conv_obj|rpn_cls|rtm_obj|cls_branches\.\d+|memory_trans_fc)\b.*"
)


def write(name: str, folder: Path) -> Path:
    """The configuration file; its own classes are NAMES."""
    shipped, changed = CONFIGS[name]
    path = folder / f"{name}.py"
    steps = f", pipeline={CENTRED}" if name == "centernet" else ""
    names = f"test_dataloader = dict(dataset=dict(metainfo=dict(classes={NAMES}){steps}))"
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
        elif key.endswith("wh_head.2.bias"):
            tensors[key] = torch.full_like(tensor, 8.0)  # cells of width and height
    return tensors
