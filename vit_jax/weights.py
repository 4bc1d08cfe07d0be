"""Weights from anywhere: a workdir of this library, or any file that `conversion` knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vit_jax import configuration
from vit_jax.contracts import UserError
from vit_jax.conversion.convert import Weights, read
from vit_jax.training.checkpoints import FOLDER, Checkpoints


def open_weights(
    path: str | Path, *, step: int | None = None, averaged: bool = True, **given: Any
) -> tuple[Weights, int]:
    """(weights, step) of a workdir or of a file; see `load`."""
    defaults = configuration.plain(configuration.default_fields())
    if not (Path(path) / FOLDER).is_dir():
        if Path(path).is_dir() and not any(Path(path).glob("*.json")):
            raise UserError(
                f"Expected a workdir with checkpoints, or a folder of weights, {path} is neither: fix the path."
            )
        return read(path, defaults, **given), 0
    if given:
        raise UserError(
            f"Expected {', '.join(given)} only for other people's files, {path} is a workdir that knows it."
        )
    checkpoints = Checkpoints(path, read_only=True)
    steps = checkpoints.steps()
    if not steps or (step is not None and step not in steps):
        raise UserError(
            f"Expected a checkpoint{'' if step is None else f' of step {step}'} in {path}, found steps {steps}: train "
            "first, or give another step."
        )

    def whole(step: int) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        return *checkpoints.read(step), checkpoints.params(step, averaged=averaged)

    found = checkpoints.newest(whole) if step is None else (step, whole(step))
    assert found is not None
    step, (config, metadata, params) = found
    names = metadata["class_names"]
    # The kernel belongs to the machine that trained; the weights are looked at anywhere, also in float32.
    config = configuration.completed(config) | {"attention": "xla"}
    # A workdir that came out of a conversion keeps its source's way of resizing positions.
    source = metadata.get("source", "native")
    return Weights(params, config, metadata["num_classes"], tuple(names) if names else None, source), step
