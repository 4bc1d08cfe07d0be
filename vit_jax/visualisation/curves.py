"""Loss, metrics and learning rate of a run over its steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

LEFT_OUT = ("step", "kind", "time", "img/s", "data_wait", "grad_norm", "lr", "examples")
FEW = 10  # points; fewer get a mark each, one alone would draw no line


def draw(rows: Sequence[dict[str, Any]], under: Mapping[str, str] | None = None) -> Figure:
    """From the lines of metrics.jsonl: losses, other metrics, learning rate; a panel for what there is, none left empty.

    Args:
      under: of a training metric, what it was measured under ({"accuracy": "mixup"}), where tests are without it.
    """
    train = [row for row in rows if row["kind"] == "train"]
    test = [row for row in rows if row["kind"] == "eval"]
    names = sorted({name for row in train + test for name in row} - set(LEFT_OUT))
    losses = [name for name in names if name in ("loss", "baseline")]
    others = [name for name in names if name not in losses]
    panels = {"loss": losses, "metrics": others, "learning rate": ["lr"] if train else []}
    drawn = {title: shown for title, shown in panels.items() if shown}
    figure = Figure(figsize=(3.6 * len(drawn), 3.2), layout="constrained")
    for axis, (title, shown) in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn.items(), strict=True):
        for name in shown:
            if title == "learning rate":
                _plot(axis, train, name, "learning rate", "-")
                continue
            note = f" (under {under[name]})" if under and name in under else ""
            dash = "--" if name == "baseline" else "-"
            _plot(axis, train, name, f"train {name}{note}", dash)
            _plot(axis, test, name, f"test {name}", f"o{dash}")
        axis.set_title(title)
        axis.set_xlabel("step")
        axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axis.legend(fontsize=7)
    return figure


def _plot(axis: Axes, rows: Sequence[dict[str, Any]], name: str, label: str, style: str) -> None:
    """One line; numbers that were not finite (null in the file) leave a gap."""
    points = [(row["step"], row[name]) for row in rows if name in row]
    if points:
        steps, values = zip(*points, strict=True)
        marked = style if "o" in style or len(points) >= FEW else f".{style}"
        axis.plot(
            steps, [float("nan") if value is None else value for value in values], marked, markersize=3, label=label
        )
