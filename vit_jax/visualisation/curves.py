"""Loss, metrics and learning rate of a run over its steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

LEFT_OUT = ("step", "kind", "time", "img/s", "data_wait", "grad_norm", "lr", "examples")


def draw(rows: Sequence[dict[str, Any]]) -> Figure:
    """From the lines of metrics.jsonl: losses, other metrics, learning rate."""
    figure = Figure(figsize=(10.0, 3.2), layout="constrained")
    losses, others, rate = figure.subplots(1, 3)
    train = [row for row in rows if row["kind"] == "train"]
    test = [row for row in rows if row["kind"] == "eval"]
    for kind, lines, style in (("train", train, "-"), ("test", test, "o-")):
        for name in sorted({name for row in lines for name in row} - set(LEFT_OUT)):
            points = [(row["step"], row[name]) for row in lines if name in row]
            axis = losses if name in ("loss", "baseline") else others
            shape = style.replace("-", "--") if name == "baseline" else style
            axis.plot(*zip(*points, strict=True), shape, markersize=3, label=f"{kind} {name}")
    rate.plot([row["step"] for row in train], [row["lr"] for row in train], label="learning rate")
    for axis, title in ((losses, "loss"), (others, "metrics"), (rate, "learning rate")):
        axis.set_title(title)
        axis.set_xlabel("step")
        if axis.lines:
            axis.legend(fontsize=7)
        else:
            axis.set_visible(False)
    return figure
