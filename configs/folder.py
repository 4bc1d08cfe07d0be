"""Your own pictures: settings chosen from how many there are and how large they are.

    vit-jax train --workdir=runs/mine-mae --config=folder.py:pretrain,FOLDER
    vit-jax train --workdir=runs/mine --config=folder.py:finetune,FOLDER --config.init_from=runs/mine-mae
    vit-jax train --workdir=runs/mine --config=folder.py:scratch,FOLDER

FOLDER holds {train,test}/class/*.jpg, class/*.jpg or (to pre-train) *.jpg; or it is what `vit-jax prepare` wrote. The
choices are this project's, not a paper's: small models, RandAugment and mixup where labels are few. Cost and accuracy
depend on your pictures; CIFAR-10 as such a folder is in docs/results.md.
"""

from __future__ import annotations

import os
import pathlib
import struct

from configs import common, models

STAGES = ("scratch", "pretrain", "finetune")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm")


def get_config(stage_and_folder: str = "scratch,."):
    """`STAGE,FOLDER`."""
    stage, _, folder = stage_and_folder.partition(",")
    if stage not in STAGES:
        raise ValueError(f"Expected folder.py:{{{','.join(STAGES)}}},FOLDER, got {stage_and_folder!r}.")
    count, side = look_at(pathlib.Path(folder).expanduser())
    size = 32 if side <= 48 else 64 if side <= 96 else 128 if side <= 160 else 224
    patch = size // 8 if size < 128 else 16  # 64 tokens, 196 at 224 pixels
    config = common.get_config()
    config.dataset = folder
    config.model = models.model_config("ViT-Ti_16" if count < 200_000 else "ViT-S_16")
    config.model.patches.size = (patch, patch)
    config.model.update({"init": "mae", "cls_token": True, "classifier": "gap", "positions": "sincos2d_mae"})
    config.pp.mean, config.pp.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    config.pp.crop, config.pp.crop_share = size, None if size < 64 else 224 / 256
    config.pp.interpolation = "bicubic"
    config.optim, config.optim_dtype = "adamw", "float32"
    config.weight_decay = 0.05
    config.weight_decay_rules = (("(bias|scale)$", 0.0), ("", 1.0))
    config.batch = max(16, min(256, 2 ** (max(count, 1).bit_length() - 4)))  # at least eight steps an epoch
    config.batch_eval = config.batch
    config.total_steps, config.warmup_steps = None, None
    config.lr_scaling = 256
    config.mae.decoder.update({"hidden_size": 128, "num_layers": 4, "num_heads": 4, "mlp_dim": 512})
    if stage == "pretrain":
        config.objective = "mae"
        config.model.train_positions = False
        config.pp.crop_area = (0.2, 1.0)
        config.b2, config.base_lr = 0.95, 6e-4
        config.total_epochs, config.warmup_share = epochs(count, 400), 1 / 20
    else:
        config.model.update({"norm_after_pool": True, "head_std": 2e-5})
        config.model.transformer.drop_path = 0.1
        config.pp.crop_area = (0.35, 1.0)
        config.pp.randaugment = "rand-m9-mstd0.5-inc1"
        config.mixup, config.cutmix, config.label_smoothing = 0.8, 1.0, 0.1
        config.base_lr, config.layer_decay = (1e-3, 0.75) if stage == "finetune" else (5e-4, None)
        config.total_epochs, config.warmup_share = epochs(count, 100), 1 / 20
    return config


def epochs(count: int, few: int) -> int:
    """`few` passes over up to 50,000 pictures; fewer over more, at least 20."""
    return max(20, min(few, few * 50_000 // max(count, 1)))


def look_at(folder: pathlib.Path) -> tuple[int, int]:
    """(number of pictures, median short side of some of them); a prepared data set counts as 50,000 of 224 pixels."""
    if not folder.is_dir():
        raise ValueError(f"Expected a folder of pictures, {folder} is none.")
    # os.walk, because a folder may be a link to one on another disk, which pathlib's rglob does not enter.
    files = [pathlib.Path(place, name) for place, _, names in os.walk(folder, followlinks=True) for name in names]
    if any(path.name == "dataset_info.json" for path in files):
        return 50_000, 224
    paths = sorted(path for path in files if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise ValueError(f"Expected pictures in {folder}, found none.")
    sides = sorted(side for path in paths[:: max(1, len(paths) // 50)] if (side := short_side(path)))
    return len(paths), sides[len(sides) // 2] if sides else 224


def short_side(path: pathlib.Path) -> int | None:
    """Short side of a JPEG or PNG from its header; None for what is neither."""
    data = path.read_bytes()[:65536]
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return min(struct.unpack(">II", data[16:24]))
    place = 2
    while data[:2] == b"\xff\xd8" and place + 9 < len(data):
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        if marker in range(0xC0, 0xD0) and marker not in (0xC4, 0xC8, 0xCC):
            return min(struct.unpack(">HH", data[place + 5 : place + 9]))
        place += 2 + length
    return None
