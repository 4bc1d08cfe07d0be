"""From a configuration (the ConfigDict of configs/) to a model, and from a model to its parameters by path."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vit_jax import derived
from vit_jax.contracts import Config, UserError
from vit_jax.models.layers import TransformerConfig
from vit_jax.models.mae import MAE, MAEConfig
from vit_jax.models.resnet import ResNetConfig
from vit_jax.models.vit import ViT, ViTConfig
from vit_jax.ops.keys import key_for
from vit_jax.ops.paths import flat_params, path_name

Model = ViT | MAE


def pair(size: int | Sequence[int]) -> tuple[int, int]:
    """A size given as one number or (height, width)."""
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    return int(height), int(width)


def _transformer(config: Config, section: Config, width: int) -> TransformerConfig:
    model = config["model"]
    return TransformerConfig(
        hidden_size=width,
        num_layers=section["num_layers"],
        num_heads=section["num_heads"],
        mlp_dim=section["mlp_dim"],
        dropout_rate=section["dropout_rate"],
        attention_dropout_rate=section["attention_dropout_rate"],
        drop_path=section["drop_path"],
        layer_scale=section["layer_scale"],
        activation=model["activation"],
        norm_eps=model["norm_eps"],
        fused_qkv_init=model["init"] == "mae",
        mlp_bias_std=1e-6 if model["init"] == "google" else 0.0,
        compute_dtype=config["compute_dtype"],
        attention=config["attention"],
        remat=config["remat"],
        unroll=config["unroll"],
        frozen_blocks=frozen_blocks(config) if section is model["transformer"] else 0,
    )


def frozen_blocks(config: Config) -> int:
    """How many of the encoder's blocks do not train at all: all but `train_blocks`, 0.5 counting as one."""
    trained, depth = config["train_blocks"], config["model"]["transformer"]["num_layers"]
    if trained is None:
        return 0
    if not (trained == 0.5 or (float(trained).is_integer() and 0 <= trained <= depth)):
        raise ValueError(f"Expected train_blocks of 0, 0.5 or 1 to {depth}, got {trained}: change config.train_blocks.")
    return depth - math.ceil(trained)


def vit_config(config: Config, num_classes: int | None) -> ViTConfig:
    """The ViT that a configuration describes."""
    model, mae_init = config["model"], config["model"]["init"] == "mae"
    if model["init"] not in ("google", "mae"):
        raise ValueError(f"Expected model.init 'google' or 'mae', got {model['init']!r}.")
    width = model["hidden_size"]
    stem = model["resnet"]
    return ViTConfig(
        stem=None
        if stem["num_layers"] is None
        else ResNetConfig(
            tuple(stem["num_layers"]), stem["width_factor"], config["pp"]["channels"], config["compute_dtype"]
        ),
        dist_token=model["dist_token"],
        dist_head=model["dist_head"],
        cls_position=model["cls_position"],
        transformer=_transformer(config, model["transformer"], width),
        image_size=pair(config["pp"]["crop"]),
        patch_size=pair(model["patches"]["size"]),
        channels=config["pp"]["channels"],
        num_classes=num_classes,
        classifier=model["classifier"],
        cls_token=model["cls_token"],
        norm_after_pool=model["norm_after_pool"],
        head_norm=model["head_norm"],
        representation_size=model["representation_size"],
        positions=model["positions"],
        positions_std=model["positions_std"] or width**-0.5,
        train_positions=model["train_positions"],
        patch_init="xavier" if mae_init else "lecun",
        cls_std=0.02 if mae_init else 0.0,
        head_std=model["head_std"],
        head_bias=model["head_bias"],
    )


def mae_config(config: Config) -> MAEConfig:
    """The masked autoencoder that a configuration describes."""
    mae, encoder = config["mae"], vit_config(config, num_classes=None)
    return MAEConfig(
        encoder=encoder,
        decoder=_transformer(config, mae["decoder"], mae["decoder"]["hidden_size"]),
        num_visible=derived.num_visible(mae, encoder.num_patches),
        mask=mae["mask"],
        normalised_target=mae["normalised_target"],
    )


def build(config: Config, num_classes: int | None, seed: Any = 0) -> Model:
    """A freshly initialised model for `config["objective"]`."""
    rngs = nnx.Rngs(params=key_for(seed, "params"))
    if config["objective"] == "mae":
        return MAE(mae_config(config), rngs=rngs)
    return ViT(vit_config(config, num_classes), rngs=rngs)


def assemble(config: Config, num_classes: int | None, params: Mapping[str, np.ndarray]) -> Model:
    """A model of `config` with these parameters by path, every one of them."""
    graph, shapes = nnx.split(jax.eval_shape(lambda: build(config, num_classes)))
    expected = {path: leaf.shape for path, leaf in flat_params(shapes).items()}
    given = {path: leaf.shape for path, leaf in params.items()}
    if expected != given:
        wrong = sorted(path for path in expected.keys() | given.keys() if expected.get(path) != given.get(path))
        raise UserError(f"Expected parameters of this configuration, these differ: {wrong[:8]} ({len(wrong)} in all).")
    filled = jax.tree_util.tree_map_with_path(lambda path, _: jnp.asarray(params[path_name(path)]), shapes)
    return nnx.merge(graph, filled)


def count_params(model_or_params: Any) -> int:
    """Number of trained scalars."""
    params = nnx.state(model_or_params, nnx.Param) if isinstance(model_or_params, nnx.Module) else model_or_params
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
