"""Weights of another run into a new model (`config.init_from`): not resuming, only the encoder moves over."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from vit_jax.contracts import Config, UserError
from vit_jax.methods import method_of
from vit_jax.models.registry import vit_config
from vit_jax.ops.positions import Resampling, regridded

# What a new task brings itself, beside what its method adds to the backbone. Sin-cos positions come from their formula
# where the source kept none.
FRESH = r"^(head_out/|head_dist/|head_norm/|pre_logits/|positions$)"
# Relative positions that all blocks share become the first ones of each block's own (BEiT's and SimMIM's fine-tuning).
SHARED = {"transformer/blocks/attention/relative_positions": "transformer/relative_positions"}
# What decides an encoder's parameters and what it computes from a picture; it comes with the weights.
ENCODER = (
    "model.patches.size", "model.resnet.num_layers", "model.resnet.width_factor", "model.hidden_size",
    "model.transformer.num_layers", "model.transformer.num_heads", "model.transformer.mlp_dim",
    "model.transformer.layer_scale", "model.positions", "model.cls_position", "model.activation", "model.norm_eps",
    "model.key_bias", "model.relative_positions",
    "pp.channels", "pp.mean", "pp.std",
)  # fmt: skip


class Transfer(NamedTuple):
    """What moved, what stayed as initialised, and what the source had besides."""

    params: dict[str, np.ndarray]
    fresh: list[str]
    unused: list[str]

    used: frozenset[str]

    def summary(self) -> str:
        return (
            f"{len(self.params)} parameters taken over; fresh: {', '.join(self.fresh) or 'none'}; "
            f"of the source not used: {', '.join(self._left_over()) or 'none'}"
        )

    def _left_over(self) -> list[str]:
        """Unused parameters by path, a part of the source of which nothing was used by the name of that part alone."""
        found: dict[str, None] = {}
        for path in self.unused:
            steps = path.split("/")
            parts = ["/".join(steps[:end]) for end in range(1, len(steps) + 1)]
            whole = next(part for part in parts if not any(f"{name}/".startswith(f"{part}/") for name in self.used))
            found[whole] = None
        return list(found)


def adopted(config: Config, source: Config, typed: frozenset[str]) -> tuple[Config, dict[str, Any]]:
    """`config` with the encoder's fields of `source`, and which of them changed it.

    Fields in `typed` were set by hand and stay. A picture size belongs to its patches: where these change, it comes along.
    """
    theirs = {field: _settled(field, source) for field in ENCODER}
    if "none" not in (config["model"]["relative_positions"], theirs["model.relative_positions"]):
        del theirs["model.relative_positions"]  # a shared table moves into the blocks' own
    if not config["model"]["classifier"].startswith("token"):
        theirs["model.cls_token"] = _settled("model.cls_token", source)
    patches = "model.patches.size"
    if patches not in typed and theirs[patches] != _settled(patches, config):
        theirs["pp.crop"] = _settled("pp.crop", source)
    changed = {
        field: value for field, value in theirs.items() if field not in typed and value != _settled(field, config)
    }
    made: Any = copy.deepcopy(config)
    for field, value in changed.items():
        section, _, last = field.rpartition(".")
        _get(made, section)[last] = (value,) if field in ("pp.mean", "pp.std") and isinstance(value, float) else value
    return made, changed


def _get(config: Config, field: str) -> Any:
    for name in field.split(".") if field else ():
        config = config[name]
    return config


def _settled(field: str, config: Config) -> Any:
    """A field's value in one spelling: 16 for (16, 16), one mean where every channel has it, True for a needed token."""
    value = _get(config, field)
    if field == "model.cls_token" and value is None:
        return config["model"]["classifier"].startswith("token")
    if not isinstance(value, list | tuple):
        return value
    alike = field != "model.resnet.num_layers" and len(set(value)) == 1
    return value[0] if alike else tuple(value)


def transfer(
    source: Mapping[str, np.ndarray],
    source_config: Config,
    target_shapes: Mapping[str, tuple[int, ...]],
    config: Config,
    resampling: Resampling = "bicubic",
) -> Transfer:
    """Match the parameters of the source's backbone to the target's, and what a method adds to what the same one added.

    A position table for another grid is resampled as the source's own code does it (`resampling`).

    Raises:
      UserError: an encoder parameter that is missing or of another shape, all listed.
    """
    params: dict[str, np.ndarray] = {}
    fresh: list[str] = []
    wrong: list[str] = []
    used: set[str] = set()
    ours, theirs = method_of(config).prefix, method_of(source_config).prefix
    grids = vit_config(source_config, None).grid, vit_config(config, None).grid
    for path, shape in target_shapes.items():
        bare = path.removeprefix(ours)
        name = next((key for key in (path, theirs + bare, theirs + SHARED.get(bare, bare)) if key in source), None)
        new = not path.startswith(ours) or re.match(FRESH, bare) is not None
        if bare.startswith("norm/") and _pooled_norm(config) != _pooled_norm(source_config):
            fresh.append(path)  # the norm after pooling (fc_norm) is another layer than the final norm
        elif name is None or (new and source[name].shape != shape and bare != "positions"):
            (fresh if new else wrong).append(path)
        else:
            value = regridded(bare, source[name], *grids, resampling)
            if bare in SHARED and not name.endswith(bare):
                value = np.broadcast_to(value[None], (shape[0], *value.shape))
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
    return Transfer(params, fresh, sorted(set(source) - used), frozenset(used))


def _pooled_norm(config: Config) -> bool:
    return method_of(config).labels and config["model"]["norm_after_pool"]
