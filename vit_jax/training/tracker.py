"""What a run says: metrics.jsonl, loggers and a live line. One process writes, the others are silent."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vit_jax.contracts import Config, UserError, json_lines, to_json
from vit_jax.loggers import Begun, Logger, opened
from vit_jax.places import Where, place
from vit_jax.training.progress import Progress

METRICS = "metrics.jsonl"


def read_metrics(workdir: Where) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl. A line that is none of ours (cut off by a crash, damaged) is left out."""
    rows = json_lines(place(workdir) / METRICS)
    return [row for row in rows if isinstance(row.get("step"), int) and isinstance(row.get("kind"), str)]


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
        bucket: str | None = None,
    ):
        self.workdir, self.total, self.writes = Path(workdir), total_steps, writes
        self._live = writes and sys.stdout.isatty()
        self._loggers: list[Logger] = []
        self._judged: list[str] = []  # of the last evaluation, in words
        self._watched = config["keep_best"] if config else None
        if not writes:
            return
        kept = [row for row in read_metrics(workdir) if row["step"] <= step]
        for row in kept:
            self._note(row["kind"], row["step"], row)
        temporary = self.workdir / (METRICS + ".tmp")
        temporary.write_text("".join(to_json(row) + "\n" for row in kept))
        temporary.replace(self.workdir / METRICS)
        self._file = (self.workdir / METRICS).open("a")
        self._loggers = opened(loggers, Begun(self.workdir, config or {}, step, self.say, bucket))

    def record(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """One line of metrics, `kind` being "train", "eval" or "run"."""
        if not self.writes:
            return
        self._check()
        row = {"step": step, "kind": kind, "time": round(time.time(), 3), **values}
        self._file.write(to_json(row) + "\n")
        self._file.flush()
        self._note(kind, step, values)
        for logger in self._loggers:
            logger.log(kind, step, values)

    def _note(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Keep of the last evaluation what the progress line says."""
        if kind == "eval":
            name = headline(values, self._watched)
            value = values.get(name)  # null in the file where it was not finite
            self._judged = [f"test {name} {_short(float('nan') if value is None else value)} at {step}"]

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

    def line(self, step: int, values: Mapping[str, float], progress: Progress) -> None:
        """The progress line, what matters first: redrawn on a terminal, as much of it as fits; printed whole elsewhere."""
        if not self.writes:
            return
        comes, seconds = progress.next_evaluation(step)
        words = {name: f"{name} {_short(value)}" for name, value in values.items()}
        words["img/s"] = f"{_short(values['img/s'])} img/s"
        first = [words.pop(name) for name in ("loss", "img/s") if name in words]
        following = f"next test at {comes} in {_clock(seconds)}" if comes > step else "a test follows"
        parts = [f"step {step}/{self.total}", f"left {_clock(progress.left(step))}", *first, *self._judged, following]
        parts += words.values()
        if self._live:
            print(f"\r\x1b[2K{fitting(parts, shutil.get_terminal_size().columns - 1)}", end="", flush=True)
        else:
            print("  ".join(parts), flush=True)

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


def headline(values: Mapping[str, Any], wanted: str | None) -> str:
    """Of an evaluation's numbers the name of the one to watch: `keep_best`, or the first that is no loss."""
    names = [name for name in values if name not in ("step", "kind", "time", "examples", "loss")]
    return wanted if wanted is not None and wanted in values else (names or ["loss"])[0]


def fitting(parts: Sequence[str], columns: int) -> str:
    """As many parts as fit into so many columns, the first ones; the first is cut where even that does not fit."""
    text = parts[0][:columns]
    for part in parts[1:]:
        if len(text) + 2 + len(part) > columns:
            break
        text += f"  {part}"
    return text


def _short(value: float) -> str:
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.4g}"


def _clock(seconds: float) -> str:
    if seconds != seconds:
        return "?"
    minutes, seconds = divmod(int(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
