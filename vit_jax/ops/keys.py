"""Randomness as a function of (seed, stream, step): no key is ever stored, so a resumed run repeats itself."""

from __future__ import annotations

import zlib

import jax
from jaxtyping import Array, Int, Key


def key_for(seed: int | Int[Array, ""], stream: str, step: int | Int[Array, ""] = 0) -> Key[Array, ""]:
    """The key of one named stream ("masks", "dropout", ...) at one optimiser step."""
    named = jax.random.fold_in(jax.random.key(seed), zlib.crc32(stream.encode()))
    return jax.random.fold_in(named, step)


def fold(keys: Key[Array, " b"], number: int | Int[Array, ""]) -> Key[Array, " b"]:
    """New keys, one an example, for the `number`-th use (a layer, a dropout within it)."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)
