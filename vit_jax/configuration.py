"""Finding, loading and checking configurations: Python files of configs/ that return a ConfigDict."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_collections

from vit_jax.contracts import Config, UserError, first_line
from vit_jax.methods import METHODS, located, method_of

# Fields that may differ between the runs that share a workdir: they change where and how, never the result.
FREE_FIELDS = (
    "num_workers", "num_threads", "prefetch", "attention", "unroll", "mesh", "topology", "batch_eval", "eval_every",
    "progress_every", "checkpoint_every", "keep_checkpoints", "figures_every", "max_skipped_steps", "max_unreadable",
    "tfds_data_dir", "tfds_manual_dir", "pretrained_dir", "model_or_filename", "shuffle_buffer", "remat", "init_from",
    "dataset", "checkpoint_minutes", "hang_seconds", "keep_best", "patience", "loggers",
)  # fmt: skip
# Configs of google-research/vision_transformer without a counterpart here, and what comes nearest.
NOT_HERE = {
    "mixer_base16_cifar10.py": "MLP-Mixers are not part of vit_jax, fine-tune a ViT with --config=vit.py:b16,cifar10",
    "inference_time.py": "inference alone is not timed here, `vit-jax bench --config=vit.py:b16,cifar10` times a "
    "training step",
}
# Fields that may differ although they change the result: what a run that diverged is told to change. Said and recorded.
REMEDIES = ("base_lr", "grad_norm_clip")
# Fields that act through the learning rate of a step alone: they may differ where no step taken would have been another.
SCHEDULE = (
    "total_steps", "total_epochs", "warmup_steps", "warmup_epochs", "warmup_share", "warmup_lr", "end_lr", "decay_type",
    "decay_boundaries", "decay_factor",
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


def recipe_names() -> list[str]:
    """The files of configs/ that --config takes."""
    files = (recipes_root() / "configs").glob("*.py")
    return sorted(file.name for file in files if "\ndef get_config(" in file.read_text())


def resolve(spec: str) -> str:
    """`configs/mae.py:b16`, `mae.py:b16` or a path of one's own -> an existing path with the argument.

    `ANYWHERE/vit_jax/configs/vit.py`, as Google's command lines write it, is ours where no file of that path exists.
    """
    path, colon, argument = spec.partition(":")
    name = Path(path).name
    places = [Path(path), recipes_root() / path, recipes_root() / "configs" / path]
    if Path(path).parts[-3:-1] == ("vit_jax", "configs"):
        places.append(recipes_root() / "configs" / name)
    for place in places:
        if place.is_file():
            return f"{place}{colon}{argument}"
    if name in NOT_HERE:
        raise UserError(f"Expected a config of a Vision Transformer, got {name}: {NOT_HERE[name]}.")
    known = recipe_names()
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise UserError(f"Expected a config file, got {path!r}{hint}: give a path or one of {', '.join(known)}.")


def load(spec: str) -> ml_collections.ConfigDict:
    """The configuration of a file and its argument, every field checked.

    Raises:
      UserError: no such file or argument, a file that is no configuration, an unknown field, a value out of its range.
    """
    module, argument = _module(spec), resolve(spec).partition(":")[2]
    if not hasattr(module, "get_config"):
        raise UserError(f"Expected a function get_config in {spec}, it has none: return the configuration from it.")
    try:
        config = module.get_config(argument) if argument else module.get_config()
    except Exception as error:
        raise UserError(f"The config {spec} could not be made: {_said(error)}") from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(f"Expected get_config of {spec} to return a ConfigDict, got {type(config).__name__}.")
    check(config)
    return config


def derive(spec: str, config: ml_collections.ConfigDict, typed: frozenset[str]) -> None:
    """Let the file of `spec` settle fields that hang on others (its `derive(config, typed)`, where it has one).

    For when a command line changed fields of what `get_config` settled; those in `typed` were set by hand and stay.
    """
    settle = getattr(_module(spec), "derive", None)
    if settle is None:
        return
    try:
        settle(config, typed)
    except Exception as error:
        raise UserError(f"The config {spec} could not be made: {_said(error)}") from error


def _module(spec: str) -> ModuleType:
    """The file of `spec`, executed."""
    use_recipes()
    path = resolve(spec).partition(":")[0]
    loader = importlib.util.spec_from_file_location("config_file", path)
    if loader is None or loader.loader is None:
        raise UserError(f"Expected a Python file, got {path}: give a file that ends in .py.")
    module = importlib.util.module_from_spec(loader)
    try:
        loader.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(f"The config file {path} cannot be read: {_said(error)}") from error
    return module


def _said(error: BaseException) -> str:
    """Of an error in a config file: the words of ours, and of others the kind as well."""
    if unknown := re.match(
        r"""['"]*Key "([\w.]+)" does not exist""", str(error)
    ):  # ml_collections lists all fields there are
        near = difflib.get_close_matches(
            unknown[1], [name.rpartition(".")[2] for name in all_fields()], n=1, cutoff=0.0
        )
        return f"Expected a known config field, got {unknown[1]!r}: did you mean {near[0]!r}?"
    ours = isinstance(error, ValueError) and not isinstance(error, UnicodeError)
    return first_line(error) if ours else f"{type(error).__name__}: {first_line(error)}"


