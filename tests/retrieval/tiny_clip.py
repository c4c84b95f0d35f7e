"""A small CLIP model as open_clip stores it, and a cache of the hub that holds it. For tests only."""

import hashlib
import json
from pathlib import Path
from typing import Any

NETWORK: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
}
PREPROCESS = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bicubic", "resize_mode": "squash"}
REPOSITORY, COMMIT = "shop/tiny-clip", "0123456789abcdef0123456789abcdef01234567"


def folder(place: Path, network: dict[str, Any] = NETWORK, seed: int = 3) -> Path:
    """A folder as open_clip's `local-dir:` wants it: open_clip_config.json and random weights."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    place.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": network, "preprocess_cfg": PREPROCESS}
    (place / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(seed)
    model = open_clip.create_model(f"local-dir:{place}", load_weights=False)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, weights_of(place))
    return place


def weights_of(place: Path) -> Path:
    return place / "open_clip_model.safetensors"


def hub(cache: Path, files: dict[str, bytes], repository: str = REPOSITORY, commit: str = COMMIT) -> Path:
    """Add a repository to a cache laid out as the hub's client does: blobs under their sha256, links to them."""
    place = cache / f"models--{repository.replace('/', '--')}"
    for part in ("blobs", "refs", f"snapshots/{commit}"):
        (place / part).mkdir(parents=True, exist_ok=True)
    (place / "refs" / "main").write_text(commit)
    for name, data in files.items():
        blob = hashlib.sha256(data).hexdigest()
        (place / "blobs" / blob).write_bytes(data)
        (place / "snapshots" / commit / name).symlink_to(f"../../blobs/{blob}")
    return place


def in_hub(cache: Path, place: Path, repository: str = REPOSITORY) -> None:
    """The files of `folder` as a repository."""
    hub(cache, {path.name: path.read_bytes() for path in place.iterdir()}, repository)
