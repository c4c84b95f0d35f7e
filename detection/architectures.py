"""The five detector architectures as mmdetection model configurations, one function each, in any width and depth.

    atss(backbone, channels=(40, 112, 192), width=64, convs=2)      -> dict for mmdet.registry.MODELS.build

With `width=256, convs=4` and a ResNet backbone they are mmdetection's own `atss_r101_fpn`,
`cascade-mask-rcnn_r101_fpn`, `centernet_r18-dcnv2`, `retinanet_r101_fpn` and `retinanet_x101-64x4d_fpn`; narrow, they
fit a laptop. Images come in normalised and padded, so there is no data preprocessor. Sources: papers in each docstring.
"""

from typing import Any

from store.categories import DEEPFASHION2

Config = dict[str, Any]
N_CLASSES = len(DEEPFASHION2)  # of the shipped detectors; `detection.models.with_classes` gives one others


def resnet(depth: int, **more: Any) -> Config:
    """A ResNet (arXiv:1512.03385), four stages out; first stage and BatchNorm statistics frozen, as in mmdetection."""
    return dict(
        type="ResNet", depth=depth, num_stages=4, out_indices=(0, 1, 2, 3), frozen_stages=1,
        norm_cfg=dict(type="BN", requires_grad=True), norm_eval=True, style="pytorch", **more,
    )  # fmt: skip


def resnext101_64x4d() -> Config:
    """ResNeXt-101 64x4d (arXiv:1611.05431)."""
    return resnet(101, groups=64, base_width=4) | dict(type="ResNeXt")


def _fpn(channels: tuple[int, ...], width: int, n_levels: int, **more: Any) -> Config:
    return dict(type="FPN", in_channels=list(channels), out_channels=width, num_outs=n_levels, **more)


def _delta_coder(stds: list[float]) -> Config:
    return dict(type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=stds)


def _focal() -> Config:
    return dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0)


def _dense_test(nms_iou: float) -> Config:
    return dict(
        nms_pre=1000, min_bbox_size=0, score_thr=0.05, nms=dict(type="nms", iou_threshold=nms_iou), max_per_img=100
    )


