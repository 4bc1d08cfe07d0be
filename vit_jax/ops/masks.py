"""Masks of patches: who stays visible. A mask is an argument everywhere, so evaluation can fix it and tests inject it.

Every strategy is a *score* per patch, the lowest scores staying visible; that keeps the number of visible patches
static (`num_visible`, configured once) and any strategy compilable.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key


class Mask(NamedTuple):
    """Which patches are visible, in three readings of the same fact."""

    visible: Int[Array, "b k"]  # indices of the visible patches, in the order the encoder sees them
    restore: Int[Array, "b n"]  # place of each patch in [visible, hidden]: undoes the shuffle
    hidden: Bool[Array, "b n"]


def from_scores(scores: Float[Array, "b n"], num_visible: int) -> Mask:
    """Keep the `num_visible` lowest scores, as MAE's random_masking keeps its lowest noise (models_mae.py)."""
    if not 1 <= num_visible <= scores.shape[-1]:
        raise ValueError(
            f"Expected 1 to {scores.shape[-1]} visible patches, got {num_visible}: change mae.num_visible."
        )
    order = jnp.argsort(scores, axis=-1)
    restore = jnp.argsort(order, axis=-1)
    return Mask(order[:, :num_visible], restore, restore >= num_visible)


def from_hidden(hidden: Bool[np.ndarray, "b n"]) -> Mask:
    """The mask of an array (True: hidden). Every row must hide equally many."""
    visible = (~hidden).sum(axis=-1)
    if (visible != visible[0]).any():
        raise ValueError(
            f"Expected every row to leave equally many patches visible, got {sorted(set(visible.tolist()))}."
        )
    return from_scores(jnp.asarray(hidden, jnp.float32), int(visible[0]))


def random_scores(keys: Key[Array, " b"], grid: tuple[int, int]) -> Float[Array, "b n"]:
    """Uniform noise: every set of patches is equally likely (MAE's default)."""
    return jax.vmap(lambda key: jax.random.uniform(key, (grid[0] * grid[1],)))(keys)


def block_scores(keys: Key[Array, " b"], grid: tuple[int, int], num_blocks: int = 64) -> Float[Array, "b n"]:
    """Rectangles (aspect 0.3 to 1/0.3, as BEiT's) hidden one after another; the last one hidden only in part.

    A patch's score is minus the number of the first rectangle that covers it, ties broken by noise.
    """

    def one(key: Key[Array, ""]) -> Float[Array, " n"]:
        area_key, aspect_key, top_key, left_key, tie_key = jax.random.split(key, 5)
        n = grid[0] * grid[1]
        area = jax.random.uniform(area_key, (num_blocks,), minval=min(16.0, n / 8), maxval=n / 3)
        log_aspect = jax.random.uniform(aspect_key, (num_blocks,), minval=jnp.log(0.3), maxval=-jnp.log(0.3))
        height = jnp.clip(jnp.sqrt(area * jnp.exp(log_aspect)), 1, grid[0])
        width = jnp.clip(jnp.sqrt(area / jnp.exp(log_aspect)), 1, grid[1])
        top = jax.random.uniform(top_key, (num_blocks,)) * (grid[0] - height + 1)
        left = jax.random.uniform(left_key, (num_blocks,)) * (grid[1] - width + 1)
        row, column = jnp.mgrid[: grid[0], : grid[1]].reshape(2, 1, n)
        down, right = row - jnp.floor(top)[:, None], column - jnp.floor(left)[:, None]
        inside_rows = (down >= 0) & (down < jnp.round(height)[:, None])
        inside_columns = (right >= 0) & (right < jnp.round(width)[:, None])
        covered = inside_rows & inside_columns
        first = jnp.where(covered.any(axis=0), covered.argmax(axis=0), num_blocks)
        # the first rectangles go first: the more negative, the longer a patch stays visible
        return jax.random.uniform(tie_key, (n,)) - first

    return jax.vmap(one)(keys)


