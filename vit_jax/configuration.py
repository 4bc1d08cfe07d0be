"""Finding, loading and checking configurations: Python files of configs/ that return a ConfigDict."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_collections

from vit_jax.contracts import Config, UserError

# Fields that may differ between the runs that share a workdir: they change where and how, never the result.
FREE_FIELDS = (
    "num_workers", "num_threads", "prefetch", "attention", "unroll", "mesh", "topology", "batch_eval", "eval_every",
    "progress_every", "checkpoint_every", "keep_checkpoints", "figures_every", "max_skipped_steps", "max_unreadable",
    "tfds_data_dir", "pretrained_dir", "shuffle_buffer", "remat", "init_from", "dataset",
    "checkpoint_minutes", "hang_seconds",
)  # fmt: skip


def recipes_root() -> Path:
    """The folder that holds `configs/`: the checkout, or the copy inside an installed package."""
    package = Path(__file__).resolve().parent
    for root in (package.parent, package / "recipes"):
        if (root / "configs" / "common.py").is_file():
            return root
    raise UserError(f"Expected the recipes beside {package}, found none: install vit_jax again.")


def use_recipes() -> None:
    """Make `from configs import ...` work, wherever the command was started."""
    root = str(recipes_root())
    if root not in sys.path:
        sys.path.insert(0, root)


def resolve(spec: str) -> str:
    """`configs/mae.py:b16`, `mae.py:b16` or a path of one's own -> an existing path with the argument."""
    path, colon, argument = spec.partition(":")
    for place in (Path(path), recipes_root() / path, recipes_root() / "configs" / path):
        if place.is_file():
            return f"{place}{colon}{argument}"
    known = sorted(file.name for file in (recipes_root() / "configs").glob("*.py") if file.name != "__init__.py")
    near = difflib.get_close_matches(Path(path).name, known, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise UserError(f"Expected a config file, got {path!r}{hint}: give a path or one of {', '.join(known)}.")


def load(spec: str) -> ml_collections.ConfigDict:
    """The configuration of a file and its argument, checked for unknown fields."""
    use_recipes()
    path, _, argument = resolve(spec).partition(":")
    loader = importlib.util.spec_from_file_location("config_file", path)
    assert loader is not None
    assert loader.loader is not None
    module = importlib.util.module_from_spec(loader)
    loader.loader.exec_module(module)
    try:
        config = module.get_config(argument) if argument else module.get_config()
    except (ValueError, AttributeError, KeyError) as error:
        raise UserError(f"The config {spec} could not be made: {error}") from error
    check_fields(config)
    return config


def default_fields() -> ml_collections.ConfigDict:
    """configs/common.py: every field there is."""
    use_recipes()
    return importlib.import_module("configs.common").get_config()


def model_config(name: str) -> ml_collections.ConfigDict:
    """The `config.model` of a published size, "ViT-B_16"."""
    use_recipes()
    return importlib.import_module("configs.models").model_config(name)


def flatten(config: Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("model.patches.size", value) for every field."""
    for key in config:
        value = config[key]
        if isinstance(value, ml_collections.ConfigDict | dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def check_fields(config: Config) -> None:
    """Raise `UserError` for a field that configs/common.py does not have, naming the nearest one, or that is missing."""
    known, given = dict(flatten(default_fields())), dict(flatten(config))
    for field in given:
        if field not in known:
            near = difflib.get_close_matches(field, known, n=1, cutoff=0.0)
            raise UserError(f"Expected a known config field, got {field!r}: did you mean {near[0]!r}?")
    missing = sorted(set(known) - set(given))
    if missing:
        raise UserError(f"Expected the config fields {missing}, they are missing: start from configs/common.py.")


def plain(config: Config) -> dict[str, Any]:
    """The configuration as JSON holds it: dicts, lists, numbers and text."""
    as_dict = (
        config.to_dict()
        if isinstance(config, ml_collections.ConfigDict)
        else {field: config[field] for field in config}
    )
    return json.loads(json.dumps(as_dict))


def completed(stored: Config) -> dict[str, Any]:
    """A configuration read from a checkpoint, with the defaults of fields that are newer than it."""

    def fill(defaults: dict[str, Any], values: Config) -> dict[str, Any]:
        filled = dict(defaults)
        for field in values:
            value = values[field]
            filled[field] = fill(defaults[field], value) if isinstance(defaults.get(field), dict) else value
        return filled

    return fill(plain(default_fields()), stored)


def check_same(given: Config, stored: Config, workdir: str) -> None:
    """Raise `UserError` where a workdir holds a run of another configuration."""
    ours, theirs = dict(flatten(plain(given))), dict(flatten(completed(stored)))
    differing = [
        f"{field} (there {theirs.get(field)!r}, now {ours.get(field)!r})"
        for field in sorted(ours.keys() | theirs.keys())
        if ours.get(field) != theirs.get(field) and field.split(".")[0] not in FREE_FIELDS
    ]
    if differing:
        raise UserError(
            f"Expected {workdir} to hold a run of this configuration, it differs in {', '.join(differing[:5])}: "
            "give another --workdir, or these values."
        )
