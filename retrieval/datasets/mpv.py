"""MPV (Dong and others: Towards Multi-pose Guided Virtual Try-on Network, ICCV 2019): its folder in, rows of an image set out.

    DIR/all_poseA_poseB_clothes.txt   PERSON PERSON CLOTHES train|test on each line, tabs between
    DIR/MPV_192_256/ARTICLE/ARTICLE-COLOUR@NUMBER=VIEW.jpg   VIEW: person_half_front, person_whole_back, cloth_front …

Another release names the list all_poseA_poseB_clothes_0607.txt and the folder all/; either is read. By the reports of those who
used it, the authors gave the data out on request, for no commercial use, and withdrew the public address; no licence was found.
Masks, poses and parsing maps that come with some releases are left out.

What stands before the @ is one article in one colour: that is the garment, and pair_id comes from it, style 1, for the persons
who wear it in several poses and for the picture of the clothes alone. Persons are `user`, clothes `shop`: studio photos both,
but worn against alone is the step that retrieval has to take. A picture keeps its own article even where a line puts a person
beside other clothes; such lines are counted in `check`. All are tops for the upper body, with sleeves untold, written as short
sleeve top; there is no box, so it is the whole photo, hence `weak_box`. Splits as the fourth column says; nothing is skipped.
"""

from collections.abc import Iterator
from pathlib import Path

from retrieval.datasets import folder
from retrieval.datasets.listing import Entry, Garment, Listing
from store.imageset import Failure, Photo

SPLITS = ("train", "test")
LISTS = ("all_poseA_poseB_clothes.txt", "all_poseA_poseB_clothes_0607.txt")
FOLDERS = ("MPV_192_256", "all")
GARMENTS = (Garment(category_id=1),)


def read(directory: str | Path, split: str = "train") -> Iterator[Photo | Failure]:
    """Rows as the list first names them; image_id is `folder.image_id` of the name in the list. Bad lines are failures.

    Raises:
        ValueError: the folder is not laid out so, there is no such split, or two ids collide.
    """
    return listing(directory, split).rows()


def check(directory: str | Path, split: str = "train") -> list[str]:
    """What is missing or strange, a line each; no picture is opened. Raises as `read`."""
    found = listing(directory, split)
    return found.remarks + found.missing()


def listing(directory: str | Path, split: str = "train") -> Listing:
    """The lines of a split, and which picture is whose. Raises as `read`."""
    directory = Path(directory)
    if split not in SPLITS:
        raise ValueError(f"split {split!r}: MPV has {' and '.join(SPLITS)}")
    pairs = next((name for name in LISTS if (directory / name).is_file()), None)
    pictures = next((name for name in FOLDERS if (directory / name).is_dir()), None)
    if pairs is None or pictures is None:
        raise ValueError(f"{directory}: want MPV's {LISTS[0]} and its pictures in {FOLDERS[0]}/")
    found = Listing(directory)
    strangers = 0
    with open(directory / pairs, encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            fields = line.split()
            if not fields or (fields[-1] in SPLITS and fields[-1] != split):
                continue
            if reason := _bad(fields):
                found.fail(f"{pairs}, line {number}", reason)
                continue
            strangers += len({_article(name) for name in fields[:3]}) > 1
            for name, source in zip(fields, ("user", "user", "shop"), strict=False):
                article = _article(name)
                pair = found.pair_id(article)
                found.add(Entry(folder.image_id(name), f"{pictures}/{name}", source, pair, article, GARMENTS))
    if not len(found):
        raise ValueError(f"{directory}/{pairs} has not one line PERSON PERSON CLOTHES {split}")
    if strangers:
        found.remarks.append(f"{strangers:,} lines put a person beside other clothes")
    return found


def _bad(fields: list[str]) -> str | None:
    if len(fields) != 4:
        return f"{len(fields)} fields, want PERSON PERSON CLOTHES train|test"
    if fields[3] not in SPLITS:
        return f"split {fields[3]!r}, want {' or '.join(SPLITS)}"
    nameless = [name for name in fields[:3] if not _article(name)]
    return f"{nameless[0]} has no article before an @" if nameless else None


def _article(name: str) -> str:
    """
    >>> _article("SC321E00D/SC321E00D-O11@12.1=cloth_front.jpg")
    'SC321E00D-O11'
    """
    article, at, _ = name.rpartition("/")[2].partition("@")
    return article if at else ""
