"""Decoding: one picture per way a file can be odd, made here, with the pixels it must give."""

import io
import struct
import zlib

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from store.decode import DecodeError, decode, ignores_profile, probe_size

# 4 x 2 pixels; every corner differs, so no turn or mirror goes unnoticed
CORNERS = np.zeros((2, 4, 3), np.uint8)
CORNERS[0, 0], CORNERS[0, 3], CORNERS[1, 0], CORNERS[1, 3] = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has one short data chunk."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize(
    "orientation, to_upright",
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, -1)),  # stored lying on its left side: a quarter turn clockwise
        (7, lambda a: a[::-1, ::-1].transpose(1, 0, 2)),
        (8, lambda a: np.rot90(a, 1)),
        (9, lambda a: a),  # no such orientation
    ],
)
def test_exif_orientation(kind, orientation, to_upright):
    exif = Image.Exif()
    exif[274] = orientation
    big = CORNERS.repeat(16, 0).repeat(16, 1)  # 64 x 32: JPEG keeps the middle of each block
    options = {"PNG": {}, "JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}[kind]
    data = saved(Image.fromarray(big), kind, exif=exif, **options)
    got, want = decode(data), to_upright(CORNERS)
    assert np.abs(got[8::16, 8::16].astype(int) - want).max() <= (3 if kind == "JPEG" else 0)
    assert probe_size(data) == (got.shape[1], got.shape[0]) == (want.shape[1] * 16, want.shape[0] * 16)


def one_pixel(mode: str, value: object) -> Image.Image:
    return Image.new(mode, (1, 1), value)


def palette(transparent: bool) -> bytes:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    return saved(image, "PNG", **({"transparency": 1} if transparent else {}))


def deep_grey(values: list[int]) -> bytes:
    return saved(Image.fromarray(np.array([values], np.uint16)), "PNG")


@pytest.mark.parametrize(
    "why, data, row",
    [
        ("grey", saved(one_pixel("L", 77), "PNG"), [(77, 77, 77)]),
        ("black and white", saved(one_pixel("1", 1), "PNG"), [(255, 255, 255)]),
        ("alpha 0 is the white behind it", saved(one_pixel("RGBA", (9, 9, 9, 0)), "PNG"), [(255, 255, 255)]),
        ("alpha 51 of 255 is a fifth", saved(one_pixel("RGBA", (0, 100, 255, 51)), "PNG"), [(204, 224, 255)]),
        ("grey with alpha", saved(one_pixel("LA", (0, 51)), "PNG"), [(204, 204, 204)]),
        ("WebP with alpha", saved(one_pixel("RGBA", (9, 9, 9, 0)), "WEBP", lossless=True), [(255, 255, 255)]),
        ("palette", palette(False), [(10, 20, 30), (200, 100, 50)]),
        ("palette with a clear colour", palette(True), [(10, 20, 30), (255, 255, 255)]),
        ("a clear colour in RGB", saved(one_pixel("RGB", (1, 2, 3)), "PNG", transparency=(1, 2, 3)), [(255, 255, 255)]),
        # 16 bits: value / 257, rounded; 128 / 257 = 0.498, 129 / 257 = 0.502
        ("16-bit grey", deep_grey([0, 128, 129, 257 * 100, 65535]), [(v, v, v) for v in (0, 0, 1, 100, 255)]),
        ("1 x 1", saved(one_pixel("RGB", (1, 2, 3)), "PNG"), [(1, 2, 3)]),
    ],
)
def test_odd_pictures(why, data, row):
    got = decode(data)
    np.testing.assert_array_equal(got, np.array([row], np.uint8), err_msg=why)
    assert got.dtype == np.uint8 and got.flags.c_contiguous and got.flags.writeable
    assert probe_size(data) == (len(row), 1)


@pytest.mark.parametrize(
    "cmyk, rgb", [((0, 0, 0, 0), (255, 255, 255)), ((0, 255, 255, 0), (255, 0, 0)), ((0, 0, 0, 255), (0, 0, 0))]
)
def test_cmyk_jpeg(cmyk, rgb):
    """Pillow writes CMYK as Adobe's programs do, inverted and with their marker."""
    data = saved(Image.new("CMYK", (16, 16), cmyk), "JPEG", quality=95)
    assert np.abs(decode(data).astype(int) - rgb).max() <= 6


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_animations_give_their_first_frame(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, lossless=True)
    np.testing.assert_array_equal(decode(data), np.full((8, 8, 3), (255, 0, 0), np.uint8))


def test_several_pictures_in_one_jpeg():
    """Phones store a depth map or a second exposure behind the photo (MPO)."""
    data = saved(Image.new("RGB", (8, 8), "white"), "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    assert decode(data).min() == 255


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_broken_exif_block_does_not_cost_the_photo():
    data = saved(Image.new("RGB", (8, 8), "white"), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    assert decode(data).shape == (8, 8, 3)
    assert probe_size(data) == (8, 8)


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))


@pytest.mark.parametrize(
    "why, data, reason",
    [
        ("nothing", b"", "empty file"),
        ("text", b"hello, this is no picture", "not a JPEG, PNG, WebP, AVIF, TIFF, BMP, GIF or HEIC picture"),
        ("another format", saved(NOISE, "PPM"), "not a JPEG, PNG, WebP, AVIF, TIFF, BMP, GIF or HEIC picture"),
        ("another format", saved(NOISE, "ICO"), "not a JPEG, PNG, WebP, AVIF, TIFF, BMP, GIF or HEIC picture"),
        ("cut JPEG", saved(NOISE, "JPEG")[:-700], "truncated"),
        ("cut PNG", saved(NOISE, "PNG")[:-700], "cannot be decoded"),
        ("cut WebP", saved(NOISE, "WEBP")[:-700], "cannot be decoded|not a JPEG"),
        ("PNG without its data", png_header(64, 64), "cannot be decoded"),
        ("too large by one row", png_header(10_000, 5_001), "10000 x 5001 is more than 50000000 pixels"),
        ("a bomb", png_header(60_000, 60_000), "more than 50000000 pixels"),
    ],
)
def test_refusals(why, data, reason):
    with pytest.raises(DecodeError, match=reason) as caught:
        decode(data)
    with pytest.raises(DecodeError) as again:
        decode(bytes(bytearray(data)))
    assert str(again.value) == str(caught.value), "a reason is the same every time"
    assert len(str(caught.value)) < 160 and "0x" not in str(caught.value)


def test_every_truncation_of_a_file_decodes_or_gives_a_reason():
    for kind in ("JPEG", "PNG", "WEBP"):
        data = saved(NOISE, kind)
        for end in range(0, len(data), max(1, len(data) // 60)):
            with pytest.raises(DecodeError):
                decode(data[:end])


def test_the_limit_is_a_setting():
    data = saved(Image.new("RGB", (10, 10)), "PNG")
    assert decode(data, max_pixels=100).shape == (10, 10, 3)
    for function in (decode, probe_size):
        with pytest.raises(DecodeError, match="10 x 10 is more than 99 pixels"):
            function(data, max_pixels=99)


# ---------------------------------------------------------------------------------------------------------------------
# Colour profiles, texts, the end of a file.

# Primaries adapted to D50, as in the Display P3 profile that phones write (columns of its matrix).
P3_PRIMARIES = {
    b"rXYZ": (0.51512, 0.24120, -0.00105),
    b"gXYZ": (0.29198, 0.69225, 0.04189),
    b"bXYZ": (0.15710, 0.06657, 0.78407),
}
SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)  # of IEC 61966-2-1, and of Display P3


def profile(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC profile (ICC.1:2010): header, table of tags, tags."""
    at, table, bodies = 128 + 4 + 12 * len(tags), b"", b""
    for name, body in tags.items():
        table += name + struct.pack(">II", at + len(bodies), len(body))
        bodies += body
    date = struct.pack(">6H", 2026, 1, 1, 0, 0, 0)
    header = struct.pack(">I", at + len(bodies)) + b"lcms" + bytes([4, 32, 0, 0]) + b"mntr" + space + b"XYZ " + date
    header += b"acsp" + bytes(28) + xyz(0.9642, 1.0, 0.8249)[8:] + bytes(48)
    return header + struct.pack(">I", len(tags)) + table + bodies


def xyz(*values: float) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def curve(*parameters: float) -> bytes:
    """A parametric curve: gamma alone, or the five numbers of a curve with a straight foot."""
    kind = {1: 0, 5: 3}[len(parameters)]
    return (
        b"para\0\0\0\0"
        + struct.pack(">HH", kind, 0)
        + b"".join(struct.pack(">i", round(p * 65536)) for p in parameters)
    )


WHITE = {b"wtpt": xyz(0.9642, 1.0, 0.8249)}
CURVES = {name: curve(*SRGB_CURVE) for name in (b"rTRC", b"gTRC", b"bTRC")}
P3 = profile(b"RGB ", WHITE | {name: xyz(*values) for name, values in P3_PRIMARIES.items()} | CURVES)
LINEAR_GREY = profile(b"GRAY", WHITE | {b"kTRC": curve(1.0)})
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("stored, shown", [((184, 50, 41), (200, 30, 30)), ((255, 255, 255),) * 2, ((0, 0, 0),) * 2])
def test_display_p3_becomes_srgb(kind: str, stored: tuple, shown: tuple) -> None:
    options = {"PNG": {}, "JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}[kind]
    data = saved(Image.new("RGB", (16, 16), stored), kind, icc_profile=P3, **options)
    assert np.abs(decode(data).astype(int) - shown).max() <= 2
    assert not ignores_profile(data)


def test_grey_with_a_profile() -> None:
    """Half of the light is 188 in sRGB: 255 * (1.055 * 0.5 ** (1 / 2.4) - 0.055) = 187.5."""
    assert (
        np.abs(decode(saved(Image.new("L", (2, 2), 128), "PNG", icc_profile=LINEAR_GREY)).astype(int) - 188).max() <= 1
    )


def test_a_clear_background_stays_white_beside_a_profile() -> None:
    assert decode(saved(one_pixel("RGBA", (9, 9, 9, 0)), "PNG", icc_profile=P3)).tolist() == [[[255, 255, 255]]]


@pytest.mark.parametrize("why, icc, ignored", [
    ("sRGB changes nothing", SRGB, False),
    ("no profile", b"", False),
    ("not a profile", b"garbage " * 30, True),
    ("cut", P3[:200], True),
    ("of grey pixels", LINEAR_GREY, True),
])  # fmt: skip
def test_profiles_that_leave_the_pixels(why: str, icc: bytes, ignored: bool) -> None:
    data = saved(NOISE, "JPEG", **({"icc_profile": icc} if icc else {}))
    np.testing.assert_array_equal(decode(data), decode(saved(NOISE, "JPEG")), err_msg=why)
    assert ignores_profile(data) is ignored


def test_a_text_that_unpacks_to_much_costs_no_photo() -> None:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("prompt", "y" * 3_000_000, zip=True)
    data = saved(NOISE, "PNG", pnginfo=texts)
    np.testing.assert_array_equal(decode(data), np.asarray(NOISE))
    assert probe_size(data) == NOISE.size
    data = saved(NOISE, "PNG", icc_profile=P3 + bytes(3_000_000))
    np.testing.assert_array_equal(decode(data), np.asarray(NOISE))
    assert ignores_profile(data)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("cut, whole", [(1, True), (2, True), (3, False), (4, False), (40, False)])
def test_a_jpeg_without_its_end_marker_is_whole(progressive: bool, cut: int, whole: bool) -> None:
    data = saved(NOISE, "JPEG", progressive=progressive)
    if whole:
        np.testing.assert_array_equal(decode(data[:-cut]), decode(data))
    else:
        with pytest.raises(DecodeError, match="truncated"):
            decode(data[:-cut])


def test_bytes_of_any_kind() -> None:
    """A shard gives the bytes of its photos without copying them."""
    texts = PngImagePlugin.PngInfo()
    texts.add_text("prompt", "y" * 3_000_000, zip=True)
    for data in (saved(NOISE, "PNG", pnginfo=texts), saved(NOISE, "JPEG")[:-2]):
        for view in (memoryview(data), pa.py_buffer(data)):
            np.testing.assert_array_equal(decode(view), decode(data))
            assert probe_size(view) == NOISE.size


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_an_orientation_in_xmp_alone_turns_nothing(kind: str) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    options: dict = {"xmp": xmp}
    if kind == "PNG":
        options = {"pnginfo": PngImagePlugin.PngInfo()}
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp.decode())
    data = saved(Image.fromarray(CORNERS), kind, **options)
    assert b"tiff:Orientation" in data
    assert decode(data).shape == (2, 4, 3) and probe_size(data) == (4, 2)


def test_a_limit_above_pillows_own() -> None:
    """Pillow refuses more than 178,956,970 pixels unless told otherwise."""
    assert probe_size(saved(Image.new("L", (20_000, 9_000)), "JPEG"), max_pixels=180_000_000) == (20_000, 9_000)
