"""Image bytes to an upright RGB array, or the reason why not.

In: the bytes of one picture in a format of `store.formats`, as found in the wild. Out: (H, W, 3) uint8 in sRGB, turned
upright, alpha laid over white, 16 bits scaled to 8, first frame of an animation, first page of a TIFF. Whatever cannot
be decoded raises `DecodeError` with a short reason that is the same on every machine, so that it can go into a table.
Pillow does the decoding.

Phones save photos with a colour profile (mostly Display P3), shops without one (sRGB): profiles are converted to sRGB,
so that one garment has one colour; a profile that is broken, or of another kind than the pixels, is ignored. An
orientation that stands in XMP and not in EXIF is ignored too, as browsers do. AVIF and HEIC say in boxes of their own
which way is up, and what their EXIF says is ignored.
"""

import functools
import io
import sys
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from PIL import Image, ImageCms, ImageFile, TiffImagePlugin

from store.formats import DecodeError, open_picture

T = TypeVar("T")

VERSION = 2  # raise it when the same bytes give other pixels: detections and embeddings follow from it

MAX_PIXELS = 50_000_000
_ORIENTATION = 274  # EXIF tag; values 1..8, 1 is upright
_PHOTOMETRIC = 262  # TIFF tag; 0 says that white is the value 0
_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


_PROFILE_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # colour space of a profile -> mode of its pixels
_SRGB = ImageCms.createProfile("sRGB")


class BadProfile(ValueError):
    """A colour profile that cannot be used."""


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode one picture: (H, W, 3) uint8, RGB, C-contiguous and writable, as a viewer shows it.

    A picture of more than `max_pixels` (width x height in its header) is refused before its pixels are decoded. Raises
    DecodeError for that, and for data that is not one of the formats, truncated or broken.
    """

    def pixels(data: bytes) -> np.ndarray:
        with open_picture(data, max_pixels) as image:
            turn = _TURN.get(_orientation(image))
            upright = _srgb(image)
            if turn is not None:
                upright = upright.transpose(turn)
            return np.array(upright, dtype=np.uint8, order="C")

    try:
        return _attempt(pixels, data)
    except DecodeError as error:
        start = bytes(memoryview(data))
        if "truncated" not in str(error) or not start.startswith(b"\xff\xd8") or start.endswith(b"\xff\xd9"):
            raise
        start = start.removesuffix(b"\xff")
        # The file ends before its end marker. What follows the last block of pixels changes none of them; where blocks
        # are missing, what follows is taken for them.
        plain, followed = (_attempt(pixels, start + more + b"\xff\xd9") for more in (b"", b"\x5a\xa5\x3c\x0f" * 64))
        if not np.array_equal(plain, followed):
            raise
        return plain


def probe_size(data: bytes, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(width, height) in pixels of the upright picture, without decoding it where the header is enough.

    A PNG may say which way is up only after its pixels, so it is decoded; of all others the header is enough.
    Raises DecodeError as `decode` does, as far as the header tells.
    """

    def size(data: bytes) -> tuple[int, int]:
        with open_picture(data, max_pixels) as image:
            if image.format == "PNG":
                image.load()
            width, height = image.size
            return (height, width) if _orientation(image) >= 5 else (width, height)

    return _attempt(size, data)


def ignores_profile(data: bytes) -> bool:
    """Whether `decode` ignores the picture's colour profile, because it is broken or does not fit the pixels."""
    try:
        with open_picture(data, sys.maxsize) as image:
            _to_srgb(image)
    except Exception as error:  # of other kinds where it is no picture at all
        return isinstance(error, BadProfile) or "MAX_TEXT" in str(error)
    return False


def _attempt(work: Callable[[bytes], T], data: bytes) -> T:
    """`work(data)`; a PNG whose texts or profile unpack to more than Pillow allows is tried again without them."""
    try:
        try:
            return work(data)
        except ValueError as error:
            if "MAX_TEXT" not in str(error):
                raise
            return work(_without_texts(bytes(memoryview(data))))
    except DecodeError:
        raise
    except Exception as error:  # Pillow's plug-ins raise OSError, SyntaxError, ValueError, struct.error, EOFError …
        raise DecodeError(_reason(error)) from error


