"""The optimiser: an optax chain plus one table that says, for every parameter, its rate and its decay."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vit_jax.contracts import Config, UserError
from vit_jax.models.registry import flat_params, path_name

# Parameters before the first block, for layer-wise decay (MAE util/lr_decay.py get_layer_id_for_vit).
FIRST_LAYER = r"(^|/)(embedding/|cls$|positions$|mask_token$)"
BLOCKS = r"(^|/)transformer/blocks/"


class Setting(NamedTuple):
    """What one parameter gets: a factor on the learning rate (one per block for stacked blocks) and a weight decay."""

    lr_scale: float | tuple[float, ...]
    weight_decay: float


def settings_table(params: Any, config: Config) -> dict[str, Setting]:
    """Rate and decay of every parameter by path.

    `weight_decay_rules` are (pattern, factor) pairs, searched in the path, first match wins.

    Raises:
      UserError: parameters that no rule matches, all listed.
    """
    shapes = {path: leaf.shape for path, leaf in flat_params(params).items()}
    rules = [(pattern, float(factor)) for pattern, factor in config["weight_decay_rules"]]
    table, unmatched = {}, []
    for path, shape in shapes.items():
        factors = [factor for pattern, factor in rules if re.search(pattern, path)]
        if not factors:
            unmatched.append(path)
            continue
        scale = _layer_scales(path, shape, config["layer_decay"], config["model"]["transformer"]["num_layers"])
        table[path] = Setting(scale, factors[0] * config["weight_decay"])
    if unmatched:
        raise UserError(
            f"Expected a weight-decay rule for every parameter, none matches {unmatched}: "
            "add a pattern to weight_decay_rules."
        )
    return table


def _layer_scales(path: str, shape: tuple[int, ...], decay: float | None, num_layers: int) -> float | tuple[float, ...]:
    """decay^(depth + 1 - id): id 0 before the blocks, i + 1 for block i, depth + 1 after them."""
    if decay is None:
        return 1.0
    if re.search(BLOCKS, path):
        return tuple(decay ** (num_layers - block) for block in range(shape[0]))
    return decay ** (num_layers + 1) if re.search(FIRST_LAYER, path) else 1.0


def print_table(table: Mapping[str, Setting]) -> str:
    """The table as text, a parameter a line; the reviewed files under tests/ hold it."""
    lines = []
    for path, (scale, decay) in sorted(table.items()):
        rates = [scale] if isinstance(scale, float) else [scale[0], scale[-1]]
        lines.append(f"{path:60s} lr x {' .. '.join(f'{rate:.6g}' for rate in rates):24s} decay {decay:g}")
    return "\n".join(lines) + "\n"


def _per_parameter(params: Any, table: Mapping[str, Setting], field: str) -> Any:
    """A tree like `params` of one setting, shaped to broadcast against the parameter."""

    def leaf(path: tuple, param: Any) -> Any:
        value = getattr(table[path_name(path)], field)
        if isinstance(value, float):
            return value
        return np.asarray(value, np.float32).reshape(-1, *(1,) * (param.ndim - 1))

    return jax.tree_util.tree_map_with_path(leaf, params)


def make_optimizer(params: Any, config: Config) -> optax.GradientTransformation:
    """clip -> adam | momentum -> + decay * theta -> x layer scale. The step multiplies by -lr(step).

    Weight decay is PyTorch's (decoupled, times the learning rate), so big_vision's absolute decays are divided by
    their rate in the configs.
    """
    table = settings_table(params, config)
    kind, dtype = config["optim"], config["optim_dtype"]
    parts = [optax.clip_by_global_norm(config["grad_norm_clip"])] if config["grad_norm_clip"] else []
    if kind == "adamw":
        parts.append(optax.scale_by_adam(config["b1"], config["b2"], config["adam_eps"], mu_dtype=dtype))
    elif kind == "sgd":
        parts.append(optax.trace(decay=config["momentum"], accumulator_dtype=jnp.dtype(dtype)))
    else:
        raise UserError(f"Expected optim 'adamw' or 'sgd', got {kind!r}: change optim.")
    if config["weight_decay"]:
        parts.append(_add_decay(_per_parameter(params, table, "weight_decay")))
    if config["layer_decay"] is not None:
        parts.append(_scale_by(_per_parameter(params, table, "lr_scale")))
    return optax.chain(*parts)


def _add_decay(decays: Any) -> optax.GradientTransformation:
    return optax.stateless(
        lambda updates, params: jax.tree.map(lambda u, p, decay: u + decay * p if decay else u, updates, params, decays)
    )


def _scale_by(scales: Any) -> optax.GradientTransformation:
    return optax.stateless(lambda updates, params: jax.tree.map(lambda u, scale: u * scale, updates, scales))
