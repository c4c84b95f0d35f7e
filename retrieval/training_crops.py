"""Garments to train an embedder on: crops in memory, batches by number, augmented at random.

In: photos and true boxes. Out: (n, 3, S, S) batches. A batch is a pure function of the seed and the step's number, for
any number of workers and wherever the training was stopped. Crops vary as a detector's boxes and the street's light do.
An identity is one garment of one seller of one image set, so those of different sets never meet.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from retrieval import crops
from retrieval.models import EmbedderSpec
from retrieval.timm_models import TimmSpec

CHANCES = 21  # uniform numbers that decide how one crop is changed
CONTEXT = 0.10  # kept around a cached box, as a share of its sides, so that edges can move outwards


@dataclass(frozen=True)
class Augmentation:
    """How a crop is changed; 0 turns a part off."""

    jitter: float = 0.08  # each edge of the box moves by up to this share of its side, as a detector's; at most CONTEXT
    turn: float = 0.2  # half of the crops are turned by up to so many radians
    flip: float = 0.5  # share of crops that are mirrored
    light: float = 0.25  # brightness and contrast change by up to this share
    colour: float = 0.3  # saturation changes by up to this share, a tint by a quarter of it
    erase: float = 0.3  # share of crops in which a rectangle of one colour hides part of the garment

    def __post_init__(self) -> None:
        if not 0 <= self.jitter <= CONTEXT:
            raise ValueError(f"augmentation: want a jitter from 0 to {CONTEXT}, got {self.jitter}")
        for name in ("flip", "light", "colour", "erase"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"augmentation: want {name} from 0 to 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class CachedGarment:
    """One garment in memory: its surroundings at the size the embedder wants."""

    # (S, S, 3) uint8 RGB; the photo's part in the top left corner, its edge pixels repeated beyond. Or the same as a
    # JPEG, (n,) uint8, where memory is short.
    canvas: np.ndarray = field(repr=False)
    box: tuple[float, float, float, float]  # x1 y1 x2 y2 of the garment on the canvas, pixels
    extent: tuple[int, int]  # width, height of the photo's part on the canvas, pixels
    # (image set number, pair_id, style); None where no other photo of the garment is known
    identity: tuple[int, int, int] | None
    shop: bool  # on a shop photo, else on a consumer's
    held_out: bool  # kept from training, by its pair_id
    photo: int = 0  # number of its photo, unique over all image sets
    bbox: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)  # x1 y1 x2 y2 in the photo's own pixels
    category_id: int = 1
    weight: float = 1.0  # how often its identity is drawn, against 1


def canvas_side(size: int) -> int:
    return math.ceil(size * (1 + 2 * CONTEXT)) + 2


def cut(
    photo: np.ndarray, box: np.ndarray, size: int
) -> tuple[np.ndarray, tuple[float, float, float, float], tuple[int, int]]:
    """`CachedGarment`'s canvas, box and extent of a box (x1 y1 x2 y2, pixels of `photo`), its longer side `size`."""
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
    return canvas, ((x1 - left) * across, (y1 - top) * down, (x2 - left) * across, (y2 - top) * down), extent


