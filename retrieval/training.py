"""What training an embedder needs besides the model: crops in memory, batches, augmentation, averaged weights, a measure.

Garments come from image sets with true boxes; `identity` is one garment of one seller, (image set, pair_id, style), seen on
consumer and shop photos. torch and NumPy; the loop itself is `jobs/train_embedder.py`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retrieval import crops
from retrieval.models import EmbedderSpec

HOLD_OUT_EVERY = 10  # pair_ids divisible by this are never trained on
JITTER = 0.08  # share of the box's side by which each edge is moved at most, as a detector would
CONTEXT = 0.10  # kept around a cached box so that edges can move outwards


@dataclass(frozen=True)
class Cached:
    """One garment in memory: its surroundings at the size the embedder wants.

    Attributes:
        canvas: (S, S, 3) uint8 RGB; the photo's part in the top left corner, its edge pixels repeated beyond.
        box: x1 y1 x2 y2 of the garment on the canvas, pixels.
        extent: width, height of the photo's part on the canvas, pixels.
        identity: (image set number, pair_id, style); None where the garment has no known relatives.
        shop: on a shop photo, else on a consumer's.
        held_out: kept from training, by its pair_id.
    """

    canvas: np.ndarray
    box: tuple[float, float, float, float]
    extent: tuple[int, int]
    identity: tuple[int, int, int] | None
    shop: bool
    held_out: bool


def cache(
    photo: np.ndarray, box: np.ndarray, size: int, *, identity: tuple[int, int, int] | None, shop: bool, held_out: bool
) -> Cached:
    """Cut the surroundings of a box (x1 y1 x2 y2, pixels of `photo`) so that the box itself comes out `size` pixels long."""
    height, width = photo.shape[:2]
    x1, y1, x2, y2 = crops.areas_of(np.asarray(box)[None], width, height)[0].tolist()
    left, top, right, bottom = crops.areas_of(np.array([[x1, y1, x2, y2]]), width, height, CONTEXT)[0].tolist()
    side = canvas_side(size)
    scale = min(size / max(x2 - x1, y2 - y1), side / max(right - left, bottom - top))
    extent = (max(1, int((right - left) * scale)), max(1, int((bottom - top) * scale)))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    part = cv2.resize(np.ascontiguousarray(photo[top:bottom, left:right]), extent, interpolation=how)
    canvas = cv2.copyMakeBorder(part, 0, side - extent[1], 0, side - extent[0], cv2.BORDER_REPLICATE)
    across, down = extent[0] / (right - left), extent[1] / (bottom - top)
    on_canvas = ((x1 - left) * across, (y1 - top) * down, (x2 - left) * across, (y2 - top) * down)
    return Cached(canvas, on_canvas, extent, identity, shop, held_out)


def canvas_side(size: int) -> int:
    return math.ceil(size * (1 + 2 * CONTEXT)) + 2


class Garments:
    """All cached garments as arrays, and which of them are one identity."""

    def __init__(self, items: list[Cached], spec: EmbedderSpec) -> None:
        self.spec = spec
        side = canvas_side(spec.input_size)
        self.canvas = torch.from_numpy(
            np.stack([item.canvas for item in items]) if items else np.zeros((0, side, side, 3), np.uint8)
        )
        self.box = torch.tensor([item.box for item in items], dtype=torch.float32).reshape(-1, 4)
        self.extent = torch.tensor([item.extent for item in items], dtype=torch.float32).reshape(-1, 2)
        self.shop = np.array([item.shop for item in items], bool)
        self.held_out = np.array([item.held_out for item in items], bool)
        names = sorted({item.identity for item in items if item.identity is not None})
        number = {name: i for i, name in enumerate(names)}
        self.identity = np.array([-1 if item.identity is None else number[item.identity] for item in items], np.int64)
        self.classes = [
            rows for rows in map(self._members, range(len(names))) if len(rows) > 1 and not self.held_out[rows].any()
        ]

    def _members(self, identity: int) -> np.ndarray:
        return np.flatnonzero(self.identity == identity)

    def batch(self, n_identities: int, per_identity: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Rows (n,) of garments and their class numbers (n,) for one step.

        Each chosen class gives `per_identity` rows, consumer and shop in turn, repeated where it has too few.
        """
        chosen = rng.choice(len(self.classes), size=min(n_identities, len(self.classes)), replace=False)
        rows = [row for one in chosen for row in self._views(self.classes[one], per_identity, rng)]
        return np.array(rows, np.int64), np.repeat(chosen, per_identity).astype(np.int64)

    def _views(self, members: np.ndarray, n: int, rng: np.random.Generator) -> list[int]:
        members = rng.permutation(members)
        sides = [side for side in (members[~self.shop[members]], members[self.shop[members]]) if len(side)]
        first = int(rng.integers(len(sides)))
        return [
            int(sides[(first + i) % len(sides)][(i // len(sides)) % len(sides[(first + i) % len(sides)])])
            for i in range(n)
        ]

    def images(self, rows: np.ndarray, rng: np.random.Generator | None = None) -> Tensor:
        """(n, 3, size, size) float32 as the backbone wants them; augmented if there is an `rng`, else `crops.crop`'s rule."""
        where = torch.from_numpy(np.asarray(rows, np.int64))
        canvas = self.canvas[where].permute(0, 3, 1, 2).float()
        box, extent = self.box[where], self.extent[where]
        angle = torch.zeros(len(where))
        flip = torch.ones(len(where))
        if rng is not None:
            box = _jitter(box, extent, rng)
            angle = torch.from_numpy(rng.uniform(-0.2, 0.2, len(where)) * (rng.random(len(where)) < 0.5)).float()
            flip = torch.from_numpy(np.where(rng.random(len(where)) < 0.5, -1.0, 1.0)).float()
        pictures = _letterbox(canvas, box, angle, flip, self.spec.input_size)
        if rng is not None:
            pictures = _erase(_recolour(pictures, rng), rng)
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (self.spec.mean, self.spec.std))
        return ((pictures - mean) / std).contiguous(memory_format=torch.channels_last)


def _jitter(box: Tensor, extent: Tensor, rng: np.random.Generator) -> Tensor:
    """Move every edge by up to `JITTER` of its side, inside what was cached."""
    sides = (box[:, 2:] - box[:, :2]).repeat(1, 2)
    moved = box + sides * torch.from_numpy(rng.uniform(-JITTER, JITTER, (len(box), 4))).float()
    return torch.minimum(moved.clamp(min=0), extent.repeat(1, 2))


def _letterbox(canvas: Tensor, box: Tensor, angle: Tensor, flip: Tensor, size: int) -> Tensor:
    """Sample boxes out of canvases (n, 3, S, S) as `crops.crop` lays them out: longer side = size, centred on white."""
    n, _, side, _ = canvas.shape
    centre, sides = (box[:, :2] + box[:, 2:]) / 2, (box[:, 2:] - box[:, :2]).clamp(min=1.0)
    half = sides.amax(dim=1) / 2
    ticks = (torch.arange(size) + 0.5) / size * 2 - 1
    u = (ticks.view(1, 1, size) * (half * flip).view(n, 1, 1)).expand(n, size, size)
    v = (ticks.view(1, size, 1) * half.view(n, 1, 1)).expand(n, size, size)
    cos, sin = angle.cos().view(n, 1, 1), angle.sin().view(n, 1, 1)
    x = u * cos - v * sin + centre[:, 0].view(n, 1, 1)
    y = u * sin + v * cos + centre[:, 1].view(n, 1, 1)
    grid = torch.stack([x, y], dim=-1) * (2 / side) - 1
    pictures = F.grid_sample(canvas, grid, mode="bilinear", padding_mode="border", align_corners=False)
    inside = (u.abs() <= sides[:, 0].view(n, 1, 1) / 2) & (v.abs() <= sides[:, 1].view(n, 1, 1) / 2)
    return torch.where(inside.unsqueeze(1), pictures, torch.tensor(float(crops.FILL)))


def _recolour(pictures: Tensor, rng: np.random.Generator) -> Tensor:
    """Other light: brightness, contrast, saturation and a tint, each picture its own."""

    def factors(low: float, high: float, channels: int = 1) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (len(pictures), channels, 1, 1))).float()

    pictures = pictures * factors(0.75, 1.25) * factors(0.93, 1.07, 3)
    pictures = (pictures - 128) * factors(0.75, 1.25) + 128
    grey = pictures.mean(dim=1, keepdim=True)
    return (grey + (pictures - grey) * factors(0.7, 1.3)).clamp(0, 255)


