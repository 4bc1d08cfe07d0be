"""The four columns of a masked autoencoder: original, masked, prediction, visible pixels pasted back."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

TITLES = ("original", "masked", "prediction", "prediction + visible")


def draw(columns: tuple[Float[np.ndarray, "b H W c"], ...], *, true_statistics: bool, max_rows: int = 8) -> Figure:
    """One row a picture. Columns are original, masked, prediction and pasted, fractions in [0, 1]."""
    rows = min(len(columns[0]), max_rows)
    figure = Figure(figsize=(8.0, 2.0 * rows + 0.7), layout="constrained")
    axes = figure.subplots(rows, len(TITLES), squeeze=False)
    for row in range(rows):
        for place, (title, pictures) in enumerate(zip(TITLES, columns, strict=True)):
            axis = axes[row, place]
            axis.imshow(shown(pictures[row]), vmin=0.0, vmax=1.0, cmap="gray", interpolation="nearest")
            axis.set_axis_off()
            if row == 0:
                axis.set_title(title, fontsize=10)
    if true_statistics:
        figure.supxlabel("each predicted patch uses the true patch's mean and deviation", fontsize=8)
    return figure


def shown(picture: Float[np.ndarray, "H W c"]) -> np.ndarray:
    """Colour as it is, one channel as grey, other counts by their first channel."""
    return picture[:, :, :3] if picture.shape[-1] in (3, 4) else picture[:, :, 0]
