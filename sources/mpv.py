"""MPV (Dong and others: Multi-pose Guided Virtual Try-on Network, ICCV 2019): its folder in, rows of an image set out.

    DIR/all_poseA_poseB_clothes.txt   PERSON PERSON CLOTHES train|test on each line, tabs between
    DIR/MPV_192_256/ARTICLE/ARTICLE-COLOUR@NUMBER=VIEW.jpg   VIEW: person_half_front, person_whole_back, cloth_front …

Another release names the list all_poseA_poseB_clothes_0607.txt and the folder all/; either is read. Users of the data
report that the authors gave it out on request for non-commercial use and later withdrew the public address; no licence
was photos. Masks, poses and parsing maps that come with some releases are left out.

The part of a name before the @ is one article in one colour. That is the garment: pair_id is made from it, and style is
1, for the persons who wear it in several poses and for the picture of the clothes alone. Persons are `user`, clothes
are `shop`: both are studio photos, but matching worn clothes with unworn ones is what retrieval has to do. A picture
keeps its own article even where a line pairs a person with other clothes; such lines are counted in the remarks. All
garments are tops whose sleeves are not known, written as short sleeve top; there is no box, so it is the whole photo,
hence `weak_box`. The fourth column names the split. Nothing is skipped.
"""

from pathlib import Path

from sources import folder
from sources.listing import Entry, ListedGarment, Listing, read_fields

SPLITS = ("train", "test")
LISTS = ("all_poseA_poseB_clothes.txt", "all_poseA_poseB_clothes_0607.txt")
FOLDERS = ("MPV_192_256", "all")
GARMENTS = (ListedGarment(category_id=1),)


def listing(directory: str | Path, split: str = "train") -> Listing:
    """The photos as the list first names them; image_id is `folder.image_id` of the name there. Bad lines are failures.

    Raises ValueError if the folder is not laid out so, there is no such split, or two ids collide.
    """
    directory = Path(directory)
    if split not in SPLITS:
        raise ValueError(f"split {split!r}: MPV has {' and '.join(SPLITS)}")
    pairs = next((name for name in LISTS if (directory / name).is_file()), None)
    pictures = next((name for name in FOLDERS if (directory / name).is_dir()), None)
    if pairs is None or pictures is None:
        raise ValueError(f"{directory}: want MPV's {LISTS[0]} and its pictures in {FOLDERS[0]}/")
    photos = Listing(directory)
    mismatched = 0
    for number, fields in read_fields(directory / pairs):
        if fields[-1] in SPLITS and fields[-1] != split:
            continue
        if reason := _bad(fields):
            photos.fail(f"{pairs}, line {number}", reason)
            continue
        mismatched += len({_article(name) for name in fields[:3]}) > 1
        for name, source in zip(fields, ("user", "user", "shop"), strict=False):
            article = _article(name)
            pair = photos.pair_id(article)
            photos.add(Entry(folder.image_id(name), f"{pictures}/{name}", source, pair, article, GARMENTS))
    if not len(photos):
        raise ValueError(f"{directory}/{pairs} has not one line PERSON PERSON CLOTHES {split}")
    if mismatched:
        photos.remarks.append(f"{mismatched:,} lines put a person beside other clothes")
    return photos


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
