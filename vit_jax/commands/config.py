"""`vit-jax config FILE:ARG [--config.field=value ...]`: every field, what the recipe sets it to, its default, its meaning."""

from __future__ import annotations

import sys

from vit_jax import command_line, configuration
from vit_jax.commands.arguments import Parser


def run(argv: list[str]) -> int:
    parser = Parser(prog="vit-jax config", description=__doc__)
    parser.add_argument("recipe", metavar="FILE:ARG", help="a file of configs/ with its argument, or your own")
    parser.add_argument("--config.FIELD", metavar="VALUE", dest="_", help="as for `vit-jax train`: --config.batch=16")
    parser.add_argument("--changed", action="store_true", help="only the fields that differ from their defaults")
    if not argv or {"-h", "--help"} & set(argv):
        parser.parse_args(["--help"])
    spec, settings, rest = command_line.split([f"--config={argv[0]}", *argv[1:]])
    args = parser.parse_args([spec, *rest])
    config = command_line.configured(spec, settings).config
    for line in configuration.described(config, args.changed):
        print(line)
    for line in configuration.odd(config):
        print(f"note: {line}", file=sys.stderr)
    return 0
