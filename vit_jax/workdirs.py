"""What a workdir says of its run."""

from __future__ import annotations

import functools
import json
import operator
from pathlib import Path
from typing import Any

import jax

from vit_jax import configuration
from vit_jax.contracts import Config
from vit_jax.data.sources import MADE_UP

PATHS = ("dataset", "tfds_data_dir", "init_from", "pretrained_dir")  # fields that may hold one


def lasting(config: Config) -> dict[str, Any]:
    """The configuration as it is stored: paths are made absolute, so that they mean the same from any folder."""
    stored = configuration.plain(config)
    for field in (*PATHS, *configuration.frozen_fields(config)):
        *sections, last = field.split(".")
        place = functools.reduce(operator.getitem, sections, stored)
        path = Path(place[last] or "").expanduser()
        if place[last] and place[last] not in MADE_UP and path.exists():
            place[last] = str(path.absolute())
    return stored


def lasting_recipe(recipe: str, config: Config) -> str:
    """FILE:ARG with the path of the pictures in ARG made absolute, where it is one."""
    file, colon, argument = recipe.partition(":")
    given, stored = Path(config["dataset"]), lasting(config)["dataset"]
    return file + colon + ",".join(stored if Path(part) == given else part for part in argument.split(","))


def describe(workdir: Path, config: Config, table: str) -> None:
    """config.json and the table of rates and decays, for people. The first process writes."""
    if jax.process_index() == 0:
        (workdir / "config.json").write_text(json.dumps(lasting(config), indent=2) + "\n")
        (workdir / "parameters.txt").write_text(table)
