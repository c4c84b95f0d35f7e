"""AVIF, TIFF, BMP, GIF and HEIC: pixels, which way is up, colours, and what is refused. The rest: `test_decode`."""

import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageFile

from store import formats
from store.decode import DecodeError, decode, ignores_profile, probe_size
from tests.store.test_decode import CORNERS, LINEAR_GREY, NOISE, P3, saved

pillow_heif.register_heif_opener()  # to write such files; reading registers it where needed
ROOT = Path(__file__).resolve().parents[2]

LOSSLESS: dict[str, dict] = {
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
    "HEIF": {"quality": -1, "chroma": 444},
    "TIFF": {"compression": "tiff_lzw"},
    "BMP": {},
    "GIF": {},
}
NEAR = {"AVIF": 3, "HEIF": 2}  # of 255: these code luma and chroma, whose integers have no exact RGB


def tiff(tags: dict[int, tuple[str, tuple]], pixels: bytes, *, order: str = "<") -> bytes:
    """A TIFF of one uncompressed strip: 4 x 2 grey pixels of 8 bits, unless `tags` (`struct` format, values) say so."""
    types = {"B": 1, "H": 3, "I": 4, "7s": 7}
    every: dict[int, tuple[str, tuple]] = {
        256: ("H", (4,)), 257: ("H", (2,)), 258: ("H", (8,)), 259: ("H", (1,)), 262: ("H", (1,)),
        273: ("I", (8,)), 277: ("H", (1,)), 278: ("H", (2,)), 279: ("I", (len(pixels),)),
    } | tags  # fmt: skip
    entries, beyond = b"", b""
    at = 8 + len(pixels) + 2 + 12 * len(every) + 4
    for tag, (kind, values) in sorted(every.items()):
        body = b"".join(struct.pack(order + kind, value) for value in values)
        if len(body) > 4:
            body, beyond = struct.pack(order + "I", at + len(beyond)), beyond + body
        entries += struct.pack(order + "HHI", tag, types[kind], len(values)) + body.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8 + len(pixels))
    return head + pixels + struct.pack(order + "H", len(every)) + entries + struct.pack(order + "I", 0) + beyond


def sixteen(*values: int, order: str = "<") -> bytes:
    return struct.pack(f"{order}{len(values)}H", *values)


DEEP = {256: ("H", (4,)), 257: ("H", (1,)), 278: ("H", (1,)), 258: ("H", (16,))}
ONE_PIXEL = {256: ("H", (1,)), 257: ("H", (1,)), 278: ("H", (1,))}


def palette(kind: str, **options: object) -> bytes:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    return saved(image, kind, **options)


def bmp(masks: tuple[int, int, int, int], *pixels: int) -> bytes:
    """A BMP of one row of 32-bit pixels whose header (BITMAPV4HEADER) says where the four colours stand."""
    info = struct.pack("<IiiHHIIiiII4I", 108, len(pixels), 1, 1, 32, 3, 4 * len(pixels), 0, 0, 0, 0, *masks)
    body = struct.pack(f"<{len(pixels)}I", *pixels)
    return b"BM" + struct.pack("<IHHI", 14 + 108 + len(body), 0, 0, 14 + 108) + info.ljust(108, b"\0") + body


ARGB = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)


def small_first_frame() -> bytes:
    """A GIF of 3 x 2 pixels whose first frame covers the leftmost alone."""
    data = bytearray(palette("GIF"))
    data[6:10] = struct.pack("<HH", 3, 2)
    return bytes(data)


GREY, RED, WHITE = (77,) * 3, (255, 0, 0), (255,) * 3


