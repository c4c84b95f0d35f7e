"""The stand-ins for mmcv's compiled operators, called through mmcv's own wrappers, against plain loops."""

import itertools
import math
import sys
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detection import mmcv_ops

mmcv_ops.install()

import mmcv.ops as ops  # noqa: E402  (only now can it be imported)

stand_in_only = pytest.mark.skipif(
    sys.modules["mmcv._ext"].nms is not mmcv_ops.nms, reason="mmcv has its compiled operators here"
)


def seeded(*shape: int, seed: int = 0, grad: bool = False) -> Tensor:
    """Standard normal float64 values."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.requires_grad_(grad)


def bilinear(plane: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """(C,) values of a (C, H, W) plane at a real position; a neighbour outside the plane counts as 0."""
    _, height, width = plane.shape
    y0, x0 = math.floor(y.item()), math.floor(x.item())
    value = plane.new_zeros(len(plane))
    for row, column in itertools.product((y0, y0 + 1), (x0, x0 + 1)):
        if 0 <= row < height and 0 <= column < width:
            value = value + plane[:, row, column] * (1 - abs(y - row)) * (1 - abs(x - column))
    return value


# ---------------------------------------------------------------------------------------------------------------------
# nms


def plain_nms(boxes: np.ndarray, scores: np.ndarray, threshold: float, offset: int = 0) -> list[int]:
    """Greedy, by falling score, ties in input order; equal overlap stays."""
    kept: list[int] = []
    for row in sorted(range(len(boxes)), key=lambda row: (-scores[row], row)):
        x1, y1, x2, y2 = (float(value) for value in boxes[row])
        for rival in kept:
            u1, v1, u2, v2 = (float(value) for value in boxes[rival])
            shared = max(0, min(x2, u2) - max(x1, u1) + offset) * max(0, min(y2, v2) - max(y1, v1) + offset)
            both = (x2 - x1 + offset) * (y2 - y1 + offset) + (u2 - u1 + offset) * (v2 - v1 + offset) - shared
            if shared > threshold * both:
                break
        else:
            kept.append(row)
    return kept


WHOLE, HALF, APART = (0, 0, 10, 10), (0, 0, 10, 5), (20, 20, 30, 30)
WHOLE_1, HALF_1 = (0, 0, 9, 9), (0, 0, 9, 4)  # the same boxes where the last pixel counts in


@pytest.mark.parametrize(
    "boxes, scores, threshold, offset, want",
    [
        ([], [], 0.5, 0, []),  # nothing seen
        ([WHOLE], [0.3], 0.5, 0, [0]),  # one box
        ([WHOLE, APART], [0.3, 0.8], 0.0, 0, [1, 0]),  # no overlap; best first
        ([WHOLE, HALF], [0.9, 0.8], 0.51, 0, [0, 1]),  # 50 / 100, just below
        ([WHOLE, HALF], [0.9, 0.8], 0.50, 0, [0, 1]),  # equal stays
        ([WHOLE, HALF], [0.9, 0.8], 0.49, 0, [0]),  # just above
        ([(0, 0, 5, 5), (0, 0, 5, 3)], [0.9, 0.8], 0.6, 0, [0, 1]),  # 15 / 25: equal, though 0.6 is no float32
        ([WHOLE_1, HALF_1], [0.9, 0.8], 0.50, 1, [0, 1]),  # 10 x 5 of 10 x 10 pixels
        ([WHOLE_1, HALF_1], [0.9, 0.8], 0.49, 1, [0]),
        ([WHOLE_1, HALF_1], [0.9, 0.8], 0.49, 0, [0, 1]),  # 9 x 4 / 9 x 9 = 0.44
        ([HALF, WHOLE, WHOLE], [0.5, 0.5, 0.5], 0.4, 0, [0]),  # ties: the first of them
        ([WHOLE, HALF, (0, 0, 10, 3)], [0.9, 0.8, 0.7], 0.4, 0, [0, 2]),  # what a dropped box overlaps is not dropped
    ],
)
def test_nms_table(boxes: list, scores: list, threshold: float, offset: int, want: list[int]) -> None:
    arrays = np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32)
    dets, kept = ops.nms(*arrays, threshold, offset=offset)
    assert kept.tolist() == want
    np.testing.assert_array_equal(dets, np.column_stack(arrays)[want])


corners = st.integers(0, 12)
any_box = st.tuples(corners, corners, st.integers(1, 8), st.integers(1, 8), st.integers(0, 4))


@settings(max_examples=150)
@given(st.lists(any_box, max_size=12), st.sampled_from([0.0, 0.25, 0.5, 0.75]), st.sampled_from([0, 1]))
def test_nms_is_greedy_suppression(rows: list, threshold: float, offset: int) -> None:
    boxes = np.array([(x, y, x + w, y + h) for x, y, w, h, _ in rows], np.float32).reshape(-1, 4)
    scores = np.array([score / 4 for *_, score in rows], np.float32)
    _, kept = ops.nms(torch.from_numpy(boxes), torch.from_numpy(scores), threshold, offset=offset)
    assert kept.tolist() == plain_nms(boxes, scores, threshold, offset)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_nms_takes_other_precisions(dtype: torch.dtype) -> None:
    boxes = torch.tensor([WHOLE, HALF, APART], dtype=dtype)
    _, kept = ops.nms(boxes, torch.tensor([0.5, 0.75, 0.25], dtype=dtype), 0.4)
    assert kept.tolist() == [1, 2]


@pytest.mark.parametrize("split_thr", [10_000, 1])
def test_batched_nms_keeps_classes_apart(split_thr: int) -> None:
    boxes, scores = torch.tensor([WHOLE, HALF, WHOLE, APART]).float(), torch.tensor([0.9, 0.8, 0.7, 0.6])
    classes = torch.tensor([0, 1, 0, 0])
    dets, kept = ops.batched_nms(boxes, scores, classes, {"type": "nms", "iou_threshold": 0.4, "split_thr": split_thr})
    assert kept.tolist() == [0, 1, 3]
    torch.testing.assert_close(dets, torch.cat([boxes, scores[:, None]], dim=1)[kept])


# ---------------------------------------------------------------------------------------------------------------------
# soft_nms


@pytest.mark.parametrize(
    "method, min_score, want_rows, want_scores",
    [
        ("naive", 0.01, [0, 2], [0.9, 0.4]),  # HALF overlaps WHOLE by 0.5: score to 0, gone
        ("linear", 0.01, [0, 1, 2], [0.9, 0.8 * (1 - 0.5), 0.4]),  # a tie of 0.4: first row first
        ("gaussian", 0.01, [0, 1, 2], [0.9, 0.8 * math.exp(-(0.5**2) / 0.5), 0.4]),
        ("linear", 0.5, [0], [0.9]),  # below min_score
        ("linear", 0.95, [0], [0.9]),  # the best of all stays
    ],
)
def test_soft_nms_table(method: str, min_score: float, want_rows: list[int], want_scores: list[float]) -> None:
    boxes, scores = np.array([WHOLE, HALF, APART], np.float32), np.array([0.9, 0.8, 0.4], np.float32)
    dets, kept = ops.soft_nms(boxes, scores, iou_threshold=0.5, sigma=0.5, min_score=min_score, method=method)
    assert kept.tolist() == want_rows
    np.testing.assert_allclose(dets, np.column_stack([boxes[want_rows], want_scores]), rtol=1e-6)


@pytest.mark.parametrize("offset, overlap", [(0, 36 / 81), (1, 50 / 100)])
def test_soft_nms_offset(offset: int, overlap: float) -> None:
    boxes = np.array([WHOLE_1, HALF_1], np.float32)
    dets, _ = ops.soft_nms(boxes, np.array([0.9, 0.8], np.float32), iou_threshold=0.3, offset=offset)
    np.testing.assert_allclose(dets[:, 4], [0.9, 0.8 * (1 - overlap)], rtol=1e-6)


def test_soft_nms_of_nothing_and_of_boxes_without_area() -> None:
    dets, kept = ops.soft_nms(torch.zeros(0, 4), torch.zeros(0))
    assert dets.shape == (0, 5) and kept.shape == (0,)
    dets, kept = ops.soft_nms(torch.ones(2, 4), torch.tensor([0.5, 0.6]), method="gaussian")
    assert kept.tolist() == [1, 0] and dets[:, 4].tolist() == pytest.approx([0.6, 0.5])


# ---------------------------------------------------------------------------------------------------------------------
# roi_align


def plain_roi_align(features: Tensor, rois: Tensor, size: tuple, scale: float, ratio: int, aligned: bool) -> Tensor:
    """Bin means of bilinear samples. Samples up to one cell outside take the border's value, those beyond 0."""
    _, channels, height, width = features.shape
    result = []
    for image, *corners in rois.tolist():
        x1, y1, x2, y2 = (corner * scale - (0.5 if aligned else 0) for corner in corners)
        roi_w, roi_h = (x2 - x1, y2 - y1) if aligned else (max(x2 - x1, 1), max(y2 - y1, 1))
        bin_h, bin_w = roi_h / size[0], roi_w / size[1]
        n_y, n_x = (ratio, ratio) if ratio > 0 else (math.ceil(bin_h), math.ceil(bin_w))
        for row, column in itertools.product(range(size[0]), range(size[1])):
            total = features.new_zeros(channels)
            for i, j in itertools.product(range(n_y), range(n_x)):
                y, x = y1 + (row + (i + 0.5) / n_y) * bin_h, x1 + (column + (j + 0.5) / n_x) * bin_w
                if -1 <= y <= height and -1 <= x <= width:
                    inside = torch.tensor([min(max(y, 0), height - 1), min(max(x, 0), width - 1)], dtype=torch.float64)
                    total = total + bilinear(features[int(image)], *inside)
            result.append(total / max(n_y * n_x, 1))
    return torch.stack(result).reshape(len(rois), *size, channels).permute(0, 3, 1, 2)


