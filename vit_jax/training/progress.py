"""How fast a run is and how long it still takes, by the host's clock alone: nothing is asked of the devices for it.

The loop hands out steps that the device has yet to take, at most `STEPS_AHEAD`, so a step counts when the loop has waited for
it. What interrupts training (an evaluation, figures, a checkpoint) is timed by itself: it is no part of a step's time, and
the time left counts it as often as it will come again.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import time
from collections.abc import Iterator, Mapping
from typing import Any

from vit_jax.ops.means import Mean, average

# Steps handed to the device beyond the one it works on. Without a bound the host runs ahead to the next log line, and a
# signal to stop is only heard once all of that is computed.
STEPS_AHEAD = 2
WINDOWS = 10  # of the moving average
FIRST_STEPS, FIRST_SECONDS = 20, 10.0  # the first forecast waits for so many steps, or for three that took so long
WORTH_SAYING = 60.0  # seconds


class Window:
    """The steps since the last log line: their reports (still on the device) and where the time went."""

    def __init__(self) -> None:
        self.reports: list[Any] = []
        self.waited = 0.0
        self.began = time.perf_counter()
        self._uncounted = 0

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.began

    @property
    def steps(self) -> int:
        """Those that the device took within `seconds`."""
        return max(1, len(self.reports) - self._uncounted)

    def pause(self, seconds: float) -> None:
        """Leave out what was no training, and the steps that the device took meanwhile."""
        self.began += seconds
        self._uncounted += min(STEPS_AHEAD, len(self.reports) - self._uncounted)

    def values(self, batch: int, reports: list[Any]) -> dict[str, Any]:
        """Averages over the window's finite steps, throughput and the share of time spent waiting for data."""
        seconds = self.seconds
        finite = [report for report in reports if report.finite]
        values: dict[str, Any] = {}
        for name in reports[0].means:
            means = [report.means[name] for report in finite]
            values[name] = average(functools.reduce(Mean.merge, means)) if means else float("nan")
        values["lr"] = float(reports[-1].learning_rate)
        values["grad_norm"] = float(reports[-1].grad_norm)
        values["img/s"] = self.steps * batch / seconds
        values["data_wait"] = self.waited / seconds
        return values


class Progress:
    """The pace of a run, and what is still to come.

    Args:
      total: steps of the run.
      every: steps between interruptions, by kind ("eval"); 0: only at the end, where each comes once more.
    """

    def __init__(self, total: int, every: Mapping[str, int]):
        self.total, self.every = total, every
        self._windows: collections.deque[tuple[int, float]] = collections.deque(maxlen=WINDOWS)
        self._took: dict[str, float] = {}  # seconds of the latest interruption of each kind
        self._first: tuple[int, float] | None = None  # the step and the time from which the forecast measures
        self._foretold = False

    def add(self, window: Window) -> None:
        """A window is over, and all of its steps were waited for."""
        self._windows.append((window.steps, window.seconds))

    @property
    def pace(self) -> float:
        """Seconds a step, over the latest windows; NaN before the first."""
        steps = sum(steps for steps, _ in self._windows)
        return sum(seconds for _, seconds in self._windows) / steps if steps else float("nan")

    @contextlib.contextmanager
    def pause(self, kind: str, window: Window) -> Iterator[None]:
        """Around what interrupts training."""
        began = time.perf_counter()
        yield
        self._took[kind] = time.perf_counter() - began
        window.pause(self._took[kind])
        self._first = None

    def left(self, step: int, pace: float | None = None) -> float:
        """Seconds from `step` to the end of the run, at the latest pace and with the interruptions seen so far."""
        waits = sum(seconds * self._times(kind, step) for kind, seconds in self._took.items())
        return (self.total - step) * (self.pace if pace is None else pace) + waits

    def next_evaluation(self, step: int) -> tuple[int, float]:
        """(its step, seconds until then); a step that is to be evaluated comes before its evaluation."""
        every = self.every["eval"]
        comes = min(self.total, -(-step // every) * every) if every else self.total
        return comes, (comes - step) * self.pace

    def forecast(self, step: int) -> tuple[float, float, int] | None:
        """(seconds left, seconds a step, steps measured), once: when enough steps are, and if it takes long enough.

        Asked after every step: the one `STEPS_AHEAD` before it has been waited for.
        """
        if self._foretold:
            return None
        now = time.perf_counter()
        if self._first is None:
            self._first = step + STEPS_AHEAD, float("inf")  # those under way
        first, since = self._first
        if step == first:
            self._first = step, now
        measured, seconds = step - first, now - since
        if measured < FIRST_STEPS and not (measured >= 3 and seconds > FIRST_SECONDS):
            return None
        self._foretold = True
        pace = seconds / measured
        left = self.left(step, pace)
        return (left, pace, measured) if left > WORTH_SAYING else None

    def _times(self, kind: str, step: int) -> int:
        """How often an interruption still comes, that of `step` itself and the last one included."""
        every = self.every[kind]
        return 1 + ((self.total - 1) // every - (step - 1) // every if every and step < self.total else 0)
