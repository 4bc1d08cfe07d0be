"""Checksums of arrays that do not depend on where the array lies: on one device, split over many hosts, or in NumPy.

Every element's bits are mixed with its place and added up modulo 2^32. Integer sums are exact in any order, so a device
adds what it has. Another value of one element always gives another checksum, as the mixing is one to one; any other
damage is missed once in 2^32.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint32}  # of an element's bytes; eight bytes are two numbers
CHUNK = 2**16  # numbers that NumPy mixes at a time: they stay in the cache


def _mixed(bits: Any, place: Any) -> Any:
    """murmur3's 32-bit finaliser (Appleby 2011) of the bits and their place; for NumPy and for JAX."""
    x = bits + place * np.uint32(0x9E3779B1)
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))


def checksum_on_device(x: Array) -> UInt32[Array, ""]:
    """The checksum of an array, inside jit; a sharded array is summed where it lies."""
    bits = x if x.dtype == bool else jax.lax.bitcast_convert_type(x, BITS[x.dtype.itemsize])
    # Not one arange, reshaped: of that every device would make the whole.
    place = jnp.zeros(bits.shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(bits.ndim)):
        place += jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * np.uint32(stride % 2**32)
        stride *= bits.shape[axis]
    return jnp.sum(_mixed(bits.astype(jnp.uint32), place), dtype=jnp.uint32)


def checksum(x: np.ndarray) -> int:
    """The same of a NumPy array."""
    flat = np.ascontiguousarray(x).reshape(-1).view(BITS[x.dtype.itemsize])
    total = 0
    for start in range(0, flat.size, CHUNK):
        bits = flat[start : start + CHUNK].astype(np.uint32)
        place = np.arange(start, start + bits.size, dtype=np.uint64).astype(np.uint32)
        total += int(_mixed(bits, place).sum(dtype=np.uint32))
    return total % 2**32
