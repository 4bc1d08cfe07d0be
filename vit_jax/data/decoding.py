"""Encoded or raw pictures -> Pillow pictures of the wanted channels, whatever the file holds."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps

from vit_jax.contracts import Record, UserError, first_line

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
SIXTEEN_BIT = ("I", "I;16", "I;16B", "I;16L")


class UnreadablePicture(Exception):
    """A picture that cannot be decoded: its name and why."""

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name} ({reason})")
        self.name, self.reason = name, reason


def check_channels(record: Record, channels: int) -> None:
    """Raise `UserError` where pictures such as `record` cannot be given `channels` channels."""
    if isinstance(record.image, np.ndarray) and record.image.shape[-1] == channels:
        return
    if channels not in MODES:
        raise UserError(f"Expected pp.channels of {sorted(MODES)} for these pictures, got {channels}.")


def open_picture(record: Record, channels: int) -> Image.Image:
    """A lazily opened picture; nothing but the header of an encoded one is read yet."""
    check_channels(record, channels)
    if isinstance(record.image, np.ndarray):
        array = record.image
        return Image.fromarray(array[:, :, 0] if array.shape[-1] == 1 else array)
    try:
        return Image.open(io.BytesIO(record.image))
    except Exception as error:  # Pillow raises many kinds for a broken header
        raise UnreadablePicture(record.name, first_line(error)[:120]) from error


def decode(picture: Image.Image, channels: int, name: str) -> Image.Image:
    """Read the pixels, upright, in the mode of `channels`.

    Transparency is laid on white (unless 4 channels are wanted); 16-bit greys are scaled to 8, never clipped.
    """
    try:
        picture.load()
        if "exif" in picture.info or picture.format in ("TIFF", "PNG", "WEBP"):
            picture = ImageOps.exif_transpose(picture)
        if picture.mode == MODES[channels]:
            return picture
        if picture.mode in SIXTEEN_BIT:
            picture = Image.fromarray(_to_eight_bits(np.asarray(picture)))
        elif channels != 4 and picture.has_transparency_data:
            picture = picture.convert("RGBA")
            white = Image.new("RGBA", picture.size, "white")
            picture = Image.alpha_composite(white, picture).convert("RGB")
        return picture.convert(MODES[channels])
    except Exception as error:
        raise UnreadablePicture(name, first_line(error)[:120]) from error


def _to_eight_bits(values: np.ndarray) -> np.ndarray:
    """0..65535 -> 0..255, rounded."""
    return np.rint(values.astype(np.float64) / 257.0).clip(0, 255).astype(np.uint8)
