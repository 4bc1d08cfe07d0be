"""Where the time of a planned step goes, by part of the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure


def draw(profile: Mapping[str, Mapping[str, Any]], title: str) -> Figure:
    """A bar a part, its length the cycles; beside it the share of the step, and of the chip's peak where it multiplies.

    Args:
      profile: {part: {"cycles", "share", "flops", "share_of_peak"}}, in the order of the bars.
    """
    figure = Figure(figsize=(7.2, 1.1 + 0.28 * len(profile)), layout="constrained")
    axis = figure.subplots()
    bars = axis.barh(list(profile), [part["cycles"] / 1e6 for part in profile.values()], color="tab:blue")
    axis.bar_label(bars, [_words(part) for part in profile.values()], padding=3, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.5 * max(bar.get_width() for bar in bars))  # room for the words
    axis.set_xlabel("million cycles a step, by the compiler's estimate")
    axis.set_title(title, fontsize=10)
    return figure


def _words(part: Mapping[str, Any]) -> str:
    peak = part["share_of_peak"]
    return f"{100 * part['share']:.1f}%" + (f", {100 * peak:.0f}% of the peak" if peak else "")
