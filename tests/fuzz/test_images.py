"""Pictures made to hurt: each is decoded rightly or refused with one short reason, in little time and memory."""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pillow_heif
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jobs import ingest
from store import formats
from store.decode import DecodeError, decode, probe_size
from store.imageset import open_imageset
from tests.fuzz import guard

pillow_heif.register_heif_opener()  # to write HEIC
ROOT = Path(__file__).resolve().parents[2]
PER_FOLDER = 25
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # as `store.formats` does where pytest does not run
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8))


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, pixels: bytes, *before: bytes, depth: int = 8, colour: int = 2) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(before) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def jpeg_that_says(width: int, height: int) -> bytes:
    """A true JPEG of 32 x 24 whose frame header lies."""
    data = saved(NOISE, "JPEG")
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def webp_that_says(width: int, height: int) -> bytes:
    """A lossless WebP of 32 x 24 whose stream header lies: 14 bits each, less one."""
    data = saved(NOISE, "WEBP", lossless=True)
    at = data.index(b"VP8L") + 9
    kept = int.from_bytes(data[at : at + 4], "little") >> 28 << 28
    return data[:at] + (kept | (height - 1) << 14 | (width - 1)).to_bytes(4, "little") + data[at + 4 :]


def scans(n: int) -> bytes:
    """A progressive JPEG whose last scan comes `n` times more: little to store, much to do."""
    data = saved(NOISE.resize((512, 512)), "JPEG", progressive=True)
    at = data.rindex(b"\xff\xda")
    return data[:at] + data[at:-2] * (n + 1) + data[-2:]


def avif_that_says(width: int, height: int) -> bytes:
    """An AVIF of 2048 x 2048 whose box of the size lies."""
    data = saved(NOISE.resize((2048, 2048)), "AVIF", speed=10)
    at = data.index(b"ispe") + 8
    return data[:at] + struct.pack(">II", width, height) + data[at + 8 :]


def gif_that_says(width: int, height: int) -> bytes:
    """A GIF whose logical screen lies; its frame has 8 x 8 pixels."""
    return GIF[:6] + struct.pack("<HH", width, height) + GIF[10:]


def bmp_that_says(width: int, height: int) -> bytes:
    data = saved(NOISE, "BMP")
    return data[:18] + struct.pack("<ii", width, height) + data[26:]


def tiff_tags(*tags: tuple[int, int, int, int]) -> bytes:
    """A TIFF without pixels: tags as (number, type, count, value or offset)."""
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


