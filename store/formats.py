"""The picture formats that are read, and how a file of one of them is opened; `store.decode` turns it into pixels.

In: the bytes of a file. Out: an image of Pillow whose header was read and judged, and nothing else yet. The bytes tell
the format, never the name, and only the plug-ins named here see a file: Pillow has others that run programs. HEIC is
read where the package pillow-heif is installed (the extra `heic`).
"""

import contextlib
import ctypes
import functools
import io
import logging
import warnings

from PIL import AvifImagePlugin, Image, ImageFile, TiffImagePlugin

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "GIF")  # Pillow's names; HEIC is opened alone, as "HEIF"
NO_PICTURE = "not a JPEG, PNG, WebP, AVIF, TIFF, BMP, GIF or HEIC picture"
NO_HEIC = "a HEIC picture, which needs pillow-heif; install the extra: pip install '.[heic]'"

# Messages about broken photos would stand between ours without the photo's name.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL)
with contextlib.suppress(AttributeError, OSError):  # libtiff prints to standard error; where it is not found, it may
    ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(None)

Image.MAX_IMAGE_PIXELS = None  # `max_pixels` is the limit; Pillow's own, 178 megapixels, would come before a larger one
AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # many workers share a machine; by default each would take all of its cores

# Brands in the first box of an ISO media file (ISO/IEC 23008-12, AV1 Image File Format).
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_AVIF_BRANDS = {b"avif", b"avis"}
# Tags of TIFF 6.0, and DNG's version
_SUBFILE_TYPE, _BITS, _TILE_WIDTH, _TILE_LENGTH, _SAMPLE_FORMAT, _DNG_VERSION = 254, 258, 322, 323, 339, 50706


class DecodeError(ValueError):
    """A picture that cannot be used; the message is the reason, short and without addresses or paths."""


def open_picture(data: bytes, max_pixels: int) -> ImageFile.ImageFile:
    """Open one picture without decoding its pixels.

    Raises:
        DecodeError: it is none of the formats, has more than `max_pixels` (width x height), is a TIFF of a kind that is
            not read, or a HEIC and pillow-heif is not installed.
        Exception: whatever Pillow's plug-ins raise for a broken header.
    """
    if not data:
        raise DecodeError("empty file")
    brands = _brands(data)
    heic = bool(brands & _HEIC_BRANDS) and not brands & _AVIF_BRANDS
    if heic and not _can_read_heic():
        raise DecodeError(NO_HEIC)
    try:
        image = Image.open(io.BytesIO(data), formats=("HEIF",) if heic else FORMATS)
    except Image.UnidentifiedImageError:
        if brands & (_HEIC_BRANDS | _AVIF_BRANDS):
            raise DecodeError("cannot be decoded: the header of this AVIF or HEIC file is broken or cut") from None
        if bytes(memoryview(data)[:4]) in TiffImagePlugin.PREFIXES:
            raise DecodeError("cannot be decoded: a TIFF that is broken, cut or of a kind that is not read") from None
        raise DecodeError(NO_PICTURE) from None
    width, height = image.size
    if width * height > max_pixels:
        raise DecodeError(f"{width} x {height} is more than {max_pixels} pixels")
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        _check_tiff(image.tag_v2, max_pixels)
    return image


def _brands(data: bytes) -> set[bytes]:
    """The brands that an ISO media file says it conforms to; empty for any other file."""
    head = bytes(memoryview(data)[:256])
    end = int.from_bytes(head[:4], "big")
    return {head[at : at + 4] for at in range(8, min(end, len(head)), 4)} if head[4:8] == b"ftyp" else set()


@functools.cache
def _can_read_heic() -> bool:
    """Whether pillow-heif is installed; then Pillow knows the format afterwards."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)
    return True


def _check_tiff(tags: TiffImagePlugin.ImageFileDirectory_v2, max_pixels: int) -> None:
    """Refuse a first page that is not the photo, or whose pixels Pillow would clip or take more memory than it says."""
    if _DNG_VERSION in tags or tags.get(_SUBFILE_TYPE, 0) & 1:  # a small preview of the raw data behind it
        raise DecodeError("a raw photo of a camera; export it as JPEG or TIFF")
    bits, kinds = set(tags.get(_BITS, (1,))), set(tags.get(_SAMPLE_FORMAT, (1,)))
    if not bits <= {1, 2, 4, 8, 16} or kinds != {1}:
        kind = "unsigned" if kinds == {1} else "signed or floating-point"
        raise DecodeError(f"a TIFF of {max(bits)}-bit {kind} numbers; want unsigned ones of 8 or 16 bits")
    width, length = tags.get(_TILE_WIDTH, 0), tags.get(_TILE_LENGTH, 0)
    if width * length > max_pixels:
        raise DecodeError(f"a TIFF with tiles of {width} x {length}, which is more than {max_pixels} pixels")
