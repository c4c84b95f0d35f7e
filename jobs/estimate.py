"""How much memory a run will want, from its settings and image set alone: for --check, before anything is loaded.

Constants are measured on the tiny profile on a CPU (docs/watching.md has the figures); on a GPU what the networks hold lies there and not
in the process. An estimate: read it as within a third.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from jobs.config import Settings
from jobs.models import Model
from jobs.selection import Selected
from store.objects import ObjectStore

DRIVER = 310e6  # bytes: Python, Arrow, FAISS, Ray
LIBRARIES = {"detect": 1100e6, "embed": 930e6}  # bytes of a process that has imported what its stage needs
FLOATS_PER_PIXEL = 128  # what a network holds at once, in float32 numbers a pixel of its input
ITEMS_PER_PHOTO = 3.0  # that are worth embedding, as ccp_df2 shows; `items.max_per_image` bounds it
COPIES = 3  # of all rows while ranking: each model's, joined, in the index


@dataclass(frozen=True)
class Estimate:
    """Bytes of memory: an actor of either stage, and the driver while it ranks `items` items of `dim` numbers."""

    detect: float
    embed: float
    driver: float
    items: int
    dim: int

    @property
    def words(self) -> str:
        return (
            f"a detect actor {self.detect / 1e9:.1f} GB, an embed actor {self.embed / 1e9:.1f} GB, this process {self.driver / 1e9:.1f} GB "
            f"while it ranks {self.items:,} items of {self.dim} numbers"
        )


def estimate(
    settings: Settings,
    detectors: tuple[Model, ...],
    embedders: tuple[Model, ...],
    selected: Selected,
    weights: ObjectStore,
    remote: bool,
) -> Estimate:
    """Args:
    weights: the folder of the weight files.
    remote: whether shards come from a bucket, and are held whole.
    """
    from jobs.detect_shard import GROUP_BATCHES  # here: a run that has nothing to do imports no cv2
    from jobs.embed_shard import GROUP
    from jobs.photos import GROUP_PIXELS

    shard = max((taken.bytes for taken in selected.shards), default=0) if remote else 0
    photos = max((taken.images for taken in selected.shards), default=0)
    groups = (GROUP_BATCHES * settings.detect.batch_size, GROUP)  # photos, of a megapixel each; as many wait decoded
    detect_pixels, embed_pixels = (3.0 * 2 * min(GROUP_PIXELS, min(n, photos) * 1e6) for n in groups)
    alone = settings.models_per_actor == 1
    together = max if alone else sum
    sides = [getattr(model.spec, "scale_px", (0, 0)) for model in detectors]
    detect_pass = settings.detect.batch_size * max((long * short for long, short in sides), default=0)
    embed_pass = settings.embed.batch_size * max(
        (getattr(model.spec, "input_size", 0) ** 2 for model in embedders), default=0
    )
    items = max(selected.items, round(selected.images * min(ITEMS_PER_PHOTO, settings.items.max_per_image)))
    dim = sum(model.spec.dim for model in embedders)
    return Estimate(
        LIBRARIES["detect"]
        + together(parameters(detectors, weights))
        + shard
        + detect_pixels
        + 4.0 * FLOATS_PER_PIXEL * detect_pass,
        LIBRARIES["embed"]
        + together(parameters(embedders, weights))
        + shard
        + embed_pixels
        + 4.0 * FLOATS_PER_PIXEL * embed_pass,
        DRIVER + 4.0 * COPIES * items * dim,
        items,
        dim,
    )


def parameters(models: Iterable[Model], weights: ObjectStore) -> list[float]:
    """Bytes of each model's parameters in memory, float32; the files hold float16."""
    return [2.0 * weights.size(model.file) if model.file else 0.0 for model in models]


def free() -> float | None:
    """Bytes of memory this machine can give now; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), None)
