"""Curves and the confusion of classes as Plotly figures. Colours are names that page.css gives, one set for dark rooms."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float, Int

from vit_jax.reporting.runs import NOT_METRICS, Told

COLOURS = 8  # --run-0 to --run-7 in page.css
BUCKETS = 400  # of a line that has more points: each keeps its first, lowest, highest and last
FEW = 10  # points; fewer get a mark each, one alone would draw no line
SHARES = ("accuracy", "top5", "f1", "exact", "data_wait")
# What every method records: title and axis.
COMMON = {
    "lr": ("Learning rate", ""), "grad_norm": ("Norm of the gradients", ""), "img/s": ("Pictures a second", ""),
    "data_wait": ("Time spent waiting for pictures", ""),
}  # fmt: skip
WORDS = {
    "abs_error": "absolute error", "top5": "top-5 accuracy", "f1": "F1", "f1_macro": "macro F1", "mAP": "mAP", "r2": "R²",
    "exact": "pictures all right", "class_accuracy": "mean accuracy of the classes", "kl": "KL", "mse": "MSE", "nll": "NLL",
}  # fmt: skip
BESIDE = {"baseline": "loss"}  # drawn with another metric: they have one unit
COUNTED, NAMED = 20, 60  # classes up to which cells have numbers, up to which there is a map at all


class Chart(NamedTuple):
    """A figure with its title; `json` is Plotly's, with `thinned` saying of how many points."""

    title: str
    json: str
    thinned: str = ""


def curves(runs: Sequence[Told]) -> list[Chart]:
    """A chart a metric, all runs that have it in one; metrics of different methods are different ones."""
    names: dict[tuple[str, str], None] = {}
    for told in runs:
        for row in told.rows:
            if row["kind"] in ("train", "eval"):
                names |= {(_kind(told, name), name): None for name in row if name not in (*NOT_METRICS, *BESIDE)}
    several = len({kind for kind, _ in names if kind}) > 1
    made = [_curve(runs, kind, name, several) for kind, name in sorted(names, key=_place)]
    return [chart for chart in made if chart is not None]


def _kind(told: Told, name: str) -> str:
    """What a metric can be compared within: its method and task; "" of what all methods record alike."""
    return "" if name in COMMON else f"{told.config['objective']}, {told.config['task']}".removesuffix(", classes")


def _place(found: tuple[str, str]) -> tuple[int, str, str]:
    kind, name = found
    order = ("loss", "accuracy", "f1", "abs_error")
    return (len(order) + 1 + list(COMMON).index(name) if name in COMMON else
            order.index(name) if name in order else len(order), kind, name)  # fmt: skip


def _curve(runs: Sequence[Told], kind: str, name: str, several: bool) -> Chart | None:
    figure, most = go.Figure(), 0
    share = name in SHARES
    for place, told in enumerate(runs):
        if _kind(told, name) != kind:
            continue
        colour = f"var(--run-{place % COLOURS})"
        for rows, part in ((told.trained, "training"), (told.evaluated, "test")):
            for metric, dash in [(name, "solid"), *((other, "dot") for other, of in BESIDE.items() if of == name)]:
                steps, values = series(rows, metric)
                if not len(steps):
                    continue
                most = max(most, len(steps))
                kept = thinned(values)
                marked = part == "test" or len(steps) < FEW
                label = " · ".join(
                    [*([told.name] if len(runs) > 1 else []), part, *([metric] if dash == "dot" else [])]
                )
                figure.add_scatter(
                    x=steps[kept], y=values[kept], name=html.escape(label), mode="lines+markers" if marked else "lines",
                    line={"color": colour, "width": 2.5 if part == "test" else 1.5, "dash": dash},
                    marker={"size": 6, "color": colour}, opacity=1.0 if part == "test" or name in COMMON else 0.6,
                    hovertemplate="%{y:.2%}" if share else "%{y:.5~g}", meta={"run": place},
                )  # fmt: skip
    if not figure.data:
        return None
    figure.update_layout(_layout(hovermode="x unified"))
    figure.update_xaxes(title_text="step", rangemode="tozero")
    figure.update_yaxes(tickformat="~%" if share else "~g")
    title = COMMON[name][0] if name in COMMON else headed(words(name)) + (f" ({kind})" if several else "")
    note = (
        f"lines of up to {most:,} points are drawn by about {4 * BUCKETS:,}, the highest and lowest among them"
        if most > 4 * BUCKETS
        else ""
    )
    return Chart(title, to_json(figure), note)


