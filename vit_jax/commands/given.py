"""What a file of weights cannot show, as arguments of every command that takes weights."""

from __future__ import annotations

import argparse
from typing import Any

from vit_jax.commands.arguments import numbers, whole

FIELDS = ("num_heads", "decoder_num_heads", "mean", "std", "any_numbers")


def add_given(parser: argparse.ArgumentParser) -> None:
    """Arguments for what `vit_jax.load` takes by the same names."""
    group = parser.add_argument_group("for other people's files")
    group.add_argument(
        "--num_heads",
        type=whole(1, 1024),
        help="attention heads, where the width is not one of the published models': files do not show them",
    )
    group.add_argument(
        "--decoder_num_heads",
        type=whole(1, 1024),
        help="attention heads of a masked autoencoder's decoder (default 16)",
    )
    for name in ("mean", "std"):
        group.add_argument(
            f"--{name}", type=numbers, help="of pixels / 255 that it was trained with: 0.485,0.456,0.406"
        )
    group.add_argument(
        "--any_numbers", action="store_true", default=None, help="take complex, whole and non-finite numbers too"
    )


def given_of(args: argparse.Namespace) -> dict[str, Any]:
    """Those that were given."""
    return {name: value for name in FIELDS if (value := getattr(args, name)) is not None}
