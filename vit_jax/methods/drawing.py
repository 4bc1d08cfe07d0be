"""What a method that fills in hidden patches shows: original, masked, prediction, visible pixels pasted back."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from vit_jax.methods.method import Drawing
from vit_jax.ops.patches import patchify, unpatchify
from vit_jax.ops.pixels import denormalise

FADED = 0.85  # share of white in what is dimmed
NOTE = "visible patches are dimmed in the prediction, which means nothing there"


def filled_in(
    pixels: Float[Array, "b H W c"],
    predicted: Float[Array, "b n p"],
    hidden: Bool[Array, "b n"],
    patch_size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    more: str = "",
) -> Drawing:
    """`pixels` and `predicted` patches are normalised by mean and std; `more` is added to the note.

    The prediction is dimmed where patches are visible: the loss never sees what the model says there.
    """
    grid = (pixels.shape[1] // patch_size[0], pixels.shape[2] // patch_size[1])
    patches, gone = patchify(pixels, patch_size), hidden[:, :, None]

    def picture(rows: Array) -> np.ndarray:
        return np.asarray(denormalise(unpatchify(rows, grid, patch_size), mean, std))

    original, prediction = picture(patches), picture(predicted)
    seen = visible(hidden, grid, patch_size)
    columns = {
        "original": original,
        "masked": np.where(seen, original, np.float32(0.5)),
        "prediction": np.where(seen, FADED + (1.0 - FADED) * prediction, prediction),
        "prediction + visible": picture(jnp.where(gone, predicted, patches)),
    }
    return Drawing(columns, f"{NOTE}{more}")


def visible(
    hidden: Bool[Array, "b n"], grid: tuple[int, int], patch_size: tuple[int, int]
) -> Bool[np.ndarray, "b H W 1"]:
    """Whether a pixel lies in a patch that is seen."""
    return ~enlarged(np.asarray(hidden).reshape(-1, *grid, 1), patch_size)


def enlarged(pictures: Shaped[np.ndarray, "b H W c"], times: tuple[int, int]) -> Shaped[np.ndarray, "b H2 W2 c"]:
    """Every number in a block of so many rows and columns."""
    return np.asarray(pictures).repeat(times[0], axis=1).repeat(times[1], axis=2)


def coloured(codes: Int[np.ndarray, "b h w"], vocab_size: int, cell: tuple[int, int]) -> Float[np.ndarray, "b H W 3"]:
    """A colour for each code, in cells of so many pixels.

    Neighbouring numbers have nothing in common, so their colours are drawn at random, always the same ones.
    """
    palette = np.random.default_rng(0).uniform(size=(vocab_size, 3)).astype(np.float32)
    return enlarged(palette[codes], cell)
