"""What the first layer knows: similarity of positions, and the patch projection's principal filters."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from vit_jax.visualisation.reconstructions import shown

MOST = 14  # positions shown along a side; larger grids are thinned out


def draw_similarity(table: Float[np.ndarray, "n d"], grid: tuple[int, int], title: str) -> Figure:
    """For each position, the cosine of its row with every other, laid out as the picture is."""
    unit = table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12)
    cosines = (unit @ unit.T).reshape(*grid, *grid)
    rows, columns = (np.unique(np.linspace(0, size - 1, min(size, MOST)).round().astype(int)) for size in grid)
    figure = Figure(figsize=(0.55 * len(columns) + 1.2, 0.55 * len(rows) + 0.4), layout="constrained")
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    lowest = float(cosines.min())
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            axes[i, j].imshow(cosines[row, column], vmin=lowest, vmax=1.0, cmap="viridis")
            axes[i, j].set_xticks([])
            axes[i, j].set_yticks([])
    figure.colorbar(axes[0, 0].images[0], ax=axes, label="cosine similarity", shrink=0.8)
    figure.suptitle(title, fontsize=9)
    return figure


def draw_filters(
    kernel: Float[np.ndarray, "p d"], patch_size: tuple[int, int], channels: int, count: int = 28
) -> Figure:
    """The first principal components of the patch projection, as patches (Dosovitskiy et al. 2021, Figure 7)."""
    components = np.linalg.svd(kernel - kernel.mean(axis=1, keepdims=True), full_matrices=False)[0].T[:count]
    columns = 7
    rows = -(-len(components) // columns)
    figure = Figure(figsize=(columns * 0.9, rows * 0.9), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.reshape(-1):
        axis.set_axis_off()
    for axis, component in zip(axes.reshape(-1), components, strict=False):
        patch = component.reshape(*patch_size, channels)
        low, high = patch.min(), patch.max()
        axis.imshow(shown((patch - low) / max(high - low, 1e-12)), vmin=0, vmax=1, cmap="gray", interpolation="nearest")
    return figure
