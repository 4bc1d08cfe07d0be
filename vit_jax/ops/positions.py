"""Position tables: the two published sin-cos formulas, relative positions, and resampling a table to another grid."""

from __future__ import annotations

import functools
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

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


@functools.cache
def relative_index(grid: tuple[int, int], class_token: bool) -> Int[np.ndarray, "n n"]:
    """Row of a table of relative positions for every query (first) and key, patches row by row.

    The table has (2 rows - 1)(2 columns - 1) offsets between patches, row by row from the most negative, and with a class
    token three more: class token to patch, patch to class token, class token to itself (unilm/beit, modeling_finetune.py).
    """
    rows, columns = grid
    row, column = np.mgrid[:rows, :columns].reshape(2, -1)
    down, right = row[:, None] - row[None, :], column[:, None] - column[None, :]
    index = (down + rows - 1) * (2 * columns - 1) + right + columns - 1
    if not class_token:
        return index
    offsets = (2 * rows - 1) * (2 * columns - 1)
    index = np.pad(index, ((1, 0), (1, 0)))
    index[0, :], index[:, 0], index[0, 0] = offsets, offsets + 1, offsets + 2
    return index


def resample_relative(
    table: Float[np.ndarray, "... r h"], old_grid: tuple[int, int], new_grid: tuple[int, int]
) -> Float[np.ndarray, "... s h"]:
    """A table of relative positions for another grid, as BEiT's loader does it (run_class_finetuning.py).

    Offsets of the old table are spread geometrically, so that those next to each other stay apart by one and the farthest
    reach the new grid's end; a cubic spline through them is read at whole offsets, clamped to its ends. The class token's
    rows stay as they are.

    Raises:
      ValueError: a grid of one patch a side, which has no offsets to spread.
    """
    if tuple(old_grid) == tuple(new_grid):
        return table
    from scipy.interpolate import RectBivariateSpline

    old, new = ([2 * side - 1 for side in grid] for grid in (old_grid, new_grid))
    if min(old) < 4:
        raise ValueError(f"Expected relative positions of 3 patches a side or more to resize, got {old_grid}.")
    places = [_geometric(size, wanted) for size, wanted in zip(old, new, strict=True)]
    wanted = [np.arange(size) - size // 2 for size in new]
    flat = table.reshape(-1, *table.shape[-2:]).astype(np.float64)
    offsets = old[0] * old[1]
    made = []
    for rows in flat:
        planes = rows[:offsets].reshape(*old, -1)
        splines = [RectBivariateSpline(*places, planes[:, :, head], kx=3, ky=3, s=0) for head in range(planes.shape[2])]
        body = np.stack([spline(*wanted) for spline in splines], axis=-1).reshape(new[0] * new[1], -1)
        made.append(np.concatenate([body, rows[offsets:]]))
    return np.stack(made).reshape(*table.shape[:-2], -1, table.shape[-1]).astype(table.dtype)


def _geometric(old: int, new: int) -> Float[np.ndarray, " {old}"]:
    """Places of the old offsets: 0, +-1, +-(1 + q), ..., with q such that the last one comes to new // 2.

    The bisection ends as the original does: at the middle it tried last, within [1.01, 1.5].
    """
    low, high, ratio = 1.01, 1.5, 1.0
    while high - low > 1e-6:
        ratio = (low + high) / 2.0
        reach = (1.0 - ratio ** (old // 2)) / (1.0 - ratio)
        low, high = (low, ratio) if reach > new // 2 else (ratio, high)
    right = np.cumsum(ratio ** np.arange(old // 2))
    return np.concatenate([-right[::-1], [0.0], right])


def regridded(
    path: str,
    value: np.ndarray,
    old_grid: tuple[int, int],
    new_grid: tuple[int, int],
    resampling: Resampling,
) -> np.ndarray:
    """A backbone's parameter for another grid: its tables of positions are resampled, the rest stays as it is."""
    if path == "positions":
        return resample_table(value, old_grid, new_grid, resampling)
    if path.endswith("relative_positions"):
        return resample_relative(value, old_grid, new_grid)
    return value
