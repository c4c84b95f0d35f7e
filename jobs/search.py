"""Ask a gallery by hand: the garments in a photo, or words, and the shop items most like each.

    python jobs/search.py street.jpg --gallery runs/gallery
    python jobs/search.py street.jpg s3://BUCKET/photos/0815.jpg --gallery s3://BUCKET/gallery --top 5 --html found.html
    python jobs/search.py PHOTOS/street --gallery runs/gallery --min-score 0.3 --json > found.jsonl
    python jobs/search.py street.jpg --gallery runs/gallery --category "long sleeve top"
    python jobs/search.py --text "red midi skirt" --text "blue jeans" --gallery runs/gallery
    python jobs/search.py street.jpg --text "the same in green" --gallery runs/gallery

In: photos, folders of photos, texts, a gallery that `jobs/reindex_gallery.py` published. Out: a table a garment or
text, each product once (`--all`: every picture of it), or with --json an object a line for each photo or text; --html,
one page with pictures. Texts want a gallery whose embedders are all of `open_clip`; beside photos, a text is averaged
with each garment. The models are those that made the version, in a process of their own, without Ray. A photo that
cannot be read is one line on standard error.

Exit status: 0 at least one photo or text was searched; 2 none could be, or a mistake in the line or its input; 1
anything else.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

if __name__ == "__main__" and (Path(__file__).resolve().parents[1] / "jobs" / "cli.py").is_file():
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from jobs import cli
from jobs.cli import one_line
from jobs.gallery import page
from jobs.gallery.answers import Answer, FoundGarment, as_json, lines
from jobs.gallery.asked_photos import photo_names, read_asked
from jobs.gallery.infer import SCRIPT, infer, settings_of
from jobs.gallery.questions import ask, ask_in_words, mixed
from jobs.runs import flags
from jobs.runs.catalogue import SHIPPED
from jobs.runs.categories import near
from jobs.runs.models import Catalogue
from jobs.runs.settings import StorageSettings
from sources.arguments import share
from store.categories import recorded
from store.errors import UserError
from store.objects import open_store


def parser() -> cli.Parser:
    parser = cli.Parser(description=__doc__)
    add = parser.add_argument
    add(
        "photos", nargs="*", metavar="PHOTO",
        help="a picture, a path or s3://BUCKET/KEY; or a folder, a path or s3://BUCKET/PREFIX/, all pictures in it",
    )  # fmt: skip
    add("--text", action="append", default=[], metavar="WORDS", help="ask in words; repeatable, once beside photos")
    add("--text-weight", type=share, default=0.5, metavar="W", help="of the text beside a photo, 0 to 1 (0.5)")
    add("--gallery", required=True, help="the gallery: folder, file:// or s3://BUCKET/PREFIX")
    flags.add_top(add, default=10)
    add("--min-score", type=share, default=0.0, metavar="S", help="leave out garments the detectors score lower (0)")
    add("--all", action="store_true", help="every picture of a product, not the best alone")
    add(
        "--category",
        metavar="NAME",
        help="only garments likely to be of this category; of words alone, only shop items of it",
    )
    add("--html", type=Path, metavar="FILE", help="write one page with pictures")
    add("--json", action="store_true", help="print JSON, a line for each photo or text")
    add("--gallery-version", metavar="NAME", help="another version than the current one")
    flags.add_weights_dir(add, otherwise="where it was on the night")
    flags.add_device(add, default="auto")
    flags.add_endpoint_url(add)
    return parser


def parse(argv: list[str] | None) -> argparse.Namespace:
    line = parser()
    args = line.parse_args(flags.renamed(argv, "search.py", "--version", "--gallery-version"))
    if args.html is not None and not args.html.absolute().parent.is_dir():
        line.error(f"--html {one_line(str(args.html))}: its folder does not exist")
    if not args.photos and not args.text:
        line.error("want a PHOTO, --text WORDS, or both")
    if args.photos and len(args.text) > 1:
        line.error("--text may be given once beside photos; ask without photos, or in several lines")
    if not all(text.strip() for text in args.text):
        line.error("--text wants words, got none")
    return args


def main(argv: list[str] | None = None, catalogue: Catalogue = SHIPPED, script: Path = SCRIPT) -> int:
    args = parse(argv)

    from retrieval.gallery import open_gallery  # FAISS

    gallery = open_gallery(args.gallery, version=args.gallery_version, endpoint_url=args.endpoint_url)
    categories = recorded(gallery.record)
    category_id = None if args.category is None else id_of(args.category, categories)
    settings = settings_of(gallery.record, catalogue, weights_dir=args.weights_dir).replace(device=args.device)
    if args.endpoint_url:
        settings = settings.replace(storage=StorageSettings(endpoint_url=args.endpoint_url))
    names = list(named(args))
    photos = [read_asked(name, settings.max_pixels, args.endpoint_url) for name in names]
    readable = {i: photo for i, photo in enumerate(photos) if isinstance(photo, tuple)}
    reasons = {i: photo for i, photo in enumerate(photos) if isinstance(photo, str)}
    garments: dict[int, list[FoundGarment]] = {}
    answers: list[Answer] = []
    if readable or not photos:
        queries = infer(readable, settings, categories, script, args.text)
        reasons |= queries.failed
        if not photos:
            answers = ask_in_words(gallery, args.text, queries.texts, args.top, category_id, every=args.all)
        elif args.text and len(queries):
            queries = mixed(queries, list(gallery.dims.values()), args.text_weight)
        garments = ask(gallery, queries.at_least(args.min_score), args.top, category_id, every=args.all)
    answers += [
        Answer(name, readable[i][0] if i in readable else b"", garments.get(i, []), reasons.get(i, ""), *args.text)
        for i, name in enumerate(names)
    ]
    store = open_store(args.gallery, endpoint_url=args.endpoint_url)
    items = {hit.item["id"]: hit.item for answer in answers for hit in answer.every_hit}
    told = page.shop_items(gallery.record, list(items.values()), settings, store, pictures=args.html is not None)
    if told.reason:
        tell(args.gallery, f"no titles and prices of shop items: {told.reason}")
    for answer in answers:
        if answer.reason:
            tell(answer.name, answer.reason)
        if args.json:
            print(json.dumps(as_json(answer, categories, told.offers)), flush=True)
        elif not answer.reason:
            print("\n".join(lines(answer, categories, told.offers)), flush=True)
    if args.html is not None:
        page.write(args.html, gallery.record, args.gallery, answers, settings, told, every=args.all)
        print(f"page: {one_line(str(args.html))}", file=sys.stderr if args.json else sys.stdout, flush=True)
    return 2 if all(answer.reason for answer in answers) else 0


def named(args: argparse.Namespace) -> Iterator[str]:
    """The photos' names, those of folders in the folders' places; a line tells what a folder has beside pictures."""
    for name, left_out in photo_names(args.photos, args.endpoint_url):
        if left_out:
            tell(name, left_out)
        else:
            yield name


def tell(name: str, what: str) -> None:
    print(f"search.py: {one_line(name)}: {one_line(what)}", file=sys.stderr, flush=True)


def id_of(name: str, categories: Sequence[str]) -> int:
    """The id of a category that the user named; case, hyphens and underscores do not count.

    UserError: the gallery has none of that name.
    """

    def plain(text: str) -> str:
        return " ".join(text.casefold().replace("-", " ").replace("_", " ").split())

    ids = {plain(category): i for i, category in enumerate(categories, 1)} | {n: i for i, n in enumerate(categories, 1)}
    if (category_id := ids.get(name) or ids.get(plain(name))) is not None:
        return category_id
    raise UserError(f"--category: the gallery has none named {name!r}; {near(plain(name), categories)}")


if __name__ == "__main__":
    cli.run(main)
