"""The few compiled operators mmdet needs, carried out by torchvision where mmcv was installed without its own.

`install()` registers a module `mmcv._ext` before mmcv.ops is imported; mmcv's Python wrappers (mmcv.ops.nms, RoIAlign,
DCNv2, ...) then call the functions below. Names and argument order are the extension's, so is the habit of filling the
result into tensors that the caller made. Boxes are x1 y1 x2 y2; half precision is computed in float32.

    from detection import mmcv_ops
    mmcv_ops.install()          # then: import mmdet
"""

import importlib
import logging
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from networks.deferred import deferred
from networks.packages import torchvision  # noqa: F401  (loading it registers torch.ops.torchvision)

logger = logging.getLogger(__name__)

EXTENSION = "mmcv._ext"
# What mmcv and mmdetection import for printing, for TIFF files, for plots, for tracking, for the matching and fitting
# that some heads train with, and for training on several machines.
SELDOM_USED = (
    "rich", "tifffile", "matplotlib", "sklearn", "scipy.interpolate", "scipy.linalg", "scipy.optimize",
    "mmengine.utils.progressbar_rich", "mmengine._strategy.fsdp",
    "mmengine.model.wrappers.fully_sharded_distributed",
    "mmengine.optim.optimizer.zero_optimizer",
)  # fmt: skip


def install() -> None:
    """Make `import mmcv.ops` work: keep a compiled `mmcv._ext` that loads, else put this module's functions there.

    Call it before mmcv.ops or mmdet is imported; a second call changes nothing. Raises ModuleNotFoundError if mmcv
    itself is not installed.
    """
    if EXTENSION in sys.modules:
        return
    try:
        with deferred(*SELDOM_USED):
            importlib.import_module(EXTENSION)
    except ModuleNotFoundError as error:
        if error.name != EXTENSION:
            raise
        sys.modules[EXTENSION] = _extension()
    except (ImportError, OSError) as error:
        logger.warning("mmcv's compiled operators do not load (%s); torchvision's are used instead", error)
        sys.modules[EXTENSION] = _extension()