def _without_texts(png: bytes) -> bytes:
    parts, at = [png[:8]], 8
    while at < len(png):
        end = at + 12 + int.from_bytes(png[at : at + 4], "big")
        if png[at + 4 : at + 8] not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            parts.append(png[at:end])
        at = end
    return b"".join(parts)


def _orientation(image: Image.Image) -> int:
    """1..8; 1 where the tag is absent or the EXIF block is nonsense: a viewer shows such a photo as stored."""
    for xmp in ("xmp", "XML:com.adobe.xmp"):
        image.info.pop(xmp, None)  # Pillow would take the orientation from there
    if image.format in ("TIFF", "HEIF"):  # turned while they are decoded; their size is that of the upright picture
        return 1
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a broken EXIF block, in any of the ways it can be broken
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _srgb(image: ImageFile.ImageFile) -> Image.Image:
    """The picture in sRGB.

    Raises:
        DecodeError: it has other pixels than its header says.
    """
    size = image.size
    frame = image.tile[0].extents if image.format == "GIF" else None
    image.load()
    if image.size != size:
        raise DecodeError(f"its header says {size[0]} x {size[1]}, its pixels are {image.size[0]} x {image.size[1]}")
    flat = _flat(image)
    if frame and frame != (0, 0, *size):  # the first frame of a GIF need not cover it
        covered = flat.convert("RGB").crop(frame)
        flat = Image.new("RGB", size, "white")
        flat.paste(covered, frame[:2])
    try:
        mode, transform = _to_srgb(image)
    except BadProfile:
        transform = None
    if transform is None:
        return flat if flat.mode == "RGB" else flat.convert("RGB")
    flat = flat if flat.mode == mode else flat.convert(mode)
    return ImageCms.applyTransform(flat, transform) or flat


def _flat(image: Image.Image) -> Image.Image:
    """The same colours as RGB, L or CMYK: Pillow's own conversion, except where it would clip or forget."""
    if image.mode.startswith("I"):  # 16-bit grey; convert() would clip at 255
        deep = np.asarray(image).astype(np.int64).clip(0, 65535)
        if isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(_PHOTOMETRIC, 0) == 0:
            deep = 65535 - deep  # Pillow turns these into black on white at 8 bits only
        grey = ((deep + 128) // 257).astype(np.uint8)  # 65535 / 257 = 255, rounded to the nearest
        clear = image.info.get("transparency")
        if isinstance(clear, int):
            grey[deep == clear] = 255
        return Image.fromarray(grey)
    if image.has_transparency_data:
        rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        # Many programs leave the fourth byte of a BMP's pixels 0, though its header declares it to be alpha.
        if image.format == "BMP" and rgba.getchannel("A").getextrema() == (0, 0):
            return rgba.convert("RGB")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image if image.mode in ("RGB", "L", "CMYK") else image.convert("RGB")


def _to_srgb(image: Image.Image) -> tuple[str, ImageCms.ImageCmsTransform | None]:
    """The mode of pixels that the picture's profile describes, and the transform to sRGB where it changes anything.

    Raises:
        BadProfile: it is broken, or describes other pixels.
    """
    grey = image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I")
    mode = "L" if grey else image.mode if image.mode == "CMYK" else "RGB"
    profile = image.info.get("icc_profile")
    return mode, _transform(profile, mode) if profile else None


@functools.lru_cache(maxsize=64)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From a profile to sRGB; None where no colour of a grid changes by more than 1 of 255."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if _PROFILE_MODES.get(source.profile.xcolor_space) != mode:
            raise BadProfile(f"a profile of {source.profile.xcolor_space} and pixels of {mode}")
        intent, flags = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
        transform = ImageCms.buildTransform(source, _SRGB, mode, "RGB", intent, flags)
    except (ImageCms.PyCMSError, OSError, TypeError) as error:
        raise BadProfile(str(error)) from error
    if mode == "CMYK":
        return transform
    levels = np.linspace(0, 255, 16).astype(np.uint8)
    colours = levels if mode == "L" else np.stack(np.meshgrid(levels, levels, levels), -1).reshape(-1, 3)
    grid = Image.fromarray(colours[None])
    converted = np.asarray(ImageCms.applyTransform(grid, transform)).astype(int)
    return transform if np.abs(converted - np.asarray(grid.convert("RGB"))).max() > 1 else None


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if " at 0x" in text or not text:  # an object's address differs from run to run
        text = type(error).__name__
    return f"cannot be decoded: {text[:120]}"
