"""Hugging Face folders of BEiT: BeitForMaskedImageModeling, BeitForImageClassification and BeitModel, by tensor name.

As `huggingface`, and other in what BEiT has of its own: keys without a bias, relative positions, layer scale. The published
masked image models have `use_mean_pooling` true, by which their encoder has no norm of its own, and the head has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vit_jax.contracts import Config, UserError
from vit_jax.conversion import huggingface
from vit_jax.conversion.beit import TABLE, with_codes
from vit_jax.conversion.describe import Description, shape_of
from vit_jax.conversion.files import Archive
from vit_jax.conversion.huggingface import block_rules, body, body_settings, classes_of, patch_rules, prefix_of, refuse
from vit_jax.conversion.rules import BATCHED, SAME, Fixed, Rule, linear, norm
from vit_jax.conversion.tensors import Tensor
from vit_jax.conversion.timm import renamed
from vit_jax.conversion.told import Told
from vit_jax.methods import method_of
from vit_jax.models.registry import vit_config

LAYER = "encoder.layer.{i}"
# Where a table of relative positions lies: one for all blocks, or one a block.
TABLES = {
    "shared": f"encoder.relative_position_bias.{TABLE}",
    "block": f"{LAYER}.attention.attention.relative_position_bias.{TABLE}",
}
BIAS = "encoder.layer.0.attention.attention.{}.bias"


def claims(names: Mapping[str, Any]) -> bool:
    """Whether tensors are named like this: as other folders, but queries have a bias and keys have none."""
    query, key = (any(name.endswith(BIAS.format(part)) for name in names) for part in ("query", "key"))
    return huggingface.claims(names) and query and not key


def normalised(archive: Archive) -> Archive:
    """Without the encoder's prefix, the index of relative positions, and a mask token that no head belongs to.

    Raises:
      UserError: a masked image model with a norm in its encoder and another before its head.
    """
    prefix, tensors = prefix_of(archive), archive.tensors
    masked = "lm_head.weight" in tensors
    if masked and {"layernorm.weight", f"{prefix}layernorm.weight"} <= set(tensors):
        raise UserError(
            f"Expected one norm before lm_head, as with use_mean_pooling true, the tensors have {prefix}layernorm and "
            "layernorm: give a model with one."
        )
    useless = ("relative_position_index",) if masked else ("relative_position_index", "embeddings.mask_token")
    kept = {name: tensors[name] for name in tensors if not name.endswith(useless)}
    return archive._replace(tensors=renamed(kept, {name.removeprefix(prefix): name for name in kept}))


def rules(config: Config, num_classes: int | None) -> list[Rule | Fixed]:
    """The table for a model of `config`, without the encoder's prefix."""
    cfg, our = vit_config(config, num_classes), method_of(config).prefix
    kind = cfg.transformer.relative_positions
    table: list[Rule | Fixed] = [
        *patch_rules(cfg.patch_size, our),
        Rule(("embeddings.cls_token",), f"{our}cls", BATCHED),
        *block_rules(LAYER, f"{our}transformer/blocks", key_bias=False),
        *norm("pooler.layernorm" if cfg.norm_after_pool else "layernorm", f"{our}norm"),
    ]
    if cfg.has_positions:
        table.append(Rule(("embeddings.position_embeddings",), f"{our}positions", BATCHED))
    if kind != "none":
        ours = "relative_positions" if kind == "shared" else "blocks/attention/relative_positions"
        table.append(Rule((TABLES[kind],), f"{our}transformer/{ours}", SAME))
    if cfg.transformer.layer_scale:
        table += [Rule((f"{LAYER}.lambda_{n}",), f"{our}transformer/blocks/scale{n}", SAME) for n in (1, 2)]
    if config["objective"] == "beit":
        table += [Rule(("embeddings.mask_token",), "mask_token", BATCHED), *linear("lm_head", "predict")]
    return table + (linear("classifier", "head_out") if num_classes else [])


def stored(name: str, settings: Mapping[str, Any]) -> str:
    """A name of `rules` as a model of `settings` has it; a masked image model's norm belongs to its head."""
    of_head = settings["use_mask_token"] and name.startswith("layernorm.")
    return name if of_head else huggingface.stored(name, settings)


