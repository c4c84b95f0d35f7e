"""What the lists of a data set say about its photos, before any picture is opened.

A source reads its lists into a `Listing`. That gives the rows of an image set one by one, tells what is missing without
reading a picture, and counts what was left out on purpose. Names are held in memory (some 500 bytes a photo), pictures
are not. Used by `street2shop`, `darn`, `mvc` and `mpv`. Source: our own.

None of the four has a box for every garment or distinguishes all 13 categories. So each photo is marked `weak_box`: no
detector learns from it or is judged by it. Where there is no box at all, the box is the whole photo.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sources import folder
from sources.files import read_photo
from store.decode import DecodeError, probe_size
from store.imageset import Failure, Item, Photo

_EXAMPLES = 3  # named in a line that counts


@dataclass(frozen=True, slots=True)
class ListedGarment:
    """One garment on a photo. `box` is x1 y1 x2 y2 in pixels of the upright photo; None: the whole photo."""

    category_id: int  # 1..13
    style: int = 1
    box: tuple[float, float, float, float] | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One photo as the lists name it. `file_name` is relative to the data set's folder, with '/'."""

    image_id: int
    file_name: str
    source: str  # user | shop
    pair_id: int
    product_id: str
    garments: tuple[ListedGarment, ...]


class Listing:
    """The photos of a split in order, each once.

    Attributes:
        failures: lines and files that cannot be taken, with the reason; they come first among the rows.
        skipped: what was left out on purpose -> how many; these are no rows, `jobs/ingest.py` prints them.
        remarks: what is odd about the lists as a whole, a line each; the published lists may be like that.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.failures: list[Failure] = []
        self.skipped: Counter[str] = Counter()
        self.remarks: list[str] = []
        self._entries: dict[int, Entry] = {}
        self._products: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def pair_id(self, product_id: str) -> int:
        """`pair_id` of the product. Raises ValueError where another product has it."""
        number = pair_id(product_id)
        holder = self._products.setdefault(number, product_id)
        if holder != product_id:
            raise ValueError(f"products {holder!r} and {product_id!r} both get pair_id {number}; rename one of them")
        return number

    def add(self, entry: Entry) -> None:
        """Add a photo. A repetition counts once; a contradictory one is a failure, and the first entry stays.

        Raises ValueError for two file names of one image_id.
        """
        name = PurePosixPath(entry.file_name)
        if name.is_absolute() or ".." in name.parts:
            self.fail(entry.file_name, "leads out of the folder", entry.image_id)
            return
        first = self._entries.setdefault(entry.image_id, entry)
        if first.file_name != entry.file_name:
            raise ValueError(f"{first.file_name} and {entry.file_name} both get image_id {entry.image_id}; rename one")
        if first != entry:
            role, other = (f"{photo.source} photo of product {photo.product_id}" for photo in (first, entry))
            self.fail(entry.file_name, f"taken as a {role}, but listed again as a {other}", entry.image_id)

    def fail(self, file_name: str, reason: str, image_id: int = -1) -> None:
        self.failures.append(Failure(image_id, file_name, reason))

    def rows(self) -> Iterator[Photo | Failure]:
        """Failures of the lists, then every photo, or the reason why it cannot be read."""
        yield from self.failures
        for entry in self._entries.values():
            yield _row(self.directory / entry.file_name, entry)

    def missing(self) -> list[str]:
        """A line for each kind of thing that is missing or cannot be taken; empty: complete. Opens no picture."""
        names = (entry.file_name for entry in self._entries.values())
        absent = [name for name in names if not (self.directory / name).is_file()]
        bad = [f"{failure.file_name}: {failure.reason}" for failure in self.failures]
        counted = (("lines or files cannot be taken", bad), (f"of {len(self):,} pictures are missing", absent))
        empty = [] if self._entries else ["the lists name no photo that can be taken"]
        return empty + [_counted(what, names) for what, names in counted if names]


def read_fields(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The number of each line of a list, from 1, and the fields between its spaces; empty lines are left out."""
    with open(path, encoding="utf-8", errors="replace") as lines:
        yield from ((number, fields) for number, line in enumerate(lines, 1) if (fields := line.split()))


def pair_id(product_id: str) -> int:
    """A positive int64 for a product id: the number itself if it is one, else 63 bits of BLAKE2b as `folder.image_id`.

    >>> pair_id("47270")
    47270
    >>> pair_id("047270") == pair_id("47270")
    False
    """
    if product_id.isascii() and product_id.isdigit() and product_id[0] != "0" and int(product_id) < 2**63:
        return int(product_id)
    return folder.image_id(product_id) or 1


def _counted(what: str, names: list[str]) -> str:
    more = ", …" if len(names) > _EXAMPLES else ""
    return f"{len(names):,} {what}: {', '.join(names[:_EXAMPLES])}{more}"


def _row(picture: Path, entry: Entry) -> Photo | Failure:
    try:
        data = read_photo(picture)
        width, height = probe_size(data)
    except DecodeError as error:
        return Failure(entry.image_id, entry.file_name, str(error))
    except FileNotFoundError:
        return Failure(entry.image_id, entry.file_name, "listed, but there is no such picture in the folder")
    except OSError as error:
        return Failure(entry.image_id, entry.file_name, f"cannot be read: {error.strerror}")
    whole = (0.0, 0.0, float(width), float(height))
    return Photo(
        image_id=entry.image_id,
        image=data,
        width=width,
        height=height,
        source=entry.source,
        pair_id=entry.pair_id,
        product_id=entry.product_id,
        file_name=entry.file_name,
        weak_box=True,
        items=tuple(Item(garment.category_id, garment.style, garment.box or whole) for garment in entry.garments),
    )
