"""Hugging Face folders: ViTForImageClassification, ViTModel, ViTMAEForPreTraining and DeiT*, by tensor name (BEiT: hf_beit).

The names are those that `save_pretrained` writes (and every file of the hub has), not the ones inside newer versions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from vit_jax import derived
from vit_jax.contracts import Config, UserError
from vit_jax.conversion.describe import IMAGENET, Description, blocks_of, shape_of
from vit_jax.conversion.files import Archive
from vit_jax.conversion.rules import BATCHED, BIASES, SAME, TORCH_QKV, Fixed, Rule, linear, norm, torch_patches
from vit_jax.conversion.tensors import Tensor
from vit_jax.conversion.timm import decoder_positions, renamed
from vit_jax.conversion.told import MOST_HEADS, MOST_PIXELS, SMALLEST_STD, Told
from vit_jax.methods.mae import mae_config
from vit_jax.models.registry import vit_config
from vit_jax.models.vit import ViTConfig, positions_table

PATCHES = "embeddings.patch_embeddings.projection.weight"
ACTIVATIONS = {"gelu": "gelu_erf", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}
PREFIXES = {"vit": "vit.", "deit": "deit.", "vit_mae": "vit.", "beit": "beit."}
RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
NUMBERS = {name: number for number, name in RESAMPLING.items()}


def claims(names: Mapping[str, Any]) -> bool:
    """Whether tensors are named like this."""
    return any(name.endswith(PATCHES) for name in names)


def normalised(archive: Archive) -> Archive:
    """The encoder's prefix ("vit.", "deit." or none) removed; transformers 5 writes MAE's decoder under another name."""
    prefix, names = prefix_of(archive), {}
    for name in archive.tensors:
        bare = name.removeprefix(prefix)
        names[bare.replace("decoder.decoder_encoder.layer.", "decoder.decoder_layers.")] = name
    return archive._replace(tensors=renamed(archive.tensors, names))


def prefix_of(archive: Archive) -> str:
    """What the encoder's tensors are named by, in a folder with its config.json."""
    if not archive.settings:
        raise UserError("Expected config.json beside Hugging Face weights, it is missing: give the whole folder.")
    return next(name for name in archive.tensors if name.endswith(PATCHES)).removesuffix(PATCHES)


def block_rules(theirs: str, ours: str, *, key_bias: bool = True) -> list[Rule]:
    """The rows of one stack of blocks; without `key_bias`, queries and values alone have a bias."""
    query, key, value = (f"{theirs}.attention.attention.{part}" for part in ("query", "key", "value"))
    biased, bias = ((query, key, value), "qkv/bias") if key_bias else ((query, value), "qv_bias")
    return [
        *norm(f"{theirs}.layernorm_before", f"{ours}/norm1"),
        Rule(tuple(f"{name}.weight" for name in (query, key, value)), f"{ours}/attention/qkv/kernel", TORCH_QKV),
        Rule(tuple(f"{name}.bias" for name in biased), f"{ours}/attention/{bias}", BIASES),
        *linear(f"{theirs}.attention.output.dense", f"{ours}/attention/out", inputs=2),
        *norm(f"{theirs}.layernorm_after", f"{ours}/norm2"),
        *linear(f"{theirs}.intermediate.dense", f"{ours}/mlp/fc1"),
        *linear(f"{theirs}.output.dense", f"{ours}/mlp/fc2"),
    ]


def rules(config: Config, num_classes: int | None) -> list[Rule | Fixed]:
    """The table for a model of `config`, without the encoder's prefix."""
    mae = config["objective"] == "mae"
    cfg = vit_config(config, num_classes)
    our = "encoder/" if mae else ""
    table: list[Rule | Fixed] = [
        *patch_rules(cfg.patch_size, our),
        *block_rules("encoder.layer.{i}", f"{our}transformer/blocks"),
        *norm("layernorm", f"{our}norm"),
    ]
    if cfg.has_cls:
        table.append(Rule(("embeddings.cls_token",), f"{our}cls", BATCHED))
    if cfg.dist_token:
        table.append(Rule(("embeddings.distillation_token",), "dist", BATCHED))
    if cfg.has_positions:
        table.append(Rule(("embeddings.position_embeddings",), f"{our}positions", BATCHED))
    elif cfg.positions != "none":
        table.append(Fixed("embeddings.position_embeddings", positions_table(cfg, cfg.transformer.hidden_size)[None]))
    if cfg.representation_size:
        table += linear("pooler.dense", "pre_logits")
    if mae:
        return table + decoder_rules(config)
    if num_classes:
        both = cfg.dist_token and cfg.dist_head
        table += linear("cls_classifier" if both else "classifier", "head_out")
        table += linear("distillation_classifier", "head_dist") if both else []
    return table