def describe(archive: Archive, given: Told, file_name: str) -> Description:
    """Sizes and kinds are the tensors', and `config.json` must not contradict them."""
    tensors, told = archive.tensors, archive.settings
    if (kind := told.word("model_type", "beit")) != "beit":
        raise UserError(f"Expected model_type beit in {told.place}, as its tensors are named, got {kind}: correct it.")
    model, channels, size = body(tensors, told)
    masked = "lm_head.weight" in tensors
    pooled = not masked and "pooler.layernorm.weight" in tensors
    found = next((kind for kind, name in TABLES.items() if name.format(i=0) in tensors), "none")
    there = {
        "use_shared_relative_position_bias": found == "shared",
        "use_relative_position_bias": found == "block",
        "use_absolute_position_embeddings": "embeddings.position_embeddings" in tensors,
        "use_mean_pooling": masked or pooled,
    }
    if masked:
        there["use_mask_token"] = "embeddings.mask_token" in tensors
    for name, value in there.items():
        told.agree(name, value)
    scale = told.number("layer_scale_init_value", 0.1, least=0.0, most=1000.0)
    if bool(scale) != ("encoder.layer.0.lambda_1" in tensors):
        raise UserError(
            f"Expected layer_scale_init_value in {told.place} to be {'0' if scale else 'above 0'}, as the tensors have "
            f"{'no layer scale' if scale else 'one'}, got {scale:g}: correct it."
        )
    model |= {
        "model_name": file_name,
        "transformer": model["transformer"] | {"layer_scale": scale},
        "classifier": "gap" if masked or pooled else "token",
        "cls_token": True,
        "norm_after_pool": pooled,
        "positions": "learn" if there["use_absolute_position_embeddings"] else "none",
        "relative_positions": found,
        "key_bias": False,
        "init": "beit",
    }
    _check_grid(tensors, told, model, size)
    pp = huggingface.preprocessing(archive, size, channels, ((0.5,), (0.5,)), "bicubic")
    fields: dict[str, Any] = {"model": model, "pp": pp}
    if not masked:
        return Description("hf", fields, *classes_of(tensors, told))
    codes = shape_of(tensors, "lm_head.weight", 2)[0]
    told.agree("vocab_size", codes)
    return Description("hf", with_codes(fields, codes), None)


def _check_grid(tensors: Mapping[str, Tensor], told: Told, model: Mapping[str, Any], size: tuple[int, int]) -> None:
    """Refuse sizes of pictures and patches that tables of positions are not for."""
    kind, patch = model["relative_positions"], model["patches"]["size"]
    rows, columns = size[0] // patch[0], size[1] // patch[1]
    count = expected = 1 + rows * columns
    if kind != "none":
        count, heads = shape_of(tensors, TABLES[kind].format(i=0), 2)
        expected = (2 * rows - 1) * (2 * columns - 1) + 3
        told.agree("num_attention_heads", heads)
    elif model["positions"] == "learn":
        count = shape_of(tensors, "embeddings.position_embeddings", 3)[1]
    if count != expected or told.sides("patch_size", patch) != patch:
        raise UserError(
            f"Expected image_size and patch_size in {told.place} that give tables of {count} positions and patches of "
            f"{patch[0]} x {patch[1]}, as the tensors have them, got {expected} positions of pictures of "
            f"{size[0]} x {size[1]}: correct it."
        )


def settings_for(config: Config, num_classes: int | None, class_names: tuple[str, ...] | None) -> dict[str, Any]:
    """`config.json` for a model written in this format.

    Raises:
      UserError: a model that none of the three architectures can hold.
    """
    cfg, objective = vit_config(config, num_classes), config["objective"]
    masked, kind = objective == "beit", cfg.transformer.relative_positions
    pooled = cfg.norm_after_pool and not masked
    unfit = {
        f"objective {objective!r}": objective not in ("beit", "classify"),
        f"classifier {cfg.classifier!r}": not masked and cfg.classifier not in ("gap", "token"),
        "a mean of normed tokens": not masked and cfg.classifier == "gap" and not pooled,
        "a norm after the class token is taken": cfg.classifier == "token" and pooled,
        "biases of the keys (model.key_bias)": cfg.transformer.key_bias,
        "no class token": not cfg.has_cls,
        "a distillation token": cfg.dist_token,
        "a ResNet stem": cfg.stem is not None,
        "pre_logits": bool(cfg.representation_size),
        "positions that are a formula": cfg.positions != "none" and not cfg.has_positions,
        "no position for the class token": cfg.has_positions and not cfg.cls_position,
        "pictures or patches that are not square": any(len(set(side)) > 1 for side in (cfg.image_size, cfg.patch_size)),
    }
    refuse(unfit, "beit")
    architecture = (
        "BeitForMaskedImageModeling" if masked else "BeitForImageClassification" if num_classes else "BeitModel"
    )
    told = body_settings("beit", architecture, cfg, num_classes, class_names) | {
        "use_mask_token": masked,
        "use_absolute_position_embeddings": cfg.has_positions,
        "use_relative_position_bias": kind == "block",
        "use_shared_relative_position_bias": kind == "shared",
        "use_mean_pooling": masked or pooled,
        "layer_scale_init_value": cfg.transformer.layer_scale,
        "drop_path_rate": cfg.transformer.drop_path,
    }
    return told | ({"vocab_size": config["beit"]["vocab_size"]} if masked else {})


def preprocessing_for(config: Config) -> dict[str, Any]:
    """`preprocessor_config.json` for the same."""
    return huggingface.preprocessing_for(config, "BeitImageProcessor")
