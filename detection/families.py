"""The heads of mmdetection that we read ourselves: which they are, and how their raw maps become boxes.

    family = family_of(model, left_out=[])           # None: mmdetection's own `predict` is the way
    outputs = family.dense(batch)                    # `detection.dense`
    found = family.decode(outputs, photos)           # boxes in pixels of the photos as the network sees them
    cells = family.masks(outputs, found)             # None where there are none

Every limit is read from the head's own `test_cfg`. The results are those of mmdetection's per-image `predict`, tested
so, with two departures: boxes without an area take no other box's place, nor do classes that are left out.
"""

import copy
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detection import decode, early
from detection.decode import BatchBoxes
from detection.dense import MaskHeads, OneStage, Proposing, Refining
from detection.early import Early
from networks.cuda_graphs import GraphedNetwork
from networks.engines import Arrays, CompiledNetwork, Engine, noise

COMPARED = (2, 3, 256, 384), (1, 3, 384, 256)  # batches whose sides every network can take


@dataclasses.dataclass(frozen=True)
class PhotoSizes:
    """How the photos of a batch lie in it, on its device; (B, 2) float32 each, x before y."""

    fitted: Tensor  # width and height of the photo within the batch, in pixels
    scale: Tensor  # fitted over original size
    original: Tensor  # width and height of the photo as given, in pixels
    border: Tensor  # pixels left of the photo and above it
    padded: tuple[int, int]  # width and height of the batch

    @staticmethod
    def of(samples: Sequence[Any], batch: Tensor) -> "PhotoSizes":
        """From mmdetection's records."""
        rows = []
        for meta in (sample.metainfo for sample in samples):
            (height, width), (original_height, original_width) = meta["img_shape"][:2], meta["ori_shape"][:2]
            top, _, left, _ = meta.get("border", (0, 0, 0, 0))
            scale = meta.get("scale_factor", (1.0, 1.0))
            rows.append([width, height, *scale[:2], original_width, original_height, left, top])
        fitted, scale, original, border = batch.new_tensor(rows, dtype=torch.float32).split(2, dim=1)
        return PhotoSizes(fitted, scale, original, border, (batch.shape[3], batch.shape[2]))


class Family:
    """One kind of heads. `outputs` are those of `dense` for one batch, in float32."""

    dense: Any  # Tensor -> Sequence[Tensor]: a module, or what was put in its place
    mask_threshold = 0.5  # from which a mask's cell is on
    early: Early | None = None  # what computes the first layers of `dense`, where they are apart from it

    def __init__(self, model: Any, left_out: Sequence[int]) -> None:
        self.head, self.left_out = model.bbox_head, left_out
        self.dense = OneStage(model)

    def decode(self, outputs: Sequence[Tensor], photos: PhotoSizes) -> BatchBoxes:
        """The boxes of all photos, by photo and best first, in pixels of the batch."""
        raise NotImplementedError

    def compile(
        self,
        name: str,
        description: Mapping[str, Any] | None,
        engine: Engine,
        whole: "Callable[[], Family] | None" = None,
        share: bool = False,
    ) -> list[str]:
        """Put compiled networks in the place of torch's modules, and return their notes.

        `name` is the model's; `description` says what decides its outputs, as for `CompiledNetwork`. `whole` makes the
        same family around a model, where this one is of facts (`detection.head_facts`). With `share` the first layers
        are computed once for all detectors that have the same (`detection.early`).
        """
        notes, own = [], copy.copy(self)  # with torch's modules
        parts, model = self._parts(), self.dense.model
        first = early.facts_of(model) if share and description is not None else None
        if first is not None:
            layers = functools.partial(_first_layers, whole or (lambda: own))
            self.early = early.shared(first, layers, name, engine, COMPARED)
            notes += self.early.network.notes
            parts["dense"] = noise(*early.shapes(first, COMPARED))
            description = {**description, "early": first["digest"]} if description else None
        for part, examples in parts.items():
            of_part = description and {**description, "part": part}
            build = functools.partial(_module_of, whole or (lambda: own), part)
            network = CompiledNetwork(f"{name}, {part}", build, of_part, examples, engine)
            setattr(self, part, network)
            notes += network.notes
        return notes

    def capture(self, name: str, notes: list[str]) -> None:
        """Replay `dense` from CUDA graphs. What follows it depends on what is found, so no graph can hold it."""
        self.dense = GraphedNetwork(name, self.dense, notes)

    def _parts(self) -> dict[str, Callable[[], Sequence[Arrays]]]:
        """The parts that may be compiled, and what makes the inputs on which each is then compared with torch."""
        return {"dense": noise(*COMPARED)}

    def masks(self, outputs: Sequence[Tensor], found: BatchBoxes) -> Tensor | None:
        """(N, S, S) float32 in [0, 1] of the candidates, None where the model has no masks."""
        return None


