"""A run from Python, as short as the command: the same recipes, checks, progress, resuming and errors."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections

from vit_jax import command_line, pace
from vit_jax.api import Trained, load
from vit_jax.contracts import Config, UserError
from vit_jax.places import Where
from vit_jax.run_figures import draw_run
from vit_jax.train import run


def fit(config: str | Config, workdir: Where, fields: Mapping[str, Any] | None = None) -> Trained:
    """Train, or continue what `workdir` holds, and open what came of it.

    Args:
      config: FILE:ARG as `--config` takes it ("digits.py:scratch"), or a configuration.
      workdir: folder of checkpoints, metrics and figures, on a disk or in a bucket (gs://); made if missing.
      fields: set in the configuration, by name: {"batch": 48, "pp.crop": 32}.

    Raises:
      UserError: as the command says it: an unknown field, a value out of its range, bad data, a workdir of another run.
      KeyboardInterrupt: stopped by hand; the same call continues.
    """
    return _fit(_given(config, fields or {}), workdir)


def finetune(
    pictures: str | Path,
    *,
    init_from: str | Path | None = None,
    minutes: int | float | None = None,
    workdir: Where | None = None,
    fields: Mapping[str, Any] | None = None,
) -> Trained:
    """A classifier of your own pictures: a folder a class, or {train,test} with a folder a class in each.

    Args:
      pictures: the folder, or what `vit-jax prepare` made of it.
      init_from: weights to start from, a workdir or any file that `load` opens. None: a small hybrid from scratch
        (folder.py:quick), which needs no GPU.
      minutes: how long to train on this machine, by the speed of its first steps. None: as long as the recipe does.
      workdir: None: runs/ and the folder's name.
      fields: set in the configuration, by name.

    Raises:
      UserError: as `fit`.
    """
    folder = Path(pictures).expanduser()
    stage = "quick" if init_from is None else "finetune"
    place = workdir if workdir is not None else Path("runs") / folder.absolute().name
    wanted = dict(fields or {})
    if init_from is not None:
        wanted["init_from"] = str(init_from)
    given = _given(f"folder.py:{stage},{folder}", wanted)
    if minutes is not None:
        if not minutes > 0:
            raise UserError(f"Expected minutes above 0, got {minutes}: leave it out for the recipe's own length.")
        if {"total_steps", "total_epochs"} & set(wanted):
            raise UserError("Expected either minutes or a length in fields, got both: leave one out.")
        wanted["total_steps"] = pace.steps_of(place) or pace.steps_in(minutes, given.config, given.typed)
        given = _given(f"folder.py:{stage},{folder}", wanted)
    return _fit(given, place)


def _given(config: str | Config, fields: Mapping[str, Any]) -> command_line.Given:
    settings = [(field, value if isinstance(value, str) else repr(value)) for field, value in fields.items()]
    if isinstance(config, str):
        return command_line.configured(config, settings)
    made = copy.deepcopy(config)
    if not isinstance(made, ml_collections.ConfigDict):
        raise UserError(f"Expected FILE:ARG or a ConfigDict for config, got {type(config).__name__}.")
    return command_line.with_settings(made, settings)


def _fit(given: command_line.Given, workdir: Where) -> Trained:
    ended = run(given.config, workdir, draw=draw_run, typed=given.typed, recipe=given.recipe)
    if ended.stopped:
        raise KeyboardInterrupt
    return load(workdir)
