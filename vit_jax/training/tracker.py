"""What a run says: metrics.jsonl, loggers and a live line. One process writes, the others are silent."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vit_jax.contracts import Config, UserError, to_json
from vit_jax.loggers import Begun, Logger, opened
from vit_jax.ops.means import Mean, average

METRICS = "metrics.jsonl"


def read_metrics(workdir: str | Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl. A line that is none of ours (cut off by a crash, damaged) is left out."""
    path = Path(workdir) / METRICS
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int) and isinstance(row.get("kind"), str):
            rows.append(row)
    return rows


class Tracker:
    """Writes one run's numbers. Resuming at `step` forgets what an interrupted run wrote after it."""

    def __init__(
        self,
        workdir: str | Path,
        *,
        step: int,
        total_steps: int,
        writes: bool = True,
        loggers: Sequence[str] = ("tensorboard",),
        config: Config | None = None,
    ):
        self.workdir, self.total, self.writes = Path(workdir), total_steps, writes
        self._live = writes and sys.stdout.isatty()
        self._loggers: list[Logger] = []
        if not writes:
            return
        kept = [row for row in read_metrics(workdir) if row["step"] <= step]
        temporary = self.workdir / (METRICS + ".tmp")
        temporary.write_text("".join(to_json(row) + "\n" for row in kept))
        temporary.replace(self.workdir / METRICS)
        self._file = (self.workdir / METRICS).open("a")
        self._loggers = opened(loggers, Begun(self.workdir, config or {}, step, self.say))

    def record(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """One line of metrics, `kind` being "train", "eval" or "run"."""
        if not self.writes:
            return
        self._check()
        row = {"step": step, "kind": kind, "time": round(time.time(), 3), **values}
        self._file.write(to_json(row) + "\n")
        self._file.flush()
        for logger in self._loggers:
            logger.log(kind, step, values)

    def figures(self, step: int) -> None:
        """The figures in the workdir are those of this step."""
        for logger in self._loggers:
            logger.figures(step, sorted((self.workdir / "figures").glob("*.png")))

    def _check(self) -> None:
        """A file that was removed can be written to without an error, and nobody will ever read it."""
        path = self.workdir / METRICS
        try:
            there = path.stat().st_ino == os.fstat(self._file.fileno()).st_ino
        except FileNotFoundError:
            there = False
        if not there:
            raise UserError(
                f"Expected {path} to stay where it is, it was removed or replaced while the run wrote to it: put the "
                "workdir back, or start again."
            )

    def line(self, step: int, values: Mapping[str, float], eta: float) -> None:
        """The progress line: redrawn on a terminal, printed elsewhere."""
        if not self.writes:
            return
        shown = "  ".join(f"{name} {_short(value)}" for name, value in values.items())
        text = f"step {step}/{self.total}  {shown}  left {_clock(eta)}"
        print(f"\r\x1b[2K{text}" if self._live else text, end="" if self._live else "\n", flush=True)

    def say(self, text: str) -> None:
        """A line that stays."""
        if self.writes:
            print(("\r\x1b[2K" if self._live else "") + text, flush=True)

    def close(self) -> None:
        if self.writes:
            for close in (self._file.close, *(logger.close for logger in self._loggers)):
                with contextlib.suppress(OSError):  # what was written is on the disk; what was not has been raised
                    close()
            if self._live:
                print(flush=True)


class Window:
    """The steps since the last log line: their reports (still on the device) and where the time went."""

    def __init__(self) -> None:
        self.reports: list[Any] = []
        self.waited = 0.0
        self.began = time.perf_counter()

    def values(self, batch: int, reports: list[Any]) -> dict[str, Any]:
        """Averages over the window's finite steps, throughput and the share of time spent waiting for data."""
        seconds = time.perf_counter() - self.began
        finite = [report for report in reports if report.finite]
        values: dict[str, Any] = {}
        for name in reports[0].means:
            means = [report.means[name] for report in finite]
            values[name] = average(functools.reduce(Mean.merge, means)) if means else float("nan")
        values["lr"] = float(reports[-1].learning_rate)
        values["grad_norm"] = float(reports[-1].grad_norm)
        values["img/s"] = len(reports) * batch / seconds
        values["data_wait"] = self.waited / seconds
        return values


def _short(value: float) -> str:
    return f"{value:.4g}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
