"""Pictures as parts of a page: their bytes in an address, no file beside it."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Float, Num
from matplotlib import colormaps
from PIL import Image

from vit_jax.visualisation.reconstructions import shown

SMALL = 64  # pixels up to which a picture is kept exactly and enlarged without smoothing
STRENGTH = 0.6  # of a map over its picture
QUALITY = 88


class Picture(NamedTuple):
    """An <img>. `width` and `height` are its pixels."""

    source: str
    alt: str
    width: int
    height: int
    small: bool = False


class Row(NamedTuple):
    """Pictures side by side."""

    title: str
    pictures: list[Picture]


class Grid(NamedTuple):
    """Rows of as many pictures each, or in their place one figure alone; and what is to be said of them."""

    rows: list[Row]
    note: str
    alone: Picture | None = None


def picture(pixels: Num[np.ndarray, "H W c"], alt: str) -> Picture:
    """Of uint8, or of fractions in [0, 1]; what is not finite is black."""
    visible = shown(pixels)
    if visible.dtype != np.uint8:
        visible = np.rint(255 * np.nan_to_num(visible, posinf=1.0).clip(0, 1)).astype(np.uint8)
    height, width = visible.shape[:2]
    small = max(height, width) <= SMALL
    file = io.BytesIO()
    Image.fromarray(visible).save(
        file, "PNG" if small else "JPEG", optimize=True, **({} if small else {"quality": QUALITY})
    )
    return Picture(_address(file.getvalue(), "png" if small else "jpeg"), alt, width, height, small)


def drawn(path: epath.Path, alt: str) -> Picture:
    """A figure that is a file already."""
    with Image.open(path) as opened:
        return Picture(_address(path.read_bytes(), "png"), alt, *opened.size)


def rows(found: Mapping[str, Sequence[np.ndarray]], note: str) -> Grid:
    """A row a title; what belongs to one picture lies in one column."""
    return Grid([Row(title, [picture(pixels, title) for pixels in each]) for title, each in found.items()], note)


def under(pixels: Num[np.ndarray, "H W c"], found: Float[np.ndarray, "rows columns"]) -> Num[np.ndarray, "H W 3"]:
    """A uint8 picture under a map of any grid, which is scaled to its own largest value."""
    visible = shown(pixels)
    visible = visible if visible.ndim == 3 else np.repeat(visible[..., None], 3, axis=-1)
    height, width = visible.shape[:2]
    scaled = np.nan_to_num(found / max(float(np.nanmax(found)), 1e-12)).astype(np.float32)
    smooth = np.asarray(Image.fromarray(scaled).resize((width, height), Image.Resampling.BILINEAR))
    warm = colormaps["inferno"](smooth)[..., :3]
    return np.rint(255 * STRENGTH * warm + (1 - STRENGTH) * visible).clip(0, 255).astype(np.uint8)


def _address(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
