"""Tensors of a file that were not read yet: their shapes and types are known, their numbers come when asked for."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes  # NumPy learns bfloat16 by it
import numpy as np

from vit_jax.contracts import UserError, first_line

# What parameters are made of. Whole numbers would be another scheme's quantised weights, complex ones lose half.
FLOATS = tuple(np.dtype(kind) for kind in (np.float16, np.float32, np.float64, ml_dtypes.bfloat16))


@dataclasses.dataclass(frozen=True)
class Tensor:
    """What a file says of a tensor, and how to read its numbers: `np.asarray(tensor)`."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.read(), dtype)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever a damaged file makes its format's library raise (struct.error, zlib.error, ...) becomes one sentence."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"Expected a file of weights, {path} cannot be read ({first_line(error)}): fetch it again."
        ) from error
