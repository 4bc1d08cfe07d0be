"""`--config=FILE:ARG --config.field=value ...` read into a checked configuration, the same way by every command.

Written as ml_collections' config_flags has it: `--config.batch 256`, `--config.pp.flip` and `--noconfig.pp.flip`, tuples and
None as Python writes them. Read by the kinds of configs/common.py, so that what does not fit is refused in their words.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import ml_collections

from vit_jax import configuration
from vit_jax.contracts import UserError

# A field set by hand empties others that say the same thing in another way, unless they are set by hand, too.
OVERRULES = {
    "total_steps": ("total_epochs",), "total_epochs": ("total_steps",), "warmup_steps": ("warmup_epochs",),
    "warmup_epochs": ("warmup_steps",), "warmup_share": ("warmup_steps", "warmup_epochs"),
    "pp.crop_share": ("pp.resize",),
}  # fmt: skip
WORD = re.compile(r"--?(?P<no>no)?config(?:\.(?P<field>[^=]*))?(?P<value>=.*)?", re.DOTALL)


class Given(NamedTuple):
    """A configuration, and the fields in it that were set by hand: nothing else decides them."""

    config: ml_collections.ConfigDict
    typed: frozenset[str]
    recipe: str | None = None  # FILE:ARG that it was made from


def configured(spec: str, settings: Sequence[tuple[str, str]]) -> Given:
    """The configuration FILE:ARG with (field, text) set in it, derived and checked.

    Raises:
      UserError: an unknown field (with the nearest known one), or a value out of its range.
    """
    given = with_settings(configuration.load(spec), settings)
    if given.typed:
        configuration.derive(spec, given.config, given.typed)
        configuration.check(given.config)
    return given._replace(recipe=spec)


def with_settings(config: ml_collections.ConfigDict, settings: Sequence[tuple[str, str]]) -> Given:
    """`config` with (field, text) set in it, and fields emptied that said the same in another way. Raises as `configured`."""
    for objective in [text for field, text in settings if field == "objective"]:
        configuration.choose(config, value_of("objective", objective, config.objective))
    for field, text in settings:
        config.update_from_flattened_dict({field: value_of(field, text, config.objective)})
    typed = frozenset(field for field, _ in settings)
    for field in typed:
        for other in overruled(field):
            if other not in typed and other in configuration.fields(config.objective):
                config.update_from_flattened_dict({other: None})
    return Given(config, typed)


def overruled(field: str) -> tuple[str, ...]:
    """Fields that say the same as `field` in another way."""
    section, _, last = field.rpartition(".")
    return (f"{section}.num_visible",) if last == "mask_ratio" else OVERRULES.get(field, ())


def value_of(field: str, text: str, objective: str) -> Any:
    """What `text` means for a method's field. Raises `UserError` for an unknown field and for what its kind does not hold."""
    kind = configuration.known(field, objective).kind
    value: Any = text
    if kind.type is bool:
        value = {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
    elif kind.type is not str:
        try:
            literal = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            literal = text
        if kind.type is tuple and isinstance(literal, int | float | str):
            words = tuple(text.split(","))  # names need no quotes
            literal = words if kind.holds(words) and not kind.holds((literal,)) else (literal,)
        # A path may look like a number.
        value = literal if kind.holds(literal) or not kind.holds(text) else text
    if not kind.holds(value):
        raise UserError(f"Expected config.{field} to be {kind.words}, got {configuration.shown(value)}.")
    return float(value) if kind.type is float else value


def assignment(word: str) -> tuple[str, str]:
    """FIELD=VALUE, as `--set` takes it."""
    field, equals, text = word.partition("=")
    if not equals:
        raise UserError(f"Expected FIELD=VALUE, got {word!r}: for example batch=16.")
    return field, text


def split(argv: Sequence[str]) -> tuple[str, list[tuple[str, str]], list[str]]:
    """(FILE:ARG, [(field, text)], the words that are not about the configuration).

    Raises:
      UserError: no --config or several, a field without a value.
    """
    specs: list[str] = []
    settings: list[tuple[str, str]] = []
    rest: list[str] = []
    flags = {name for name, row in configuration.all_fields().items() if row.kind.type is bool}
    words = list(argv)
    while words:
        word = words.pop(0)
        match = WORD.fullmatch(word)
        if match is None:
            rest.append(word)
            continue
        field, value = match["field"], match["value"]
        if value is not None:
            text = value[1:]
        elif field in flags:
            text = "False" if match["no"] else "True"
        elif words and not words[0].startswith("--"):
            text = words.pop(0)
        else:
            raise UserError(f"Expected a value after {word}, got none: write {word}=VALUE.")
        if field is None:
            specs.append(text)
        else:
            settings.append((field, text))
    if len(specs) != 1 or not specs[0]:
        got = "it is missing" if not any(specs) else f"got {len(specs)}"
        raise UserError(f"Expected --config=FILE:ARG once, {got}: for example --config=digits.py:scratch.")
    return specs[0], settings, rest