def _group_norm(width: int) -> Config:
    return dict(type="GN", num_groups=min(32, width // 2), requires_grad=True)


def atss(backbone: Config, channels: tuple[int, ...], width: int = 256, convs: int = 4, n_levels: int = 5) -> Config:
    """ATSS, arXiv:1912.02424: one anchor a place, positives chosen by the statistics of each object's candidates."""
    return dict(
        type="ATSS",
        backbone=backbone,
        neck=_fpn(channels, width, n_levels, start_level=len(channels) - 3, add_extra_convs="on_output"),
        bbox_head=dict(
            type="ATSSHead", num_classes=N_CLASSES, in_channels=width, feat_channels=width, stacked_convs=convs,
            norm_cfg=_group_norm(width),
            anchor_generator=dict(
                type="AnchorGenerator", ratios=[1.0], octave_base_scale=8, scales_per_octave=1,
                strides=[8 * 2**level for level in range(n_levels)],
            ),
            bbox_coder=_delta_coder([0.1, 0.1, 0.2, 0.2]),
            loss_cls=_focal(),
            loss_bbox=dict(type="GIoULoss", loss_weight=2.0),
            loss_centerness=dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0),
        ),
        train_cfg=dict(assigner=dict(type="ATSSAssigner", topk=9), allowed_border=-1, pos_weight=-1, debug=False),
        test_cfg=_dense_test(0.6),
    )  # fmt: skip


def retinanet(
    backbone: Config, channels: tuple[int, ...], width: int = 256, convs: int = 4, n_levels: int = 5, norm: bool = False
) -> Config:
    """RetinaNet, arXiv:1708.02002: nine anchors a place, focal loss. `norm`: GroupNorm in the towers, as in ATSS."""
    return dict(
        type="RetinaNet",
        backbone=backbone,
        neck=_fpn(channels, width, n_levels, start_level=len(channels) - 3, add_extra_convs="on_input"),
        bbox_head=dict(
            type="RetinaHead", num_classes=N_CLASSES, in_channels=width, feat_channels=width, stacked_convs=convs,
            norm_cfg=_group_norm(width) if norm else None,
            anchor_generator=dict(
                type="AnchorGenerator", octave_base_scale=4, scales_per_octave=3, ratios=[0.5, 1.0, 2.0],
                strides=[8 * 2**level for level in range(n_levels)],
            ),
            bbox_coder=_delta_coder([1.0] * 4),
            loss_cls=_focal(),
            loss_bbox=dict(type="L1Loss", loss_weight=1.0),
        ),
        train_cfg=dict(
            assigner=dict(type="MaxIoUAssigner", pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0, ignore_iof_thr=-1),
            sampler=dict(type="PseudoSampler"), allowed_border=-1, pos_weight=-1, debug=False,
        ),
        test_cfg=_dense_test(0.5),
    )  # fmt: skip


def centernet(backbone: Config, neck: Config, width: int = 64, head_width: int = 64) -> Config:
    """CenterNet, arXiv:1904.07850 (objects as points): a heat map of centres, a size and an offset at each."""
    return dict(
        type="CenterNet",
        backbone=backbone,
        neck=neck,
        bbox_head=dict(
            type="PlanesFirstCenterNetHead", num_classes=N_CLASSES, in_channels=width, feat_channels=head_width,
            loss_center_heatmap=dict(type="GaussianFocalLoss", loss_weight=1.0),
            loss_wh=dict(type="L1Loss", loss_weight=0.1),
            loss_offset=dict(type="L1Loss", loss_weight=1.0),
        ),
        train_cfg=None,
        test_cfg=dict(topk=100, local_maximum_kernel=3, max_per_img=100),
    )  # fmt: skip


def deconvolution_neck(in_channels: int, use_dcn: bool = True) -> Config:
    """The up-sampling neck of the CenterNet paper's ResNets: three transposed convolutions, stride 32 to 4."""
    return dict(
        type="CTResNetNeck", in_channels=in_channels, num_deconv_filters=(256, 128, 64), num_deconv_kernels=(4, 4, 4),
        use_dcn=use_dcn,
    )  # fmt: skip


def finest_level_neck(channels: tuple[int, ...], width: int) -> Config:
    """A pyramid read at stride 8 only: far cheaper than up-sampling to stride 4, and garments are large."""
    return dict(type="FinestLevel", in_channels=list(channels), out_channels=width, num_outs=len(channels))


def centernet_hourglass() -> Config:
    """CenterNet on Hourglass-104, the authors' best: two stacked hourglasses, each with its heat map."""
    backbone = dict(
        type="HourglassNet", downsample_times=5, num_stacks=2, stage_channels=[256, 256, 384, 384, 384, 512],
        stage_blocks=[2, 2, 2, 2, 2, 4], feat_channel=256, norm_cfg=dict(type="BN", requires_grad=True),
    )  # fmt: skip
    return centernet(backbone, dict(type="LastMap"), width=256, head_width=256)


def cascade_mask_rcnn(
    backbone: Config, channels: tuple[int, ...], width: int = 256, fc_width: int = 1024, mask_convs: int = 4,
    finest_stride: int = 4, n_proposals: int = 1000, n_samples: int = 512, n_levels: int = 5,
) -> Config:  # fmt: skip
    """Cascade Mask R-CNN, arXiv:1906.09756: proposals refined by three box heads of rising IoU, and a mask head.

    `finest_stride` is that of the first of `channels` (mmdetection's is 4), `n_proposals` the boxes that reach the
    cascade in inference, and `n_samples` the boxes a photo that each stage trains on.
    """
    strides = [finest_stride * 2**level for level in range(n_levels)]
    proposals = dict(
        nms_pre=2 * n_proposals, max_per_img=n_proposals, nms=dict(type="nms", iou_threshold=0.7), min_bbox_size=0
    )
    stds = ([0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067])
    return dict(
        type="CascadeRCNN",
        backbone=backbone,
        neck=_fpn(channels, width, n_levels),
        rpn_head=dict(
            type="RPNHead", in_channels=width, feat_channels=width,
            anchor_generator=dict(type="AnchorGenerator", scales=[8], ratios=[0.5, 1.0, 2.0], strides=strides),
            bbox_coder=_delta_coder([1.0] * 4),
            loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0),
            loss_bbox=dict(type="SmoothL1Loss", beta=1.0 / 9.0, loss_weight=1.0),
        ),
        roi_head=dict(
            type="CascadeRoIHead", num_stages=3, stage_loss_weights=[1, 0.5, 0.25],
            bbox_roi_extractor=_roi_extractor(7, width, strides[: len(channels)]),
            bbox_head=[_cascade_box_head(width, fc_width, each) for each in stds],
            mask_roi_extractor=_roi_extractor(14, width, strides[: len(channels)]),
            mask_head=dict(
                type="RleMaskHead", num_convs=mask_convs, in_channels=width, conv_out_channels=width,
                num_classes=N_CLASSES, loss_mask=dict(type="CrossEntropyLoss", use_mask=True, loss_weight=1.0),
            ),
        ),
        train_cfg=dict(
            rpn=dict(
                assigner=_iou_assigner(0.7, 0.3, 0.3, match_low_quality=True),
                sampler=_random_sampler(256, 0.5, add_gt_as_proposals=False),
                allowed_border=0, pos_weight=-1, debug=False,
            ),
            rpn_proposal=dict(proposals, nms_pre=2 * n_proposals),
            rcnn=[_cascade_stage(iou, n_samples) for iou in (0.5, 0.6, 0.7)],
        ),
        test_cfg=dict(
            rpn=dict(proposals, nms_pre=n_proposals),
            rcnn=dict(score_thr=0.05, nms=dict(type="nms", iou_threshold=0.5), max_per_img=100, mask_thr_binary=0.5),
        ),
    )  # fmt: skip


