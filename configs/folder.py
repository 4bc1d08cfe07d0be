"""Your own pictures: settings chosen from how many there are and how large they are.

    vit-jax train --workdir=runs/mine-mae --config=folder.py:pretrain,FOLDER
    vit-jax train --workdir=runs/mine --config=folder.py:finetune,FOLDER --config.init_from=runs/mine-mae
    vit-jax train --workdir=runs/mine --config=folder.py:scratch,FOLDER

FOLDER holds {train,test}/class/*.jpg, class/*.jpg or (to pre-train) *.jpg; or it is what `vit-jax prepare` wrote. The
choices are this project's, not a paper's: small models, RandAugment and mixup where labels are few. Cost and accuracy
depend on your pictures; CIFAR-10 as such a folder is in docs/results.md.
"""

from __future__ import annotations

import json
import logging
import os
import pathlib
import struct
from collections.abc import Iterator

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
    """(number of pictures, median short side of some of them); of a prepared data set, what is written in it."""
    if not folder.is_dir():
        raise ValueError(f"Expected a folder of pictures, {folder} is none.")
    for level in ("", "*/", "*/*/"):  # as the data room looks for it: the version's folder, or up to two above it
        if found := sorted(folder.glob(f"{level}dataset_info.json")):
            return look_at_prepared(found[-1].parent)
    paths = sorted(pictures_below(folder))
    if not paths:
        raise ValueError(f"Expected pictures in {folder}, found none.")
    sides = sorted(side for path in paths[:: max(1, len(paths) // 50)] if (side := short_side(path)))
    return len(paths), sides[len(sides) // 2] if sides else 224


def look_at_prepared(version: pathlib.Path) -> tuple[int, int]:
    """What `vit-jax prepare` saw in the folder it was given; of TFDS's own sets the count, and the size if all have one."""
    written = version / "metadata.json"
    metadata = json.loads(written.read_text()) if written.is_file() else {}
    if {"pictures", "short_side"} <= metadata.keys():
        return metadata["pictures"], metadata["short_side"]
    splits = json.loads((version / "dataset_info.json").read_text())["splits"]
    count = sum(int(length) for split in splits for length in split["shardLengths"])
    features = json.loads((version / "features.json").read_text())["featuresDict"]["features"]
    size = [int(text) for text in features["image"]["image"]["shape"]["dimensions"][:2]]
    if min(size) > 0:  # -1: each its own
        return count, min(size)
    logging.getLogger("vit_jax").warning(
        "%s does not say how large its pictures are: taken for 224 pixels; prepare it again, or set pp.crop", version
    )
    return count, 224


def pictures_below(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Links to folders are followed (classes may lie on another disk), each folder once: links in circles end."""
    entered = {(status.st_dev, status.st_ino) for status in map(os.stat, folder.resolve().parents)}
    for place, folders, names in os.walk(folder, followlinks=True):
        status = os.stat(place)
        new = (status.st_dev, status.st_ino) not in entered
        entered.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if new and not name.startswith("."))
        for name in names if new else ():
            if not name.startswith(".") and pathlib.Path(name).suffix.lower() in SUFFIXES:
                yield pathlib.Path(place, name)


def short_side(path: pathlib.Path) -> int | None:
    """Short side of a JPEG or PNG from its header; None for what is neither, damaged, or no regular file."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            start = file.read(24)
            if start[:8] == b"\x89PNG\r\n\x1a\n":
                return min(struct.unpack(">II", start[16:24]))
            if start[:2] != b"\xff\xd8":
                return None
            file.seek(2)
            while True:
                mark, marker, length = struct.unpack(">BBH", file.read(4))
                if mark != 0xFF or length < 2:
                    return None
                if marker in range(0xC0, 0xD0) and marker not in (0xC4, 0xC8, 0xCC):
                    return min(struct.unpack(">xHH", file.read(5)))
                file.seek(length - 2, os.SEEK_CUR)
    except (OSError, struct.error):  # it cannot be read, or ends too early
        return None