def size_tags(width: int, height: int) -> list[tuple[int, int, int, int]]:
    grey = [(258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (277, 3, 1, 1)]
    return [(256, 4, 1, width), (257, 4, 1, height), *grey]


ZEROS = zlib.compress(b"\0" * (1 << 26))  # 64 MB in 64 kB
RED, GREEN, BLUE = (Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue"))
FRAMES = {"save_all": True, "append_images": [GREEN, BLUE], "duration": 50}
GIF = saved(RED, "GIF", **FRAMES)
PDF = b"%PDF-1.4\n1 0 obj << /OpenAction << /S /JavaScript /JS (app.alert(1)) >> >> endobj\n"
TRAGICK = (
    b"push graphic-context\nviewbox 0 0 640 480\n"
    b"fill 'url(https://127.0.0.1/x.jpg\"|touch \"owned)'\npop graphic-context\n"
)
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(owned) (w) file\n%%EOF\n"
ZIP = b"PK\x03\x04" + b"\0" * 26 + b"PK\x05\x06" + b"\0" * 18
NO_PICTURE, TOO_LARGE, BROKEN = formats.NO_PICTURE, "more than 50000000 pixels", "cannot be decoded: "

REFUSED = [
    ("nothing", b"", "empty file"),
    ("a JPEG cut in the middle", saved(NOISE, "JPEG")[:-300], "cannot be decoded: image file is truncated"),
    ("a progressive JPEG cut in the middle", saved(NOISE, "JPEG", progressive=True)[:-300], "image file is truncated"),
    ("a PNG cut in the middle", saved(NOISE, "PNG")[:-700], "image file is truncated"),
    ("a WebP cut in the middle", saved(NOISE, "WEBP")[:-100], f"{NO_PICTURE}|{BROKEN}"),
    ("a bomb: PNG of 60000 x 60000", png(60_000, 60_000, ZEROS), TOO_LARGE),
    ("a bomb: PNG of 9999 x 9999, below Pillow's own limit", png(9_999, 9_999, ZEROS), "9999 x 9999 is more than"),
    ("a bomb: PNG of 2^31 - 1 on a side", png(2**31 - 1, 2**31 - 1, ZEROS), TOO_LARGE),
    ("a bomb: JPEG of 65500 x 65500", jpeg_that_says(65_500, 65_500), TOO_LARGE),
    ("a bomb: WebP of 16383 x 16383", webp_that_says(16_383, 16_383), f"{TOO_LARGE}|{NO_PICTURE}"),
    ("a PNG of no width", png(0, 10, ZEROS), f"{NO_PICTURE}|{BROKEN}"),
    ("a PNG of 3 bits", png(8, 8, zlib.compress(b"\0" * 32), depth=3, colour=0), f"{NO_PICTURE}|{BROKEN}"),
    ("a palette PNG without a palette", png(8, 8, zlib.compress(b"\0" * 72)[:-6], colour=3), BROKEN),
    ("an AVIF cut in the middle", saved(NOISE, "AVIF")[:-100], BROKEN),
    ("a HEIC cut in the middle", saved(NOISE, "HEIF")[:-100], BROKEN),
    ("a TIFF cut in the middle", saved(NOISE, "TIFF")[:-100], "image file is truncated"),
    ("a BMP cut in the middle", saved(NOISE, "BMP")[:-100], "image file is truncated"),
    ("a GIF cut in the middle", saved(NOISE, "GIF")[:-100], "image file is truncated"),
    ("a bomb: AVIF of 60000 x 60000", avif_that_says(60_000, 60_000), f"{TOO_LARGE}|{BROKEN}"),
    ("a bomb: AVIF of 9999 x 9999", avif_that_says(9_999, 9_999), "9999 x 9999 is more than"),
    ("a bomb: GIF of 65535 x 65535", gif_that_says(65_535, 65_535), TOO_LARGE),
    ("a bomb: BMP of 60000 x 60000", bmp_that_says(60_000, 60_000), TOO_LARGE),
    ("a bomb: BMP of 9999 x 9999", bmp_that_says(9_999, 9_999), "9999 x 9999 is more than"),
    ("a bomb: TIFF of 60000 x 60000", tiff_tags(*size_tags(60_000, 60_000), (273, 4, 1, 8), (279, 4, 1, 1)), TOO_LARGE),
    ("a bomb: TIFF of 8 x 8 in a tile of 60000 x 60000",
     tiff_tags(*size_tags(8, 8), (322, 4, 1, 60_000), (323, 4, 1, 60_000), (324, 4, 1, 8), (325, 4, 1, 1)), "tiles of"),
    ("a TIFF whose tags all hold the whole file",
     tiff_tags(*size_tags(8, 8), *((n, 1, 1 << 20, 8) for n in range(1000, 3000))) + bytes(1 << 20), BROKEN),
    ("a TIFF without its pages", b"II*\0" + struct.pack("<IHI", 8, 0, 8), BROKEN),
    ("a TIFF without a strip", tiff_tags(*size_tags(8, 8)), BROKEN),
    ("a raw photo", tiff_tags(*size_tags(8, 8), (273, 4, 1, 8), (279, 4, 1, 64), (50706, 1, 4, 1)), "export it"),
    ("a PDF", PDF + saved(NOISE, "JPEG"), NO_PICTURE),
    ("an ImageMagick script", TRAGICK, NO_PICTURE),
    ("an SVG with a script", SVG, NO_PICTURE),
    ("an EPS, which Pillow would hand to Ghostscript", EPS, NO_PICTURE),
    ("an icon", saved(NOISE, "ICO"), NO_PICTURE),
]  # fmt: skip

BESIDE = [  # bombs beside pixels that are right
    ("a bomb in a text", png(1, 1, zlib.compress(b"\0" * 4), chunk(b"zTXt", b"a\0\0" + ZEROS)), np.zeros((1, 1, 3))),
    ("a bomb in a profile", png(1, 1, zlib.compress(b"\0" * 4), chunk(b"iCCP", b"a\0\0" + ZEROS)), np.zeros((1, 1, 3))),
]


@pytest.mark.parametrize("why, data, reason", REFUSED, ids=[row[0] for row in REFUSED])
def test_refused(why, data, reason, tmp_path):
    with guard.watched(tmp_path), pytest.raises(DecodeError, match=reason) as caught:
        decode(data)
    assert len(str(caught.value)) < 160 and str(caught.value).isprintable()
    with guard.watched(tmp_path):
        probe(data)


def probe(data: bytes) -> tuple[int, int] | None:
    try:
        return probe_size(data)
    except DecodeError:
        return None


def test_bombs_take_no_memory():
    """All of the above in a process limited to 256 MB more than after its imports; 9999 x 9999 pixels take 300 MB."""
    code = (
        "import resource, sys; sys.path.insert(0, sys.argv[1])\n"
        "from tests.fuzz.test_images import BESIDE, REFUSED, decode, probe\n"
        "from store.decode import DecodeError\n"
        "pages = int(open('/proc/self/statm').read().split()[0])\n"
        "resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (256 << 20),) * 2)\n"
        "for why, data, _ in REFUSED + BESIDE:\n"
        "    probe(data)\n"
        "    try: decode(data)\n"
        "    except DecodeError as error: assert 'Memory' not in str(error), (why, error)\n"
        "print('ok')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(ROOT)], capture_output=True, text=True, timeout=300)
    assert (done.stdout, done.returncode) == ("ok\n", 0), done.stderr


def striped(width: int, height: int) -> tuple[bytes, np.ndarray]:
    """A PNG whose pixel i is (i mod 251, i // 251 mod 251, 7), and its pixels."""
    i = np.arange(width * height)
    pixels = np.stack([i % 251, i // 251 % 251, np.full_like(i, 7)], 1).astype(np.uint8).reshape(height, width, 3)
    return saved(Image.fromarray(pixels), "PNG"), pixels


def circle() -> bytes:
    """A TIFF whose first page says that it is also the next one."""
    data = saved(RED, "TIFF")
    start = struct.unpack_from("<I", data, 4)[0]
    after = start + 2 + 12 * struct.unpack_from("<H", data, start)[0]
    return data[:after] + struct.pack("<I", start) + data[after + 4 :]


SIXTEEN = saved(Image.fromarray(np.array([[0, 128, 129, 65535]], np.uint16)), "PNG")  # value / 257, rounded
CMYK = saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)  # no cyan, all magenta and yellow: red


@pytest.mark.parametrize(
    "why, data, want",
    [
        ("1 x 1", *striped(1, 1)),
        ("1 x 30000", *striped(1, 30_000)),
        ("30000 x 1", *striped(30_000, 1)),
        ("an animated PNG: its first frame", saved(RED, "PNG", **FRAMES), np.full((8, 8, 3), (255, 0, 0))),
        ("an animated WebP: its first frame", saved(RED, "WEBP", lossless=True, **FRAMES),
         np.full((8, 8, 3), (255, 0, 0))),
        ("an animated GIF: its first frame", GIF, np.full((8, 8, 3), (255, 0, 0))),
        ("a GIF that is a ZIP too", GIF + ZIP, np.full((8, 8, 3), (255, 0, 0))),
        ("a TIFF whose pages go in a circle", circle(), np.asarray(RED)),
        ("16 bits", SIXTEEN, np.array([[[v] * 3 for v in (0, 0, 1, 255)]])),
        ("CMYK", CMYK, np.full((16, 16, 3), (255, 0, 0))),
        ("a progressive JPEG", saved(RED, "JPEG", progressive=True, quality=95), np.full((8, 8, 3), (254, 0, 0))),
        ("a JPEG that is a ZIP too", saved(RED, "JPEG", quality=95) + ZIP, np.full((8, 8, 3), (254, 0, 0))),
        ("a JPEG with a page in its comment", saved(RED, "JPEG", quality=95, comment=b"<script>alert(1)</script>"),
         np.full((8, 8, 3), (254, 0, 0))),
        ("a PNG with more rows than it says", png(1, 1, ZEROS), np.zeros((1, 1, 3))),
        ("a PNG named .jpg is told by its bytes", *striped(3, 2)),
        *BESIDE,
    ],
)  # fmt: skip
def test_odd_but_right(why, data, want, tmp_path):
    with guard.watched(tmp_path):
        got = decode(data)
        assert probe_size(data) == (want.shape[1], want.shape[0])
    assert got.shape == want.shape
    assert np.abs(got.astype(int) - want).max() <= (0 if data[:4] != b"\xff\xd8\xff\xe0" else 6)


def test_a_picture_that_ends_early_keeps_the_size_of_its_header(tmp_path):
    """The libraries paint what is missing: every viewer shows such files so."""
    with guard.watched(tmp_path):
        assert decode(jpeg_that_says(1, 30_000)).shape == (30_000, 1, 3)
        half = decode(png(64, 64, zlib.compress((b"\0" + b"\xff" * 192) * 32)))
    np.testing.assert_array_equal(half[:, 0, 0], [255] * 32 + [0] * 32)


def test_the_command_prints_only_its_line(tmp_path):
    """All of the above as `python jobs/ingest.py` gets them: Pillow's warnings are of no use to a reader."""
    for number, (_, data, _) in enumerate(REFUSED):
        (tmp_path / f"{number:02}.jpg").write_bytes(data)
    (tmp_path / "whole.jpg").write_bytes(saved(RED, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage"))
    argv = [sys.executable, "jobs/ingest.py", "folder", str(tmp_path), str(tmp_path / "set"), "--source", "shop"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    judged_later = 7  # all but PNG and WebP are taken by their headers: what was cut in the middle fails when decoded
    told = f"{1 + judged_later} images in 1 shards, 0.0 MB, {len(REFUSED) - judged_later} failures"
    lost = f"{len(REFUSED) - judged_later} photos could not be taken, see {tmp_path / 'set'}/failures.parquet"
    assert told in done.stdout and lost in done.stdout and done.stdout.count("\n") == 2


def test_time_grows_with_the_number_of_scans(tmp_path):
    """libjpeg goes over the picture once a scan. 200 scans of 512 x 512 must stay below the deadline.

    Hours at 50 MP are ended by the run's shard_deadline_s, and only that photo fails.
    """
    with guard.watched(tmp_path):
        assert probe_size(scans(200)) == (512, 512)
        assert decode(scans(200)).shape == (512, 512, 3)


VALID = [
    saved(NOISE, "JPEG"),
    saved(
        NOISE, "JPEG", progressive=True, exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    ),
    CMYK,
    saved(NOISE, "PNG"),
    saved(NOISE.convert("P"), "PNG", transparency=3),
    saved(NOISE.convert("RGBA"), "PNG"),
    SIXTEEN,
    saved(RED, "PNG", **FRAMES),
    saved(NOISE, "WEBP"),
    saved(NOISE.convert("RGBA"), "WEBP", lossless=True),
    saved(RED, "WEBP", **FRAMES),
]


VALID_OTHERS = [  # formats of which there are fewer photos in the world
    saved(NOISE, "AVIF"),
    saved(NOISE.convert("RGBA"), "AVIF"),
    saved(RED, "AVIF", **FRAMES),
    saved(NOISE, "HEIF"),
    saved(NOISE.convert("RGBA"), "HEIF", save_all=True, append_images=[NOISE]),
    *(saved(NOISE, "TIFF", compression=name) for name in ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")),
    saved(NOISE.convert("P"), "TIFF", tiffinfo={274: 6}),
    saved(NOISE.convert("CMYK"), "TIFF", save_all=True, append_images=[NOISE]),
    saved(Image.fromarray(np.arange(24, dtype=np.uint16).reshape(4, 6) * 2800), "TIFF"),
    saved(NOISE, "BMP"),
    saved(NOISE.convert("P"), "BMP"),
    saved(NOISE, "GIF"),
    GIF,
]


@guard.fuzzed(PER_FOLDER)
@given(files=st.lists(guard.broken(VALID), min_size=PER_FOLDER, max_size=PER_FOLDER))
def test_every_broken_picture_ends_as_a_photo_or_a_failure(files, tmp_path_factory):
    each_ends_as_a_photo_or_a_failure(files, tmp_path_factory.mktemp("images"))


@guard.fuzzed(PER_FOLDER)
@given(files=st.lists(guard.broken(VALID_OTHERS), min_size=PER_FOLDER, max_size=PER_FOLDER))
def test_every_broken_picture_of_the_other_formats_does_so_too(files, tmp_path_factory):
    each_ends_as_a_photo_or_a_failure(files, tmp_path_factory.mktemp("images"))


def each_ends_as_a_photo_or_a_failure(files: list[bytes], box: Path) -> None:
    """`box` is an empty folder."""
    (box / "in").mkdir()
    for number, data in enumerate(files):
        (box / "in" / f"{number:02}.{('jpg', 'png', 'webp')[number % 3]}").write_bytes(data)
    with guard.untouched(box, but="set"):
        said = guard.run(ingest.main, ["folder", str(box / "in"), str(box / "set"), "--source", "shop"], box / "set")
    guard.inputs["test_images"] += len(files)
    failed = pq.read_table(box / "set" / "failures.parquet")
    assert all(len(reason) < 160 and reason.isprintable() for reason in failed["reason"].to_pylist())
    photos = [] if said.status else open_imageset(box / "set").read("shard-00000").to_pylist()
    assert len(photos) + failed.num_rows == len(files)
    for photo in photos:
        with guard.watched(box / "set"):
            try:
                assert decode(photo["image"]).shape == (photo["height"], photo["width"], 3)
            except DecodeError as error:
                assert len(str(error)) < 160 and str(error).isprintable()
