"""What each start of a run ran on: versions, devices, the recipe it was given. Reports show this, not their own machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from pathlib import Path
from typing import Any

import jax

from vit_jax.contracts import UserError, json_lines, to_json
from vit_jax.places import Where, place

FILE = "starts.jsonl"  # in the workdir, a line a start
PACKAGES = (
    "vit_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "ml-collections",
    "numpy", "pillow",
)  # fmt: skip


def record(workdir: str | Path, mesh: Any, recipe: str | None, **facts: int | None) -> None:
    """One line more, by the first process.

    Args:
      recipe: FILE:ARG of --config; None where the configuration came from Python.
      facts: what training found out: the step it begins at, the last one, how many parameters and pictures there are.
    """
    if jax.process_index():
        return
    devices = mesh.devices.reshape(-1)
    line = {
        **facts,
        "time": round(time.time(), 3),
        "recipe": recipe,
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {package: version(package) for package in PACKAGES},
        "platform": devices[0].platform,
        "device_kind": devices[0].device_kind,
        "devices": int(devices.size),
        "processes": jax.process_count(),
        "mesh": {name: int(size) for name, size in mesh.shape.items()},
        "processor": processor(),
        "processors": os.cpu_count(),
    }
    with (Path(workdir) / FILE).open("a") as file:
        file.write(to_json(line) + "\n")


def read(workdir: Where) -> list[dict[str, Any]]:
    """All starts, oldest first; none of a run of an earlier version, which wrote no such file."""
    path = place(workdir) / FILE
    try:
        return [line for line in json_lines(path) if isinstance(line.get("step"), int)]
    except OSError as error:
        raise UserError(f"Expected {path} to be readable, it is not ({error.strerror}): fix it.") from error


def version(package: str) -> str:
    """Of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def processor() -> str:
    """The name of the CPU as its maker writes it, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