ROIS = torch.tensor(
    [
        (0, 1.3, 2.1, 9.7, 12.4),  # inside
        (1, -4.0, -3.0, 6.0, 5.0),  # over the top left corner
        (1, 8.0, 7.0, 30.0, 26.0),  # over the bottom right corner
        (0, 5.0, 5.0, 5.5, 5.2),  # smaller than a cell
        (1, 40.0, 40.0, 50.0, 50.0),  # outside: all zeros
    ],
    dtype=torch.float64,
)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_roi_align_and_its_gradient(aligned: bool, ratio: int, scale: float) -> None:
    features, size = seeded(2, 3, 8, 9, grad=True), (2, 3)
    pooled = ops.RoIAlign(size, scale, ratio, aligned=aligned)(features, ROIS)
    want = plain_roi_align(features, ROIS, size, scale, ratio, aligned)
    torch.testing.assert_close(pooled, want)
    upstream = seeded(*pooled.shape, seed=1)
    (gradient,) = torch.autograd.grad(pooled, features, upstream)
    (want_gradient,) = torch.autograd.grad(want, features, upstream)
    torch.testing.assert_close(gradient, want_gradient)


def test_roi_align_of_whole_cells_is_a_crop() -> None:
    features = torch.arange(36.0).reshape(1, 1, 6, 6)
    pooled = ops.roi_align(features, torch.tensor([[0.0, 1, 2, 4, 4]]), (2, 3), 1.0, 0, "avg", True)
    torch.testing.assert_close(pooled, features[:, :, 2:4, 1:4])