def _erase(pictures: Tensor, rng: np.random.Generator, share: float = 0.3) -> Tensor:
    """Something stands before the garment: a rectangle of one colour on a `share` of the pictures."""
    size = pictures.shape[-1]
    for i in np.flatnonzero(rng.random(len(pictures)) < share):
        height, width = (rng.uniform(0.15, 0.45, 2) * size).astype(int)
        top, left = int(rng.integers(size - height)), int(rng.integers(size - width))
        colour = torch.from_numpy(rng.uniform(0, 255, 3)).float()
        pictures[i, :, top : top + height, left : left + width] = colour.view(3, 1, 1)
    return pictures


# ------------------------------------------------------------------------------------------------ the model


def freeze(backbone: nn.Module, n_stages: int) -> None:
    """Stop the stem and the first stages from learning; batch-norm statistics are frozen by keeping the backbone in eval mode.

    The stem is what comes before the first stage; stages are `blocks.I` (EfficientNets), `layerI` (ResNets) or `stages.I`.
    n_stages = 0 freezes nothing, not even the stem.
    """
    if not n_stages:
        return
    for name, parameter in backbone.named_parameters():
        stage = _stage_of(name)
        if stage is None or stage < n_stages:
            parameter.requires_grad_(False)


def _stage_of(name: str) -> int | None:
    parts = name.replace("body.", "", 1).replace("stages_", "stages.").split(".")
    if parts[0] in ("blocks", "stages") and parts[1].isdigit():
        return int(parts[1])
    if parts[0].startswith("layer") and parts[0][5:].isdigit():
        return int(parts[0][5:]) - 1
    return None


