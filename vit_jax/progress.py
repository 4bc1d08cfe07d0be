"""One line on stderr that says how far a long transfer is: counting on a terminal, every half minute elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

TERMINAL, ELSEWHERE = 0.2, 30.0  # seconds between two lines


def megabytes(number: int | float) -> str:
    return f"{number / 2**20:,.0f} MB"


class Progress:
    """For `with`; `show` may be called as often as one likes.

    Args:
      doing: the first words of the line.
      total: how much there is to do; None: nobody knows.
      amount: what a number of it is called.
      done: how much was there before; it counts as done, not towards the speed.
    """

    def __init__(self, doing: str, total: int | None, amount: Callable[[int | float], str] = megabytes, done: int = 0):
        self.doing, self.total, self.amount = doing, total, amount
        self.terminal = sys.stderr.isatty()
        self.first, self.began = done, time.monotonic()
        self.next, self.begun = self.began + (0.0 if self.terminal else ELSEWHERE), False

    def show(self, done: int, size: int = 0) -> None:
        """`size`: bytes that this took since the beginning, where `done` counts something else."""
        if not self.begun and not self.terminal:
            of_all = f" ({self.amount(self.total)})" if self.total else ""
            print(f"{self.doing}{of_all} ...", file=sys.stderr, flush=True)
        self.begun = True
        now = time.monotonic()
        if now < self.next:
            return
        self.next = now + (TERMINAL if self.terminal else ELSEWHERE)
        line = self._line(done, size, max(now - self.began, 1e-6))
        print(
            f"\r{line}\x1b[K" if self.terminal else line, end="" if self.terminal else "\n", file=sys.stderr, flush=True
        )

    def _line(self, done: int, size: int, seconds: int | float) -> str:
        number, of_total = self.amount(done), f" of {self.amount(self.total)}" if self.total else ""
        unit = number.partition(" ")[2]
        if of_total.endswith(unit):  # "3 of 7 MB"
            number = number.removesuffix(unit).rstrip()
        rate = (done - self.first) / seconds
        speed = f", {self.amount(rate)}/s" + (f", {megabytes(size / seconds)}/s" if size else "")
        left = f", {in_short((self.total - done) / rate)} left" if self.total and rate > 0 else ""
        return f"{self.doing}: {number}{of_total}{speed}{left}"

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *raised: Any) -> None:
        if self.terminal and self.begun:
            print(file=sys.stderr)


def in_short(seconds: int | float) -> str:
    """42 s, 7 min, 3.2 h."""
    return (
        f"{seconds:.0f} s"
        if seconds < 100
        else f"{seconds / 60:.0f} min"
        if seconds < 6000
        else f"{seconds / 3600:.1f} h"
    )