def test_roi_align_of_no_boxes() -> None:
    features = torch.ones(1, 2, 4, 4, requires_grad=True)
    pooled = ops.RoIAlign(7)(features, torch.zeros(0, 5))
    (gradient,) = torch.autograd.grad(pooled.sum(), features)
    assert pooled.shape == (0, 2, 7, 7) and not gradient.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_roi_align_takes_half_precision(dtype: torch.dtype) -> None:
    features = seeded(2, 3, 8, 9).to(dtype).requires_grad_()
    rois = ROIS.to(dtype)
    pooled = ops.RoIAlign(2)(features, rois)
    (gradient,) = torch.autograd.grad(pooled.sum(), features)
    assert pooled.dtype == gradient.dtype == dtype
    want = ops.RoIAlign(2)(features.detach().float(), rois.float())
    torch.testing.assert_close(pooled.detach(), want.to(dtype))


@stand_in_only
def test_roi_align_refuses_the_maximum() -> None:
    with pytest.raises(NotImplementedError, match=r"roi_align: maximum pooling.*pool_mode='avg'"):
        ops.RoIAlign(2, pool_mode="max")(torch.ones(1, 1, 4, 4), torch.zeros(1, 5))


# ---------------------------------------------------------------------------------------------------------------------
# deformable convolution


