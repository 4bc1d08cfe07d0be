"""timm's names for ViTs, which MAE, DeiT and DeiT III use too: `blocks.{i}.attn.qkv.weight`.

Sources: rwightman/pytorch-image-models vision_transformer.py, facebookresearch/mae models_mae.py and models_vit.py,
facebookresearch/deit models.py and models_v2.py. All have the exact GELU and LayerNorm eps 1e-6.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.contracts import Config, UserError
from vit_jax.conversion.describe import IMAGENET, Description, blocks_of, grid_rows, heads_of, shape_of, views
from vit_jax.conversion.files import Archive
from vit_jax.conversion.rules import BATCHED, FLAT, SAME, Fixed, Rule, linear, norm, torch_patches, transposed
from vit_jax.conversion.tensors import Tensor
from vit_jax.conversion.told import MOST_HEADS, Told
from vit_jax.methods.mae import mae_config
from vit_jax.models.registry import vit_config
from vit_jax.models.vit import positions_table


def claims(names: Mapping[str, Any]) -> bool:
    """Whether tensors are named like this."""
    return "patch_embed.proj.weight" in names


def block_rules(theirs: str, ours: str, layer_scale: tuple[str, str] | None = None) -> list[Rule]:
    """The rows of one stack of blocks."""
    rows = [
        *norm(f"{theirs}.norm1", f"{ours}/norm1"),
        Rule((f"{theirs}.attn.qkv.weight",), f"{ours}/attention/qkv/kernel", transposed()),
        Rule((f"{theirs}.attn.qkv.bias",), f"{ours}/attention/qkv/bias", FLAT),
        *linear(f"{theirs}.attn.proj", f"{ours}/attention/out", inputs=2),
        *norm(f"{theirs}.norm2", f"{ours}/norm2"),
        *linear(f"{theirs}.mlp.fc1", f"{ours}/mlp/fc1"),
        *linear(f"{theirs}.mlp.fc2", f"{ours}/mlp/fc2"),
    ]
    if layer_scale:
        rows += [Rule((f"{theirs}.{name}",), f"{ours}/scale{n}", SAME) for n, name in enumerate(layer_scale, 1)]
    return rows


def rules(config: Config, num_classes: int | None, *, to: str = "timm") -> list[Rule | Fixed]:
    """The table for a model of `config`; `to="mae"` has DeiT III's and MAE's spelling where timm's is another."""
    mae = config["objective"] == "mae"
    cfg = vit_config(config, num_classes)
    our = "encoder/" if mae else ""
    scales = ("gamma_1", "gamma_2") if to == "mae" else ("ls1.gamma", "ls2.gamma")
    table: list[Rule | Fixed] = [
        Rule(("patch_embed.proj.weight",), f"{our}embedding/kernel", torch_patches(cfg.patch_size)),
        Rule(("patch_embed.proj.bias",), f"{our}embedding/bias", SAME),
        *block_rules(
            "blocks.{i}", f"{our}transformer/blocks", scales if config["model"]["transformer"]["layer_scale"] else None
        ),
        *norm("fc_norm" if cfg.norm_after_pool and not mae else "norm", f"{our}norm"),
    ]
    if cfg.has_cls:
        table.append(Rule(("cls_token",), f"{our}cls", BATCHED))
    if cfg.dist_token:
        table.append(Rule(("dist_token",), f"{our}dist", BATCHED))
    if cfg.has_positions:
        table.append(Rule(("pos_embed",), f"{our}positions", BATCHED))
    elif cfg.positions != "none":
        table.append(Fixed("pos_embed", positions_table(cfg, cfg.transformer.hidden_size)[None]))
    if cfg.representation_size:
        table += linear("pre_logits.fc", "pre_logits")
    if num_classes and not mae:
        table += linear("head", "head_out")
        table += linear("head_dist", "head_dist") if cfg.dist_token else []
    return table + decoder_rules(config) if mae else table


def decoder_rules(config: Config) -> list[Rule | Fixed]:
    """MAE's decoder."""
    return [
        *linear("decoder_embed", "decoder_embed"),
        Rule(("mask_token",), "mask_token", BATCHED),
        Fixed("decoder_pos_embed", decoder_positions(config)),
        *block_rules("decoder_blocks.{i}", "decoder/blocks"),
        *norm("decoder_norm", "decoder_norm"),
        *linear("decoder_pred", "predict"),
    ]


def decoder_positions(config: Config) -> np.ndarray:
    """MAE's constant table for the decoder, (1, tokens, width)."""
    cfg = mae_config(config)
    return positions_table(dataclasses.replace(cfg.encoder, positions=cfg.decoder_positions), cfg.decoder.hidden_size)[
        None
    ]