def nms(bboxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Greedy suppression of one class: (K,) int64 rows of `bboxes` that stay, best score first, ties in input order.

    `bboxes` is (N, 4) float, where N may be 0, and `scores` (N,) float. An overlap above `iou_threshold` drops the
    lower score; equal overlap stays. An `offset` of 1 counts the last pixel in (width is x2 - x1 + 1), 0 does not.
    """
    boxes = _single(bboxes)
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    if boxes.dtype == torch.float32:  # the CPU operator compares float32 overlaps with a double, the CUDA one does not
        iou_threshold = torch.tensor(iou_threshold, dtype=torch.float32).item()
    return torch.ops.torchvision.nms(boxes, scores.to(boxes.dtype), iou_threshold)


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Suppression that lowers the scores of rivals instead of dropping them at once (arXiv:1704.04503).

    Fills the first K rows of `dets` (N, 5) with box and lowered score, in the order in which they were picked.

    Args:
        boxes, scores, offset: as for `nms`, on the CPU.
        iou_threshold: overlap from which methods 0 and 1 act; equal overlap acts too.
        sigma: width of method 2: a rival's score is multiplied by exp(-overlap² / sigma).
        min_score: a rival whose score falls below it goes. The best box of all always stays.
        method: 0 sets a rival's score to zero, 1 multiplies it by 1 - overlap, 2 as at `sigma`.

    Returns:
        (K,) int64 rows of `boxes`. Among equal scores the first row goes first; the compiled operator, which swaps rows
        as it goes, may pick another.
    """
    current = _single(scores).clone()
    live = torch.arange(len(current))
    picked: list[int] = []
    while len(live):
        best = live[current[live].argmax()]
        dets[len(picked), :4] = boxes[best]
        dets[len(picked), 4] = current[best]
        picked.append(int(best))
        live = live[live != best]
        overlap = _overlap(_single(boxes[live]), _single(boxes[best]), offset)
        if method == 2:
            kept_share = torch.exp(-(overlap**2) / sigma)
        else:
            kept_share = torch.where(overlap >= iou_threshold, 1 - overlap if method == 1 else 0.0, 1.0)
        current[live] *= kept_share
        live = live[current[live] >= min_score]
    return torch.tensor(picked, dtype=torch.int64)


def _overlap(boxes: Tensor, box: Tensor, offset: int) -> Tensor:
    """Intersection over union of (N, 4) boxes with one (4,) box; 0 where neither has an area."""
    sides = torch.minimum(boxes[:, 2:], box[2:]) - torch.maximum(boxes[:, :2], box[:2]) + offset
    intersection = sides.clamp(min=0).prod(dim=1)
    union = (boxes[:, 2:] - boxes[:, :2] + offset).prod(dim=1) + (box[2:] - box[:2] + offset).prod() - intersection
    return torch.where(union > 0, intersection / union, 0.0)


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Fill `output` (R, C, aligned_height, aligned_width) with bin means of bilinear samples of `input` (B, C, H, W).

    Args:
        rois: (R, 5) float: image row in the batch, then a box in image pixels; times `spatial_scale` it is in cells.
        argmax_y, argmax_x: of use to maximum pooling only.
        sampling_ratio: samples per bin and direction; 0 takes as many as the bin has cells, rounded up.
        pool_mode: 1 for the average; 0, the maximum, is refused.
        aligned: cell centres lie at half-integer coordinates; False is the older rule, boxes at least 1 cell wide.
    """
    _refuse_max(pool_mode)
    features = _single(input)
    output.copy_(
        torch.ops.torchvision.roi_align(
            features,
            rois.to(features.dtype),
            spatial_scale,
            aligned_height,
            aligned_width,
            sampling_ratio,
            aligned,
        )
    )


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Fill `grad_input` (B, C, H, W) with the gradient that `grad_output` (R, C, ...) sends back to the features."""
    _refuse_max(pool_mode)
    gradient = _single(grad_output)
    grad_input.copy_(
        torch.ops.torchvision._roi_align_backward(
            gradient,
            rois.to(gradient.dtype),
            spatial_scale,
            aligned_height,
            aligned_width,
            *grad_input.shape,
            sampling_ratio,
            aligned,
        )
    )


def _refuse_max(pool_mode: int) -> None:
    if pool_mode != 1:
        raise NotImplementedError(
            "roi_align: maximum pooling needs mmcv's compiled operators; use pool_mode='avg' or install mmcv compiled"
        )


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Fill `output` (B, D, Y, X): deformable convolution, version 2 (arXiv:1811.11168), of `input` (B, C, H, W).

    Every kernel tap reads the input bilinearly where its offset moves it, zero outside, times its mask.

    Args:
        weight: (D, C / group, kernel_h, kernel_w).
        bias: (D,); anything where `with_bias` is False.
        ones, columns: scratch space of the compiled operator; left alone.
        offset: (B, deformable_group * taps * 2, Y, X) cells, y before x for each tap.
        mask: (B, deformable_group * taps, Y, X).
    """
    bias = bias if with_bias else weight.new_zeros(len(weight))
    geometry = (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group)
    tensors = [_single(tensor) for tensor in (input, weight, offset, mask, bias)]
    output.copy_(torch.ops.torchvision.deform_conv2d(*tensors, *geometry, True))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Fill the five `grad_…` tensors, each shaped as what it is the gradient of; `grad_bias` only where `with_bias`."""
    bias = bias if with_bias else weight.new_zeros(len(weight))
    geometry = (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group)
    tensors = [_single(tensor) for tensor in (grad_output, input, weight, offset, mask, bias)]
    gradients = torch.ops.torchvision._deform_conv2d_backward(*tensors, *geometry, True)
    for filled, gradient in zip((grad_input, grad_weight, grad_offset, grad_mask), gradients, strict=False):
        filled.copy_(gradient)
    if with_bias:
        grad_bias.copy_(gradients[4])


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Deformable convolution, version 1 (arXiv:1703.06211): as version 2 with a mask of ones and no bias."""
    geometry = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    tensors = _unmodulated(input, weight, offset)
    output.copy_(torch.ops.torchvision.deform_conv2d(*tensors, *geometry, False))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Fill `grad_input` and `grad_offset` of version 1."""
    geometry = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    tensors = (_single(grad_output), *_unmodulated(input, weight, offset))
    gradients = torch.ops.torchvision._deform_conv2d_backward(*tensors, *geometry, False)
    grad_input.copy_(gradients[0])
    grad_offset.copy_(gradients[2])


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,
) -> None:
    """Fill `grad_weight` of version 1, times `scale`. Only its shape tells the kernel here; its values are not read."""
    geometry = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    tensors = (_single(grad_output), *_unmodulated(input, torch.zeros_like(grad_weight), offset))
    gradients = torch.ops.torchvision._deform_conv2d_backward(*tensors, *geometry, False)
    grad_weight.copy_(gradients[1] * scale)


