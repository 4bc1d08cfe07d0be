"""Pictures <-> rows of patches. A patch is flattened as (row, column, channel), as MAE and Google's kernels do."""

from __future__ import annotations

import einops
from jaxtyping import Array, Shaped


def grid_of(image_size: tuple[int, int], patch_size: tuple[int, int]) -> tuple[int, int]:
    """Patches along (height, width). Raises ValueError where the picture is not a whole number of patches."""
    (height, width), (rows, columns) = image_size, patch_size
    if height < rows or width < columns or height % rows or width % columns:
        raise ValueError(
            f"Expected a picture of a whole number of {rows}x{columns} patches, got {height}x{width}: "
            "change pp.crop or model.patches.size."
        )
    return height // rows, width // columns


def patchify(images: Shaped[Array, "b H W c"], patch_size: tuple[int, int]) -> Shaped[Array, "b n p"]:
    """Cut pictures into patches, row by row."""
    rows, columns = patch_size
    return einops.rearrange(images, "b (h r) (w s) c -> b (h w) (r s c)", r=rows, s=columns)


def unpatchify(
    patches: Shaped[Array, "b n p"], grid: tuple[int, int], patch_size: tuple[int, int]
) -> Shaped[Array, "b H W c"]:
    """The inverse of `patchify`."""
    rows, columns = patch_size
    return einops.rearrange(patches, "b (h w) (r s c) -> b (h r) (w s) c", h=grid[0], w=grid[1], r=rows, s=columns)
