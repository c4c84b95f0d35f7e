"""Runs for the exports: of a few photos that a test names, and one by the stand-in models."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pictures import png

from jobs.runs.finished import FinishedRun
from jobs.runs.selection import select
from store.imageset import Photo, open_imageset
from store.imageset_write import write_imageset
from store.objects import open_store


@pytest.fixture
def make_run() -> Callable[..., FinishedRun]:
    """(folder, photos, entries of run.json) -> a run over these photos; without entries it has no detectors."""

    def make(folder: Path, photos: Sequence[Photo], record: Mapping[str, Any] | None = None) -> FinishedRun:
        pictured = [replace(photo, image=png(photo.image_id % 256, photo.height, photo.width)) for photo in photos]
        write_imageset(pictured, folder / "imageset", source={"adapter": "test"}, max_images=2)
        images = open_imageset(folder / "imageset")
        detectors = [{"name": "seen"}] if record else []
        chosen = {"imageset": {"selected": select(images, None).as_json()}, "detectors": detectors, "settings": {}}
        return FinishedRun(open_store(folder / "run"), images, chosen | dict(record or {}))

    return make
