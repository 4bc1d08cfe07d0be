"""Where a run's time went, from the clock readings in its metrics."""

from __future__ import annotations

import math
import statistics
from typing import Any, NamedTuple

from vit_jax.planning.chips import chip_called
from vit_jax.reporting.runs import Told


class Spent(NamedTuple):
    """Seconds of all starts together, as far as they are in the records."""

    steps: float  # training steps, without the next two
    waiting: float  # for pictures
    compiling: float
    rest: float  # evaluations, checkpoints, figures
    rate: float | None  # pictures a second of training, the median line's
    use: float | None  # of the peak: FLOPs that were counted over those that the devices could have done
    use_words: str

    @property
    def total(self) -> float:
        return self.steps + self.waiting + self.compiling + self.rest


def spent(told: Told) -> Spent:
    """What the lines of metrics.jsonl add up to. A line of training covers the steps since the one before it."""
    batch = told.config["batch"]
    steps = waiting = compiling = total = 0.0
    for lines in _starts(told.rows):
        at, began, last = lines[0]["step"], lines[0].get("time"), lines[-1].get("time")
        if lines[0]["kind"] == "run":
            compiling += lines[0].get("compile_seconds") or 0.0
        for line in lines:
            if line["kind"] == "train":
                seconds = (line["step"] - at) * batch / line["img/s"] if line.get("img/s") else 0.0
                waited = seconds * (line.get("data_wait") or 0.0)
                steps, waiting, at = steps + seconds - waited, waiting + waited, line["step"]
        total += last - began if began and last else 0.0
    rates = [row["img/s"] for row in told.trained if row.get("img/s")]
    rate = statistics.median(rates) if rates else None
    use, words = _use(told, rate)
    return Spent(steps, waiting, compiling, max(total - steps - waiting, 0.0), rate, use, words)


def _starts(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The lines of each start, which begins with one of kind "run" once its step is compiled."""
    found: list[list[dict[str, Any]]] = []
    for row in rows:
        if row["kind"] == "run" or not found:
            found.append([])
        found[-1].append(row)
    return found


def _use(told: Told, rate: float | None) -> tuple[float | None, str]:
    """Share of the devices' peak that the median line reached, and how it was worked out, or why it was not."""
    work = [row["gflop_a_step"] for row in told.rows if row["kind"] == "run" and row.get("gflop_a_step")]
    kind, devices = told.start.get("device_kind"), told.start.get("devices")
    if not work or not kind or not devices or not rate:
        return None, "not recorded by this run"
    chip = chip_called(kind)
    if chip is None:
        return None, f"no peak known of {kind}"
    if told.config["compute_dtype"] != "bfloat16":
        return None, f"no peak known of {chip.name} in {told.config['compute_dtype']}"
    use = 1e9 * work[-1] * rate / told.config["batch"] / (devices * chip.flops)
    more = "" if told.config["remat"] == "none" else ", recomputation by remat counted as work"
    return use, f"of {devices} x {chip.flops / 1e12:.0f} TFLOP/s, data sheet of {chip.name}{more}"


def clock(seconds: float) -> str:
    """A length of time for people."""
    if not math.isfinite(seconds):
        return "unknown"
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes, hours = seconds / 60, seconds / 3600
    return f"{minutes:.3g} min" if minutes < 100 else f"{hours:.3g} h"
