"""Notices a run that hangs: says what it waits for, leaves the stacks of all threads, and ends it so that it is started anew.

The loop says what it begins to wait for; a thread looks at the clock. It needs Python's interpreter lock, which every
wait of ours gives up: for data, a device, another process, a disk.
"""

from __future__ import annotations

import collections
import faulthandler
import os
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

HUNG = 4  # exit status; launch/ starts such a run again
LEAST_SECONDS, STEPS = 300.0, 20.0  # without `hang_seconds`: as long as this many steps, and this at least
SLOW = 10.0  # so many times longer may the compiler, a checkpoint, a figure or the first look at the data take
QUIET_SECONDS = 20.0  # after which it says what it waits for; then after twice that, and so on


class Wait(NamedTuple):
    """What the main thread waits for, and how many times longer than a step that may take."""

    what: str
    patience: float


class Watchdog:
    """Watches one run, from any thread that calls `waits_for`.

    Args:
      workdir: for `hang-<step>.txt`.
      seconds: without a step before the run is taken for hung; None: from the measured time of a step; 0: never.
      speaks: whether this process says what it waits for; every one says that it hangs.
    """

    def __init__(self, workdir: Path, seconds: float | None, *, speaks: bool = True):
        self.workdir, self.seconds, self.speaks = workdir, seconds, speaks
        self.at_step = 0
        self._wait = Wait("the run to begin", SLOW)
        self._took: collections.deque[float] = collections.deque(maxlen=50)
        self._last: float | None = None
        self._closed = threading.Event()
        self._tick = min(1.0, (seconds or LEAST_SECONDS) / 10)
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def waits_for(self, what: str, patience: float = 1.0) -> None:
        """The main thread begins to wait for `what`; whatever it waited for before has come."""
        self._wait = Wait(what, patience)

    def step(self, number: int) -> None:
        """A step is done; the times between them say how long one takes."""
        now = time.monotonic()
        if self._last is not None:
            self._took.append(now - self._last)
        self.at_step, self._last = number, now

    def limit(self, patience: float = 1.0) -> float:
        """Seconds after which a wait is a hang."""
        if self.seconds is not None:
            return patience * self.seconds or float("inf")
        took = list(self._took)
        return patience * max(LEAST_SECONDS, STEPS * statistics.median(took) if took else 0.0)

    def close(self) -> None:
        self._closed.set()

    def _watch(self) -> None:
        seen, waited, quiet, looked = self._wait, 0.0, QUIET_SECONDS, time.monotonic()
        while not self._closed.wait(self._tick):
            now = time.monotonic()
            passed, looked = now - looked, now
            if self._wait is not seen:
                seen, waited, quiet = self._wait, 0.0, QUIET_SECONDS
            waited += min(passed, 2 * self._tick)  # not the hours that this process was suspended
            if waited > self.limit(seen.patience):
                self._give_up(seen, waited)
            if waited > quiet:
                quiet *= 2
                if self.speaks:
                    print(f"waiting for {seen.what}, {waited:.0f} seconds so far", flush=True)

    def _give_up(self, wait: Wait, waited: float) -> None:
        place = self.workdir / f"hang-{self.at_step}.txt"
        words = (
            f"\nerror: Expected a step within {self.limit(wait.patience):.0f} seconds, after step {self.at_step} the run "
            f"waited {waited:.0f} for {wait.what}: look into {place} for where each thread is, or raise hang_seconds; "
            "the same command continues from the last checkpoint."
        )

        def leave_a_trace() -> None:
            print(words, file=sys.stderr, flush=True)
            self.workdir.mkdir(parents=True, exist_ok=True)
            with place.open("w") as file:
                faulthandler.dump_traceback(file)

        thread = threading.Thread(target=leave_a_trace, daemon=True)  # the disk may be what does not answer
        thread.start()
        thread.join(10)
        os._exit(HUNG)
