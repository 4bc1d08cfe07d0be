"""The four columns of a masked autoencoder: original, masked, prediction, visible pixels pasted back.

In the prediction visible patches are dimmed: the loss never sees what the model says there, so it means nothing.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.figure import Figure

FADED = 0.85  # share of white in what is dimmed
TITLES = ("original", "masked", "prediction", "prediction + visible")


def draw(
    columns: tuple[Float[np.ndarray, "b H W c"], ...],
    visible: Bool[np.ndarray, "b H W"],
    *,
    true_statistics: bool,
    max_rows: int = 8,
) -> Figure:
    """One row a picture. Columns are original, masked, prediction and pasted, fractions in [0, 1]; `visible` pixels."""
    original, masked, predicted, pasted = columns
    columns = (original, masked, dimmed(predicted, visible), pasted)
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
    note = "visible patches are dimmed in the prediction, which means nothing there"
    if true_statistics:
        note += "; each predicted patch uses the true patch's mean and deviation"
    figure.supxlabel(note, fontsize=8)
    return figure


def dimmed(pictures: Float[np.ndarray, "b H W c"], where: Bool[np.ndarray, "b H W"]) -> np.ndarray:
    """Nearly white there, with a trace of what was."""
    return np.where(where[..., None], FADED + (1.0 - FADED) * pictures, pictures)


def shown(picture: Float[np.ndarray, "H W c"]) -> np.ndarray:
    """Colour as it is, one channel as grey, other counts by their first channel."""
    return picture[:, :, :3] if picture.shape[-1] in (3, 4) else picture[:, :, 0]