def plain_deform_conv(
    features: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
    dilation: int,
    groups: int,
    deform_groups: int,
) -> Tensor:
    """Gather every tap's sample, then an ordinary 1 x 1 convolution over channels x taps."""
    n, channels, _, _ = features.shape
    _, _, kernel_h, kernel_w = weight.shape
    taps, per_group = kernel_h * kernel_w, channels // deform_groups
    out_h, out_w = offset.shape[2:]
    gathered = []
    for image, y, x, group, tap in itertools.product(*map(range, (n, out_h, out_w, deform_groups, taps))):
        first = (group * taps + tap) * 2
        at_y = y * stride - padding + (tap // kernel_w) * dilation + offset[image, first, y, x]
        at_x = x * stride - padding + (tap % kernel_w) * dilation + offset[image, first + 1, y, x]
        plane = features[image, group * per_group : (group + 1) * per_group]
        gathered.append(bilinear(plane, at_y, at_x) * mask[image, group * taps + tap, y, x])
    columns = torch.stack(gathered).reshape(n, out_h, out_w, deform_groups, taps, per_group)
    columns = columns.permute(0, 3, 5, 4, 1, 2).reshape(n, channels * taps, out_h, out_w)
    return F.conv2d(columns, weight.reshape(len(weight), -1, 1, 1), bias, groups=groups)


# stride, padding, dilation, groups, deform_groups, with_bias
GEOMETRIES = [(1, 1, 1, 1, 1, True), (2, 1, 1, 2, 1, True), (1, 2, 2, 1, 2, False), (1, 0, 1, 2, 2, False)]


def deform_inputs(geometry: tuple) -> list[Any]:
    """Features (2, 4, 5, 6), offsets of about a cell, mask in (0, 1), 3 x 2 kernels, bias; all want gradients."""
    stride, padding, dilation, groups, deform_groups, with_bias = geometry
    out_h, out_w = (
        (side + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1 for side, kernel in ((5, 3), (6, 2))
    )
    return [
        seeded(2, 4, 5, 6, seed=1, grad=True),
        seeded(2, deform_groups * 6 * 2, out_h, out_w, seed=2, grad=True),
        seeded(2, deform_groups * 6, out_h, out_w, seed=3).sigmoid().requires_grad_(),
        seeded(6, 4 // groups, 3, 2, seed=4, grad=True),
        seeded(6, seed=5, grad=True) if with_bias else None,
    ]


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_modulated_deform_conv_and_its_gradients(geometry: tuple) -> None:
    inputs, settings = deform_inputs(geometry), geometry[:5]
    result, want = ops.modulated_deform_conv2d(*inputs, *settings), plain_deform_conv(*inputs, *settings)
    torch.testing.assert_close(result, want)
    sources, upstream = [source for source in inputs if source is not None], seeded(*result.shape, seed=6)
    gradients = torch.autograd.grad(result, sources, upstream)
    for gradient, want_gradient in zip(gradients, torch.autograd.grad(want, sources, upstream), strict=True):
        torch.testing.assert_close(gradient, want_gradient)


@pytest.mark.parametrize("geometry", [geometry for geometry in GEOMETRIES if not geometry[-1]])
def test_deform_conv_is_modulated_with_a_mask_of_ones(geometry: tuple) -> None:
    features, offset, mask, weight, _ = deform_inputs(geometry)
    sources, settings = [features, offset, weight], geometry[:5]
    result = ops.deform_conv2d(*sources, *settings)
    want = plain_deform_conv(features, offset, torch.ones_like(mask), weight, None, *settings)
    torch.testing.assert_close(result, want)
    upstream = seeded(*result.shape, seed=6)
    gradients = torch.autograd.grad(result, sources, upstream)
    for gradient, want_gradient in zip(gradients, torch.autograd.grad(want, sources, upstream), strict=True):
        torch.testing.assert_close(gradient, want_gradient)


@pytest.mark.parametrize("bias", [True, False])
def test_fresh_dcn_layer_is_half_a_convolution(bias: bool) -> None:
    """Its offsets start at 0 and its mask at sigmoid(0) = 1/2."""
    layer = ops.ModulatedDeformConv2dPack(4, 6, 3, stride=2, padding=2, dilation=2, bias=bias)
    features = torch.randn(2, 4, 9, 8)
    want = F.conv2d(features, layer.weight / 2, layer.bias, stride=2, padding=2, dilation=2)
    torch.testing.assert_close(layer(features), want)


def test_dcn_layer_trains() -> None:
    torch.manual_seed(0)
    layer, features, target = ops.ModulatedDeformConv2dPack(3, 2, 3, padding=1), torch.randn(2, 3, 6, 6), 0.5
    optimizer, losses = torch.optim.SGD(layer.parameters(), lr=0.1), []
    for _ in range(5):
        optimizer.zero_grad()
        loss = (layer(features) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in layer.parameters())


def test_dcn_layer_runs_in_mixed_precision() -> None:
    """The layer's offsets come out in bfloat16; the result is the float32 one to bfloat16's 8 bits."""
    torch.manual_seed(0)
    layer, features = ops.ModulatedDeformConv2dPack(3, 2, 3, padding=1), torch.randn(2, 3, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = layer(features)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.float(), layer(features), rtol=0.02, atol=0.02)
    gradients = torch.autograd.grad(result.sum(), list(layer.parameters()))
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients)


# ---------------------------------------------------------------------------------------------------------------------
# focal loss


def plain_focal_loss(logits: Tensor, target: Tensor, gamma: float, alpha: float) -> Tensor:
    """(N, C); a target outside 0 … C-1 is background."""
    own = torch.stack([target == column for column in range(logits.shape[1])], dim=1)
    p = logits.sigmoid()
    return torch.where(own, -alpha * (1 - p) ** gamma * p.log(), -(1 - alpha) * p**gamma * (1 - p).log())


def test_focal_loss_by_hand() -> None:
    """At logit 0, p = 1/2: (1/2)^2 log 2, a quarter of it for the own class, three quarters for the other."""
    loss = ops.sigmoid_focal_loss(torch.zeros(1, 2), torch.tensor([1]), 2.0, 0.25, None, "none")
    torch.testing.assert_close(loss, torch.tensor([[0.75, 0.25]]) * 0.25 * math.log(2))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("gamma, alpha", [(2.0, 0.25), (0.0, 0.5), (1.5, 0.9)])
def test_focal_loss_and_its_gradient(gamma: float, alpha: float, reduction: str) -> None:
    logits, target = (3 * seeded(6, 4)).requires_grad_(), torch.tensor([0, 1, 2, 3, 4, -1])
    loss = ops.sigmoid_focal_loss(logits, target, gamma, alpha, None, reduction)
    want = plain_focal_loss(logits, target, gamma, alpha)
    want = {"none": want, "mean": want.sum() / 6, "sum": want.sum()}[reduction]
    torch.testing.assert_close(loss, want)
    upstream = seeded(*loss.shape, seed=1)
    torch.testing.assert_close(torch.autograd.grad(loss, logits, upstream), torch.autograd.grad(want, logits, upstream))


def test_focal_loss_weights_rows_by_their_class() -> None:
    logits, target = seeded(4, 3, grad=True), torch.tensor([0, 1, 2, 3])  # the last is background
    loss = ops.sigmoid_focal_loss(logits, target, 2.0, 0.25, seeded(3).new_tensor([2.0, 3.0, 5.0]), "none")
    want = plain_focal_loss(logits, target, 2.0, 0.25) * torch.tensor([2.0, 3.0, 5.0, 1.0])[:, None]
    torch.testing.assert_close(loss, want)
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), logits), torch.autograd.grad(want.sum(), logits))