def _roi_extractor(size: int, width: int, strides: list[int]) -> Config:
    layer = dict(type="RoIAlign", output_size=size, sampling_ratio=0, use_torchvision=True)
    return dict(
        type="SingleRoIExtractor", roi_layer=layer, out_channels=width, featmap_strides=strides,
        finest_scale=56 * strides[0] // 4,
    )  # fmt: skip


def _cascade_box_head(width: int, fc_width: int, stds: list[float]) -> Config:
    return dict(
        type="Shared2FCBBoxHead", in_channels=width, fc_out_channels=fc_width, roi_feat_size=7, num_classes=N_CLASSES,
        bbox_coder=_delta_coder(stds), reg_class_agnostic=True,
        loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
        loss_bbox=dict(type="SmoothL1Loss", beta=1.0, loss_weight=1.0),
    )  # fmt: skip


def _cascade_stage(iou: float, n_samples: int) -> Config:
    return dict(
        assigner=_iou_assigner(iou, iou, iou, match_low_quality=False),
        sampler=_random_sampler(n_samples, 0.25, add_gt_as_proposals=True),
        mask_size=28, pos_weight=-1, debug=False,
    )  # fmt: skip


def _iou_assigner(positive: float, negative: float, least: float, *, match_low_quality: bool) -> Config:
    return dict(
        type="MaxIoUAssigner", pos_iou_thr=positive, neg_iou_thr=negative, min_pos_iou=least,
        match_low_quality=match_low_quality, ignore_iof_thr=-1,
    )  # fmt: skip


def _random_sampler(n: int, positives: float, *, add_gt_as_proposals: bool) -> Config:
    return dict(
        type="RandomSampler", num=n, pos_fraction=positives, neg_pos_ub=-1, add_gt_as_proposals=add_gt_as_proposals
    )
