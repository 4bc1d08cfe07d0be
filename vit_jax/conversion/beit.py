"""BEiT's names for ViTs, which SimMIM's and timm's `beit_*` have, too: `blocks.{i}.attn.q_bias`, relative positions.

Sources: microsoft/unilm beit/modeling_pretrain.py and modeling_finetune.py, microsoft/SimMIM models/vision_transformer.py,
timm's beit.py. All have the exact GELU and LayerNorm eps 1e-6. SimMIM writes its pre-trained encoder under `encoder.`, BEiT
writes its own bare, with a mask token and a head for codes, `lm_head`. No file says which tokenizer the codes are of.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from einops import rearrange

from vit_jax.contracts import Config, UserError
from vit_jax.conversion.describe import IMAGENET, Description, blocks_of, heads_of, shape_of, views
from vit_jax.conversion.files import Archive
from vit_jax.conversion.rules import BATCHED, BIASES, SAME, Fixed, Layout, Rule, linear, norm, torch_patches, transposed
from vit_jax.conversion.timm import renamed
from vit_jax.conversion.told import Told
from vit_jax.methods import method_of
from vit_jax.models.registry import vit_config

TABLE = "relative_position_bias_table"
CODE = 8  # pixels a side of a code of the published tokenizer


def pixel_shuffle(size: tuple[int, int]) -> Layout:
    """A 1 x 1 convolution before PixelShuffle, channels as (c, row, column); ours answers with a patch (row, column, c)."""
    rows, columns = size

    def there(a: np.ndarray) -> list[np.ndarray]:
        shuffled = rearrange(a, "... (r s c) -> (c r s) ...", r=rows, s=columns)
        return [shuffled[:, :, None, None] if a.ndim == 2 else shuffled]

    def back(t: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
        flat = t[0].reshape(t[0].shape[0], *shape[:-1])
        return rearrange(flat, "(c r s) ... -> ... (r s c)", r=rows, s=columns)

    return Layout(there, back)


def claims(names: Mapping[str, Any]) -> bool:
    """Whether tensors are named like this."""
    return any(name.endswith("blocks.0.attn.q_bias") for name in names) and any(
        name.endswith("patch_embed.proj.weight") for name in names
    )


def normalised(archive: Archive) -> Archive:
    """Without the index of relative positions, which is a formula, and wrappers of data parallelism."""
    formulas = ("relative_position_index", "attn.k_bias")
    kept = {name: archive.tensors[name] for name in archive.tensors if not name.endswith(formulas)}
    return archive._replace(tensors=renamed(kept, {name.removeprefix("module."): name for name in kept}))


def rules(config: Config, num_classes: int | None) -> list[Rule | Fixed]:
    """The table for a model of `config`.

    Raises:
      UserError: a method whose own layers these files have no names for.
    """
    cfg, our = vit_config(config, num_classes), method_of(config).prefix
    pre = "encoder." if config["objective"] == "simmim" else ""
    body = cfg.transformer
    table: list[Rule | Fixed] = [
        Rule((f"{pre}patch_embed.proj.weight",), f"{our}embedding/kernel", torch_patches(cfg.patch_size)),
        Rule((f"{pre}patch_embed.proj.bias",), f"{our}embedding/bias", SAME),
        *_blocks(f"{pre}blocks.{{i}}", f"{our}transformer/blocks", config["model"]),
        *norm("fc_norm" if cfg.norm_after_pool else f"{pre}norm", f"{our}norm"),
    ]
    if body.relative_positions == "shared":
        table.append(Rule((f"{pre}rel_pos_bias.{TABLE}",), f"{our}transformer/relative_positions", SAME))
    if cfg.has_cls:
        table.append(Rule((f"{pre}cls_token",), f"{our}cls", BATCHED))
    if cfg.has_positions:
        table.append(Rule((f"{pre}pos_embed",), f"{our}positions", BATCHED))
    if config["objective"] == "simmim":
        layout = pixel_shuffle(cfg.patch_size)
        table += [
            Rule(("decoder.0.weight",), "predict/kernel", layout),
            Rule(("decoder.0.bias",), "predict/bias", layout),
        ]
    if config["objective"] == "beit":
        table += linear("lm_head", "predict")
    if config["objective"] in ("simmim", "beit"):
        table.append(Rule((f"{pre}mask_token",), "mask_token", BATCHED))
    if num_classes:
        table += linear("head", "head_out")
    return table


def _blocks(theirs: str, ours: str, model: Config) -> list[Rule]:
    rows = [
        *norm(f"{theirs}.norm1", f"{ours}/norm1"),
        Rule((f"{theirs}.attn.qkv.weight",), f"{ours}/attention/qkv/kernel", transposed()),
        Rule((f"{theirs}.attn.q_bias", f"{theirs}.attn.v_bias"), f"{ours}/attention/qv_bias", BIASES),
        *linear(f"{theirs}.attn.proj", f"{ours}/attention/out", inputs=2),
        *norm(f"{theirs}.norm2", f"{ours}/norm2"),
        *linear(f"{theirs}.mlp.fc1", f"{ours}/mlp/fc1"),
        *linear(f"{theirs}.mlp.fc2", f"{ours}/mlp/fc2"),
    ]
    if model["transformer"]["layer_scale"]:
        rows += [Rule((f"{theirs}.gamma_{n}",), f"{ours}/scale{n}", SAME) for n in (1, 2)]
    if model["relative_positions"] == "block":
        rows.append(Rule((f"{theirs}.attn.{TABLE}",), f"{ours}/attention/relative_positions", SAME))
    return rows


def describe(archive: Archive, given: Told, file_name: str) -> Description:
    """What names and shapes tell, and where they do not, `given` and the usual settings of the source."""
    tensors = archive.tensors
    simmim = "decoder.0.weight" in tensors
    objective = "simmim" if simmim else "beit" if "lm_head.weight" in tensors else "classify"
    pre = "encoder." if simmim else ""
    width, channels, *patch = shape_of(tensors, f"{pre}patch_embed.proj.weight", 4)
    shared, own = f"{pre}rel_pos_bias.{TABLE}", f"{pre}blocks.0.attn.{TABLE}"
    table = next((name for name in (shared, own) if name in tensors), None)
    rows, heads = shape_of(tensors, table, 2) if table else (None, heads_of(width, given))
    grid = _grid(rows, given, patch)
    # Heads of two kinds are none of either: to_ours then names what is left over.
    pooled, classes = objective == "classify" and "fc_norm.weight" in tensors, None
    if objective == "classify" and "head.weight" in tensors:
        classes = shape_of(tensors, "head.weight", 2)[0]
    model: dict[str, Any] = {
        "model_name": file_name,
        "patches": {"size": tuple(patch)},
        "hidden_size": width,
        "transformer": {
            "num_layers": blocks_of(tensors, f"{pre}blocks"),
            "num_heads": heads,
            "mlp_dim": shape_of(tensors, f"{pre}blocks.0.mlp.fc1.weight", 2)[0],
            # Its beginning; what was learned is in the tensors. BEiT's large models have the smaller one.
            "layer_scale": (0.1 if width < 1024 else 1e-5) if f"{pre}blocks.0.gamma_1" in tensors else 0.0,
        },
        "classifier": "gap" if pooled or simmim or not classes else "token",
        "cls_token": True,
        "norm_after_pool": pooled,
        "positions": "learn" if f"{pre}pos_embed" in tensors else "none",
        "relative_positions": "none" if table is None else "shared" if table == shared else "block",
        "key_bias": False,
        "activation": "gelu_erf",
        "norm_eps": 1e-6,
        "init": "beit",
    }
    pp = _preprocessing(archive, channels, patch, grid, simmim)
    fields: dict[str, Any] = {"model": model, "pp": pp, "objective": objective}
    if objective == "beit":
        fields = with_codes(fields, shape_of(tensors, "lm_head.weight", 2)[0])
    return Description("simmim" if simmim else "beit", fields, classes)


def with_codes(fields: dict[str, Any], vocab_size: int) -> dict[str, Any]:
    """`fields` of a file that tells codes of hidden patches, as BEiT pre-trains: of a second view, a code for each patch."""
    side = fields["model"]["patches"]["size"][0]
    pp = fields["pp"] | {"second_share": CODE / side}
    return fields | {"objective": "beit", "beit": {"vocab_size": vocab_size}, "pp": pp}


def _grid(rows: int | None, given: Told, patch: list[int]) -> tuple[int, int]:
    """Patches down and across: of (2h - 1)(2w - 1) + 3 offsets a square grid, else what `stored_size` says."""
    if rows is None or "stored_size" in given:
        height, width = given.sides("stored_size", 224)
        return height // patch[0], width // patch[1]
    side = math.isqrt(max(rows - 3, 0))
    if side * side != rows - 3 or side % 2 == 0:
        raise UserError(
            f"Expected relative positions of a square grid, got {rows} rows: give stored_size=(height, width)."
        )
    return (side + 1) // 2, (side + 1) // 2


def _preprocessing(
    archive: Archive, channels: int, patch: list[int], grid: tuple[int, int], simmim: bool
) -> dict[str, Any]:
    """timm's `config.json` beside the file decides; else SimMIM's ImageNet statistics, BEiT's [-1, 1]."""
    crop, told = (grid[0] * patch[0], grid[1] * patch[1]), archive.settings.section("pretrained_cfg")
    mean, std = IMAGENET if simmim and channels == 3 else ((0.5,), (0.5,))
    share = told.number("crop_pct", 0.875 if min(crop) < 384 else 1.0, least=0.1, most=2.0)
    return views(told, crop, channels, (mean, std), share) | {"interpolation": "bicubic"}