def series(rows: Iterable[dict[str, Any]], name: str) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Steps and values; null in the records, a number that was not finite, is NaN and leaves a gap."""
    points = [(row["step"], row[name]) for row in rows if name in row and isinstance(row[name], int | float | None)]
    steps = np.asarray([step for step, _ in points], np.int64)
    return steps, np.asarray([np.nan if value is None else value for _, value in points], np.float64)


def thinned(values: Float[np.ndarray, " n"], buckets: int = BUCKETS) -> Int[np.ndarray, " k"]:
    """Places of at most 5 points a bucket: first, lowest, highest, last, and one that is not finite where there are any.

    Peaks and gaps stay as they are, which means would hide.
    """
    if len(values) <= 4 * buckets:
        return np.arange(len(values))
    kept = set()
    for places in np.array_split(np.arange(len(values)), buckets):
        finite = places[np.isfinite(values[places])]
        kept |= {places[0], places[-1], *places[~np.isfinite(values[places])][:1]}
        if len(finite):
            kept |= {finite[np.argmin(values[finite])], finite[np.argmax(values[finite])]}
    return np.asarray(sorted(kept))


def confusion(counts: Int[np.ndarray, "c c"], names: Sequence[str]) -> Chart | None:
    """A row a label, a column an answer, coloured by its share of the row; None of too many classes to read."""
    if len(names) > NAMED:
        return None
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    short = [html.escape(name if len(name) <= 18 else f"{name[:17]}…") for name in names]
    places = list(range(len(names)))
    figure = go.Figure(
        go.Heatmap(
            z=shares, zmin=0.0, zmax=1.0, showscale=False, xgap=1, ygap=1,
            colorscale=[[0.0, "var(--map-0)"], [0.5, "var(--map-1)"], [1.0, "var(--map-2)"]],
            customdata=np.stack([np.broadcast_to(np.asarray(short, object)[:, None], counts.shape),
                                 np.broadcast_to(np.asarray(short, object)[None, :], counts.shape), counts], axis=-1),
            hovertemplate="%{customdata[0]} taken for %{customdata[1]}: %{customdata[2]} (%{z:.1%})<extra></extra>",
            text=np.where(counts > 0, counts.astype(str), "") if len(names) <= COUNTED else None,
            texttemplate="%{text}" if len(names) <= COUNTED else None,
        )
    )  # fmt: skip
    figure.update_layout(_layout())
    figure.update_xaxes(tickvals=places, ticktext=short, title_text="answer", tickangle=-60, showgrid=False)
    figure.update_yaxes(tickvals=places, ticktext=short, title_text="label", autorange="reversed", showgrid=False)
    return Chart("Confusion of classes", to_json(figure))


def words(name: str) -> str:
    """A metric's name for people, inside a sentence."""
    return WORDS.get(name, name.replace("_", " "))


def headed(text: str) -> str:
    """The same at the head of something."""
    return text[:1].upper() + text[1:]


def to_json(figure: go.Figure) -> str:
    """For a script element of a page, which it must not end."""
    return figure.to_json().replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _layout(**more: Any) -> dict[str, Any]:
    axis = {"gridcolor": "var(--grid)", "zeroline": False, "linecolor": "var(--grid)", "automargin": True,
            "title_standoff": 8}  # fmt: skip
    return {
        "template": "none", "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "showlegend": False,
        "font": {"color": "var(--soft)", "size": 12, "family": "system-ui, -apple-system, Segoe UI, Roboto, sans-serif"},
        "margin": {"l": 44, "r": 12, "t": 28, "b": 40},
        "hoverlabel": {"bgcolor": "var(--card)", "bordercolor": "var(--edge)", "font": {"color": "var(--text)"}},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "var(--edge)", "activecolor": "var(--accent)"},
        "xaxis": axis, "yaxis": axis, **more,
    }  # fmt: skip