def default_fields() -> ml_collections.ConfigDict:
    """The defaults of configs/common.py."""
    return _table().get_config()


def fields(objective: str = "classify") -> dict[str, Any]:
    """The fields of a method's configurations: name -> Field(default, kind, meaning).

    Those of configs/common.py, and the method's own: FIELDS of its recipe in configs/, or of the module of one's own.

    Raises:
      UserError: no such method.
    """
    use_recipes()
    module = located(objective).partition(":")[0]
    if objective not in METHODS:
        method_of({"objective": objective})  # says what is wrong with it
        own: Any = sys.modules[module]
    else:
        recipe = f"configs.{objective}"
        own = importlib.import_module(recipe) if importlib.util.find_spec(recipe) else None
    return _table().FIELDS | getattr(own, "FIELDS", {})


def all_fields() -> dict[str, Any]:
    """Of every method of ours: to read a command line before its configuration is known."""
    return {name: field for objective in METHODS for name, field in fields(objective).items()}


def choose(config: ml_collections.ConfigDict, objective: str) -> None:
    """Set `config.objective`, and give it the section of that method, with its defaults, in place of another's."""
    general, own = _table().FIELDS, fields(objective)
    _table().choose(config, objective, {name: field for name, field in own.items() if name not in general})


def _table() -> ModuleType:
    use_recipes()
    return importlib.import_module("configs.common")


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


def known(field: str, objective: str = "classify") -> Any:
    """The row of the table; raises `UserError` for a field that is not in it, naming the nearest one."""
    table = fields(objective)
    if field in table:
        return table[field]
    if field in all_fields():
        owner = field.partition(".")[0]
        raise UserError(
            f"Expected a field of objective {objective!r}, got {field}, which belongs to objective {owner!r}: leave it out, "
            f"or set config.objective={owner}."
        )
    near = difflib.get_close_matches(field, all_fields() | table, n=1, cutoff=0.0)
    raise UserError(f"Expected a known config field, got {field!r}: did you mean {near[0]!r}?")


def check(config: Config) -> None:
    """Raise `UserError` for a field that its method does not have, that is missing, or that holds no such value."""
    given = dict(flatten(config))
    objective, words = given.get("objective", "classify"), _table().FIELDS["objective"].kind
    if not words.holds(objective):
        raise UserError(f"Expected config.objective to be {words.words}, got {shown(objective)}.")
    table = fields(objective)
    for field, value in given.items():
        kind = (table[field] if field in table else known(field, objective)).kind  # which says what is wrong with it
        if not kind.holds(value):
            raise UserError(f"Expected config.{field} to be {kind.words}, got {shown(value)}.")
    missing = sorted(set(table) - set(given))
    if missing:
        raise UserError(f"Expected the config fields {missing}, they are missing: start from configs/common.py.")


