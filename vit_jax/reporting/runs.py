"""What a workdir tells of its run before any model is opened: settings, numbers, starts, and where it stands."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from etils import epath

from vit_jax import configuration, starts
from vit_jax.contracts import UserError, first_line
from vit_jax.places import Where, contact, in_bucket, place
from vit_jax.training.best import LOWER
from vit_jax.training.tracker import read_metrics
from vit_jax.workdir_lock import LOCK, PATIENCE_SECONDS

NOT_METRICS = ("step", "kind", "time", "examples")
# Of what is evaluated, what a run is judged by: the first of these that there is.
FIRST = ("accuracy", "f1", "abs_error", "loss")


class Told(NamedTuple):
    """A run by its files."""

    name: str
    workdir: epath.Path
    config: dict[str, Any]
    rows: list[dict[str, Any]]
    starts: list[dict[str, Any]]
    parameters: str  # the table of rates and decays

    @property
    def start(self) -> dict[str, Any]:
        """The last start; empty of a run of an earlier version."""
        return self.starts[-1] if self.starts else {}

    @property
    def step(self) -> int:
        """The last that was recorded."""
        return max((row["step"] for row in self.rows), default=0)

    @property
    def total_steps(self) -> int | None:
        return self.start.get("total_steps") or self.config["total_steps"]

    @property
    def trained(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["kind"] == "train"]

    @property
    def evaluated(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["kind"] == "eval"]

    @property
    def going_on(self) -> bool:
        """Whether somebody has given a sign of life a moment ago."""
        try:
            status = (self.workdir / LOCK).stat()
        except OSError:
            return False
        return status.length > 0 and time.time() - status.mtime < PATIENCE_SECONDS

    @property
    def standing(self) -> str:
        """Where the run is, in words."""
        of = f" of {self.total_steps:,}" if self.total_steps else ""
        if self.going_on:
            return f"still training: step {self.step:,}{of}"
        if not self.rows:
            return "nothing recorded yet"
        if self.total_steps and self.step >= self.total_steps:
            return f"finished {self.step:,} steps"
        return f"ended at step {self.step:,}{of}"

    @property
    def metric(self) -> str | None:
        """What it is judged by: keep_best, or the first of what its evaluations gave."""
        names = {name for row in self.evaluated for name in row}
        return next((name for name in (self.config["keep_best"], *FIRST) if name in names), None)

    def best(self, metric: str) -> tuple[int, float] | None:
        """(step, value) of the best evaluation by a metric; None without a finite one."""
        found = [(row[metric], row["step"]) for row in self.evaluated if row.get(metric) is not None]
        value, step = (min if metric in LOWER else max)(found, default=(None, 0), key=lambda pair: pair[0])
        return None if value is None else (step, value)


def read_runs(workdirs: Sequence[Where]) -> list[Told]:
    """Every run by a name of its own: its folder's, with those above it as far as it takes.

    Raises:
      UserError: none given, one given twice, or a folder that holds no run.
    """
    paths = [place(workdir) for workdir in workdirs]
    if not paths:
        raise UserError("Expected workdirs to report on, got none: give the --workdir of a run.")
    known = [path if in_bucket(path) else Path(path).resolve() for path in paths]
    if twice := next((path for path, same in zip(paths, known, strict=True) if known.count(same) > 1), None):
        raise UserError(f"Expected each run once, got {twice} twice: leave one out.")
    return [read_run(path, name) for path, name in zip(paths, names(known), strict=True)]


def read_run(where: Where, name: str) -> Told:
    """One run. Raises `UserError` where there is none, or one whose settings cannot be read."""
    workdir = place(where)
    contact(workdir)
    path = workdir / "config.json"
    try:
        stored = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError) as error:
        what = "it has no config.json" if workdir.is_dir() else "there is no such folder"
        raise UserError(
            f"Expected the workdir of a run, {workdir} is none ({what}): give the --workdir of `vit-jax train`."
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"Expected settings in {path}, they cannot be read ({first_line(error)}).") from error
    if not isinstance(stored, dict):
        raise UserError(f"Expected settings in {path}, it holds something else: give the --workdir of `vit-jax train`.")
    config = configuration.completed(stored)
    configuration.check(config)
    table = workdir / "parameters.txt"
    parameters = table.read_bytes().decode(errors="replace") if table.exists() else ""
    return Told(name, workdir, config, read_metrics(workdir), starts.read(workdir), parameters)


def names(places: Sequence[PurePath]) -> list[str]:
    """The shortest ends of these paths that tell them apart."""
    depth = 1
    while len({place.parts[-depth:] for place in places}) < len(places):
        depth += 1
    return ["/".join(place.parts[-depth:]) for place in places]