def patch_rules(size: tuple[int, int], ours: str) -> list[Rule]:
    """The rows of the patch embedding."""
    return [
        Rule((PATCHES,), f"{ours}embedding/kernel", torch_patches(size)),
        Rule((PATCHES.replace("weight", "bias"),), f"{ours}embedding/bias", SAME),
    ]


def stored(name: str, settings: Mapping[str, Any]) -> str:
    """A name of `rules` as a model of `settings` has it: with the encoder's prefix, unless it is the encoder itself."""
    outside = ("classifier.", "cls_classifier.", "distillation_classifier.", "decoder.", "lm_head.")
    bare = settings["architectures"][0].endswith("Model") or name.startswith(outside)
    return name if bare else f"{PREFIXES[settings['model_type']]}{name}"


def decoder_rules(config: Config) -> list[Rule | Fixed]:
    """MAE's decoder."""
    return [
        *linear("decoder.decoder_embed", "decoder_embed"),
        Rule(("decoder.mask_token",), "mask_token", BATCHED),
        Fixed("decoder.decoder_pos_embed", decoder_positions(config)),
        *block_rules("decoder.decoder_layers.{i}", "decoder/blocks"),
        *norm("decoder.decoder_norm", "decoder_norm"),
        *linear("decoder.decoder_pred", "predict"),
    ]


