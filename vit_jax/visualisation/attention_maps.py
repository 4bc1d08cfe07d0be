"""Attention over pictures, and how far heads look."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from vit_jax.visualisation.reconstructions import shown


def draw(
    pictures: Float[np.ndarray, "b H W c"], maps: Float[np.ndarray, "b k rows columns"], titles: list[str]
) -> Figure:
    """A row a picture: itself, then it under each of its `k` maps (each scaled to its own largest value)."""
    count, columns = len(pictures), maps.shape[1] + 1
    figure = Figure(figsize=(1.9 * columns, 2.0 * count + 0.4), layout="constrained")
    axes = figure.subplots(count, columns, squeeze=False)
    for row, picture in enumerate(pictures):
        height, width = picture.shape[:2]
        for place in range(columns):
            axis = axes[row, place]
            axis.imshow(shown(picture), vmin=0.0, vmax=1.0, cmap="gray", interpolation="nearest")
            if place:
                found = maps[row, place - 1]
                extent = (-0.5, width - 0.5, height - 0.5, -0.5)
                axis.imshow(found / max(found.max(), 1e-12), cmap="inferno", alpha=0.6, vmin=0.0, vmax=1.0,
                            extent=extent, interpolation="bilinear")  # fmt: skip
            axis.set_axis_off()
            if row == 0:
                axis.set_title("picture" if place == 0 else titles[place - 1], fontsize=9)
    return figure


def draw_distances(distances: Float[np.ndarray, "l h"]) -> Figure:
    """Mean attention distance of each head, layer by layer."""
    figure = Figure(figsize=(6.0, 4.0), layout="constrained")
    axis = figure.subplots()
    layers, heads = distances.shape
    axis.scatter(np.repeat(np.arange(1, layers + 1), heads), distances.reshape(-1), s=18, alpha=0.7)
    axis.plot(np.arange(1, layers + 1), distances.mean(axis=1), color="black", linewidth=1.0, label="mean over heads")
    axis.set_xlabel("layer")
    axis.set_ylabel("mean attention distance (pixels)")
    axis.set_xticks(np.arange(1, layers + 1))
    axis.set_ylim(bottom=0.0)
    axis.legend(frameon=False)
    return figure
