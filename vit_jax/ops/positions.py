"""Position tables: the two published sin-cos formulas, and resampling a table to another grid."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float

Resampling = Literal["google", "bicubic"]


def sincos2d(grid: tuple[int, int], width: int, origin: Literal["big_vision", "mae"]) -> Float[np.ndarray, "n {width}"]:
    """Fixed 2-D table: [sin x, cos x, sin y, cos y], x the column and y the row, each a quarter of the width.

    The frequencies are 10000^(-k / K) with k = 0 .. width/4 - 1. The origins differ in K, by up to 0.025 in the table:
    `mae` (facebookresearch/mae, util/pos_embed.py) has K = width/4, `big_vision` (models/vit.py, after MoCo v3)
    K = width/4 - 1.
    """
    if width % 4:
        raise ValueError(f"Expected a width divisible by 4 for sin-cos positions, got {width}: change hidden_size.")
    quarter = width // 4
    scale = quarter if origin == "mae" else quarter - 1
    omega = 1.0 / 10_000.0 ** (np.arange(quarter) / scale)
    rows, columns = np.mgrid[: grid[0], : grid[1]]
    x, y = columns.reshape(-1, 1) * omega, rows.reshape(-1, 1) * omega
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1).astype(np.float32)


def _linear(distance: np.ndarray) -> np.ndarray:
    return np.maximum(0.0, 1.0 - np.abs(distance))


def _cubic(distance: np.ndarray, a: float = -0.75) -> np.ndarray:
    """Keys' cubic kernel with PyTorch's a = -0.75 (jax.image uses -0.5)."""
    t = np.abs(distance)
    near = (a + 2) * t**3 - (a + 3) * t**2 + 1
    far = a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
    return np.where(t <= 1, near, np.where(t < 2, far, 0.0))


def _resample_matrix(old: int, new: int, method: Resampling) -> np.ndarray:
    """Rows of weights (new, old) of a 1-D interpolation with the edge repeated."""
    if method == "google":  # scipy.ndimage.zoom(order=1): linear, corners on corners
        place = np.arange(new) * ((old - 1) / max(new - 1, 1))
        taps: tuple[int, ...] = (0, 1)
        weigh = _linear
    elif method == "bicubic":  # torch.nn.functional.interpolate(mode="bicubic", align_corners=False)
        place = (np.arange(new) + 0.5) * (old / new) - 0.5
        taps, weigh = (-1, 0, 1, 2), _cubic
    else:
        raise ValueError(f"Expected the resampling 'google' or 'bicubic', got {method!r}.")
    base = np.floor(place).astype(int)
    matrix = np.zeros((new, old))
    for tap in taps:
        source = base + tap
        np.add.at(matrix, (np.arange(new), np.clip(source, 0, old - 1)), weigh(place - source))
    return matrix


def resample_table(
    table: Float[np.ndarray, "... m d"],
    old_grid: tuple[int, int],
    new_grid: tuple[int, int],
    method: Resampling = "google",
) -> Float[np.ndarray, "... n d"]:
    """Resample the rows of a position table to another grid; rows before the grid's (class token) stay as they are.

    `google` is what Google's ViT does on loading (vit_jax/checkpoint.py), `bicubic` what MAE, DeiT and BEiT do.
    """
    extra = table.shape[-2] - old_grid[0] * old_grid[1]
    if extra < 0:
        raise ValueError(
            f"Expected at least {old_grid[0] * old_grid[1]} rows for the grid {old_grid}, got {table.shape}."
        )
    if tuple(old_grid) == tuple(new_grid):
        return table
    head, body = table[..., :extra, :], table[..., extra:, :]
    square = body.reshape(*body.shape[:-2], *old_grid, body.shape[-1]).astype(np.float64)
    rows = _resample_matrix(old_grid[0], new_grid[0], method)
    columns = _resample_matrix(old_grid[1], new_grid[1], method)
    moved = np.einsum("ih,jw,...hwd->...ijd", rows, columns, square).astype(table.dtype)
    return np.concatenate([head, moved.reshape(*body.shape[:-2], -1, body.shape[-1])], axis=-2)