def describe(archive: Archive, given: Told, file_name: str) -> Description:
    """Sizes are the tensors', and `config.json` must not contradict them; it tells heads, activation and eps.

    `preprocessor_config.json` tells the rest, where there is one.
    """
    tensors, told = archive.tensors, archive.settings
    mae = "decoder.mask_token" in tensors
    model, channels, size = body(tensors, told)
    patch = model["patches"]["size"]
    rows = shape_of(tensors, "embeddings.position_embeddings", 3)[1]
    patches = (size[0] // patch[0]) * (size[1] // patch[1])
    prefix = 1 + ("embeddings.distillation_token" in tensors)
    if rows != patches + prefix or told.sides("patch_size", patch) != patch:
        raise UserError(
            f"Expected image_size and patch_size in {told.place} that give {rows - prefix} patches of {list(patch)}, as the "
            f"tensors have them, got {patches} of pictures of {size[0]} x {size[1]}: correct it."
        )
    pooler = "pooler.dense.weight"
    model |= {
        "model_name": file_name,
        "classifier": "gap" if mae else "token",
        "cls_token": True,
        "dist_token": "embeddings.distillation_token" in tensors,
        "dist_head": "distillation_classifier.weight" in tensors,
        "representation_size": shape_of(tensors, pooler, 2)[0] if pooler in tensors else None,
        "positions": "sincos2d_mae" if mae else "learn",
        "train_positions": not mae,
        "init": "mae",
    }
    # Without preprocessor_config.json: ViT's pixels in [-1, 1], the others' ImageNet statistics.
    plain_vit = told.word("model_type", "") == "vit" or channels != 3
    statistics = ((0.5,), (0.5,)) if plain_vit else IMAGENET
    fields: dict[str, Any] = {"model": model, "pp": preprocessing(archive, size, channels, statistics, "bilinear")}
    if mae:
        light = shape_of(tensors, "decoder.decoder_embed.weight", 2)[0]
        light_mlp = shape_of(tensors, "decoder.decoder_layers.0.intermediate.dense.weight", 2)[0]
        told.agree("decoder_hidden_size", light)
        told.agree("decoder_intermediate_size", light_mlp)
        fields["objective"] = "mae"
        fields["mae"] = {
            "normalised_target": given.truth("normalised_target", told.truth("norm_pix_loss", False)),
            "num_visible": max(1, round((1 - told.number("mask_ratio", 0.75, least=0.0, most=1.0)) * patches)),
            "decoder": {
                "hidden_size": light,
                "num_layers": blocks_of(tensors, "decoder.decoder_layers"),
                "num_heads": told.whole("decoder_num_attention_heads", None, most=MOST_HEADS),
                "mlp_dim": light_mlp,
            },
        }
    return Description("hf", fields, *classes_of(tensors, told))


def body(tensors: Mapping[str, Tensor], told: Told) -> tuple[dict[str, Any], int, tuple[int, int]]:
    """(fields of `model` that every architecture has, channels, picture size)."""
    activation = told.word("hidden_act", "gelu")
    if activation not in ACTIVATIONS:
        raise UserError(f"Expected hidden_act of {sorted(ACTIVATIONS)} in config.json, got {activation!r}.")
    width, channels, *patch = shape_of(tensors, PATCHES, 4)
    mlp_dim = shape_of(tensors, "encoder.layer.0.intermediate.dense.weight", 2)[0]
    num_layers = blocks_of(tensors, "encoder.layer")
    for name, there in (
        ("hidden_size", width), ("num_channels", channels), ("intermediate_size", mlp_dim), ("num_hidden_layers", num_layers)
    ):  # fmt: skip
        told.agree(name, there)
    heads = told.whole("num_attention_heads", None, most=MOST_HEADS)
    model = {
        "patches": {"size": tuple(patch)},
        "hidden_size": width,
        "transformer": {"num_layers": num_layers, "num_heads": heads, "mlp_dim": mlp_dim},
        "activation": ACTIVATIONS[activation],
        "norm_eps": told.number("layer_norm_eps", 1e-12, least=0.0, most=0.1),
    }
    return model, channels, told.sides("image_size", 224)


def classes_of(tensors: Mapping[str, Tensor], told: Told) -> tuple[int | None, tuple[str, ...] | None]:
    """(number of classes, their names where config.json tells them)."""
    head = next((name for name in ("classifier.weight", "cls_classifier.weight") if name in tensors), None)
    classes = None if head is None else shape_of(tensors, head, 2)[0]
    return classes, _class_names(told.section("id2label"), classes)


def _class_names(told: Told, classes: int | None) -> tuple[str, ...] | None:
    if not classes or set(told) != {str(number) for number in range(classes)}:
        return None
    names = tuple(told.word(str(number)) for number in range(classes))
    unknown = all(re.fullmatch(r"LABEL_\d+", name) for name in names)  # transformers' words for it
    return None if unknown else names


def preprocessing(
    archive: Archive,
    size: tuple[int, int],
    channels: int,
    statistics: tuple[tuple[float, ...], tuple[float, ...]],
    interpolation: str,
) -> dict[str, Any]:
    """By preprocessor_config.json; `statistics` and `interpolation` of what it does not tell."""
    told, (mean, std), resize = archive.preprocessing, statistics, None
    if told.truth("do_center_crop", False):
        if isinstance(told.get("size"), dict):
            target = told.section("size")
            resize = target.whole("shortest_edge", target.whole("height", 256, most=MOST_PIXELS), most=MOST_PIXELS)
        else:
            resize = told.whole("size", 256, most=MOST_PIXELS)
    return {
        "crop": size[0] if size[0] == size[1] else size,
        "resize": resize,
        "channels": channels,
        "mean": told.numbers("image_mean", mean, count=channels, least=-1000.0),
        "std": told.numbers("image_std", std, count=channels, least=SMALLEST_STD),
        "interpolation": RESAMPLING.get(told.whole("resample", NUMBERS[interpolation], least=0, most=10), "bilinear"),
    }


def settings_for(config: Config, num_classes: int | None, class_names: tuple[str, ...] | None) -> dict[str, Any]:
    """`config.json` for a model written in this format.

    Raises:
      UserError: a model that none of the four architectures can hold.
    """
    cfg, mae = vit_config(config, num_classes), config["objective"] == "mae"
    unfit = {
        "a classifier other than 'token'": not mae and cfg.classifier != "token",
        "a norm after pooling": cfg.norm_after_pool and not mae,
        "no class token": not cfg.has_cls,
        "no position for the class token": not cfg.cls_position,
        "layer scale": bool(cfg.transformer.layer_scale),
        "a ResNet stem": cfg.stem is not None,
        "pre_logits under a head": bool(cfg.representation_size and num_classes),
        "no positions": cfg.positions == "none",
        "pictures that are not square": cfg.image_size[0] != cfg.image_size[1],
    }
    refuse(unfit, "timm, or google")
    kind = "vit_mae" if mae else "deit" if cfg.dist_token else "vit"
    classified = "DeiTForImageClassificationWithTeacher" if cfg.dist_head else "DeiTForImageClassification"
    names = {
        "vit_mae": "ViTMAEForPreTraining",
        "deit": classified if num_classes else "DeiTModel",
        "vit": "ViTForImageClassification" if num_classes else "ViTModel",
    }
    told = body_settings(kind, names[kind], cfg, num_classes, class_names) | {"qkv_bias": True}
    if cfg.representation_size:
        told |= {"pooler_output_size": cfg.representation_size, "pooler_act": "tanh"}
    if mae:
        light = mae_config(config)
        told |= {
            "decoder_hidden_size": light.decoder.hidden_size,
            "decoder_num_hidden_layers": light.decoder.num_layers,
            "decoder_num_attention_heads": light.decoder.num_heads,
            "decoder_intermediate_size": light.decoder.mlp_dim,
            "norm_pix_loss": light.normalised_target,
            "mask_ratio": 1 - light.num_visible / light.encoder.num_patches,
        }
    return told


def refuse(unfit: Mapping[str, bool], instead: str) -> None:
    """Raise `UserError` where a model has anything that its architecture in transformers has not."""
    if any(unfit.values()):
        named = ", ".join(what for what, present in unfit.items() if present)
        raise UserError(f"Expected a model that transformers has, this one has {named}: write --to {instead}.")


def body_settings(
    kind: str, architecture: str, cfg: ViTConfig, num_classes: int | None, class_names: tuple[str, ...] | None
) -> dict[str, Any]:
    """What `config.json` of every architecture tells."""
    body, back = cfg.transformer, {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    told = {
        "architectures": [architecture],
        "model_type": kind,
        "hidden_size": body.hidden_size,
        "num_hidden_layers": body.num_layers,
        "num_attention_heads": body.num_heads,
        "intermediate_size": body.mlp_dim,
        "hidden_act": back[body.activation],
        "layer_norm_eps": body.norm_eps,
        "image_size": cfg.image_size[0],
        "patch_size": cfg.patch_size[0],
        "num_channels": cfg.channels,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    if num_classes:
        labels = class_names or tuple(f"LABEL_{number}" for number in range(num_classes))
        told["id2label"] = {str(number): label for number, label in enumerate(labels)}
        told["label2id"] = {label: number for number, label in enumerate(labels)}
    return told


def preprocessing_for(config: Config, processor: str = "ViTImageProcessor") -> dict[str, Any]:
    """`preprocessor_config.json` for the same."""
    pp, channels = config["pp"], config["pp"]["channels"]
    size = pp["crop"] if isinstance(pp["crop"], int) else pp["crop"][0]
    told: dict[str, Any] = {
        "image_processor_type": processor,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "rescale_factor": 1 / 255,
        "resample": NUMBERS[pp["interpolation"]],
        "image_mean": list(pp["mean"]) * (channels if len(pp["mean"]) == 1 else 1),
        "image_std": list(pp["std"]) * (channels if len(pp["std"]) == 1 else 1),
        "size": {"height": size, "width": size},
    }
    if resize := derived.resize(pp):
        told |= {"do_center_crop": True, "size": {"shortest_edge": resize}}
        told["crop_size"] = {"height": size, "width": size}
    return told