def grid_scores(keys: Key[Array, " b"], grid: tuple[int, int]) -> Float[Array, "b n"]:
    """A regular lattice: one patch of every 2x2 first, then the others of the 2x2 (MAE's "grid" at one visible in 4).

    Ratios in between fill the next corner of the 2x2 at random places.
    """
    row, column = np.mgrid[: grid[0], : grid[1]]
    corner = np.asarray([[0, 2], [3, 1]])[row % 2, column % 2].reshape(-1)
    return jnp.asarray(corner, jnp.float32)[None, :] + 0.5 * random_scores(keys, grid)


@jax.named_scope("masks")
def unit_mask(
    keys: Key[Array, " b"], grid: tuple[int, int], unit: tuple[int, int], num_hidden: int
) -> Bool[Array, "b n"]:
    """Hides `num_hidden` squares of `unit` patches each, any set of them equally likely (SimMIM's MaskGenerator)."""
    coarse = (grid[0] // unit[0], grid[1] // unit[1])
    order = jnp.argsort(random_scores(keys, coarse), axis=-1)
    hidden = (jnp.argsort(order, axis=-1) < num_hidden).reshape(-1, *coarse)
    return jnp.repeat(jnp.repeat(hidden, unit[0], axis=1), unit[1], axis=2).reshape(-1, grid[0] * grid[1])


ATTEMPTS = 10  # of BEiT's generator to place one block


@jax.named_scope("masks")
def beit_mask(keys: Key[Array, " b"], grid: tuple[int, int], num_masked: int, min_block: int) -> Bool[Array, "b n"]:
    """Blocks hidden one after another until `num_masked` patches are, or no further block fits: seldom more than a few less.

    Each block has an area from `min_block` to what is left, an aspect from 0.3 to 1/0.3, and hides at least one new patch
    and no more than are left; ten failures in a row end it (microsoft/unilm beit/masking_generator.py).
    """
    rows, columns = grid
    row, column = jnp.mgrid[:rows, :columns]
    log_aspect = jnp.log(1.0 / 0.3)

    def attempt(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        key, hidden, failures = state
        key, now = jax.random.split(key)
        draw = jax.random.uniform(now, (4,))
        left = num_masked - jnp.sum(hidden)
        area = min_block + (left - min_block) * draw[0]  # from `left` up to `min_block` where fewer are left, as there
        aspect = jnp.exp(log_aspect * (2.0 * draw[1] - 1.0))
        height = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
        width = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)
        top = jnp.floor(draw[2] * (rows - height + 1)).astype(jnp.int32)
        first = jnp.floor(draw[3] * (columns - width + 1)).astype(jnp.int32)
        block = (row >= top) & (row < top + height) & (column >= first) & (column < first + width)
        new = jnp.sum(block & ~hidden)
        fits = (height < rows) & (width < columns) & (new > 0) & (new <= left)
        return key, hidden | (block & fits), jnp.where(fits, 0, failures + 1)

    def goes_on(state: tuple[Array, Array, Array]) -> Array:
        _, hidden, failures = state
        return (jnp.sum(hidden) < num_masked) & (failures < ATTEMPTS)

    def one(key: Key[Array, ""]) -> Bool[Array, " n"]:
        start = key, jnp.zeros(grid, bool), jnp.zeros((), jnp.int32)
        return jax.lax.while_loop(goes_on, attempt, start)[1].reshape(-1)

    return jax.vmap(one)(keys)


SCORES = {"random": random_scores, "block": block_scores, "grid": grid_scores}


@jax.named_scope("masks")
def make_mask(kind: str, keys: Key[Array, " b"], grid: tuple[int, int], num_visible: int) -> Mask:
    """A mask an example by a named strategy: "random", "block" or "grid"."""
    if kind not in SCORES:
        raise ValueError(f"Expected a mask of {sorted(SCORES)}, got {kind!r}: change mae.mask.")
    return from_scores(SCORES[kind](keys, grid), num_visible)


@jax.named_scope("masks")
def take(rows: Array, indices: Int[Array, "b k"]) -> Array:
    """Rows "b n d" at `indices` "b k" -> "b k d"."""
    return jnp.take_along_axis(rows, indices[:, :, None], axis=1)
