"""Where the networks lie that a run learned from and did not train, as arguments of the commands that ask them again."""

from __future__ import annotations

import argparse
import copy
import functools
import operator
from typing import Any

from vit_jax.commands.arguments import filled
from vit_jax.contracts import UserError
from vit_jax.frozen import opened
from vit_jax.methods import METHODS, method_of
from vit_jax.methods.method import Networks


def names() -> list[str]:
    """Of the frozen networks of all methods."""
    return sorted({name for objective in METHODS for name in method_of({"objective": objective}).frozen})


def add_networks(parser: argparse.ArgumentParser) -> None:
    """Arguments that `networks_of` reads."""
    for name in names():
        parser.add_argument(
            f"--{name}",
            type=filled,
            help=f"the {name} that the run learned from: a workdir or file (default: as trained)",
        )


def networks_of(config: dict[str, Any], args: argparse.Namespace) -> Networks:
    """The networks of a trained model's configuration, from where the arguments say that they lie now.

    Raises:
      UserError: an argument that this method has no use for, none where nobody says, or another network than trained with.
    """
    made, frozen = copy.deepcopy(config), method_of(config).frozen
    for name in names():
        given = getattr(args, name)
        if given is not None and name not in frozen:
            raise UserError(f"Expected no --{name} with objective {config['objective']!r}: leave it out.")
        if name not in frozen:
            continue
        *sections, last = frozen[name].field.split(".")
        place = functools.reduce(operator.getitem, sections, made)
        place[last] = given or place[last]
        if place[last] is None:
            raise UserError(f"Expected the {name} that these weights learned from, no file says which: give --{name}.")
    return opened(made)[1]