@pytest.mark.parametrize(
    "why, data, row",
    [
        ("TIFF: grey", tiff({}, bytes([77] * 8)), [[GREY] * 4] * 2),
        ("TIFF: big-endian", tiff({}, bytes([77] * 8), order=">"), [[GREY] * 4] * 2),
        ("TIFF: white is 0", tiff({262: ("H", (0,))}, bytes([255 - 77] * 8)), [[GREY] * 4] * 2),
        ("TIFF: black and white", saved(Image.new("1", (3, 1), 1), "TIFF", compression="group4"), [[WHITE] * 3]),
        ("TIFF: palette", palette("TIFF"), [[(10, 20, 30), (200, 100, 50)]]),
        ("TIFF: CMYK", saved(Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "TIFF"), [[RED]]),
        ("TIFF: alpha 51 of 255 is a fifth", saved(Image.new("RGBA", (1, 1), (0, 100, 255, 51)), "TIFF"),
         [[(204, 224, 255)]]),
        ("TIFF: grey and alpha", saved(Image.new("LA", (1, 1), (0, 51)), "TIFF"), [[(204,) * 3]]),
        ("TIFF: grey times alpha, then alpha", tiff(ONE_PIXEL | {258: ("H", (8, 8)), 277: ("H", (2,)),
         338: ("H", (1,))}, bytes([0, 51])), [[(204,) * 3]]),
        # 16 bits: value / 257, rounded; 128 / 257 = 0.498, 129 / 257 = 0.502
        ("TIFF: 16-bit grey", tiff(DEEP, sixteen(128, 129, 25700, 65535)), [[(v,) * 3 for v in (0, 1, 100, 255)]]),
        ("TIFF: the same, big-endian", tiff(DEEP, sixteen(128, 129, 25700, 65535, order=">"), order=">"),
         [[(v,) * 3 for v in (0, 1, 100, 255)]]),
        ("TIFF: 16-bit grey, white is 0", tiff(DEEP | {262: ("H", (0,))}, sixteen(65535, 65406, 39835, 0)),
         [[(v,) * 3 for v in (0, 1, 100, 255)]]),
        ("TIFF: 16-bit RGB", tiff(ONE_PIXEL | {258: ("H", (16,) * 3), 262: ("H", (2,)), 277: ("H", (3,))},
         sixteen(257 * 10, 257 * 20, 65535)), [[(10, 20, 255)]]),
        ("BMP", saved(Image.new("RGB", (3, 1), (1, 2, 3)), "BMP"), [[(1, 2, 3)] * 3]),
        ("BMP: grey", saved(Image.new("L", (3, 1), 77), "BMP"), [[GREY] * 3]),
        ("BMP: palette", palette("BMP"), [[(10, 20, 30), (200, 100, 50)]]),
        ("BMP: alpha", bmp(ARGB, 0x330064FF, 0xFF010203), [[(204, 224, 255), (1, 2, 3)]]),
        ("BMP: alpha that is 0 everywhere is none", bmp(ARGB, 0x0064FF, 0x010203), [[(0, 100, 255), (1, 2, 3)]]),
        ("GIF: palette", palette("GIF"), [[(10, 20, 30), (200, 100, 50)]]),
        ("GIF: a clear colour", palette("GIF", transparency=1), [[(10, 20, 30), WHITE]]),
        ("GIF: grey", saved(Image.new("L", (2, 1), 77), "GIF"), [[GREY] * 2]),
        ("GIF: white around a small first frame", small_first_frame(),
         [[(10, 20, 30), (200, 100, 50), WHITE], [WHITE] * 3]),
    ],
)  # fmt: skip
def test_pixels(why: str, data: bytes, row: list) -> None:
    got = decode(data)
    np.testing.assert_array_equal(got, np.array(row, np.uint8), err_msg=why)
    assert got.flags.c_contiguous and got.flags.writeable
    assert probe_size(data) == (got.shape[1], got.shape[0])


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "lzma", "zstd"])
def test_every_lossless_tiff_gives_the_pixels(compression: str) -> None:
    np.testing.assert_array_equal(decode(saved(NOISE, "TIFF", compression=compression)), np.asarray(NOISE))


