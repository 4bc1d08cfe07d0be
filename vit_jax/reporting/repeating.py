"""The command that repeats a run: a recipe and the fields in which the run's configuration differs from it."""

from __future__ import annotations

import shlex
from typing import Any

from vit_jax import command_line, configuration
from vit_jax.contracts import UserError
from vit_jax.reporting.runs import Told

DEFAULTS = "common.py"
ASKED = ("objective", "dataset", "batch", "total_steps", "total_epochs", "layer_decay")


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
    goal = dict(configuration.flatten(wanted))
    settings: dict[str, str] = {}
    # Recipes settle some fields by others: those that they ask come first, and whatever is not right then is set by hand.
    for level in (ASKED, tuple(goal), tuple(goal), ()):
        made = dict(
            configuration.flatten(configuration.plain(command_line.configured(recipe, list(settings.items())).config))
        )
        missed = {field: value for field, value in goal.items() if field not in made or made[field] != value}
        if not missed:
            return list(settings.items())
        emptied = {other for field in missed if goal[field] is not None for other in command_line.overruled(field)}
        settings |= {
            field: as_text(field, value, wanted["objective"])
            for field, value in missed.items()
            if field in level and not (value is None and field in emptied)
        }
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
