"""An image set of two garments a photo, and a run over it."""

import numpy as np
import pytest
from pictures import png

from jobs.runs.finished import FinishedRun
from jobs.runs.settings import FusionSettings
from store.imageset import ImageSet, Item, Photo, open_imageset
from store.imageset_write import write_imageset
from tests.jobs.ablation.handwritten import fused_run


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    """40 photos in 3 shards: every fourth a consumer's, every tenth with boxes too loose to judge by."""
    rng = np.random.default_rng(3)
    photos = []
    for number in range(1, 41):
        items = []
        for category in rng.choice([1, 2, 8], 2, replace=False).tolist():
            x, y = rng.uniform(0, 100, 2).tolist()
            items.append(Item(category, 1, (x, y, x + 80, y + 90)))
        source = "user" if number % 4 == 0 else "shop"
        weak = number % 10 == 1
        photos.append(Photo(number, png(number, 200, 200), 200, 200, source, weak_box=weak, items=tuple(items)))
    folder = tmp_path_factory.mktemp("images")
    write_imageset(photos, folder, source={"adapter": "test", "arguments": {}}, max_images=15)
    return open_imageset(folder)


@pytest.fixture(scope="session")
def fused(images: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    return fused_run(tmp_path_factory.mktemp("run"), images, FusionSettings())
