"""What a file of weights tells about its model: fields of the configuration, from names and shapes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from vit_jax.contracts import UserError
from vit_jax.conversion.tensors import Tensor
from vit_jax.conversion.told import MOST_HEADS, SMALLEST_STD, Told

MOST_BLOCKS, MOST_POSITIONS = 1000, 2**16
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# Heads of the published widths; PyTorch's fused matrices do not show them.
HEADS = {192: 3, 384: 6, 512: 8, 768: 12, 1024: 16, 1152: 16, 1280: 16, 1408: 16, 1664: 16}


class Description(NamedTuple):
    """A recognised file."""

    source: str  # "google", "timm", "mae", "hf"
    fields: dict[str, Any]  # nested fields of the configuration that differ from the defaults
    num_classes: int | None
    class_names: tuple[str, ...] | None = None


def shape_of(tensors: Mapping[str, Tensor], name: str, axes: int) -> tuple[int, ...]:
    """The shape of a tensor that must be there, with so many axes, none of them empty."""
    if name not in tensors:
        raise UserError(f"Expected a whole model, its tensor {name} is missing: fetch the file again.")
    shape = tensors[name].shape
    if len(shape) != axes or 0 in shape:
        raise UserError(f"Expected {axes} axes with numbers in {name}, got the shape {shape}: give the right file.")
    return shape


def blocks_of(names: Iterable[str], prefix: str, mark: str = ".") -> int:
    """How many blocks `prefix.{i}.` there are."""
    pattern = re.compile(rf"{re.escape(prefix + mark)}([0-9]{{1,6}})[^0-9]")
    found = {int(match[1]) for name in names if (match := pattern.match(name))}
    if not found:
        raise UserError(f"Expected tensors named {prefix}{mark}0..., found none: this is not a ViT of this format.")
    if len(found) <= max(found) - min(found) or max(found) >= MOST_BLOCKS:
        raise UserError(
            f"Expected tensors named {prefix}{mark}0... without a gap, {MOST_BLOCKS:,} blocks at most, got "
            f"{len(found)} of {prefix}{mark}{min(found)}... to {max(found)}: fetch the file again."
        )
    return 1 + max(found)


def heads_of(width: int, given: Told) -> int:
    """Given, or that of the published model of this width."""
    if "num_heads" in given:
        return given.whole("num_heads", None, most=MOST_HEADS)
    if width not in HEADS:
        raise UserError(
            f"Expected a published width ({', '.join(map(str, HEADS))}) to know the number of heads, got {width}: "
            "give num_heads=."
        )
    return HEADS[width]


def grid_rows(rows: int | None, prefix: int, given: Told, cell: tuple[int, ...]) -> tuple[tuple[int, int], bool]:
    """(grid of a position table of `rows`, whether it has rows for the `prefix` tokens before the patches).

    `cell`: pixels of one position, (height, width). A grid that is not square is known from `stored_size`, the
    (height, width) in pixels that the file was trained at.
    """
    if "stored_size" in given:
        height, width = given.sides("stored_size", 0)
        grid = (height // cell[0], width // cell[1])
        if 0 in grid or grid[0] * grid[1] > MOST_POSITIONS:
            raise UserError(
                f"Expected a stored_size of 1 to {MOST_POSITIONS:,} patches of {cell}, got {height} x {width}."
            )
        if rows is not None and rows - grid[0] * grid[1] not in (0, prefix):
            raise UserError(f"Expected {rows} positions for stored_size, got {grid[0]} x {grid[1]}: give another.")
        return grid, rows is None or rows != grid[0] * grid[1]
    if rows is None:
        return (max(1, 224 // cell[0]), max(1, 224 // cell[1])), True
    for extra, has_rows in ((prefix, True), (0, False)):
        side = math.isqrt(max(0, rows - extra))
        if side and side * side == rows - extra:
            return (side, side), has_rows
    raise UserError(f"Expected a square grid, got {rows} positions: give stored_size=(height, width) in pixels.")


def views(
    told: Told,
    crop: tuple[int, int],
    channels: int,
    statistics: tuple[tuple[float, ...], tuple[float, ...]],
    share: float,
) -> dict[str, Any]:
    """Fields of `pp`: the centre crop that is `share` of the short side, mean and deviation unless others are told."""
    mean, std = statistics
    return {
        "crop": crop[0] if crop[0] == crop[1] else crop,
        "resize": round(min(crop) / share),
        "channels": channels,
        "mean": told.numbers("mean", mean, count=channels, least=-1000.0),
        "std": told.numbers("std", std, count=channels, least=SMALLEST_STD),
    }
