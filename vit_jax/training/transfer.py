"""Weights of another run into a new model (`config.init_from`): not resuming, only the encoder moves over."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from vit_jax.contracts import Config, UserError
from vit_jax.models.registry import vit_config
from vit_jax.ops.positions import Resampling, resample_table

# What a new task brings itself. Sin-cos positions come from their formula where the source kept none.
FRESH = r"^(head_out/|head_dist/|head_norm/|pre_logits/|positions$|decoder|mask_token$|predict/)"


class Transfer(NamedTuple):
    """What moved, what stayed as initialised, and what the source had besides."""

    params: dict[str, np.ndarray]
    fresh: list[str]
    unused: list[str]

    def summary(self) -> str:
        return (
            f"{len(self.params)} parameters taken over; fresh: {', '.join(self.fresh) or 'none'}; "
            f"not used: {', '.join(sorted({name.split('/')[0] for name in self.unused})) or 'none'}"
        )


def transfer(
    source: Mapping[str, np.ndarray],
    source_config: Config,
    target_shapes: Mapping[str, tuple[int, ...]],
    config: Config,
    resampling: Resampling = "bicubic",
) -> Transfer:
    """Match the source's parameters to the target's by path, "encoder/" before a path coming and going.

    A position table for another grid is resampled as the source's own code does it (`resampling`).

    Raises:
      UserError: an encoder parameter that is missing or of another shape, all listed.
    """
    params: dict[str, np.ndarray] = {}
    fresh: list[str] = []
    wrong: list[str] = []
    used: set[str] = set()
    for path, shape in target_shapes.items():
        bare = path.removeprefix("encoder/")
        name = next((key for key in (path, bare, f"encoder/{bare}") if key in source), None)
        if bare.startswith("norm/") and _pooled_norm(config) != _pooled_norm(source_config):
            fresh.append(path)  # the norm after pooling (fc_norm) is another layer than the final norm
        elif name is None or (re.match(FRESH, bare) and source[name].shape != shape and bare != "positions"):
            (fresh if re.match(FRESH, bare) else wrong).append(path)
        else:
            value = source[name]
            if bare == "positions":
                value = resample_table(
                    value, vit_config(source_config, None).grid, vit_config(config, None).grid, resampling
                )
            if value.shape == shape:
                params[path] = value
                used.add(name)
            else:
                wrong.append(f"{path} (expected {shape}, got {value.shape})")
    if wrong:
        raise UserError(
            f"Expected init_from to hold the encoder of this model, these do not match: {', '.join(wrong[:8])} "
            f"({len(wrong)} in all): use the same model fields, or another init_from."
        )
    return Transfer(params, fresh, sorted(set(source) - used))


def _pooled_norm(config: Config) -> bool:
    return config["objective"] != "mae" and config["model"]["norm_after_pool"]
