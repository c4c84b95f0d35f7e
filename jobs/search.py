"""Ask a gallery by hand: the garments in a photo, and the shop items most like each.

    python jobs/search.py street.jpg --gallery runs/gallery
    python jobs/search.py street.jpg s3://BUCKET/photos/0815.jpg --gallery s3://BUCKET/gallery --top 5 --html found.html
    python jobs/search.py street.jpg --gallery runs/gallery --category "long sleeve top"

In: photos (JPEG, PNG, WebP), a gallery that `jobs/reindex_gallery.py` published. Out: a table a garment; `--html`, one page with pictures.
The models are those that made the version, in a process of their own, and without Ray. A photo that cannot be read is one line on
standard error.

Exit status: 0 at least one photo was looked at; 2 none could be, or a mistake in the line or its input; 1 anything else.
"""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if __name__ == "__main__" and (Path(__file__).resolve().parents[1] / "jobs" / "cli.py").is_file():
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from detection.categories import CATEGORIES
from jobs import cli
from jobs.cli import one_line
from jobs.gallery import look
from jobs.gallery.answers import Answer, Garment, Hit, lines
from jobs.models import SHIPPED, Catalogue
from retrieval.datasets.files import MAX_PHOTO_BYTES, read_photo
from store.decode import DecodeError, probe_size
from store.objects import open_store

if TYPE_CHECKING:
    from retrieval.gallery import Gallery

MOST = 1000  # items a garment


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="+", metavar="PHOTO", help="JPEG, PNG or WebP: a path or s3://BUCKET/KEY")
    parser.add_argument("--gallery", required=True, help="the gallery: folder, file:// or s3://BUCKET/PREFIX")
    parser.add_argument("--top", type=int, default=10, metavar="N", help="shop items a garment (10)")
    parser.add_argument("--category", metavar="NAME", help="only garments that are found to be of this category")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write one page with pictures")
    parser.add_argument("--version", metavar="NAME", help="another version than the current one")
    parser.add_argument("--weights-dir", metavar="PLACE", help="the weights, if not where they were on the night")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where models run (auto)")
    parser.add_argument("--endpoint-url", help="of an S3-compatible store (the SDK's own chain)")
    args = parser.parse_args(argv)
    if not 1 <= args.top <= MOST:
        parser.error(f"--top wants 1 to {MOST}, got {args.top}")
    if args.html is not None and not args.html.absolute().parent.is_dir():
        parser.error(f"--html {one_line(str(args.html))}: there is no such folder to write it to")
    if args.category is not None:
        name = " ".join(args.category.lower().replace("-", " ").replace("_", " ").split())
        if name not in CATEGORIES:
            parser.error(f"--category wants one of {', '.join(CATEGORIES)}; got {one_line(args.category)}")
        args.category = 1 + CATEGORIES.index(name)
    return args


def main(argv: list[str] | None = None, catalogue: Catalogue = SHIPPED, script: Path = look.SCRIPT) -> int:
    args = parse(argv)

    from retrieval.gallery import open_gallery

    gallery = open_gallery(args.gallery, version=args.version, endpoint_url=args.endpoint_url)
    settings = look.settings_of(gallery.record, catalogue, weights_dir=args.weights_dir)
    settings = dataclasses.replace(settings, device=args.device)
    if args.endpoint_url:
        settings = dataclasses.replace(
            settings, storage=dataclasses.replace(settings.storage, endpoint_url=args.endpoint_url)
        )
    photos = [read(name, settings.max_pixels, args.endpoint_url) for name in args.photos]
    good = {i: photo for i, photo in enumerate(photos) if isinstance(photo, tuple)}
    reasons = {i: photo for i, photo in enumerate(photos) if isinstance(photo, str)}
    answers = [Answer(name, b"", [], reasons.get(i, "")) for i, name in enumerate(args.photos)]
    if good:
        found = look.ask(good, settings, script)
        for i, garments in search(gallery, found, args.top, args.category).items():
            answers[i] = Answer(args.photos[i], good[i][0], garments)
        for i in good:
            reason = found.failed.get(i, "")
            answers[i] = dataclasses.replace(answers[i], data=good[i][0], reason=reason)
    for answer in answers:
        if answer.reason:
            print(f"search.py: {one_line(answer.name)}: {one_line(answer.reason)}", file=sys.stderr, flush=True)
        else:
            print("\n".join(lines(answer)), flush=True)
    if args.html is not None:
        from jobs.gallery import page

        page.write(args.html, gallery.record, args.gallery, answers, settings)
    return 2 if all(answer.reason for answer in answers) else 0


def read(name: str, max_pixels: int, endpoint_url: str | None = None) -> tuple[bytes, int, int] | str:
    """A photo's bytes, and width and height of the upright photo in px; or the reason, in a few words, why it has none."""
    try:
        if "://" in name:
            folder, _, key = name.rpartition("/")
            store = open_store(folder, endpoint_url=endpoint_url)
            if store.local_path is not None:
                data = read_photo(store.local_path / key)
            elif store.size(key) > MAX_PHOTO_BYTES:
                return f"more than {MAX_PHOTO_BYTES} bytes"
            else:
                data = store.read(key)
        else:
            data = read_photo(Path(name).expanduser())
        return data, *probe_size(data, max_pixels=max_pixels)
    except DecodeError as error:
        return str(error)
    except OSError as error:  # of the storage too
        return error.strerror or str(error)
    except (ValueError, RuntimeError) as error:  # a key with '..' in it, `~nobody`
        return str(error)


def search(gallery: "Gallery", found: look.Found, top: int, category_id: int | None) -> dict[int, list[Garment]]:
    """What the gallery has for every garment, by the photo's number; the surest garment first.

    Args:
        category_id: only garments of this category; None: all.

    Raises:
        GalleryError: the rows do not fit the gallery.
    """
    if category_id is not None:
        found = found.where(np.flatnonzero(found.category_id == category_id))
    if not len(found):
        return {}
    similarity, ids = gallery.search(found.vectors, top, category=found.category_id.astype(np.int64))
    garments: dict[int, list[Garment]] = {}
    for row in range(len(found)):
        items = gallery.lookup(ids[row])
        hits = [Hit(i + 1, float(similarity[row, i]), item) for i, item in enumerate(items) if item]
        bbox = tuple(found.bbox[row].tolist())
        one = Garment(bbox, float(found.score[row]), int(found.category_id[row]), hits)
        garments.setdefault(int(found.photo[row]), []).append(one)
    return garments


if __name__ == "__main__":
    cli.run(main)