def family_of(model: nn.Module, left_out: Sequence[int] = ()) -> Family | None:
    """How the model's outputs are read; None where one of its parts is not of a kind known here.

    `left_out` are classes whose boxes are not wanted and take no other box's place.
    """
    kinds: tuple[Any, ...] = (AnchorFamily, PeakFamily, CascadeFamily)
    return next((kind(model, left_out) for kind in kinds if kind.fits(model)), None)


def _first_layers(whole: Callable[[], Family]) -> nn.Module:
    return early.FirstLayers(whole().dense.model.backbone).eval()


def _module_of(whole: Callable[[], Family], part: str) -> nn.Module:
    module: nn.Module = getattr(whole(), part)
    return module.eval()


class AnchorFamily(Family):
    """RetinaNet (arXiv:1708.02002) and ATSS (arXiv:1912.02424): scores and deltas for the anchors of each place."""

    @staticmethod
    def fits(model: Any) -> bool:
        from mmdet.models.dense_heads import ATSSHead, RetinaHead
        from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
        from mmdet.models.detectors import SingleStageDetector

        head = getattr(model, "bbox_head", None)
        return (
            isinstance(head, RetinaHead | ATSSHead)
            and _inherits(model, SingleStageDetector, "predict", "extract_feat")
            and _inherits(head, BaseDenseHead, *_DENSE_METHODS)
            and _reads_anchors(head)
            and head.test_cfg.get("score_thr", -1) >= 0
        )

    def decode(self, outputs: Sequence[Tensor], photos: PhotoSizes) -> BatchBoxes:
        limits, n_levels = self.head.test_cfg, len(self.head.prior_generator.strides)
        logits, deltas, *centerness = (outputs[at : at + n_levels] for at in range(0, len(outputs), n_levels))
        anchors = _Anchors(self.head, deltas)
        scores = decode.as_rows(logits, self.head.cls_out_channels).sigmoid()
        chosen = decode.best_anchors(scores, anchors.level_sizes, limits.score_thr, limits.nms_pre, self.left_out)
        rows, places, labels = chosen
        values = scores[chosen]
        if centerness:
            values = values * decode.as_rows(centerness[0], 1)[rows, places, 0].sigmoid()
        found = BatchBoxes(anchors.boxes(rows, places, photos), values, labels, rows)
        return decode.suppress(found, labels, limits.nms.iou_threshold, limits.max_per_img)


class PeakFamily(Family):
    """CenterNet (arXiv:1904.07850): the peaks of a heat map, a size and an offset at each."""

    @staticmethod
    def fits(model: Any) -> bool:
        from mmdet.models.dense_heads import CenterNetHead
        from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
        from mmdet.models.detectors import SingleStageDetector

        head = getattr(model, "bbox_head", None)
        own = ("predict_by_feat", "_predict_by_feat_single", "_decode_heatmap")
        return (
            isinstance(head, CenterNetHead)
            and _inherits(model, SingleStageDetector, "predict", "extract_feat")
            and _inherits(head, BaseDenseHead, "predict")
            and _inherits(head, CenterNetHead, *own)
        )

    def decode(self, outputs: Sequence[Tensor], photos: PhotoSizes) -> BatchBoxes:
        limits = self.head.test_cfg
        heat, sizes, offsets = outputs
        rows, labels, y, x = decode.peaks(
            heat, limits.get("score_thr", 0.0), limits.topk, limits.local_maximum_kernel, self.left_out
        )
        centres = torch.stack([x, y], 1) + offsets[rows, :, y, x]
        halves = sizes[rows, :, y, x] / 2
        stride = heat.new_tensor([photos.padded[0] / heat.shape[3], photos.padded[1] / heat.shape[2]])
        corners = torch.cat([(centres - halves) * stride, (centres + halves) * stride], 1)
        boxes = corners - photos.border[rows].repeat(1, 2)
        return BatchBoxes(boxes, heat[rows, labels, y, x], labels, rows)