def test_a_jpeg_in_a_tiff() -> None:
    data = saved(Image.new("RGB", (64, 64), (200, 30, 30)), "TIFF", compression="jpeg", quality=95)
    assert np.abs(decode(data).astype(int) - (200, 30, 30)).max() <= 4


def test_a_tiff_of_tiles() -> None:
    """Four tiles of 16 x 16 over 20 x 20 pixels; each holds its number times 50."""
    tags = {256: ("H", (20,)), 257: ("H", (20,)), 322: ("H", (16,)), 323: ("H", (16,)),
            324: ("I", tuple(8 + 256 * n for n in range(4))), 325: ("I", (256,) * 4)}  # fmt: skip
    data = tiff(tags, b"".join(bytes([50 * n]) * 256 for n in range(4)))
    data = data.replace(struct.pack("<HHI", 273, 4, 1), struct.pack("<HHI", 60000, 4, 1))  # no strips
    want = np.zeros((20, 20), np.uint8)
    want[:16, 16:], want[16:, :16], want[16:, 16:] = 50, 100, 150
    np.testing.assert_array_equal(decode(data), np.stack([want] * 3, -1))


@pytest.mark.parametrize("kind, mode, value, want", [
    ("AVIF", "RGB", (200, 100, 50), (200, 100, 50)),
    ("AVIF", "L", 77, GREY),
    ("AVIF", "RGBA", (0, 100, 255, 51), (204, 224, 255)),
    ("HEIF", "RGB", (200, 100, 50), (200, 100, 50)),
    ("HEIF", "L", 77, GREY),
    ("HEIF", "RGBA", (0, 100, 255, 51), (204, 224, 255)),
    ("HEIF", "I;16", 257 * 100, (100,) * 3),
])  # fmt: skip
def test_pixels_of_avif_and_heic(kind: str, mode: str, value: object, want: tuple) -> None:
    got = decode(saved(Image.new(mode, (32, 16), value), kind, **LOSSLESS[kind]))
    assert got.shape == (16, 32, 3) and np.abs(got.astype(int) - want).max() <= NEAR[kind]


