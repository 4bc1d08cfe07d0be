"""What a caller hands over as pictures -> records: paths, encoded bytes, Pillow's pictures, arrays, or several of them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vit_jax.contracts import Record, UserError, first_line
from vit_jax.data.decoding import MODES, printable
from vit_jax.data.folders import picture_bytes

WANTED = (
    "pictures: paths, encoded bytes, Pillow pictures, uint8 arrays (H, W), (H, W, c) or (b, H, W, c), or a list of them"
)


def records_of(pictures: Any) -> list[Record]:
    """One record a picture; a single picture gives a list of one.

    Args:
      pictures: a path, encoded bytes, a Pillow picture, a uint8 array (H, W) or (H, W, c) with 1, 3 or 4 channels; a list
        or tuple of such, or one array (b, H, W, c). Arrays are NumPy's, or whatever NumPy can read (jax's, PyTorch's).

    Raises:
      UserError: anything else, or a file that cannot be read.
    """
    if isinstance(pictures, list | tuple):
        several = list(pictures)
    elif _is_array(pictures) and np.ndim(pictures) == 4:
        several = list(np.asarray(pictures))
    else:
        return [_record(pictures, "picture")]
    if not several:
        raise UserError(f"Expected {WANTED}; got none.")
    return [_record(picture, f"picture {place}") for place, picture in enumerate(several)]


@contextlib.contextmanager
def readable(path: str | os.PathLike[str]) -> Iterator[None]:
    """Tells in one sentence why a file given by name cannot be read."""
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        reason = error.strerror if isinstance(error, OSError) else error
        name = printable(os.fspath(path))
        raise UserError(f"Expected a picture, {name} cannot be read ({reason}): fix the path.") from error


def _record(picture: Any, name: str) -> Record:
    if isinstance(picture, str | os.PathLike):
        with readable(picture):
            return Record(picture_bytes(Path(picture)), -1, str(picture))
    if isinstance(picture, bytes | bytearray):
        return Record(bytes(picture), -1, name)
    if isinstance(picture, Image.Image):
        return Record(picture, -1, name)
    if _is_array(picture):
        return Record(_as_picture(picture, name), -1, name)
    raise UserError(f"Expected {WANTED}; got {name} of type {type(picture).__name__}.")


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) or (hasattr(value, "__array__") and not isinstance(value, Image.Image))


def _as_picture(given: Any, name: str) -> UInt8[np.ndarray, "H W c"]:
    try:
        array = np.asarray(given)
    except Exception as error:  # a tensor of PyTorch on a GPU, or with a gradient
        raise UserError(f"Expected {WANTED}; NumPy cannot read {name}: {first_line(error)}") from error
    if array.dtype != np.uint8:
        raise UserError(
            f"Expected uint8 numbers from 0 to 255, {name} has {array.dtype}: convert it (0 to 1: (255 * x).round(); 16 "
            "bits: x // 257; then .astype('uint8')), or give the model itself the pixels that it takes."
        )
    array = array[:, :, None] if array.ndim == 2 else array
    if array.ndim != 3 or not array.size or array.shape[-1] not in MODES:
        raise UserError(
            f"Expected arrays (H, W) or (H, W, c) with 1, 3 or 4 channels, {name} has the shape {array.shape}: "
            "give channels last, and several pictures as a list or as (b, H, W, c)."
        )
    return np.ascontiguousarray(array)