class CascadeFamily(Family):
    """Cascade R-CNN and Cascade Mask R-CNN (arXiv:1906.09756): proposals, refined by heads one after the other.

    Every photo has the same number of proposals, boxes of no area where the RPN finds fewer, so the second stage's
    tensors have one shape. Masks are computed for the boxes that are kept.
    """

    def __init__(self, model: Any, left_out: Sequence[int]) -> None:
        self.rpn, self.head, self.left_out = model.rpn_head, model.roi_head, left_out
        self.dense = Proposing(model)
        refining = Refining(self.head)
        self.refining: Any = refining
        self.last_move = functools.partial(refining.moved, len(refining.heads) - 1)
        self.n_maps = len(self.head.bbox_roi_extractor[0].featmap_strides)  # of the neck's that the heads look at
        self.mask_heads: Any = MaskHeads(self.head) if self.head.with_mask else None
        self.mask_threshold = self.head.test_cfg.get("mask_thr_binary", 0.5)

    @staticmethod
    def fits(model: Any) -> bool:
        from mmdet.models.dense_heads import RPNHead
        from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
        from mmdet.models.detectors.two_stage import TwoStageDetector
        from mmdet.models.roi_heads import CascadeRoIHead
        from mmdet.models.roi_heads.base_roi_head import BaseRoIHead

        rpn, head = getattr(model, "rpn_head", None), getattr(model, "roi_head", None)
        own = ("predict_bbox", "predict_mask", "_refine_roi", "_bbox_forward", "_mask_forward")
        return (
            type(rpn) is RPNHead
            and isinstance(head, CascadeRoIHead)
            and _inherits(model, TwoStageDetector, "predict", "extract_feat")
            and _inherits(rpn, BaseDenseHead, "predict", "predict_by_feat")
            and _inherits(head, BaseRoIHead, "predict")
            and _inherits(head, CascadeRoIHead, *own)
            and _reads_anchors(rpn)
            and not head.with_shared_head
            and _plain_nms(head.test_cfg)
            and all(map(_reads_boxes, head.bbox_head))
            and _read_alike(head)
            and (not head.with_mask or _reads_masks(head))
        )

    def decode(self, outputs: Sequence[Tensor], photos: PhotoSizes) -> BatchBoxes:
        limits = self.head.test_cfg
        maps = outputs[: len(outputs) // 3]
        boxes, real = self._proposals(outputs[len(maps) :], photos)
        n_photos, n = real.shape
        photo = torch.arange(n_photos, device=boxes.device).repeat_interleave(n)
        rois = torch.cat([photo[:, None].to(boxes), boxes.view(-1, 4)], 1)
        rois, scores, deltas = self.refining(rois, photos.fitted[photo], *maps[: self.n_maps])
        probabilities = scores.softmax(1)[:, :-1] * real.view(-1, 1)
        above = probabilities > limits.score_thr
        if self.left_out:
            above[:, list(self.left_out)] = False
        at, labels = above.nonzero(as_tuple=True)
        moved = self.last_move(rois[at], deltas[at], labels, photos.fitted[photo[at]])
        found = BatchBoxes(moved, probabilities[at, labels], labels, photo[at])
        return decode.suppress(found, labels, limits.nms.iou_threshold, limits.max_per_img)

    def _parts(self) -> dict[str, Callable[[], Sequence[Arrays]]]:
        parts = super()._parts() | {"refining": functools.partial(self._examples, "limits")}
        return parts if self.mask_heads is None else parts | {"mask_heads": functools.partial(self._examples, "labels")}

    def _examples(self, second: str) -> list[Arrays]:
        """Boxes of all sizes, their limits or labels, and maps of noise."""
        rng, examples = np.random.default_rng(0), []
        extractor = self.head.bbox_roi_extractor[0]
        for n_photos, _, height, width in COMPARED:
            corners = rng.uniform(0, (width, height), (2, 8 * n_photos, 2))
            photo = np.arange(8 * n_photos)[:, None] % n_photos
            rois = np.concatenate([photo, corners.min(0), corners.max(0)], 1).astype(np.float32)
            limits = np.full((len(rois), 2), (width, height), np.float32)
            labels = np.arange(len(rois)) % self.head.bbox_head[0].num_classes
            sides = [(height // stride, width // stride) for stride in extractor.featmap_strides]
            shapes = [(n_photos, extractor.out_channels, *two) for two in sides]
            maps = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
            examples.append((rois, limits if second == "limits" else labels, *maps))
        return examples

    def masks(self, outputs: Sequence[Tensor], found: BatchBoxes) -> Tensor | None:
        if self.mask_heads is None:
            return None
        if not len(found.boxes):
            return found.boxes.new_zeros(0, 1, 1)
        rois = torch.cat([found.photos[:, None].to(found.boxes), found.boxes], 1)
        (cells,) = self.mask_heads(rois, found.labels, *outputs[: self.n_maps])
        return cells

    def _proposals(self, outputs: Sequence[Tensor], photos: PhotoSizes) -> tuple[Tensor, Tensor]:
        """(B, n, 4) boxes and (B, n) bool, which are real, from the RPN's maps."""
        limits, n_levels = self.rpn.test_cfg, len(outputs) // 2
        anchors = _Anchors(self.rpn, outputs[n_levels:])
        scores = decode.as_rows(outputs[:n_levels], 1).sigmoid()
        rows, places, _ = chosen = decode.best_anchors(scores, anchors.level_sizes, -1.0, limits.nms_pre)
        found = BatchBoxes(anchors.boxes(rows, places, photos), scores[chosen], torch.zeros_like(rows), rows)
        levels = anchors.levels(places)
        found = decode.suppress(found, levels, limits.nms.iou_threshold, limits.max_per_img)
        return decode.padded(found, len(photos.fitted), limits.max_per_img)


class _Anchors:
    """The anchors of one batch, and a head's deltas for them."""

    def __init__(self, head: Any, maps: Sequence[Tensor]) -> None:
        self.coder, self.deltas = head.bbox_coder, decode.as_rows(maps, 4)
        grid = head.prior_generator
        each = zip(grid.base_anchors, grid.strides, maps, strict=True)
        levels = [decode.anchors_of(base, stride, one.shape[-2:], one) for base, stride, one in each]
        self.level_sizes, self.anchors = [len(level) for level in levels], torch.cat(levels)

    def boxes(self, rows: Tensor, places: Tensor, photos: PhotoSizes) -> Tensor:
        """(N, 4) boxes of some anchors of some photos, clipped to their photos."""
        deltas, limits = self.deltas[rows, places], photos.fitted[rows]
        return decode.from_deltas(self.anchors[places], deltas, self.coder.means, self.coder.stds, limits)

    def levels(self, places: Tensor) -> Tensor:
        """The pyramid level of each of some anchors."""
        return decode.levels_of(places, self.level_sizes)


# ---- what fits -------------------------------------------------------------------------------------------------
_DENSE_METHODS = ("predict", "predict_by_feat", "_predict_by_feat_single", "_bbox_post_process")


def _inherits(part: Any, base: type, *methods: str) -> bool:
    """Whether the part's methods are those of `base`."""
    return all(getattr(type(part), name, None) is getattr(base, name) for name in methods)


def _plain_nms(limits: Any) -> bool:
    """Whether `test_cfg` asks for greedy suppression by class, and for a number of boxes."""
    nms = limits.get("nms") or {}
    return set(nms) == {"type", "iou_threshold"} and nms["type"] == "nms" and limits.get("max_per_img", 0) > 0


def _plain_coder(coder: Any) -> bool:
    """Whether boxes are encoded as `decode.from_deltas` reads them."""
    from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder

    plain = type(coder) is DeltaXYWHBBoxCoder and coder.clip_border
    return plain and not coder.add_ctr_clamp and not coder.use_box_type


def _reads_anchors(head: Any) -> bool:
    """Whether a head of anchors has sigmoid scores, plain boxes, and limits that we apply as it would."""
    from mmdet.models.task_modules.prior_generators import AnchorGenerator

    limits = head.test_cfg or {}
    return (
        type(head.prior_generator) is AnchorGenerator
        and _plain_coder(head.bbox_coder)
        and head.use_sigmoid_cls
        and not getattr(head.loss_cls, "custom_cls_channels", False)
        and limits.get("nms_pre", 0) > 0
        and limits.get("min_bbox_size", -1) <= 0
        and _plain_nms(limits)
    )


def _reads_boxes(head: Any) -> bool:
    """Whether a box head of the cascade gives softmax scores and plain boxes."""
    from mmdet.models.roi_heads.bbox_heads import BBoxHead, ConvFCBBoxHead

    return (
        isinstance(head, ConvFCBBoxHead)
        and _inherits(head, BBoxHead, "predict_by_feat", "_predict_by_feat_single", "regress_by_class")
        and head.with_cls
        and head.with_reg
        and not head.custom_cls_channels
        and not head.custom_activation
        and _plain_coder(head.bbox_coder)
    )


def _read_alike(head: Any) -> bool:
    """Whether all heads of a cascade see features as `RoiFeatures` makes them, of the same maps."""
    from mmcv.ops import RoIAlign
    from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor

    extractors = [*head.bbox_roi_extractor, *(head.mask_roi_extractor if head.with_mask else ())]
    layers = [layer for each in extractors for layer in each.roi_layers]
    return (
        all(type(each) is SingleRoIExtractor for each in extractors)
        and len({tuple(each.featmap_strides) for each in extractors}) == 1
        and all(type(each) is RoIAlign and each.pool_mode == "avg" and each.aligned for each in layers)
    )


def _reads_masks(head: Any) -> bool:
    """Whether the mask heads see the same features and their masks are drawn from cells by a threshold."""
    from mmdet.models.roi_heads.mask_heads import FCNMaskHead

    geometries = {(repr(each), each.finest_scale) for each in head.mask_roi_extractor}
    return (
        all(isinstance(each, FCNMaskHead) and _inherits(each, FCNMaskHead, "forward") for each in head.mask_head)
        and len(geometries) == 1
        and head.test_cfg.get("mask_thr_binary", -1) >= 0
    )