@pytest.mark.parametrize(
    "kind, options",
    [("AVIF", LOSSLESS["AVIF"]), ("HEIF", LOSSLESS["HEIF"]), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"})],
)
@pytest.mark.parametrize("orientation, to_upright", [
    (1, lambda a: a),
    (2, lambda a: a[:, ::-1]),
    (3, lambda a: a[::-1, ::-1]),
    (4, lambda a: a[::-1]),
    (5, lambda a: a.transpose(1, 0, 2)),
    (6, lambda a: np.rot90(a, -1)),  # stored lying on its left side: a quarter turn clockwise
    (7, lambda a: a[::-1, ::-1].transpose(1, 0, 2)),
    (8, lambda a: np.rot90(a, 1)),
])  # fmt: skip
def test_turned_once(kind: str, options: dict, orientation: int, to_upright: Callable) -> None:
    """Pillow turns TIFFs, libheif HEICs; of AVIF we are told the turn."""
    big = Image.fromarray(CORNERS.repeat(16, 0).repeat(16, 1))
    exif = Image.Exif()
    exif[274] = orientation
    told = {"tiffinfo": {274: orientation}} if kind == "TIFF" else {"exif": exif.tobytes()}
    data = saved(big, kind, **options, **told)
    got, want = decode(data), to_upright(CORNERS)
    assert np.abs(got[8::16, 8::16].astype(int) - want).max() <= NEAR.get(kind, 0)
    assert probe_size(data) == (got.shape[1], got.shape[0]) == (want.shape[1] * 16, want.shape[0] * 16)


@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
def test_an_orientation_in_exif_alone_turns_no_avif_and_no_heic(kind: str) -> None:
    exif = Image.Exif()
    exif[274] = 1
    data = saved(Image.fromarray(CORNERS.repeat(16, 0).repeat(16, 1)), kind, exif=exif.tobytes(), **LOSSLESS[kind])
    upright = struct.pack("<HHIHH", 274, 3, 1, 1, 0), struct.pack(">HHIHH", 274, 3, 1, 1, 0)
    for entry, order in zip(upright, "<>", strict=True):
        data = data.replace(entry, struct.pack(order + "HHIHH", 274, 3, 1, 6, 0))
    assert all(entry not in data for entry in upright)
    assert decode(data).shape == (32, 64, 3) and probe_size(data) == (64, 32)


@pytest.mark.parametrize("kind", ["AVIF", "TIFF"])  # pillow-heif writes a box from it
def test_an_orientation_in_xmp_alone_turns_nothing(kind: str) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    image = Image.fromarray(CORNERS.repeat(16, 0).repeat(16, 1))
    data = saved(image, kind, **({"tiffinfo": {700: xmp}} if kind == "TIFF" else {"xmp": xmp}))
    assert b"tiff:Orientation" in data
    assert decode(data).shape == (32, 64, 3) and probe_size(data) == (64, 32)


@pytest.mark.parametrize("kind", ["AVIF", "HEIF", "TIFF"])
@pytest.mark.parametrize("stored, shown", [((184, 50, 41), (200, 30, 30)), (WHITE, WHITE), ((0,) * 3, (0,) * 3)])
def test_display_p3_becomes_srgb(kind: str, stored: tuple, shown: tuple) -> None:
    data = saved(Image.new("RGB", (16, 16), stored), kind, icc_profile=P3, **LOSSLESS[kind])
    assert np.abs(decode(data).astype(int) - shown).max() <= 2 + NEAR.get(kind, 0)
    assert not ignores_profile(data)


def test_profiles_of_tiffs() -> None:
    """Half of the light is 188 in sRGB, at 8 bits and at 16."""
    for image in (Image.new("L", (2, 2), 128), Image.fromarray(np.full((2, 2), 128 * 257, np.uint16))):
        assert np.abs(decode(saved(image, "TIFF", icc_profile=LINEAR_GREY)).astype(int) - 188).max() <= 1
    assert ignores_profile(saved(NOISE, "TIFF", icc_profile=LINEAR_GREY))


@pytest.mark.parametrize("kind", ["AVIF", "GIF", "TIFF", "HEIF"])
def test_the_first_frame_or_page(kind: str) -> None:
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "lime", "blue")]
    timing = {} if kind in ("TIFF", "HEIF") else {"duration": 50}
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **timing, **LOSSLESS[kind])
    assert np.abs(decode(data).astype(int) - RED).max() <= NEAR.get(kind, 0)


