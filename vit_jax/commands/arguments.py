"""The words after a subcommand: a parser whose complaints are sentences, and values checked by kinds as config fields are."""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from vit_jax import command_line, configuration
from vit_jax.contracts import Config, UserError


class Parser(argparse.ArgumentParser):
    """Raises `UserError` where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}: `{self.prog} --help` lists what there is.")


def whole(low: int, high: int = 2**31 - 1) -> Callable[[str], int]:
    """Type of an argument: a whole number from `low` to `high`."""

    def read(text: str) -> int:
        value = _literal(text)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise argparse.ArgumentTypeError(f"expected a whole number from {low:,} to {high:,}, got {text!r}")
        return value

    return read


def numbers(text: str) -> tuple[float, ...]:
    """Type of an argument: numbers with commas between them."""
    value = _literal(text)
    value = value if isinstance(value, tuple) else (value,)
    if not value or not all(type(part) in (int, float) for part in value):
        raise argparse.ArgumentTypeError(f"expected numbers such as 0.5 or 0.485,0.456,0.406, got {text!r}")
    return value


def filled(text: str) -> str:
    """Type of an argument: text that is not empty (a path, a name)."""
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"expected a path or a name, got {text!r}")
    return text


def local(text: str) -> str:
    """Type of an argument: where a command writes, which is a disk."""
    if "://" in filled(text):
        raise argparse.ArgumentTypeError(f"expected a path on a disk, got {text!r}: write there, then copy")
    return text


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def add_config(parser: argparse.ArgumentParser) -> None:
    """The arguments that `parse_with_config` reads."""
    parser.add_argument("--config", required=True, help="a file of configs/ with its argument, or your own")
    parser.add_argument("--config.FIELD", metavar="VALUE", dest="_", help="as for `vit-jax train`: --config.batch=16")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="FIELD=VALUE", help="the same: --set batch=16 unroll=12"
    )


def parse_with_config(
    parser: argparse.ArgumentParser,
    argv: list[str],
    more: Callable[[argparse.Namespace], list[str]] = lambda args: [],
) -> tuple[argparse.Namespace, Config]:
    """The parsed words, and the configuration of --config with what --config.FIELD, --set and `more` set in it."""
    if {"-h", "--help"} & set(argv):
        parser.parse_args(["--help"])
    spec, settings, rest = command_line.split(argv)
    args = parser.parse_args([f"--config={spec}", *rest])
    settings += [command_line.assignment(word) for word in (*args.set, *more(args))]
    config = command_line.configured(spec, settings).config
    for line in configuration.odd(config):
        print(f"note: {line}", file=sys.stderr)
    return args, config
