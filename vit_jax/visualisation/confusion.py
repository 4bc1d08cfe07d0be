"""Which classes are taken for which."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int
from matplotlib.figure import Figure

COUNTED, NAMED = 20, 60  # classes up to which every cell is written out, every row and column is named
DARK = 0.6  # share from which on a cell is too dark for black


def draw(confusion: Int[np.ndarray, "c c"], names: Sequence[str]) -> Figure:
    """A row a label, a column an answer; a cell's colour is its share of the row, its number the pictures."""
    classes = len(names)
    side = min(3.0 + 0.35 * classes, 14.0)
    figure = Figure(figsize=(side + 1.0, side), layout="compressed")  # constrained cuts off what is left of square axes
    axis = figure.subplots()
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    image = axis.imshow(shares, vmin=0.0, vmax=1.0, cmap="Blues", interpolation="nearest")
    if classes <= COUNTED:
        for row, column in np.argwhere(confusion):
            colour = "white" if shares[row, column] > DARK else "black"
            count = f"{confusion[row, column]:,}"
            axis.text(column, row, count, ha="center", va="center", color=colour, fontsize=8)
    if classes <= NAMED:
        short = [name if len(name) <= 24 else f"{name[:23]}…" for name in names]
        axis.set_xticks(range(classes), short, rotation=90, fontsize=8, parse_math=False)
        axis.set_yticks(range(classes), short, fontsize=8, parse_math=False)
    axis.set_xlabel("answer")
    axis.set_ylabel("label")
    figure.colorbar(image, ax=axis, label="share of the label's pictures", shrink=0.8)
    return figure
