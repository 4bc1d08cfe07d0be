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
from vit_jax.ops.paths import flat_params, path_name

# Parameters before the first block, for layer-wise decay (MAE util/lr_decay.py get_layer_id_for_vit).
FIRST_LAYER = r"(^|/)(embedding/|cls$|positions$|mask_token$)"
BLOCKS = r"(^|/)transformer/blocks/"
LAST_MLP = r"/(norm2|mlp|scale2)(/|$)"  # what `train_blocks=0.5` trains of the last block
STATISTICS = r"(^|/)head_norm/"  # running means and variances: moved by the forward pass, never by a gradient
VECTORS = (
    r"(^|/)(bias|qv_bias|scale\d?)$"  # one-dimensional in the reference codes, also where they have head axes here
)


class Setting(NamedTuple):
    """What one parameter gets: a factor on the learning rate (one per block for stacked blocks) and a weight decay."""

    lr_scale: float | tuple[float, ...]
    weight_decay: float


def settings_table(params: Any, config: Config) -> dict[str, Setting]:
    """Rate and decay of every parameter by path.

    `weight_decay_rules` are (pattern, factor) pairs, searched in the path, first match wins. Parameters that
    `train_blocks` leaves out have the rate 0, which also stops their decay.

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
        depth = config["model"]["transformer"]["num_layers"]
        scale = _product(
            _layer_scales(path, shape, config["layer_decay"], depth), _trained(path, config["train_blocks"], depth)
        )
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


def _trained(path: str, train_blocks: float | int | None, num_layers: int) -> float | tuple[float, ...]:
    """1 for what trains, 0 for what stays (partial fine-tuning, MAE section 5.2)."""
    if re.search(STATISTICS, path):
        return 0.0
    if train_blocks is None:
        return 1.0
    if re.search(BLOCKS, path):
        if train_blocks == 0.5:
            return tuple(
                float(bool(re.search(LAST_MLP, path)) and block == num_layers - 1) for block in range(num_layers)
            )
        return tuple(float(block >= num_layers - train_blocks) for block in range(num_layers))
    if train_blocks == 0:  # a linear probe: the head on what the encoder's own norm gives
        return float(re.search(r"(^|/)head_(out|dist)/", path) is not None)
    return 0.0 if re.search(FIRST_LAYER, path) or path.startswith("stem/") else 1.0


def _product(a: float | tuple[float, ...], b: float | tuple[float, ...]) -> float | tuple[float, ...]:
    if isinstance(a, float) and isinstance(b, float):
        return a * b
    return tuple(np.multiply(a, b).tolist())


def print_table(table: Mapping[str, Setting]) -> str:
    """The table as text, a parameter a line, every block's rate; the reviewed files under tests/ hold it."""
    lines = []
    for path, (scale, decay) in sorted(table.items()):
        rates = " ".join(f"{rate:.6g}" for rate in ([scale] if isinstance(scale, float) else scale))
        lines.append(f"{path:60s} decay {decay:<8g} lr x {rates}")
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
    """clip -> adam | momentum -> + decay * theta. The step multiplies by `lr_scales` and -lr(step).

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
    elif kind == "lars":  # decays what it measures: the momentum holds trust * (gradient + decay)
        if config["weight_decay"]:
            parts.append(_add_decay(_per_parameter(params, table, "weight_decay")))
        parts.append(_trust_ratio(config["trust_coefficient"]))
        parts.append(optax.trace(decay=config["momentum"], accumulator_dtype=jnp.dtype(dtype)))
    else:
        raise UserError(f"Expected optim 'adamw', 'sgd' or 'lars', got {kind!r}: change optim.")
    if config["weight_decay"] and kind != "lars":
        parts.append(_add_decay(_per_parameter(params, table, "weight_decay")))
    return optax.chain(*parts)


def lr_scales(params: Any, config: Config) -> Any:
    """A tree like `params`: the factor on each parameter's learning rate, by layer decay and by what trains at all."""
    return _per_parameter(params, settings_table(params, config), "lr_scale")


def _add_decay(decays: Any) -> optax.GradientTransformation:
    return optax.stateless(
        lambda updates, params: jax.tree.map(lambda u, p, decay: u + decay * p if decay else u, updates, params, decays)
    )


def _trust_ratio(coefficient: float) -> optax.GradientTransformation:
    """LARS (You et al. 2017) as MAE's util/lars.py: matrices times coefficient * |theta| / |update|, each block apart."""

    def leaf(path: tuple, update: Any, param: Any) -> Any:
        name = path_name(path)
        if re.search(VECTORS, name):
            return update
        axes = tuple(range(int("/blocks/" in name), update.ndim))
        theta = jnp.sqrt(jnp.sum(jnp.square(param), axis=axes, keepdims=True))
        size = jnp.sqrt(jnp.sum(jnp.square(update), axis=axes, keepdims=True))
        usable = (theta > 0) & (size > 0)
        return update * jnp.where(usable, coefficient * theta / jnp.where(usable, size, 1.0), 1.0)

    return optax.stateless(lambda updates, params: jax.tree_util.tree_map_with_path(leaf, updates, params))
