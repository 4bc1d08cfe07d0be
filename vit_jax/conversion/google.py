"""Google's `.npz`: the original ViT files, AugReg's, and big_vision's.

Names of google-research/vision_transformer (vit_jax/checkpoint.py) before and after Flax Linen, and of big_vision
(models/vit.py: MAP head, positions outside the transformer, blocks stacked by scan).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from vit_jax.contracts import Config, UserError
from vit_jax.conversion.describe import MOST_BLOCKS, Description, blocks_of, grid_rows, shape_of
from vit_jax.conversion.files import Archive
from vit_jax.conversion.rules import BATCHED, FLAX_QKV, FLAX_QKV_BIAS, SAME, Fixed, Rule, flax_patches
from vit_jax.conversion.tensors import Tensor
from vit_jax.conversion.told import Told
from vit_jax.models.registry import vit_config

PREFIXES = ("opt/target/", "params/img/", "params/", "target/", "")
BLOCK = "Transformer/encoderblock_{i}"
ATTENTION, MLP = "MultiHeadDotProductAttention_0", "MlpBlock_0"
# Before Linen, modules were counted together: LayerNorm_0, MultiHead..._1, LayerNorm_2, MlpBlock_3.
PRE_LINEN = (
    (r"MultiHeadDotProductAttention_1/", f"{ATTENTION}/"), (r"LayerNorm_2/", "LayerNorm_1/"),
    (r"MlpBlock_3/", f"{MLP}/"),
)  # fmt: skip


def claims(names: Mapping[str, Any]) -> bool:
    """Whether tensors are named like this."""
    return any(name.endswith("embedding/kernel") and "/embeddings/" not in name for name in names)


class Names(Mapping[str, Tensor]):
    """A file under the names of the new layout, one block at a time, whatever layout it has."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        self.tensors = tensors
        prefix = next(prefix for prefix in PREFIXES if f"{prefix}embedding/kernel" in tensors)
        bare = {name.removeprefix(prefix): name for name in tensors if name.startswith(prefix)}
        old = any("MlpBlock_3/" in name for name in bare)
        self.places: dict[str, tuple[str, int | None]] = {}
        for name, stored in bare.items():
            new = name
            for pattern, now in PRE_LINEN if old else ():
                new = re.sub(pattern, now, new)
            if new.startswith("Transformer/encoderblock/"):
                for i in range(min(tensors[stored].shape[0], MOST_BLOCKS + 1)):
                    self.places[new.replace("encoderblock/", f"encoderblock_{i}/")] = (stored, i)
            else:
                self.places[new] = (stored, None)

    def __getitem__(self, name: str) -> Tensor:
        stored, block = self.places[name]
        tensor = self.tensors[stored]
        if block is not None:
            return Tensor(tensor.shape[1:], tensor.dtype, lambda: self._stacked(stored)[block])
        if re.search(r"(^|/)gn(\d|_root|_proj)/", name):  # GroupNorm was stored as (1, 1, 1, c) before Linen
            return Tensor((math.prod(tensor.shape),), tensor.dtype, lambda: np.asarray(tensor).reshape(-1))
        return tensor

    def _stacked(self, stored: str) -> np.ndarray:
        """The array of all blocks; kept, because an .npz reads it anew for every block."""
        if getattr(self, "_kept", (None,))[0] != stored:
            self._kept = (stored, np.asarray(self.tensors[stored]))
        return self._kept[1]

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def normalised(archive: Archive) -> Archive:
    """The same archive under the new names."""
    return archive._replace(tensors=Names(archive.tensors))


def _pair(theirs: str, ours: str) -> list[Rule]:
    return [Rule((f"{theirs}/{part}",), f"{ours}/{part}", SAME) for part in ("kernel", "bias")]


def _norm(theirs: str, ours: str) -> list[Rule]:
    return [Rule((f"{theirs}/{part}",), f"{ours}/{part}", SAME) for part in ("scale", "bias")]


def _mlp(theirs: str, ours: str) -> list[Rule]:
    return _pair(f"{theirs}/Dense_0", f"{ours}/fc1") + _pair(f"{theirs}/Dense_1", f"{ours}/fc2")


