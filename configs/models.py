"""Sizes. Names, functions and values as google-research/vision_transformer vit_jax/configs/models.py; g and G from
"Scaling Vision Transformers" (Zhai et al. 2022, Table 2). Dropout as published there.
"""

from __future__ import annotations

import ml_collections

from configs import common

# name: (width, layers, MLP width, heads, dropout)
SIZES = {
    "Ti": (192, 12, 768, 3, 0.0),
    "S": (384, 12, 1536, 6, 0.0),
    "B": (768, 12, 3072, 12, 0.0),
    "L": (1024, 24, 4096, 16, 0.1),
    "H": (1280, 32, 5120, 16, 0.1),
    "g": (1408, 40, 6144, 16, 0.0),
    "G": (1664, 48, 8192, 16, 0.0),
}
# Hybrids: units of the ResNet stem's stages, and the cells of its map that make a patch. R50's fourth stage is folded
# into the third for stride 16. "R+ViT-Ti_16" has the root alone: patches of 8 on a map 4 times smaller (stride 32).
HYBRIDS = {
    "R+ViT-Ti_16": ((), 8),
    "R26+ViT-S_32": ((2, 2, 2, 2), 1),
    "R26+ViT-B_32": ((2, 2, 2, 2), 1),
    "R50+ViT-B_16": ((3, 4, 9), 1),
    "R50+ViT-L_32": ((3, 4, 6, 3), 1),
}


GAP = "-gap-norep"  # Google's word for the mean of the patches in the class token's place


def model_config(name: str) -> ml_collections.ConfigDict:
    """`ViT-{size}_{patch}` for any size of the table and any patch, also with `-gap-norep`, or a hybrid of HYBRIDS."""
    size, _, patch = name.rpartition("+")[2].removeprefix("ViT-").removesuffix(GAP).partition("_")
    if size not in SIZES or not patch.isdigit() or ("+" in name and name not in HYBRIDS):
        raise ValueError(
            f"Expected a model ViT-{{{','.join(SIZES)}}}_{{patch}} such as ViT-B_16, or one of "
            f"{', '.join(HYBRIDS)}, got {name!r}."
        )
    width, layers, mlp, heads, dropout = SIZES[size]
    model = common.model_defaults()
    model.model_name, model.hidden_size = name, width
    model.patches.size = (int(patch), int(patch))
    model.transformer.update({"num_layers": layers, "mlp_dim": mlp, "num_heads": heads, "dropout_rate": dropout})
    if size == "L" and patch == "32":
        model.transformer.dropout_rate = 0.0
    if name.endswith(GAP):
        model.classifier = "gap"
    if size in ("g", "G"):  # Scaling ViT: no class token, attention pooling
        model.classifier = "map"
        model.positions_std = None
    if name in HYBRIDS:
        model.resnet.num_layers, cells = HYBRIDS[name]
        model.patches.size = (cells, cells)
        model.transformer.dropout_rate = 0.1 if name == "R50+ViT-B_16" else 0.0
    return model


def get_ti16_config():
    """Ti/16, 5.7M."""
    return model_config("ViT-Ti_16")


def get_s16_config():
    """S/16, 22M."""
    return model_config("ViT-S_16")


def get_b16_config():
    """B/16, 87M."""
    return model_config("ViT-B_16")


def get_b32_config():
    """B/32, 88M."""
    return model_config("ViT-B_32")


def get_l16_config():
    """L/16, 304M."""
    return model_config("ViT-L_16")


def get_h14_config():
    """H/14, 632M."""
    return model_config("ViT-H_14")


def get_r50_b16_config():
    """R50+B/16, 99M."""
    return model_config("R50+ViT-B_16")


NAMES = [
    "ViT-Ti_16",
    "ViT-S_16",
    "ViT-S_32",
    "ViT-B_8",
    "ViT-B_16",
    "ViT-B_32",
    "ViT-L_16",
    "ViT-L_32",
    "ViT-H_14",
    "ViT-g_14",
    "ViT-G_14",
]
NAMES += HYBRIDS
MODEL_CONFIGS = {name: model_config(name) for name in NAMES}


def short_name(name: str) -> str:
    """ViT-B_16 -> b16, ViT-G_14 -> bigg14, R50+ViT-B_16 -> r50_b16."""
    stem, plus, rest = name.rpartition("+")
    return f"{stem}{plus.replace('+', '_')}{rest.removeprefix('ViT-').replace('G_', 'bigG_').replace('_', '')}".lower()


BY_SHORT_NAME = {short_name(name): name for name in NAMES}


def from_short_name(short: str) -> ml_collections.ConfigDict:
    """A model by the short names of the command line: ti16, s16, b16, l16, h14, g14, bigg14, r50_b16, s16_gap_norep."""
    gap = GAP.replace("-", "_")
    base = short.removesuffix(gap)
    if short.startswith(("mixer_", "lit_")):  # Google's models.py has them
        raise ValueError(f"Expected a Vision Transformer, got {short}: MLP-Mixers and LiT are not part of vit_jax.")
    if base not in BY_SHORT_NAME:
        raise ValueError(f"Expected a model of {', '.join(BY_SHORT_NAME)}, got {short!r}.")
    return model_config(BY_SHORT_NAME[base] + (GAP if short.endswith(gap) else ""))