def packed(canvas: np.ndarray) -> np.ndarray:
    """A canvas as JPEG of quality 95, an eighth of its size, so that millions of garments fit."""
    return cv2.imencode(".jpg", canvas[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].reshape(-1)


class Garments:
    """All cached garments as arrays, and which of them are one identity.

    `augmentation` is how training changes them, `share` the part of the identities, spread evenly, that is learnt from;
    the others only join the gallery. `classes` has the rows of each identity to learn from: seen on two photos or more,
    none of them held out.
    """

    def __init__(
        self,
        items: list[CachedGarment],
        spec: EmbedderSpec | TimmSpec,
        augmentation: Augmentation | None = None,
        share: float = 1.0,
    ) -> None:
        self.spec, self.augmentation = spec, augmentation or Augmentation()
        self._canvases = [item.canvas for item in items]
        self.box = torch.tensor([item.box for item in items], dtype=torch.float32).reshape(-1, 4)
        self.extent = torch.tensor([item.extent for item in items], dtype=torch.float32).reshape(-1, 2)
        self.shop = np.array([item.shop for item in items], bool)
        self.held_out = np.array([item.held_out for item in items], bool)
        self.photo = np.array([item.photo for item in items], np.int64)
        self.bbox = np.array([item.bbox for item in items], np.float64).reshape(-1, 4)
        self.category_id = np.array([item.category_id for item in items], np.int64)
        names = sorted({item.identity for item in items if item.identity is not None})
        number = {name: i for i, name in enumerate(names)}
        self.identity = np.array([-1 if item.identity is None else number[item.identity] for item in items], np.int64)
        order = np.argsort(self.identity, kind="stable")
        groups = np.split(order, np.searchsorted(self.identity[order], np.arange(len(names))))[1:]
        classes = [rows for rows in groups if len(rows) > 1 and not self.held_out[rows].any()]
        self.classes = [rows for i, rows in enumerate(classes) if int((i + 1) * share) > int(i * share)]
        weights = np.array([items[rows[0]].weight for rows in self.classes], np.float64)
        self._odds = weights / weights.sum() if len(weights) else weights
        self._readers = ThreadPoolExecutor(4)

    def __len__(self) -> int:
        return len(self._canvases)

    def batch(self, n_identities: int, per_identity: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Rows (n,) of garments and their class numbers (n,) for one step.

        Each chosen class gives `per_identity` rows, consumer and shop in turn, repeated where it has too few.
        """
        n = min(n_identities, len(self.classes))
        chosen = rng.choice(len(self.classes), size=n, replace=False, p=self._odds)
        rows = [row for i in chosen for row in self._views(self.classes[i], per_identity, rng)]
        return np.array(rows, np.int64), np.repeat(chosen, per_identity).astype(np.int64)

    def _views(self, members: np.ndarray, n: int, rng: np.random.Generator) -> list[int]:
        members = rng.permutation(members)
        sides = [side for side in (members[~self.shop[members]], members[self.shop[members]]) if len(side)]
        first = int(rng.integers(len(sides)))
        turns = [sides[(first + i) % len(sides)] for i in range(n)]
        return [int(side[i // len(sides) % len(side)]) for i, side in enumerate(turns)]

    def canvas(self, row: int) -> np.ndarray:
        """(S, S, 3) uint8 of one garment."""
        kept = self._canvases[row]
        if kept.ndim == 3:
            return kept
        pixels: Any = cv2.imdecode(kept, cv2.IMREAD_COLOR)
        return np.ascontiguousarray(pixels[..., ::-1])

    def images(self, rows: np.ndarray, chance: np.ndarray | None = None, device: torch.device | str = "cpu") -> Tensor:
        """(n, 3, size, size) float32 as the backbone wants them, made on `device`, of the garments `rows` (n,).

        `chance` are (n, CHANCES) uniform numbers in [0, 1) that decide how each is changed; None: `crops.crop`'s rule.
        """
        where = torch.from_numpy(np.asarray(rows, np.int64))
        canvas = torch.from_numpy(np.stack(list(self._readers.map(self.canvas, where.numpy()))))
        canvas = canvas.to(device).permute(0, 3, 1, 2).float()
        box, extent = self.box[where].to(device), self.extent[where].to(device)
        angle, flip = torch.zeros(len(where), device=device), torch.ones(len(where), device=device)
        how = self.augmentation
        if chance is not None:
            u = torch.from_numpy(np.ascontiguousarray(chance, np.float32)).to(device)
            box = _jitter(box, extent, u[:, 0:4], how.jitter)
            angle = (2 * u[:, 4] - 1) * how.turn * (u[:, 5] < 0.5)
            flip = 1 - 2 * (u[:, 6] < how.flip).float()
        pictures = _letterbox(canvas, box, angle, flip, self.spec.input_size)
        if chance is not None:
            pictures = _erase(_recolour(pictures, u[:, 7:13], how), u[:, 13:21], how.erase)
        mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (self.spec.mean, self.spec.std))
        return ((pictures - mean) / std).contiguous(memory_format=torch.channels_last)


def _jitter(box: Tensor, extent: Tensor, u: Tensor, most: float) -> Tensor:
    """Move every edge by up to `most` of its side, inside what was cached."""
    sides = (box[:, 2:] - box[:, :2]).repeat(1, 2)
    return torch.minimum((box + sides * (2 * u - 1) * most).clamp(min=0), extent.repeat(1, 2))


def _letterbox(canvas: Tensor, box: Tensor, angle: Tensor, flip: Tensor, size: int) -> Tensor:
    """Sample boxes out of canvases (n, 3, S, S) as `crops.crop` lays them out: longer side = size, centred on white."""
    n, _, side, _ = canvas.shape
    centre, sides = (box[:, :2] + box[:, 2:]) / 2, (box[:, 2:] - box[:, :2]).clamp(min=1.0)
    half = sides.amax(dim=1) / 2
    ticks = (torch.arange(size, device=canvas.device) + 0.5) / size * 2 - 1
    u = (ticks.view(1, 1, size) * (half * flip).view(n, 1, 1)).expand(n, size, size)
    v = (ticks.view(1, size, 1) * half.view(n, 1, 1)).expand(n, size, size)
    cos, sin = angle.cos().view(n, 1, 1), angle.sin().view(n, 1, 1)
    x = u * cos - v * sin + centre[:, 0].view(n, 1, 1)
    y = u * sin + v * cos + centre[:, 1].view(n, 1, 1)
    grid = torch.stack([x, y], dim=-1) * (2 / side) - 1
    pictures = F.grid_sample(canvas, grid, mode="bilinear", padding_mode="border", align_corners=False)
    inside = (u.abs() <= sides[:, 0].view(n, 1, 1) / 2) & (v.abs() <= sides[:, 1].view(n, 1, 1) / 2)
    return torch.where(inside.unsqueeze(1), pictures, float(crops.FILL))


def _recolour(pictures: Tensor, u: Tensor, how: Augmentation) -> Tensor:
    """Other light: brightness, contrast, saturation and a tint, each picture its own."""

    def factor(columns: slice, most: float) -> Tensor:
        return (1 + (2 * u[:, columns] - 1) * most)[:, :, None, None]

    pictures = pictures * factor(slice(0, 1), how.light) * factor(slice(1, 4), how.colour / 4)
    pictures = (pictures - 128) * factor(slice(4, 5), how.light) + 128
    grey = pictures.mean(dim=1, keepdim=True)
    return (grey + (pictures - grey) * factor(slice(5, 6), how.colour)).clamp(0, 255)


def _erase(pictures: Tensor, u: Tensor, share: float) -> Tensor:
    """A rectangle of one colour, 15 to 45 % of each side, on a `share` of the pictures."""
    size = pictures.shape[-1]
    height, width = (0.15 + 0.3 * u[:, 1]) * size, (0.15 + 0.3 * u[:, 2]) * size
    top, left = u[:, 3] * (size - height), u[:, 4] * (size - width)
    ticks = torch.arange(size, device=pictures.device)
    rows = (ticks >= top[:, None]) & (ticks < (top + height)[:, None])
    columns = (ticks >= left[:, None]) & (ticks < (left + width)[:, None])
    hidden = rows[:, None, :, None] & columns[:, None, None, :] & (u[:, 0] < share)[:, None, None, None]
    return torch.where(hidden, (255 * u[:, 5:8])[:, :, None, None], pictures)
