"""Encoded or raw pictures -> Pillow pictures of the wanted channels, whatever the file holds."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

from vit_jax.contracts import Record, UserError, first_line

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
SIXTEEN_BIT = ("I", "I;16", "I;16B", "I;16L")
# Recognised by content, whatever the name says. Pillow knows forty more; one of them, EPS, starts Ghostscript.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
# A file of 150 KB can declare any number of pixels. This many are half a gigabyte at Pillow's four bytes a pixel, for
# each decoding thread, and more than the 108 million of a large photograph. No field: more would not fit elsewhere either.
MAX_PIXELS = 2**27
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # Pillow's, from two thirds of that on

# EXIF's orientation (0x0112) -> what makes the picture upright; 1 is upright, others mean nothing
ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadablePicture(Exception):
    """A picture that cannot be decoded: its name and why."""

    def __init__(self, name: str, reason: str):
        self.name, self.reason = printable(name), printable(reason)
        super().__init__(f"{self.name} ({self.reason})")


def printable(name: str) -> str:
    """A file's name in one line that every terminal takes: line breaks and bytes that are no UTF-8 are escaped."""
    return "".join(x if x.isprintable() else x.encode("unicode_escape").decode() for x in name)


def check_channels(record: Record, channels: int) -> None:
    """Raise `UserError` where pictures such as `record` cannot be given `channels` channels."""
    if isinstance(record.image, np.ndarray) and record.image.shape[-1] == channels:
        return
    if channels not in MODES:
        raise UserError(f"Expected pp.channels of {sorted(MODES)} for these pictures, got {channels}.")


def open_picture(record: Record, channels: int) -> Image.Image:
    """A lazily opened picture; nothing but the header of an encoded one is read yet.

    Raises:
      UnreadablePicture: none of `FORMATS`, or one that declares more than `MAX_PIXELS`.
      UserError: pictures that cannot be given `channels` channels.
    """
    check_channels(record, channels)
    if isinstance(record.image, np.ndarray):
        array = record.image
        return Image.fromarray(array[:, :, 0] if array.shape[-1] == 1 else array)
    picture = record.image if isinstance(record.image, Image.Image) else _opened(record.image, record.name)
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise UnreadablePicture(
            record.name, f"{width} x {height} pixels, more than the {MAX_PIXELS / 1e6:.0f} million that are decoded"
        )
    return picture


def _opened(encoded: bytes, name: str) -> Image.Image:
    if not encoded:
        raise UnreadablePicture(name, "an empty file, or one that could not be read")
    try:
        return Image.open(io.BytesIO(encoded), formats=FORMATS)
    except UnidentifiedImageError as error:  # its message is the address of our bytes
        raise UnreadablePicture(name, f"none of {', '.join(FORMATS)}, or a broken header") from error
    except Exception as error:  # Pillow raises many kinds for a broken header
        raise UnreadablePicture(name, first_line(error)[:120]) from error


def decode(picture: Image.Image, channels: int, name: str) -> Image.Image:
    """Read the pixels (of several pages or frames the first), upright, in the mode of `channels`.

    Transparency is laid on white (unless 4 channels are wanted); 16-bit greys are scaled to 8, never clipped.

    Raises:
      UnreadablePicture: damaged pixels, or numbers of no known range.
    """
    try:
        picture.load()
        if "exif" in picture.info or picture.format in ("TIFF", "PNG", "WEBP"):
            picture = _upright(picture)
        if picture.mode == MODES[channels]:
            return picture
        if picture.mode == "F":
            raise ValueError("floating point numbers, whose black and white nobody knows: store it in 8 or 16 bits")
        if picture.mode in SIXTEEN_BIT:
            picture = Image.fromarray(_to_eight_bits(np.asarray(picture)))
        elif channels != 4 and picture.has_transparency_data:
            picture = picture.convert("RGBA")
            white = Image.new("RGBA", picture.size, "white")
            picture = Image.alpha_composite(white, picture).convert("RGB")
        return picture.convert(MODES[channels])
    except Exception as error:
        raise UnreadablePicture(name, first_line(error)[:120]) from error


def _upright(picture: Image.Image) -> Image.Image:
    """Turned as its EXIF says; where that is damaged, as it is stored: the pixels are good."""
    try:
        turn = TURNS.get(picture.getexif().get(ORIENTATION, 1))
    except Exception:  # Pillow raises many kinds for it, too
        turn = None
    return picture if turn is None else picture.transpose(turn)


def _to_eight_bits(values: np.ndarray) -> np.ndarray:
    """0..65535 -> 0..255, rounded."""
    if values.dtype.itemsize > 2 and values.size and (values.min() < 0 or values.max() > 65535):
        raise ValueError("whole numbers beyond 65535: store it in 8 or 16 bits")
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
