"""--check: what a run would stand on, looked at without starting anything: versions, devices, storage, image set, weights."""

import os
from pathlib import Path

from jobs import models, selection
from jobs.config import Settings
from jobs.ledger import versions
from jobs.models import Catalogue
from jobs.progress import say
from store.objects import open_store


def check(settings: Settings, catalogue: Catalogue) -> int:
    """Print what is there; the first thing that is not ends it as a user error.

    Returns:
        0, when a run could start.
    """
    from store.imageset import open_imageset

    say("versions: " + ", ".join(f"{name} {version}" for name, version in versions().items()))
    say(
        f"devices: {os.cpu_count()} cores, {_gpus()} NVIDIA GPUs on this machine; Ray: {os.environ.get('RAY_ADDRESS', 'starts here')}"
    )
    open_store(settings.output, endpoint_url=settings.storage.endpoint_url).probe(write=True)
    say(f"output: {settings.output} can be written")
    images = open_imageset(settings.imageset, endpoint_url=settings.storage.endpoint_url)
    taken = selection.select(images, settings.limit)
    say(f"image set: {images.manifest.images} images, {len(images.shards)} shards, {images.manifest.bytes / 1e6:.1f} MB; "
        f"{taken.images} taken: {taken.users} consumers', {taken.shops} shops', {taken.items} true items")  # fmt: skip
    detectors, embedders = models.chosen(settings, catalogue)
    for model in (*detectors, *embedders):
        say(f"model: {model.name}, weights {model.file or '-'} {model.weights[:12]}")
    say("a run could start")
    return 0


def _gpus() -> int:
    return len([path for path in Path("/dev").glob("nvidia[0-9]*")])