def test_focal_loss_of_far_logits_stays_finite() -> None:
    logits = torch.tensor([[200.0, -200.0]], requires_grad=True)
    loss = ops.sigmoid_focal_loss(logits, torch.tensor([1]), 2.0, 0.25, None, "sum")
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == pytest.approx(200 * 0.75 + 200 * 0.25)  # p is 1 or 0: weight 1, log p about -|x|
    assert gradient.tolist() == [[pytest.approx(0.75), pytest.approx(-0.25)]]


# ---------------------------------------------------------------------------------------------------------------------
# the module


@stand_in_only
def test_deformable_attention_has_one_form_for_every_device() -> None:
    """The operator that mmcv calls on a GPU answers as its module does on a CPU, one map and one place to look at."""
    value = torch.arange(8.0).reshape(1, 4, 1, 2)  # cells of a 2 x 2 map, two channels
    places, weights = torch.tensor([0.75, 0.25]).reshape(1, 1, 1, 1, 1, 2), torch.full((1, 1, 1, 1, 1), 0.5)
    shapes, starts = torch.tensor([[2, 2]]), torch.tensor([0])
    found = sys.modules["mmcv._ext"].ms_deform_attn_forward(value, shapes, starts, places, weights, im2col_step=64)
    assert found.tolist() == [[[0.5 * 2, 0.5 * 3]]]  # the middle of the cell at the top on the right


