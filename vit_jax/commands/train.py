"""`vit-jax train`: the same as `python -m vit_jax.main`."""

from __future__ import annotations

from vit_jax import configuration, main


def run(argv: list[str]) -> int:
    configuration.use_recipes()
    return main.main(["vit-jax train", *(argv or ["--help"])])
