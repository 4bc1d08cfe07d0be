"""What a method makes of pictures, a row each: its columns side by side."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Num
from matplotlib.figure import Figure

LETTERS = 28  # of a note below one column


def draw(columns: Mapping[str, Float[np.ndarray, "b H W c"]], note: str, max_rows: int = 8) -> Figure:
    """One row a picture; columns by title, fractions in [0, 1]."""
    rows = min(min(map(len, columns.values())), max_rows)
    figure = Figure(figsize=(2.0 * len(columns), 2.0 * rows + 0.7), layout="constrained")
    axes = figure.subplots(rows, len(columns), squeeze=False)
    for row in range(rows):
        for axis, (title, pictures) in zip(axes[row], columns.items(), strict=True):
            axis.imshow(shown(pictures[row]), vmin=0.0, vmax=1.0, cmap="gray", interpolation="nearest")
            axis.set_axis_off()
            if row == 0:
                axis.set_title(title, fontsize=10)
    figure.supxlabel(textwrap.fill(note, LETTERS * len(columns)), fontsize=8)
    return figure


def shown(picture: Num[np.ndarray, "H W c"]) -> np.ndarray:
    """Colour as it is, one channel as grey, other counts by their first channel."""
    return picture[:, :, :3] if picture.shape[-1] in (3, 4) else picture[:, :, 0]