def _unmodulated(input: Tensor, weight: Tensor, offset: Tensor) -> tuple[Tensor, ...]:
    """Version 1's five tensors as torchvision takes them: an unread mask and a bias of zeros at the end."""
    features = _single(input)
    mask, bias = features.new_zeros(len(input), 1), features.new_zeros(len(weight))
    return features, _single(weight), _single(offset), mask, bias


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Fill `output` (N, C) with the focal loss (arXiv:1708.02002) of each logit: is the row of the logit's class?

    With p = sigmoid(x): -alpha (1 - p)^gamma log p for the row's own class, -(1 - alpha) p^gamma log(1 - p) for the
    other classes. `input` is (N, C) float logits and `target` (N,) int64, the class of each row; any number outside
    [0, C) is background. `weight` (C,) is the factor of a row by its class, 1 for background; a tensor without elements
    weighs nothing.
    """
    logits = _single(input)
    p, log_p, log_not_p = logits.sigmoid(), logsigmoid(logits), logsigmoid(-logits)
    positive = -alpha * (1 - p) ** gamma * log_p
    negative = -(1 - alpha) * p**gamma * log_not_p
    output.copy_(_by_class(positive, negative, target, weight))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Fill `grad_input` (N, C) with the derivative of each loss by its logit."""
    logits = _single(input)
    p, log_p, log_not_p = logits.sigmoid(), logsigmoid(logits), logsigmoid(-logits)
    positive = -alpha * (1 - p) ** gamma * (1 - p - gamma * p * log_p)
    negative = -(1 - alpha) * p**gamma * (gamma * (1 - p) * log_not_p - p)
    grad_input.copy_(_by_class(positive, negative, target, weight))


def _by_class(positive: Tensor, negative: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """(N, C): `positive` where the column is the row's class and `negative` elsewhere, times the row's weight."""
    own = target[:, None] == torch.arange(positive.shape[1], device=target.device)
    values = torch.where(own, positive, negative)
    if weight.numel():
        values = values * torch.where(own, weight.to(values.dtype), 1.0).prod(dim=1, keepdim=True)
    return values


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Deformable attention over several maps (arXiv:2010.04159) on a GPU, forward only.

    mmcv's own form of it in plain torch, which it uses on a CPU, does the work; its docstring has the shapes.
    """
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    return multi_scale_deformable_attn_pytorch(value, value_spatial_shapes, sampling_locations, attention_weights)


def get_compiler_version() -> str:
    """For mmcv's report on its environment."""
    return "none: mmcv was installed without compiled operators"


def get_compiling_cuda_version() -> str:
    """For mmcv's report on its environment."""
    return "none: mmcv was installed without compiled operators"


def _single(values: Tensor) -> Tensor:
    """Half precision as float32, anything else as it is."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _extension() -> ModuleType:
    """A module named `mmcv._ext` that has every name: the functions of OPERATORS, and refusals under all others."""
    module = ModuleType(EXTENSION, "Stand-in for mmcv's compiled operators; see detection.mmcv_ops.")
    module.__spec__ = ModuleSpec(EXTENSION, loader=None, origin=__name__)
    for operator in OPERATORS:
        setattr(module, operator.__name__, operator)
    module.__getattr__ = _missing_operator  # type: ignore[method-assign]
    return module


def _missing_operator(name: str) -> Callable[..., None]:
    """The extension's `__getattr__`: a function that refuses when it is called.

    mmcv looks all its operators up while it is imported, so one that is missing may fail only when a model calls it.
    """
    if name.startswith("_"):  # Python's own questions, such as for `__path__`
        raise AttributeError(f"module {EXTENSION!r} has no attribute {name!r}")

    replaced = ", ".join(operator.__name__ for operator in OPERATORS)

    def refuse(*args: object, **kwargs: object) -> None:
        raise NotImplementedError(
            f"mmcv operator {name!r}: mmcv's compiled operators are absent or do not load, and of these alone there "
            f"are others: {replaced}; use a model that does not call {name!r}, "
            "or install mmcv with its operators compiled for this torch (build it with torch present)"
        )

    return refuse


OPERATORS: tuple[Callable, ...] = (
    nms,
    softnms,
    roi_align_forward,
    roi_align_backward,
    modulated_deform_conv_forward,
    modulated_deform_conv_backward,
    deform_conv_forward,
    deform_conv_backward_input,
    deform_conv_backward_parameters,
    sigmoid_focal_loss_forward,
    sigmoid_focal_loss_backward,
    ms_deform_attn_forward,
    get_compiler_version,
    get_compiling_cuda_version,
)
