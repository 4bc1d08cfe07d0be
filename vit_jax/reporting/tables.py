"""The tables of a report: results, differing settings, classes, versions. Text in cells, which the page escapes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from vit_jax import configuration
from vit_jax.evaluation.answers import Judged
from vit_jax.reporting.charts import SHARES, words
from vit_jax.reporting.runs import NOT_METRICS, Told

PERCENT = {*SHARES, "class_accuracy", "mAP", "f1_macro"}
PAIRS, HARDEST = 8, 8  # rows of the two tables about classes


class Table(NamedTuple):
    """`paths`: the first column is names of fields. `numbers`: columns from this one on are numbers (0: none)."""

    header: list[str]
    rows: list[list[str]]
    title: str = ""
    words: str = ""
    numbers: int = 0
    paths: bool = False


def results(runs: Sequence[Told]) -> Table:
    """A row a run: its last evaluation, and its best by what it is judged by."""
    metrics = list(dict.fromkeys(name for told in runs for row in told.evaluated[-1:] for name in row))
    metrics = sorted(set(metrics) - set(NOT_METRICS), key=lambda name: (name != "accuracy", name != "loss", name))
    header = ["run", "step", *(f"test {words(name)}" for name in metrics), "best", "training loss"]
    rows = []
    for told in runs:
        last = told.evaluated[-1] if told.evaluated else {}
        best = told.best(told.metric) if told.metric else None
        judged = f"{told.metric} {number(best[1], told.metric)} at step {best[0]:,}" if best and told.metric else "–"
        loss = told.trained[-1].get("loss", math.nan) if told.trained else math.nan
        rows.append(
            [told.name, f"{last.get('step', told.step):,}", *(number(last.get(name, ""), name) for name in metrics), judged,
             number(loss, "loss")]
        )  # fmt: skip
    return Table(header, rows, words=_about_results(runs), numbers=1)


def _about_results(runs: Sequence[Told]) -> str:
    counts = {int(row["examples"]) for told in runs for row in told.evaluated[-1:] if row.get("examples")}
    said = []
    if counts:
        said.append(
            f"Each run's last evaluation, on {' or '.join(f'{count:,}' for count in sorted(counts))} test pictures."
        )
    if missing := [told.name for told in runs if not told.evaluated]:
        said.append(f"Not evaluated yet: {', '.join(missing)}.")
    if len({told.config["objective"] for told in runs}) > 1:
        said.append("Losses of different methods cannot be compared.")
    return " ".join(said)


def differing(runs: Sequence[Told]) -> Table | None:
    """Fields that are not the same in all runs; those of one method alone are in the run's own list."""
    flat = [dict(configuration.flatten(told.config)) for told in runs]
    fields = dict.fromkeys(field for each in flat for field in each)
    shared = [field for field in fields if all(field in each for each in flat)]
    rows = [
        [field, *(setting(each[field]) for each in flat)]
        for field in shared
        if len({repr(each[field]) for each in flat}) > 1
    ]
    if len(runs) < 2 or not rows:
        return None
    own = sorted({field.partition(".")[0] for field in fields.keys() - set(shared)})
    more = f"Fields of one method alone are below, with the run: {', '.join(f'{section}.*' for section in own)}."
    more = more if own else ""
    return Table(["field", *(told.name for told in runs)], rows, words=more, paths=True)


def changed(told: Told) -> Table:
    """Fields that are not at their defaults, with what they mean."""
    given, rows = dict(configuration.flatten(told.config)), []
    for field, row in configuration.fields(told.config["objective"]).items():
        default = list(row.default) if isinstance(row.default, tuple) else row.default
        if repr(given[field]) != repr(configuration.plain({"": default})[""]):
            rows.append([field, setting(given[field]), setting(row.default), row.meaning])
    return Table(["field", "here", "default", "meaning"], rows, paths=True)


def versions(runs: Sequence[Told]) -> Table:
    """What each run's last start wrote down."""
    lines = {
        "devices": lambda start: f"{start['devices']} x {start['device_kind']} ({start['platform']})",
        "processes": lambda start: str(start["processes"]),
        "processor": lambda start: f"{start['processors']} x {start['processor']}",
        "system": lambda start: start["system"],
        "Python": lambda start: start["python"],
    }
    rows = [[name, *(_told(say, told.start) for told in runs)] for name, say in lines.items()]
    packages = dict.fromkeys(name for told in runs for name in told.start.get("packages") or {})
    rows += [
        [name, *((told.start.get("packages") or {}).get(name, "not recorded") for told in runs)] for name in packages
    ]
    rows.append(["starts", *(str(len(told.starts)) if told.starts else "not recorded" for told in runs)])
    if all(len(set(row[1:])) == 1 for row in rows):
        return Table(["", "every run" if len(runs) > 1 else runs[0].name], [row[:2] for row in rows], paths=True)
    return Table(["", *(told.name for told in runs)], rows, paths=True)


def _told(say: Any, start: dict[str, Any]) -> str:
    try:
        return str(say(start))
    except (KeyError, TypeError):
        return "not recorded"


def confused(judged: Judged, names: Sequence[str]) -> Table | None:
    """The pairs of classes that were taken for each other most often."""
    if judged.confusion is None:
        return None
    wrong = judged.confusion.copy()
    np.fill_diagonal(wrong, 0)
    whole = judged.confusion.sum(axis=1)
    order = np.argsort(-wrong, axis=None, kind="stable")[:PAIRS]
    pairs = [(int(place) // len(names), int(place) % len(names)) for place in order]
    rows = [
        [names[label], names[answer], f"{wrong[label, answer]:,}", f"{wrong[label, answer] / max(whole[label], 1):.0%}"]
        for label, answer in pairs
        if wrong[label, answer]
    ]
    header = ["label", "taken for", "pictures", "of the label's"]
    return Table(header, rows, "Most often confused", numbers=2) if rows else None


def hardest(judged: Judged) -> Table | None:
    """The numbers of each class, those that are known worst first."""
    if not judged.each:
        return None
    columns = list(next(iter(judged.each.values())))
    by = next((name for name in ("accuracy", "AP", "R2") if name in columns), columns[0])
    order = sorted(judged.each, key=lambda name: (math.isnan(judged.each[name][by]), judged.each[name][by]))
    few = order[:HARDEST]
    rows = [[name, *(number(judged.each[name][column], column) for column in columns)] for name in few]
    more = f", {len(few)} of {len(order)}" if len(few) < len(order) else ""
    return Table(["", *columns], rows, f"Hardest classes{more}" if by != "R2" else "Each number", numbers=1)


def number(value: Any, name: str) -> str:
    """As people read it."""
    if value == "":
        return "–"
    if value is None or value != value:
        return "not finite"
    if name in ("pictures", "examples"):
        return f"{int(value):,}"
    return f"{value:.1%}" if name in PERCENT else f"{value:.4g}"


def setting(value: Any) -> str:
    """A field's value."""
    return value if isinstance(value, str) and value else repr(tuple(value) if isinstance(value, list) else value)