def rules(config: Config, num_classes: int | None, *, big_vision: bool = False) -> list[Rule | Fixed]:
    """The table for a model of `config`; `big_vision` puts the positions where that code keeps them."""
    cfg = vit_config(config, num_classes)
    qkv = tuple(f"{BLOCK}/{ATTENTION}/{part}" for part in ("query", "key", "value"))
    table: list[Rule | Fixed] = [
        Rule(("embedding/kernel",), "embedding/kernel", flax_patches(cfg.patch_size)),
        Rule(("embedding/bias",), "embedding/bias", SAME),
        *_norm(f"{BLOCK}/LayerNorm_0", "transformer/blocks/norm1"),
        Rule(tuple(f"{name}/kernel" for name in qkv), "transformer/blocks/attention/qkv/kernel", FLAX_QKV),
        Rule(tuple(f"{name}/bias" for name in qkv), "transformer/blocks/attention/qkv/bias", FLAX_QKV_BIAS),
        *_pair(f"{BLOCK}/{ATTENTION}/out", "transformer/blocks/attention/out"),
        *_norm(f"{BLOCK}/LayerNorm_1", "transformer/blocks/norm2"),
        *_mlp(f"{BLOCK}/{MLP}", "transformer/blocks/mlp"),
        *_norm("Transformer/encoder_norm", "norm"),
    ]
    if cfg.stem:
        table += [Rule((f"{name}",), f"stem/{name}", SAME) for name in stem_names(cfg.stem.num_layers)]
    if cfg.has_cls:
        table.append(Rule(("cls",), "cls", BATCHED))
    if cfg.has_positions:
        place = "pos_embedding" if big_vision else "Transformer/posembed_input/pos_embedding"
        table.append(Rule((place,), "positions", BATCHED))
    if cfg.classifier == "map":
        head, attention = "MAPHead_0", f"MAPHead_0/{ATTENTION}"
        table.append(Rule((f"{head}/probe",), "map_head/probe", BATCHED))
        for part in ("query", "key", "value", "out"):
            table += _pair(f"{attention}/{part}", f"map_head/{part}")
        table += _norm(f"{head}/LayerNorm_0", "map_head/norm") + _mlp(f"{head}/{MLP}", "map_head/mlp")
    if cfg.representation_size:
        table += _pair("pre_logits", "pre_logits")
    return table + (_pair("head", "head_out") if num_classes else [])


def stem_names(num_layers: tuple[int, ...]) -> list[str]:
    """Names of the hybrids' stem, the same on both sides."""
    names = ["conv_root/kernel", "gn_root/scale", "gn_root/bias"]
    for stage, units in enumerate(num_layers, 1):
        for unit in range(1, units + 1):
            parts = ("1", "2", "3") + (("_proj",) if unit == 1 else ())
            for part in parts:
                place = f"block{stage}/unit{unit}"
                names += [f"{place}/conv{part}/kernel", f"{place}/gn{part}/scale", f"{place}/gn{part}/bias"]
    return names


def describe(archive: Archive, given: Told, file_name: str) -> Description:
    """What names and shapes tell. Evaluation as Google's: resized to the crop, bilinear, pixels in [-1, 1]."""
    tensors = archive.tensors
    rows, columns, inner, width = shape_of(tensors, "embedding/kernel", 4)
    units, channels, width_factor = None, inner, 1
    if "conv_root/kernel" in tensors:
        *_, channels, stem_width = shape_of(tensors, "conv_root/kernel", 4)
        if stem_width % 64:
            raise UserError(f"Expected a stem 64 times something wide, conv_root/kernel has {stem_width}.")
        width_factor = stem_width // 64
        stages = [n for n in range(1, 9) if f"block{n}/unit1/conv1/kernel" in tensors]
        units = tuple(blocks_of(tensors, f"block{n}/unit", "") - 1 for n in stages)
    stride = 1 if units is None else 4 * 2 ** max(0, len(units) - 1)
    place = next((p for p in ("Transformer/posembed_input/pos_embedding", "pos_embedding") if p in tensors), None)
    has_cls, mapped = "cls" in tensors, "MAPHead_0/probe" in tensors
    cell = (rows * stride, columns * stride)
    count = None if place is None else shape_of(tensors, place, 3)[1]
    grid, cls_position = grid_rows(count, int(has_cls), given, cell)
    crop = (grid[0] * cell[0], grid[1] * cell[1])
    big_vision = place != "Transformer/posembed_input/pos_embedding"
    model = {
        "model_name": file_name,
        "patches": {"size": (rows, columns)},
        "resnet": {"num_layers": units, "width_factor": width_factor},
        "hidden_size": width,
        "transformer": {
            "num_layers": blocks_of(tensors, "Transformer/encoderblock", "_"),
            "num_heads": shape_of(tensors, f"{BLOCK.format(i=0)}/{ATTENTION}/query/kernel", 3)[1],
            "mlp_dim": shape_of(tensors, f"{BLOCK.format(i=0)}/{MLP}/Dense_0/kernel", 2)[1],
        },
        "classifier": "map" if mapped else "token" if has_cls else "gap",
        "cls_token": has_cls,
        "cls_position": cls_position,
        "representation_size": shape_of(tensors, "pre_logits/kernel", 2)[1] if "pre_logits/kernel" in tensors else None,
        "positions": "learn" if place else "sincos2d",
        "train_positions": place is not None,
        "activation": "gelu_tanh",
        "norm_eps": 1e-6,
        "init": "google",
    }
    pp = {
        "crop": crop[0] if crop[0] == crop[1] else crop,
        "resize": round(min(crop) * 256 / 224) if big_vision else None,
        "channels": channels,
        "mean": (0.5,),
        "std": (0.5,),
        "interpolation": "bilinear",
    }
    classes = shape_of(tensors, "head/kernel", 2)[1] if "head/kernel" in tensors else None
    return Description("big_vision" if big_vision else "google", {"model": model, "pp": pp}, classes)
