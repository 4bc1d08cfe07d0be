"""Weights from anywhere: a workdir of this library, or any file that `conversion` knows."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Any

from vit_jax import configuration, places
from vit_jax.contracts import Config, UserError
from vit_jax.conversion.catalogue import GOOGLE, recommended_augreg
from vit_jax.conversion.convert import Weights, read
from vit_jax.places import Where
from vit_jax.training.checkpoints import FOLDER, Checkpoints

FILES = (".npz", ".pth", ".pt", ".bin", ".safetensors", ".pkl")


def open_weights(path: Where, *, step: int | None = None, averaged: bool = True, **given: Any) -> tuple[Weights, int]:
    """(weights, step) of a workdir or of a file; see `load`."""
    if not holds_checkpoints(path):
        if os.path.isdir(path) and not any(any(Path(path).glob(kind)) for kind in ("*.json", "*.pkl")):
            raise UserError(
                f"Expected a workdir with checkpoints, or a folder of weights, {path} is neither: fix the path."
            )
        return read(os.fspath(path), configuration.completed, **given), 0
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


def holds_checkpoints(path: Where) -> bool:
    """Whether `path` is a workdir. What has the name of a file in a bucket is not looked at: it may be anybody's."""
    scheme = places.scheme_of(path)
    if scheme is None:
        return os.path.isdir(Path(path) / FOLDER)  # of names that are too long for a path, too
    if scheme not in places.LIBRARIES or PurePosixPath(path).suffix in FILES:
        return False
    address = places.place(path)
    places.contact(address)
    return (address / FOLDER).is_dir()


def given_weights(config: Config) -> str | None:
    """The workdir, file or address to start from; None: from scratch.

    It is `init_from`, or Google's way: a file of `pretrained_dir`, named by the model, or else by `model_or_filename`
    (google-research/vision_transformer, vit_jax/train.py).

    Raises:
      UserError: a folder without that file, or an AugReg model that has no recommended one.
    """
    folder, name = config["pretrained_dir"], config["model_or_filename"]
    if config["init_from"] or not folder:
        return config["init_from"]
    if not name:
        filename, published = config["model"]["model_name"], f"{GOOGLE}/imagenet21k"
    else:
        filename, published = name if "-" in name else recommended_augreg(name), f"{GOOGLE}/augreg"
    address = f"{folder.rstrip('/')}/{filename}.npz"  # not by Path, which makes one slash of the two in gs://
    if "://" not in folder and not Path(address).expanduser().exists():
        raise UserError(
            f"Expected {filename}.npz in config.pretrained_dir={folder}, it is not there: set "
            f"--config.pretrained_dir={published}, where Google's files lie, or --config.init_from=FILE."
        )
    return address
