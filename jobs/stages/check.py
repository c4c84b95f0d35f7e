"""--check: what a run would depend on, without starting it: versions, devices, Ray, storage, models, memory.

Each model is built and passes one photo here, so it takes as long as loading them does (`jobs.stages.try_models`).
The constants of the memory estimate are measured on the tiny profile on a CPU (docs/watching.md has the figures); on a
GPU, what the networks hold lies there and not in the process. Read the estimate as within a third.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from jobs.runs import cluster
from jobs.runs.catalogue import choose_models, folder_of
from jobs.runs.categories import listed, remarks, resolve
from jobs.runs.models import Catalogue, Model, executed
from jobs.runs.photos import DETECT_BATCHES, EMBED_GROUP, GROUP_PIXELS
from jobs.runs.places import refuse_other_kinds
from jobs.runs.progress import say
from jobs.runs.run import earlier_record, refuse_no_comparison
from jobs.runs.run_record import is_over
from jobs.runs.selection import Selected, remark_on_pixels, select
from jobs.runs.settings import Settings
from jobs.runs.versions import versions
from jobs.stages.try_models import model_lines
from store.joined import open_imagesets
from store.objects import open_store

DRIVER = 310e6  # bytes: Python, Arrow, FAISS, Ray
DETECT_LIBRARIES, EMBED_LIBRARIES = 1100e6, 930e6  # bytes of a process that has imported what its stage needs
PIXEL_BYTES = 3.0 * 2  # of a decoded photo, and of one that waits
ACTIVATION_BYTES = 4.0 * 128  # that a network holds at once, per pixel of its input
ITEMS_PER_PHOTO = 3.0  # that are worth embedding, as in ccp_df2; `items.max_per_image` is the limit
COPIES = 3  # of all embeddings while ranking: each model's, joined, in the index


def check(settings: Settings, catalogue: Catalogue) -> int:
    """Print what exists and return 0, for a run could start; what is missing ends it as a user error."""
    say("versions: " + ", ".join(f"{name} {version}" for name, version in versions().items()))
    n_gpus = len(list(Path("/dev").glob("nvidia[0-9]*")))
    say(f"devices: {os.cpu_count()} cores, {n_gpus} NVIDIA GPUs on this machine")
    say(f"Ray: {_ray()}")
    refuse_no_comparison(settings)
    store = open_store(settings.output, endpoint_url=settings.storage.endpoint_url)
    refuse_other_kinds(store, "a run")
    store.probe(write=True)
    say(f"output: {settings.output} can be written")
    images = open_imagesets(settings.imageset, endpoint_url=settings.storage.endpoint_url)
    before = earlier_record(settings, store, images)
    taken = select(images, settings.limit, before.get("selected") if is_over(before, images) else None)
    taken.box_kinds(settings.boxes)
    size = f"{images.manifest.images} images, {len(images.shards)} shards, {images.manifest.bytes / 1e6:.1f} MB"
    counts = f"{taken.users} consumers', {taken.shops} shops', {taken.items} true items"
    say(f"image set: {size}; {taken.images} taken: {counts}")
    if remark := remark_on_pixels(images, settings.max_pixels):
        say(remark)
    detectors, embedders = choose_models(settings, catalogue)
    categories, detectors = resolve(images, detectors)
    say(f"categories: {len(categories)} ({listed(categories)})")
    for remark in remarks(detectors, categories):
        say(remark)
    for line in executed((*detectors, *embedders)):
        say(line)
    for line in model_lines(settings, catalogue, (detectors, embedders), images, taken, store):
        say(line)
    for line in memory_lines(settings, detectors, embedders, taken, remote=images.is_remote):
        say(line)
    say("a run could start")
    return 0


def _ray() -> str:
    """Whether a run would join a cluster; a UserError says that it could neither join nor start one."""
    address, silence = cluster.find_cluster()
    if not address or (silence and not os.environ.get("RAY_ADDRESS")):
        cluster.judge_folder(make=False)
    if not address:
        return "a run starts its own here"
    place, otherwise = f"{address}, left here by `ray start`,", "a run starts its own"
    if os.environ.get("RAY_ADDRESS"):
        place, otherwise = f"RAY_ADDRESS={address}", "a run would end here"
    return f"{place} does not answer ({silence}): {otherwise}" if silence else f"{place} would be joined"


def memory_lines(
    settings: Settings, detectors: tuple[Model, ...], embedders: tuple[Model, ...], selected: Selected, *, remote: bool
) -> Iterator[str]:
    """How much memory a run will want, from its settings and image set alone, and whether this machine has it.

    `remote`: shards come from a bucket, and are held whole.
    """
    shard = max((taken.bytes for taken in selected.shards), default=0) if remote else 0
    photos = max((taken.images for taken in selected.shards), default=0)

    def actor(libraries: float, models: tuple[Model, ...], group: int, input_pixels: int) -> float:
        """Bytes. `group`: photos held decoded, a megapixel each. `input_pixels`: of one pass through a network."""
        # in memory parameters are float32, in the files float16
        parameters = [2.0 * folder_of(model, settings).size(model.file) if model.file else 0.0 for model in models]
        loaded = max(parameters, default=0.0) if settings.models_per_actor == 1 else sum(parameters)
        decoded = PIXEL_BYTES * min(GROUP_PIXELS, min(group, photos) * 1e6)
        return libraries + loaded + shard + decoded + ACTIVATION_BYTES * input_pixels

    sizes = [getattr(model.spec, "scale_px", (0, 0)) for model in detectors]
    detect_pixels = max((width * height for width, height in sizes), default=0)
    embed_pixels = max((getattr(model.spec, "input_size", 0) ** 2 for model in embedders), default=0)
    detect_batch, embed_batch = settings.detect.batch_size, settings.embed.batch_size
    detect = actor(DETECT_LIBRARIES, detectors, DETECT_BATCHES * detect_batch, detect_batch * detect_pixels)
    embed = actor(EMBED_LIBRARIES, embedders, EMBED_GROUP, embed_batch * embed_pixels)
    items = max(selected.items, round(selected.images * min(ITEMS_PER_PHOTO, settings.items.max_per_image)))
    dim = sum(model.spec.dim for model in embedders)
    driver, free = DRIVER + 4.0 * COPIES * items * dim, free_memory()
    actors = f"a detect actor {detect / 1e9:.1f} GB, an embed actor {embed / 1e9:.1f} GB"
    ranking = f"this process {driver / 1e9:.1f} GB while it ranks {items:,} items of {dim} numbers"
    here = "" if free is None else f"; {free / 1e9:.1f} GB are free here"
    yield f"memory, about: {actors}, {ranking}{here}"
    if free is not None and driver + max(detect, embed) > free:
        yield (
            "memory: too little here for one actor beside this process; load fewer models per actor "
            "(models_per_actor=1), or choose smaller batches"
        )


def free_memory() -> float | None:
    """Bytes of memory that this machine can still give; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), None)