def odd(config: Config) -> list[str]:
    """A sentence for every value that is possible but seldom meant."""
    table = fields(config["objective"])
    return [
        f"config.{field} is {shown(value)}: possible, but seldom meant ({table[field].meaning})"
        for field, value in flatten(config)
        if not table[field].kind.usual(value)
    ]


def shown(value: Any) -> str:
    """A value in a sentence: as Python writes it, cut where it is long."""
    written = repr(value)
    return written if len(written) <= 60 else f"{written[:57]}..."


def described(config: Config, changed: bool = False) -> list[str]:
    """The table for people: a line a field, its value in `config`, its default where that is another, its meaning, its kind.

    `changed`: only fields that are not at their defaults.
    """
    given, lines = dict(flatten(config)), []
    for name, row in fields(config["objective"]).items():
        same = given[name] == row.default
        if not (same and changed):
            default = "" if same else f" (default {shown(row.default)})"
            lines.append(f"{name} = {shown(given[name])}{default}    {row.meaning} [{row.kind.words}]")
    return lines


def plain(config: Config) -> dict[str, Any]:
    """The configuration as JSON holds it: dicts, lists, numbers and text."""
    as_dict = (
        config.to_dict()
        if isinstance(config, ml_collections.ConfigDict)
        else {field: config[field] for field in config}
    )
    return json.loads(json.dumps(as_dict))


def completed(stored: Config) -> dict[str, Any]:
    """A configuration read from a checkpoint or told by a file, with the defaults of the fields that it does not have.

    Earlier versions stored the sections of all methods: others than its own are left out.
    """

    def fill(defaults: dict[str, Any], values: Config) -> dict[str, Any]:
        filled = dict(defaults)
        for field in values:
            value = values[field]
            filled[field] = fill(defaults[field], value) if isinstance(defaults.get(field), dict) else value
        return filled

    there = {field: stored[field] for field in stored}
    if "task" not in there and there.get("loss") == "softmax":
        there["loss"] = None  # its default, written out by earlier versions
    objective, defaults = there.get("objective", "classify"), default_fields()
    choose(defaults, objective)
    others = set(METHODS) - {objective}
    return fill(plain(defaults), {field: value for field, value in there.items() if field not in others})


def frozen_fields(config: Config) -> list[str]:
    """The fields that say where the networks are that its method uses and does not train."""
    return [frozen.field for frozen in method_of(config).frozen.values()]


def changes(given: Config, stored: Config, workdir: str) -> dict[str, tuple[Any, Any]]:
    """Fields of `SCHEDULE` and `REMEDIES` that differ: name -> (value there, value now). Both may, the former not always.

    Raises:
      UserError: the workdir holds a run of another configuration.
    """
    ours, theirs = dict(flatten(plain(given))), dict(flatten(completed(stored)))
    free = {*FREE_FIELDS, *frozen_fields(given)}  # where these networks are; their checksums have fields of their own
    differing = {
        field: (theirs.get(field), ours.get(field))
        for field in sorted(ours.keys() | theirs.keys())
        if ours.get(field) != theirs.get(field) and not {field, field.split(".")[0]} & free
    }
    if refused := [field for field in differing if field not in REMEDIES + SCHEDULE]:
        words = [f"{field} (there {differing[field][0]!r}, now {differing[field][1]!r})" for field in refused[:5]]
        longer = [field for field in SCHEDULE[:2] if field in differing]
        raise UserError(
            f"Expected {workdir} to hold a run of this configuration, it differs in {', '.join(words)}: give another "
            "--workdir, or these values" + (f" (they may follow from {longer[0]}: see its recipe)." if longer else ".")
        )
    return differing
