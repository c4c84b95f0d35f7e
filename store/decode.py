"""Image bytes to an upright RGB array, or the reason why not.

In: the bytes of one JPEG, PNG or WebP file, as found in the wild. Out: (H, W, 3) uint8, EXIF rotation applied, alpha
laid over white, 16 bits scaled to 8, first frame of an animation. Whatever cannot be decoded raises `DecodeError`
with a short reason that is the same on every machine, so that it can go into a table. Pillow does the decoding.
"""

import io
import warnings

import numpy as np
from PIL import Image, ImageFile

warnings.filterwarnings("ignore", module=r"PIL\.")  # of broken photos: lines without the photo's name, between ours

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 50_000_000
_ORIENTATION = 274  # EXIF tag; values 1..8, 1 is upright
_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class DecodeError(ValueError):
    """A picture that cannot be used; the message is the reason, short and without addresses or paths."""


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode one picture.

    Args:
        data: the file's bytes; JPEG, PNG or WebP.
        max_pixels: a picture with more (width x height in its header) is refused before its pixels are decoded.

    Returns:
        (H, W, 3) uint8, RGB, C-contiguous and writable, the way up a viewer shows it.

    Raises:
        DecodeError: not one of the formats, truncated, broken, or too large.
    """
    try:
        with _open(data, max_pixels) as image:
            image.load()
            turn = _TURN.get(_orientation(image))
            upright = _rgb(image)
            if turn is not None:
                upright = upright.transpose(turn)
            return np.array(upright, dtype=np.uint8, order="C")
    except DecodeError:
        raise
    except Exception as error:  # Pillow's plug-ins raise OSError, SyntaxError, ValueError, struct.error, EOFError …
        raise DecodeError(_reason(error)) from error


def probe_size(data: bytes, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(width, height) in pixels of the upright picture, without decoding it where the header is enough.

    JPEG and WebP are judged by their headers. A PNG may say which way is up only after its pixels, so it is decoded.

    Raises:
        DecodeError: as `decode`, as far as the header tells.
    """
    try:
        with _open(data, max_pixels) as image:
            if image.format == "PNG":
                image.load()
            width, height = image.size
            return (height, width) if _orientation(image) >= 5 else (width, height)
    except DecodeError:
        raise
    except Exception as error:
        raise DecodeError(_reason(error)) from error


def _open(data: bytes, max_pixels: int) -> ImageFile.ImageFile:
    if not data:
        raise DecodeError("empty file")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise DecodeError(f"more than {max_pixels} pixels") from None
    except Image.UnidentifiedImageError:
        raise DecodeError("not a JPEG, PNG or WebP picture") from None
    width, height = image.size
    if width * height > max_pixels:
        raise DecodeError(f"{width} x {height} is more than {max_pixels} pixels")
    return image


def _orientation(image: Image.Image) -> int:
    """1..8; 1 where the tag is absent or the EXIF block is nonsense: a viewer shows such a photo as stored."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a broken EXIF block, in any of the ways it can be broken
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _rgb(image: Image.Image) -> Image.Image:
    """The same pixels as RGB: Pillow's own conversion, except where it would clip or forget."""
    if image.mode.startswith("I"):  # 16-bit grey; convert() would clip at 255
        deep = np.asarray(image).astype(np.int64).clip(0, 65535)
        grey = ((deep + 128) // 257).astype(np.uint8)  # 65535 / 257 = 255, rounded to the nearest
        clear = image.info.get("transparency")
        if isinstance(clear, int):
            grey[deep == clear] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if " at 0x" in text or not text:  # an object's address differs from run to run
        text = type(error).__name__
    return f"cannot be decoded: {text[:120]}"
