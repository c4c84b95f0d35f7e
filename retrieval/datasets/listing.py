"""What the lists of a data set say about its photos, before any picture is opened.

An adapter reads its lists into a `Listing`; that gives the rows of an image set one by one, tells what is missing without
reading a picture, and counts what was left out on purpose. Names are held in memory (some 500 bytes a photo), pictures are
not. Used by `street2shop`, `darn`, `mvc` and `mpv`. Source: our own.

None of the four draws a box around every garment or tells all of the 13 categories apart. So each photo is marked
`weak_box`: no detector learns from it or is judged by it. Where there is no box at all, it is the whole photo.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from retrieval.datasets import folder
from retrieval.datasets.files import read_photo
from store.decode import DecodeError, probe_size
from store.imageset import Failure, Item, Photo

_EXAMPLES = 3  # named in a line that counts


@dataclass(frozen=True, slots=True)
class Garment:
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
    garments: tuple[Garment, ...]


class Listing:
    """The photos of a split in order, each once.

    Attributes:
        failures: lines and files that cannot be taken, with the reason; they come first among the rows.
        skipped: what was left out on purpose -> how many; never rows, `jobs/ingest.py` prints them.
        remarks: what is strange about the lists as a whole, a line each; as published they may well be so.
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
        """`pair_id` of the product, refused where another product has it.

        Raises:
            ValueError: two products, one number.
        """
        number = pair_id(product_id)
        holder = self._products.setdefault(number, product_id)
        if holder != product_id:
            raise ValueError(f"products {holder!r} and {product_id!r} both get pair_id {number}; rename one of them")
        return number

    def add(self, entry: Entry) -> None:
        """Take a photo. The same again counts once; listed otherwise it is a failure, and what came first stays.

        Raises:
            ValueError: two file names, one image_id.
        """
        name = PurePosixPath(entry.file_name)
        if name.is_absolute() or ".." in name.parts:
            self.fail(entry.file_name, "leads out of the folder", entry.image_id)
            return
        first = self._entries.setdefault(entry.image_id, entry)
        if first.file_name != entry.file_name:
            raise ValueError(f"{first.file_name} and {entry.file_name} both get image_id {entry.image_id}; rename one")
        if first != entry:
            told, again = (f"{one.source} photo of product {one.product_id}" for one in (first, entry))
            self.fail(entry.file_name, f"taken as a {told}, but listed again as a {again}", entry.image_id)

    def fail(self, file_name: str, reason: str, image_id: int = -1) -> None:
        self.failures.append(Failure(image_id, file_name, reason))

    def rows(self) -> Iterator[Photo | Failure]:
        """Failures of the lists, then every photo, or the reason why it cannot be read."""
        yield from self.failures
        for entry in self._entries.values():
            yield _row(self.directory / entry.file_name, entry)

    def missing(self) -> list[str]:
        """A line for each kind of thing that is missing or cannot be taken; empty: complete. Opens no picture."""
        gone = [entry.file_name for entry in self._entries.values() if not (self.directory / entry.file_name).is_file()]
        lines = []
        if self.failures:
            lines.append(
                _counted("lines or files cannot be taken", [f"{f.file_name}: {f.reason}" for f in self.failures])
            )
        if gone:
            lines.append(_counted(f"of {len(self):,} pictures are missing", gone))
        return lines


def pair_id(product_id: str) -> int:
    """A positive int64 for a product id: the number itself where it is one, else 63 bits of BLAKE2b as `folder.image_id`.

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
        items=tuple(Item(one.category_id, one.style, one.box or whole) for one in entry.garments),
    )
