"""The devices of this process: the mesh of a configuration, their description, the cache of compiled programs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from vit_jax import sharding
from vit_jax.contracts import Config, UserError


def make_mesh(config: Config, devices: Sequence[Any] | None = None) -> Any:
    """The mesh of `config.mesh` over all devices or those given.

    Raises:
      UserError: sizes or an attention kernel that these devices cannot have.
    """
    try:
        mesh = sharding.make_mesh(dict(config["mesh"]), devices)
    except ValueError as error:
        raise UserError(str(error)) from error
    platform = mesh.devices.flat[0].platform
    if config["attention"] == "cudnn" and platform != "gpu":
        raise UserError(f"Expected an NVIDIA GPU for attention=cudnn, got {platform}: use --config.attention=xla.")
    return mesh


def describe_devices(mesh: Any) -> str:
    """Number, kind and platform."""
    devices = mesh.devices.reshape(-1)
    return f"{devices.size} x {devices[0].device_kind} ({devices[0].platform})"


def use_compilation_cache() -> None:
    """Keep compiled programs between runs, unless the user chose a place (or none) by JAX's own variables."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or getattr(jax.config, "jax_compilation_cache_dir", None):
        return
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    jax.config.update("jax_compilation_cache_dir", str(Path(home) / "vit_jax" / "xla"))