def normalised(archive: Archive) -> Archive:
    """Names as `rules` has them: wrappers of data parallelism stripped, DeiT III's layer scales spelled timm's way."""
    prefix = "module." if all(name.startswith("module.") for name in archive.tensors) else ""
    spelled = {}
    for name in archive.tensors:
        bare = name.removeprefix(prefix)
        spelled[re.sub(r"\.gamma_([12])$", r".ls\1.gamma", bare)] = name
    return archive._replace(tensors=renamed(archive.tensors, spelled))


def renamed(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """The same tensors under the names that are the keys of `names`; none may get lost by that."""
    if len(names) != len(tensors):
        raise UserError("Expected every tensor once, some are there under two spellings of one name.")
    return {name: tensors[stored] for name, stored in names.items()}


def describe(archive: Archive, given: Told, file_name: str) -> Description:
    """What names and shapes tell, and where they do not, `given` and the usual settings of the source."""
    tensors = archive.tensors
    width, channels, *patch = shape_of(tensors, "patch_embed.proj.weight", 4)
    mae = "decoder_embed.weight" in tensors
    prefix = int("cls_token" in tensors) + int("dist_token" in tensors)
    num_layers = blocks_of(tensors, "blocks")
    rows = shape_of(tensors, "pos_embed", 3)[1] if "pos_embed" in tensors else None
    grid, cls_position = grid_rows(rows, prefix, given, tuple(patch))
    pooled = "fc_norm.weight" in tensors
    model: dict[str, Any] = {
        "model_name": file_name,
        "patches": {"size": tuple(patch)},
        "hidden_size": width,
        "transformer": {
            "num_layers": num_layers,
            "num_heads": heads_of(width, given),
            "mlp_dim": shape_of(tensors, "blocks.0.mlp.fc1.weight", 2)[0],
            "layer_scale": 1e-4 if "blocks.0.ls1.gamma" in tensors else 0.0,
        },
        "classifier": "gap" if pooled or mae or not prefix else "token",
        "cls_token": "cls_token" in tensors,
        "dist_token": "dist_token" in tensors,
        "cls_position": cls_position,
        "norm_after_pool": pooled,
        "representation_size": shape_of(tensors, "pre_logits.fc.weight", 2)[0]
        if "pre_logits.fc.weight" in tensors
        else None,
        "positions": "none" if rows is None else "sincos2d_mae" if mae else "learn",
        "train_positions": not mae,
        "activation": "gelu_erf",
        "norm_eps": 1e-6,
        "init": "mae",
    }
    fields: dict[str, Any] = {"model": model, "pp": _preprocessing(archive, channels, patch, grid)}
    if mae:
        light = shape_of(tensors, "decoder_embed.weight", 2)[0]
        fields["objective"] = "mae"
        fields["mae"] = {
            # MAE's demo files `mae_visualize_*` predict raw pixels, the others normalised ones.
            "normalised_target": given.truth("normalised_target", "visualize" not in file_name),
            "num_visible": max(1, grid[0] * grid[1] // 4),
            "decoder": {
                "hidden_size": light,
                "num_layers": blocks_of(tensors, "decoder_blocks"),
                "num_heads": given.whole("decoder_num_heads", 16, most=MOST_HEADS),
                "mlp_dim": shape_of(tensors, "decoder_blocks.0.mlp.fc1.weight", 2)[0],
            },
        }
    classes = shape_of(tensors, "head.weight", 2)[0] if "head.weight" in tensors else None
    return Description("mae" if mae or archive.wrapped else "timm", fields, classes)


def _preprocessing(archive: Archive, channels: int, patch: list[int], grid: tuple[int, int]) -> dict[str, Any]:
    """timm's `config.json` beside the file decides; else ImageNet statistics (MAE, DeiT) or [-1, 1] (timm's AugReg)."""
    crop = (grid[0] * patch[0], grid[1] * patch[1])
    told = archive.settings.section("pretrained_cfg")
    mean, std = IMAGENET if archive.wrapped and channels == 3 else ((0.5,), (0.5,))
    # DeiT III, and everything above 224 pixels, is evaluated on the whole picture.
    whole = min(crop) > 224 or "blocks.0.ls1.gamma" in archive.tensors
    share = told.number("crop_pct", 1.0 if whole else 0.875 if archive.wrapped else 0.9, least=0.1, most=2.0)
    interpolation = told.word("interpolation", "bicubic")
    if interpolation not in ("bilinear", "bicubic", "lanczos"):
        raise UserError(f"Expected an interpolation of bilinear, bicubic, lanczos in config.json, got {interpolation}.")
    return views(told, crop, channels, (mean, std), share) | {"interpolation": interpolation}