class Average:
    """Exponential moving average of a model's tensors: steadier than the last step's."""

    def __init__(self, model: nn.Module, decay: float = 0.998) -> None:
        self.decay = decay
        self.updates = 0
        self.tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take a step of the model in; early steps count more, so that the start is soon forgotten."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, tensor in model.state_dict().items():
            kept = self.tensors[name]
            if kept.is_floating_point():
                kept.lerp_(tensor, 1 - decay)
            else:
                kept.copy_(tensor)


# ------------------------------------------------------------------------------------------------ how good it is


def held_out_accuracy(
    model: nn.Module, garments: Garments, ks: tuple[int, ...] = (1, 10), device: str = "cpu"
) -> dict[str, float]:
    """Share of held-out consumer garments with a shop photo of theirs among the first k of all shop garments.

    Keys "acc@K", and "queries"; accuracies are nan where nothing is held out. Ties go to the lower row.
    """
    gallery = np.flatnonzero(garments.shop)
    related = np.isin(garments.identity, garments.identity[gallery]) & (garments.identity >= 0)
    queries = np.flatnonzero(~garments.shop & garments.held_out & related)
    if not len(queries):
        return {**{f"acc@{k}": math.nan for k in ks}, "queries": 0}
    rows = {
        name: np.concatenate(list(_embed(model, garments, which, device)))
        for name, which in (("q", queries), ("g", gallery))
    }
    order = np.argsort(-(rows["q"] @ rows["g"].T), axis=1, kind="stable")[:, : max(ks)]
    right = garments.identity[gallery][order] == garments.identity[queries][:, None]
    return {**{f"acc@{k}": float(right[:, :k].any(axis=1).mean()) for k in ks}, "queries": len(queries)}


@torch.inference_mode()
def _embed(model: nn.Module, garments: Garments, which: np.ndarray, device: str, n: int = 32) -> Iterator[np.ndarray]:
    model.eval()
    for start in range(0, len(which), n):
        out = model(garments.images(which[start : start + n]).to(device))
        yield (out[0] if isinstance(out, tuple) else out).cpu().numpy()
