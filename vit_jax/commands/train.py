"""`vit-jax train`: the same as `python -m vit_jax.main`."""

from __future__ import annotations

from vit_jax import main


def run(argv: list[str]) -> int:
    return main.main(["vit-jax train", *(argv or ["--help"])])
