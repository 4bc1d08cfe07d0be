"""Attention over pictures, and how far heads look."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vit_jax.visualisation.reconstructions import shown

SMALL_SIDE = 1.9  # inches of a panel, as are these: between panels, above them, for the colour bar
GAP, TITLE, BAR, LONGEST_BAR = 0.08, 0.3, 0.8, 4.0
LARGEST = 1024  # pixels across a panel: a row may have 25


def draw(
    pictures: Sequence[Float[np.ndarray, "_ _ c"]],
    maps: Float[np.ndarray, "b k rows columns"],
    titles: list[str],
    *,
    own_size: bool = False,
) -> Figure:
    """A row a picture: itself, then it under each of its `k` maps (each scaled to its own largest value).

    Args:
      own_size: every panel is as many pixels wide as the widest picture, from a small size up to LARGEST.
    """
    count, columns = len(pictures), maps.shape[1] + 1
    height, width = (max(picture.shape[axis] for picture in pictures) for axis in (0, 1))
    figure = Figure()
    across = max(SMALL_SIDE, min(width, LARGEST) / figure.dpi) if own_size else SMALL_SIDE * min(1.0, width / height)
    down = across * height / width
    # Placed by hand: automatic layouts shrink the panels for the colour bar's sake.
    inches = (across + GAP) * columns + BAR, (down + GAP) * count + TITLE
    figure.set_size_inches(*inches)

    def placed(left: float, top: float, width: float, height: float) -> Axes:
        return figure.add_axes(
            (left / inches[0], 1 - (top + height) / inches[1], width / inches[0], height / inches[1])
        )

    for row, picture in enumerate(pictures):
        for place in range(columns):
            axis = placed(GAP / 2 + place * (across + GAP), TITLE + row * (down + GAP), across, down)
            axis.imshow(shown(picture), vmin=0.0, vmax=1.0, cmap="gray", interpolation="nearest")
            if place:
                found = maps[row, place - 1]
                extent = (-0.5, picture.shape[1] - 0.5, picture.shape[0] - 0.5, -0.5)
                axis.imshow(found / max(found.max(), 1e-12), cmap="inferno", alpha=0.6, vmin=0.0, vmax=1.0,
                            extent=extent, interpolation="bilinear")  # fmt: skip
            axis.set_axis_off()
            if row == 0:
                axis.set_title("picture" if place == 0 else titles[place - 1], fontsize=9)
    scale = placed(columns * (across + GAP) + GAP, TITLE, 0.12, min(count * (down + GAP) - GAP, LONGEST_BAR))
    figure.colorbar(axis.images[-1], cax=scale)
    scale.set_ylabel("attention, of the map's largest", fontsize=8)
    scale.tick_params(labelsize=7)
    return figure


def draw_distances(distances: Float[np.ndarray, "l h"]) -> Figure:
    """Mean attention distance of each head, layer by layer, from 0 as `--layers` and `--heads` count."""
    figure = Figure(figsize=(6.0, 4.0), layout="constrained")
    axis = figure.subplots()
    layers, heads = distances.shape
    # Heads that look nowhere but at themselves lie on the axis; without clipping their marks stay whole.
    axis.scatter(np.repeat(np.arange(layers), heads), distances.reshape(-1), s=18, alpha=0.7, clip_on=False, zorder=3)
    axis.plot(np.arange(layers), distances.mean(axis=1), ".-", color="black", linewidth=1.0, label="mean over heads")
    axis.set_xlabel("layer")
    axis.set_ylabel("mean attention distance (pixels)")
    axis.set_xlim(-0.5, layers - 0.5)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=13, integer=True))
    axis.set_ylim(0.0, 1.08 * max(float(distances.max()), 1e-3))
    axis.legend(frameon=False)
    return figure
