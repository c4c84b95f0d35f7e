"""What the embedders are trained with: a ranking loss on the rows, a classification loss on the first branch; torch.

Both as CGD trains (arXiv:1903.10663, §3.2): batch-hard triplets with margin 0.1 (arXiv:1703.07737), and cross entropy with
temperature 0.5 and label smoothing 0.1.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def batch_hard_triplet(rows: Tensor, identities: Tensor, margin: float = 0.1) -> Tensor:
    """Mean over anchors of max(0, margin + d(hardest positive) - d(hardest negative)), d the Euclidean distance.

    Args:
        rows: (B, D) float, unit length.
        identities: (B,) int; equal numbers are the same garment.
        margin: by how much the nearest stranger must be farther than the farthest relative.

    Returns:
        A scalar; anchors without a relative or without a stranger in the batch do not count; 0 if none counts.
    """
    if rows.ndim != 2 or identities.shape != rows.shape[:1]:
        raise ValueError(
            f"triplet loss: want rows (B, D) and identities (B,), got {tuple(rows.shape)} and {tuple(identities.shape)}"
        )
    rows = rows.float()
    squared = 2 - 2 * rows @ rows.T
    distances = squared.clamp(
        min=1e-8
    ).sqrt()  # the root's slope at 0 is infinite; 1e-8 lies under float32's error here
    same = identities[:, None] == identities[None, :]
    relatives = same & ~torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    farthest = distances.masked_fill(~relatives, -torch.inf).amax(dim=1)
    nearest = distances.masked_fill(same, torch.inf).amin(dim=1)
    counts = relatives.any(dim=1) & (~same).any(dim=1)
    if not counts.any():
        return rows.sum() * 0.0
    return F.relu(margin + farthest[counts] - nearest[counts]).mean()


def tempered_cross_entropy(
    logits: Tensor, identities: Tensor, temperature: float = 0.5, smoothing: float = 0.1
) -> Tensor:
    """Mean cross entropy of logits / temperature against labels that give `smoothing` evenly to all classes.

    Args:
        logits: (B, classes) float.
        identities: (B,) int64 class numbers.
        temperature: above 0; below 1 it widens the differences between logits, which keeps gradients of small ones alive.
        smoothing: in [0, 1).
    """
    if not temperature > 0:
        raise ValueError(f"cross entropy: want a temperature above 0, got {temperature}")
    return F.cross_entropy(logits.float() / temperature, identities, label_smoothing=smoothing)
