"""How many steps fit into so many minutes on this machine: the first ones are taken for real, and timed."""

from __future__ import annotations

import copy
import statistics
import tempfile
from pathlib import Path
from typing import Any

from vit_jax.contracts import Config
from vit_jax.places import Where, place
from vit_jax.run import Draw
from vit_jax.train import run
from vit_jax.training.checkpoints import FOLDER, Checkpoints
from vit_jax.training.tracker import read_metrics

TIMED = 12  # steps that are taken and thrown away, of which the second half counts
SHARE = 0.85  # of the time for steps; the rest is for compiling, evaluating, saving
nothing: Draw = lambda *_: None  # noqa: E731


def steps_in(minutes: int | float, config: Config, typed: frozenset[str]) -> int:
    """Steps of training that take so many minutes, at least as many as were timed.

    Raises:
      UserError: what the run itself would raise.
    """
    tried: Any = copy.deepcopy(config)
    tried.update({"total_steps": TIMED, "total_epochs": None, "warmup_steps": 0, "warmup_epochs": None})
    tried.update({"progress_every": TIMED // 2, "eval_every": 0, "checkpoint_every": 0, "figures_every": 0})
    with tempfile.TemporaryDirectory() as folder:
        run(tried, Path(folder) / "tried", nothing, typed)
        rows = [row for row in read_metrics(Path(folder) / "tried") if row["kind"] == "train"]
    seconds = config["batch"] / statistics.median(row["img/s"] for row in rows[1:])
    return max(TIMED, round(60 * minutes * SHARE / seconds))


def steps_of(workdir: Where) -> int | None:
    """The length of the run that a workdir holds already; None: there is none."""
    if not (place(workdir) / FOLDER).is_dir():
        return None
    checkpoints = Checkpoints(workdir, read_only=True)
    found = checkpoints.newest(lambda step: checkpoints.read(step)[0]["total_steps"])
    return found[1] if found else None
