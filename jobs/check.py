"""--check: what a run would stand on, looked at without starting anything: versions, devices, Ray, storage, weights, memory."""

import os
from pathlib import Path

from jobs import estimate, models, ray_cluster, selection
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
    say(f"devices: {os.cpu_count()} cores, {_gpus()} NVIDIA GPUs on this machine")
    say(f"Ray: {_ray()}")
    open_store(settings.output, endpoint_url=settings.storage.endpoint_url).probe(write=True)
    say(f"output: {settings.output} can be written")
    images = open_imageset(settings.imageset, endpoint_url=settings.storage.endpoint_url)
    taken = selection.select(images, settings.limit)
    say(f"image set: {images.manifest.images} images, {len(images.shards)} shards, {images.manifest.bytes / 1e6:.1f} MB; "
        f"{taken.images} taken: {taken.users} consumers', {taken.shops} shops', {taken.items} true items")  # fmt: skip
    detectors, embedders = models.chosen(settings, catalogue)
    for model in (*detectors, *embedders):
        say(f"model: {model.name}, weights {model.file or '-'} {model.weights[:12]}")
    remote = images.store.local_path is None
    wants = estimate.estimate(settings, detectors, embedders, taken, models.weights_folder(settings), remote)
    free = estimate.free()
    say(f"memory, about: {wants.words}" + ("" if free is None else f"; {free / 1e9:.1f} GB are free here"))
    if free is not None and wants.driver + max(wants.detect, wants.embed) > free:
        say(
            "memory: too little here for one actor beside this process; fewer models an actor (models_per_actor=1), smaller batches"
        )
    say("a run could start")
    return 0


def _ray() -> str:
    address, silence = ray_cluster.found()
    if not address:
        return "a run starts its own here"
    if os.environ.get("RAY_ADDRESS"):
        return f"RAY_ADDRESS={address} " + (
            f"does not answer ({silence}): a run would end here" if silence else "would be joined"
        )
    how = f"{address}, left here by `ray start`,"
    return f"{how} does not answer ({silence}): a run starts its own" if silence else f"{how} would be joined"


def _gpus() -> int:
    return len([path for path in Path("/dev").glob("nvidia[0-9]*")])
