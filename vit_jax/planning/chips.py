"""Accelerators by their makers' data sheets, and TPU slices that are not there."""

from __future__ import annotations

import math
import os
import re
from typing import Any, NamedTuple

import jax

from vit_jax.contracts import UserError, first_line


class Chip(NamedTuple):
    """One device as JAX sees it (half a chip of TPU7x). Rates are the data sheets', bytes are bytes."""

    name: str
    memory: float
    flops: float  # dense bfloat16 FLOP/s
    bandwidth: float  # of its memory, bytes/s
    network: float  # to all its neighbours together, one way, bytes/s
    multipliers: int | None = None  # of all its matrix units; None: not in the data sheet, or not to be believed

    @property
    def hertz(self) -> float | None:
        """The clock that makes the data sheet's peak: a multiply-add of every multiplier in every cycle."""
        return self.flops / (2 * self.multipliers) if self.multipliers else None


# device_kind begins with the key. TPUs: cloud.google.com/tpu/docs, "System architecture" (interchip interconnect by chip);
# NVIDIA: the data sheets' dense figures (NVLink in one direction).
# Multipliers: matrix units of 128 x 128 (v4 and v5p: four in each of two cores, v5e: four in one), which makes 1.05, 1.50 and
# 1.75 GHz. v6e's page has two units of 256 x 256, which would make 3.5 GHz; its compiler counts 369,000 FLOP a cycle for a
# product of 8192 x 8192 matrices, more than two such units can do in one (262,144). TPU7x's page counts no units. Cycles of
# both are not turned into seconds.
CHIPS = {
    "TPU v4": Chip("TPU v4", 32 * 2**30, 275e12, 1228e9, 300e9, 8 * 128**2),
    "TPU v5 lite": Chip("TPU v5e", 16 * 2**30, 197e12, 819e9, 200e9, 4 * 128**2),
    "TPU v5": Chip("TPU v5p", 95 * 2**30, 459e12, 2765e9, 600e9, 8 * 128**2),
    "TPU v6 lite": Chip("TPU v6e", 32 * 2**30, 918e12, 1640e9, 448e9),
    "TPU7x": Chip("TPU7x, one of a chip's two cores", 96 * 2**30, 1153e12, 3690e9, 600e9),
    "NVIDIA A100": Chip("NVIDIA A100", 80 * 2**30, 312e12, 2039e9, 300e9),
    "NVIDIA H100": Chip("NVIDIA H100", 80 * 2**30, 989e12, 3350e9, 450e9),
    "NVIDIA H200": Chip("NVIDIA H200", 141e9, 989e12, 4800e9, 450e9),
}
NOWHERE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
}
# Where a chip's two cores are one device only if asked for.
MEGACORE = ("v4",)


def chip_of(device: Any) -> Chip | None:
    """The data sheet of a device, or None."""
    return chip_called(device.device_kind)


def chip_called(device_kind: str) -> Chip | None:
    """The same by JAX's name of the device, which need not be here."""
    names = [name for name in CHIPS if device_kind.startswith(name)]
    return CHIPS[max(names, key=len)] if names else None


def slice_devices(topology: str) -> list[Any]:
    """The devices of a TPU slice such as v5e:16x16, v4:2x2x4, v5p:4x4x8, v6e:8x8 - without having one.

    Raises:
      UserError: libtpu is not installed, or it knows no such slice.
    """
    from jax.experimental import topologies

    # This is no TPU machine: nobody to ask who and where we are, and no need to complain of it.
    for name, value in NOWHERE.items():
        os.environ.setdefault(name, value)
    generation, _, layout = topology.partition(":")
    # The compiler's process dies of a size of zero (SIGFPE), and takes gigabytes for sizes without end.
    if not re.fullmatch(r"v\w+:[1-9]\d{0,3}(x[1-9]\d{0,3}){1,2}", topology):
        raise UserError(f"Expected a TPU slice such as v4:2x2x4, v5e:16x16, v5p:4x4x8 or v6e:8x8, got {topology!r}.")
    options: dict[str, Any] = {"chip_config_name": "megacore"} if generation in MEGACORE else {}
    sizes = [int(size) for size in layout.split("x") if size.isdigit()]
    if 0 < math.prod(sizes) < 4:  # less than a whole host of 2x2
        options["chips_per_host_bounds"] = tuple(sizes + [1] * (3 - len(sizes)))
    try:
        return list(topologies.get_topology_desc(topology, platform="tpu", **options).devices)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise UserError(
            f"Expected a TPU slice such as v4:2x2x4, v5e:16x16, v5p:4x4x8 or v6e:8x8 and the compiler of the tpu extra "
            f'(pip install "vit_jax[tpu]"), got {topology!r}: {first_line(error)[:200]}'
        ) from error


def memory_of(device: Any) -> int | float | None:
    """Bytes a device of this machine has: what its allocator says, else its data sheet, else its share of RAM."""
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    if chip := chip_of(device):
        return chip.memory
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    return ram / len(jax.local_devices()) if ram else None