EVERY = {
    **{f"TIFF {name}": saved(NOISE, "TIFF", compression=name) for name in ("raw", "tiff_lzw", "jpeg", "packbits")},
    **{kind: saved(NOISE, kind) for kind in ("AVIF", "HEIF", "BMP", "GIF")},
    "BMP palette": saved(NOISE.convert("P"), "BMP"),
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF", "ignore:Truncated File")
@pytest.mark.parametrize("kind", EVERY)
def test_cut_files_are_refused(kind: str, capfd: pytest.CaptureFixture) -> None:
    whole = EVERY[kind]
    assert probe_size(whole) == NOISE.size and decode(whole).shape == (64, 64, 3)
    for end in [len(whole) * n // 8 for n in range(8)] + [len(whole) - 40]:
        with pytest.raises(DecodeError) as caught:
            decode(whole[:end])
        with pytest.raises(DecodeError) as again:
            decode(bytes(bytearray(whole[:end])))
        assert str(again.value) == str(caught.value), "a reason is the same every time"
        assert len(str(caught.value)) < 160 and "0x" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", EVERY)
def test_a_size_is_told_without_decoding(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail(f"decodes a {image.format}"))
    assert probe_size(EVERY[kind]) == NOISE.size
    for function in (decode, probe_size):
        with pytest.raises(DecodeError, match="64 x 64 is more than 4095 pixels"):
            function(EVERY[kind], max_pixels=64 * 64 - 1)


@pytest.mark.parametrize("why, data, reason", [
    ("a DNG", tiff({50706: ("B", (1, 4, 0, 0))}, bytes(8)), "a raw photo of a camera; export it"),
    ("a raw photo's preview", tiff({254: ("I", (1,))}, bytes(8)), "a raw photo of a camera; export it"),
    ("32 bits", tiff({258: ("H", (32,))}, bytes(32)), "32-bit unsigned numbers; want unsigned ones of 8 or 16"),
    ("floats", saved(Image.new("F", (4, 2), 0.5), "TIFF"), "32-bit signed or floating-point numbers"),
    ("signed", tiff({258: ("H", (16,)), 339: ("H", (2,))}, bytes(16)), "16-bit signed or floating-point numbers"),
    ("12 bits", tiff({258: ("H", (12,))}, bytes(12)), "12-bit unsigned numbers"),
    ("sensor data", tiff({262: ("H", (32803,))}, bytes(8)), "a TIFF that is broken, cut or of a kind that is not read"),
    ("a huge tile", tiff({322: ("I", (65536,)), 323: ("I", (65536,))}, bytes(8)), "tiles of 65536 x 65536, which is"),
    ("a huge TIFF", tiff({256: ("I", (60_000,)), 257: ("I", (60_000,))}, bytes(8)), "60000 x 60000 is more than"),
    ("a huge GIF", b"GIF89a" + b"\xff" * 4 + palette("GIF")[10:], "65535 x 65535 is more than"),
    ("a huge BMP", bmp(ARGB, 1)[:18] + struct.pack("<ii", 60_000, 60_000) + bmp(ARGB, 1)[26:], "is more than 50000000"),
    ("no picture in an ISO file", b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(99), formats.NO_PICTURE),
    ("AVIF's name alone", b"\0\0\0\x18ftypavif\0\0\0\0avifmif1" + bytes(99), "AVIF or HEIC file is broken or cut"),
])  # fmt: skip
def test_refusals(why: str, data: bytes, reason: str) -> None:
    for function in (decode, probe_size):
        with pytest.raises(DecodeError, match=reason):
            function(data)


def test_a_header_that_lies() -> None:
    """What is decoded has the size that the image set has from the header, or is refused."""
    lies = {}
    for kind in ("AVIF", "HEIF"):
        data = saved(NOISE, kind)
        at = data.index(b"ispe") + 8
        lies[kind] = data[:at] + struct.pack(">II", 32, 16) + data[at + 8 :]
        assert probe_size(lies[kind]) == (32, 16)
    assert decode(lies["AVIF"]).shape == (16, 32, 3), "libavif shrinks what it finds"
    with pytest.raises(DecodeError, match="does not have the size signaled"):
        decode(lies["HEIF"])


def test_heic_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(NOISE, "HEIF")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr(formats, "_can_read_heic", formats._can_read_heic.__wrapped__)
    for function in (decode, probe_size):
        with pytest.raises(DecodeError, match=r"install the extra: pip install '\.\[heic\]'"):
            function(data)
    assert not ignores_profile(data)
    assert decode(saved(NOISE, "AVIF")).shape == (64, 64, 3), "an AVIF needs nothing"


def test_heic_is_loaded_when_one_is_met() -> None:
    code = (
        "import sys; from store.decode import probe_size\n"
        "assert 'pillow_heif' not in sys.modules\n"
        "print(probe_size(sys.stdin.buffer.read()))\n"
    )
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, cwd=ROOT, input=saved(NOISE, "HEIF"), capture_output=True, timeout=300)
    assert (done.stdout, done.stderr) == (b"(64, 64)\n", b"")
