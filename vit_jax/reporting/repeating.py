"""The command that repeats a run: a recipe and the fields in which the run's configuration differs from it."""

from __future__ import annotations

import shlex
from typing import Any

import ml_collections

from vit_jax import command_line, configuration
from vit_jax.contracts import UserError
from vit_jax.reporting.runs import Told
from vit_jax.workdirs import lasting

DEFAULTS = "common.py"


def command(told: Told) -> list[str]:
    """The words of `vit-jax train ...`; read by `command_line.configured` they give the run's configuration, field by field.

    The recipe is the one that was given if it is one of ours and what it needs (a folder) is here; or the table of defaults,
    with more fields set. A recipe of the user's own is not executed: it may have changed since, and the fields say all.

    Raises:
      UserError: a configuration that no command gives, as one of an earlier version may be.
    """
    given = told.start.get("recipe")
    ours = [given] if isinstance(given, str) and given.partition(":")[0] in configuration.recipe_names() else []
    for recipe in (*ours, DEFAULTS):
        try:
            settings = differing(recipe, told.config)
        except (UserError, ValueError):
            continue
        if settings is not None:
            fields = [f"--config.{field}={text}" for field, text in settings]
            return ["vit-jax", "train", f"--workdir=runs/{told.workdir.name}-again", f"--config={recipe}", *fields]
    raise UserError("No recipe of this version gives this configuration; it is in config.json.")


def differing(recipe: str, wanted: dict[str, Any]) -> list[tuple[str, str]] | None:
    """(field, text) to set in `recipe` for `wanted`; None where that gives another configuration all the same."""
    base = command_line.configured(recipe, [])
    start = [("objective", wanted["objective"])] if base.config.objective != wanted["objective"] else []
    there = dict(configuration.flatten(command_line.with_settings(base.config, start).config))
    goal = dict(configuration.flatten(wanted))
    fields = [field for field in goal if field != "objective" and _plain(there.get(field)) != goal[field]]
    emptied = {other for field in fields if goal[field] is not None for other in command_line.overruled(field)}
    settings = start + [
        (field, as_text(field, goal[field], wanted["objective"]))
        for field in fields
        if not (goal[field] is None and field in emptied)
    ]
    # What the recipe settles anew once others are set.
    for _ in range(3):
        made = dict(configuration.flatten(lasting(command_line.configured(recipe, settings).config)))
        missed = [field for field in goal if made.get(field) != goal[field]]
        if not missed:
            return settings
        settings += [(field, as_text(field, goal[field], wanted["objective"])) for field in missed]
    return None


def as_text(field: str, value: Any, objective: str) -> str:
    """What a command line says for a value."""
    if isinstance(value, str) and command_line.value_of(field, value, objective) == value:
        return value
    return repr(_tuples(value))


def shell(words: list[str]) -> str:
    """As a terminal takes it, a word a line."""
    head, rest = words[:2], [shlex.quote(word) for word in words[2:]]
    return " \\\n    ".join([" ".join(head), *rest])


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _plain(value: Any) -> Any:
    """As JSON holds it."""
    if isinstance(value, ml_collections.FieldReference):
        value = value.get()
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value
