"""From a configuration (the ConfigDict of configs/) to what a backbone is built from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from vit_jax.contracts import Config
from vit_jax.models.layers import TransformerConfig
from vit_jax.models.resnet import ResNetConfig
from vit_jax.models.vit import ViTConfig


def pair(size: int | Sequence[int]) -> tuple[int, int]:
    """A size given as one number or (height, width)."""
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    return int(height), int(width)


def transformer_config(config: Config, section: Config, width: int) -> TransformerConfig:
    """A stack of blocks with the sizes of `section`, which is `config.model.transformer` or a method's own."""
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
        init=model["init"],
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
    model = config["model"]
    width, stem = model["hidden_size"], model["resnet"]
    made = ViTConfig(
        stem=None
        if stem["num_layers"] is None
        else ResNetConfig(
            tuple(stem["num_layers"]), stem["width_factor"], config["pp"]["channels"], config["compute_dtype"]
        ),
        dist_token=model["dist_token"],
        dist_head=model["dist_head"],
        cls_position=model["cls_position"],
        transformer=transformer_config(config, model["transformer"], width),
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
        head_std=model["head_std"],
        head_bias=model["head_bias"],
    )
    # Relative positions are of the grid, which only the whole ViT knows.
    body = dataclasses.replace(
        made.transformer,
        key_bias=model["key_bias"],
        relative_positions=model["relative_positions"],
        grid=made.grid,
        num_prefix=made.num_prefix,
    )
    return dataclasses.replace(made, transformer=body)


def count_params(model_or_params: Any) -> int:
    """Number of trained scalars."""
    params = nnx.state(model_or_params, nnx.Param) if isinstance(model_or_params, nnx.Module) else model_or_params
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