@stand_in_only
def test_unknown_operators_are_refused_by_name_when_called() -> None:
    with pytest.raises(NotImplementedError, match=r"'roi_pool_forward'.*compiled operators are absent.*install mmcv"):
        ops.RoIPool(2)(torch.ones(1, 1, 4, 4), torch.zeros(1, 5))
    with pytest.raises(NotImplementedError, match="'nms_rotated'"):
        sys.modules["mmcv._ext"].nms_rotated()
    assert not hasattr(sys.modules["mmcv._ext"], "__path__")


def test_install_twice_changes_nothing() -> None:
    before = sys.modules["mmcv._ext"]
    mmcv_ops.install()
    assert sys.modules["mmcv._ext"] is before


@stand_in_only
def test_environment_report_says_so() -> None:
    assert "without compiled operators" in ops.get_compiler_version()
    assert "without compiled operators" in ops.get_compiling_cuda_version()


@pytest.fixture
def extension_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where a `mmcv._ext` would be found; the one in use is forgotten for the test."""
    monkeypatch.setattr(mmcv, "__path__", [str(tmp_path)])
    monkeypatch.setattr(mmcv, "_ext", None, raising=False)
    monkeypatch.delitem(sys.modules, "mmcv._ext")
    return tmp_path / "_ext.py"


def test_install_stands_in_where_there_is_no_extension(extension_file: Path) -> None:
    mmcv_ops.install()
    assert sys.modules["mmcv._ext"].nms is mmcv_ops.nms


def test_install_keeps_an_extension_that_loads(extension_file: Path) -> None:
    extension_file.write_text("nms = 'compiled'\n")
    mmcv_ops.install()
    assert sys.modules["mmcv._ext"].nms == "compiled"


def test_install_replaces_an_extension_that_does_not_load(
    extension_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    extension_file.write_text("raise ImportError('undefined symbol: _ZN2at')\n")
    mmcv_ops.install()
    assert sys.modules["mmcv._ext"].nms is mmcv_ops.nms
    assert "undefined symbol: _ZN2at" in caplog.text
