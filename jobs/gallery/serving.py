"""A gallery's parts on the machines of a Ray cluster, an actor each, and one object that asks all of them.

    from jobs.gallery.serving import PartsMissing, serve_gallery

    with serve_gallery("s3://BUCKET/gallery", deadline_s=2) as gallery:
        try:
            similarity, ids = gallery.search(vectors, k=10)      # as `retrieval.gallery.Gallery`
        except PartsMissing as late:                             # late.missing names the parts
            similarity, ids = late.answer                        # what the others found
        gallery.lookup(ids[0])

Each actor opens its part alone, from the folder or fetched from the bucket. Ray spreads them over the nodes; when one
dies, its parts are opened again on others, and the questions under way are asked again. A question that a part does
not answer within the deadline ends with PartsMissing, so that a search page can show what there is and nobody takes
half an answer for a whole one.
"""

from pathlib import Path

from jobs.gallery.part_servers import OnRay
from jobs.gallery.served import PartsMissing, ServedGallery
from jobs.runs import cluster
from retrieval.gallery_files import current
from store.objects import open_store

__all__ = ["PartsMissing", "ServedGallery", "serve_gallery"]


def serve_gallery(
    uri: str | Path,
    *,
    version: str | None = None,
    endpoint_url: str | None = None,
    deadline_s: float | None = None,
    num_cpus: float = 1.0,
    check: bool = True,
) -> "ServedGallery":
    """Open a gallery's current version, or one by name, a part an actor, on the Ray that RAY_ADDRESS names.

    `uri` is a place that every node reaches. Without a cluster a Ray of this machine is started. `deadline_s` is how
    long a question may wait for a part, None: as long as it takes. `num_cpus` are reserved for each part. `check` as in
    `open_gallery`. Raises GalleryError as that does, and for parts that are not open after ten minutes.
    """
    store = open_store(uri, endpoint_url=endpoint_url)
    name = version or current(store)[0]
    cluster.join_ray()
    return ServedGallery(store, name, OnRay(store, num_cpus=num_cpus, check=check), deadline_s=deadline_s)
