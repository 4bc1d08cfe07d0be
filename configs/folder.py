"""Your own pictures: settings chosen from how many there are, how large they are and how many steps there will be.

    vit-jax train --workdir=runs/mine --config=folder.py:quick,FOLDER
    vit-jax train --workdir=runs/mine --config=folder.py:scratch,FOLDER
    vit-jax train --workdir=runs/mine-mae --config=folder.py:pretrain,FOLDER         # by MAE; or pretrain,FOLDER,METHOD
    vit-jax train --workdir=runs/mine --config=folder.py:finetune,FOLDER --config.init_from=runs/mine-mae

FOLDER holds {train,test}/class/*.jpg, class/*.jpg or (to pre-train) *.jpg; or it is what `vit-jax prepare` wrote.

quick: a quarter of an hour on two CPU cores, whatever the folder; a small hybrid, pictures of 32 or 64 pixels. The others
want a GPU or days: a ViT at up to 224 pixels, by default up to 100 passes (400 to pre-train). The choices are this
project's, not a paper's. Cost and accuracy depend on your pictures; CIFAR-10 as such a folder is in docs/results.md.
"""

from __future__ import annotations

import json
import logging
import os
import pathlib
import struct
from collections.abc import Collection, Iterator

from configs import common, models

STAGES = ("quick", "scratch", "pretrain", "finetune")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm")

# quick's hybrids. Picture size: (units of the ResNet stem's stages, cells of its map a side of a patch, pictures a second
# in training on two idle cores of a Xeon with AVX-512: measured at 32 pixels, at 64 from the FLOPs). Sixteen tokens each.
QUICK = {32: ((2,), 2, 270), 64: ((2, 2), 2, 75)}
QUICK_SECONDS = 540  # of training; the rest of the quarter of an hour goes to compiling, evaluating and slower machines
QUICK_PASSES = 100  # at most: a small folder is learned by heart after that

FEW_PASSES = 10

# How strongly to regularise follows from the steps of the schedule: what a model has no time to learn is noise to it. Up to
# so many steps, these values.
STRENGTHS = {
    2_000: {
        "base_lr": 2e-3, "pp.crop_area": (0.7, 1.0), "pp.randaugment": "", "pp.erasing": 0.0,
        "mixup": 0.0, "cutmix": 0.0, "label_smoothing": 0.1, "model.transformer.drop_path": 0.0,
    },
    10_000: {
        "base_lr": 1e-3, "pp.crop_area": (0.35, 1.0), "pp.randaugment": "rand-m5-n1-mstd0.5-inc1", "pp.erasing": 0.0,
        "mixup": 0.2, "cutmix": 0.0, "label_smoothing": 0.1, "model.transformer.drop_path": 0.0,
    },
    float("inf"): {
        "base_lr": 5e-4, "pp.crop_area": (0.35, 1.0), "pp.randaugment": "rand-m9-mstd0.5-inc1", "pp.erasing": 0.25,
        "mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1, "model.transformer.drop_path": 0.1,
    },
}  # fmt: skip


def get_config(stage_and_folder: str = "scratch,."):
    """`STAGE,FOLDER`, or `pretrain,FOLDER,METHOD`."""
    stage, _, folder = stage_and_folder.partition(",")
    method = "mae"
    if stage == "pretrain" and not pathlib.Path(folder).expanduser().is_dir() and "," in folder:
        folder, _, method = folder.rpartition(",")
    if stage not in STAGES or not folder:
        raise ValueError(f"Expected folder.py:{{{','.join(STAGES)}}},FOLDER, got {stage_and_folder!r}.")
    count, side = look_at(training_part(folder))
    config = common.get_config()
    config.dataset = f"./{folder}" if folder.isidentifier() else folder  # "digits" alone is another data set
    config.pp.mean, config.pp.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    config.pp.interpolation = "bicubic"
    config.optim, config.optim_dtype = "adamw", "float32"
    config.weight_decay = 0.05
    config.weight_decay_rules = (("(bias|scale)$", 0.0), ("", 1.0))
    config.total_steps, config.warmup_steps, config.warmup_share = None, None, 1 / 20
    if stage == "quick":
        _quick(config, count, side)
    else:
        _vit(config, count, side)
    config.model.update({"init": "mae", "cls_token": True, "classifier": "gap", "positions": "sincos2d_mae"})
    config.batch_eval = config.batch
    if stage == "pretrain":
        recipe = common.pretraining(method)
        common.choose(config, method, recipe.FIELDS)
        config.update_from_flattened_dict(recipe.FOLDER)
        getattr(recipe, "fit", lambda config: None)(config)  # what hangs on the size of pictures and patches
        config.total_epochs = epochs(count, 400)
    else:
        config.model.update({"norm_after_pool": True, "head_std": 2e-5})
        config.layer_decay = 0.75 if stage == "finetune" else None
    derive(config)
    return config


def _vit(config, count: int, side: int) -> None:
    """A ViT for machines with time: 64 tokens, 196 at 224 pixels."""
    size = 32 if side <= 48 else 64 if side <= 96 else 128 if side <= 160 else 224
    patch = size // 8 if size < 128 else 16
    config.model = models.model_config("ViT-Ti_16" if count < 200_000 else "ViT-S_16")
    config.model.patches.size = (patch, patch)
    config.pp.crop, config.pp.crop_share = size, None if size < 64 else 224 / 256
    config.batch, config.lr_scaling = batch_for(count, 256), 256
    config.total_epochs = epochs(count, 100)


def _quick(config, count: int, side: int) -> None:
    """As many pictures as QUICK_SECONDS hold: convolutions learn more from few steps than patches do."""
    size = 32 if side <= 48 else 64
    units, cells, rate = QUICK[size]
    config.model = models.model_config("ViT-Ti_16")
    config.model.model_name = "quick"
    config.model.resnet.num_layers = units
    config.model.patches.size = (cells, cells)
    config.model.transformer.num_layers = config.unroll = 4
    config.compute_dtype = "float32"  # the faster one on CPUs
    config.pp.crop, config.pp.crop_share = size, None if size < 64 else 224 / 256
    config.batch, config.lr_scaling = batch_for(count, 64), 64
    config.total_epochs = round(min(QUICK_PASSES, QUICK_SECONDS * rate / count), 2)


def derive(config, typed: Collection[str] = ()) -> None:
    """Set what follows from the number of steps, after the user's fields are in; those (`typed`, "pp.erasing") stay.

    A schedule that is cut short, `--config.total_epochs=15`, thus gets the augmentation, drop path, rate and warm-up of a
    short schedule.
    """
    folder = training_part(config.dataset)
    if not config.dataset or not folder.is_dir() or (config.total_steps is None) == (config.total_epochs is None):
        return  # another data set, or a schedule that training will refuse
    count, _ = look_at(folder)
    steps = config.total_epochs * count / config.batch if config.total_steps is None else config.total_steps
    passes = steps * config.batch / count
    values = {}
    if config.objective == "classify":
        values |= strength_for(steps, passes)
        if config.layer_decay is not None:
            values["base_lr"] = 1e-3  # fine-tuning: a rate per layer, and weights that a higher one would spoil
    config.update_from_flattened_dict({name: value for name, value in values.items() if name not in typed})


def strength_for(steps: float, passes: float) -> dict:
    """Fields of STRENGTHS; the weakest where too few passes are made to learn pictures by heart."""
    return STRENGTHS[next(limit for limit in STRENGTHS if passes < FEW_PASSES or steps <= limit)]


def batch_for(count: int, most: int) -> int:
    """A power of two that leaves at least eight steps an epoch, within 16 and `most`."""
    return max(16, min(most, 2 ** (max(count, 1).bit_length() - 4)))


def epochs(count: int, few: int) -> int:
    """`few` passes over up to 50,000 pictures; fewer over more, at least 20."""
    return max(20, min(few, few * 50_000 // max(count, 1)))


def training_part(folder: str) -> pathlib.Path:
    """FOLDER/train where there is one: what the schedule counts."""
    whole = pathlib.Path(folder).expanduser()
    return whole / "train" if (whole / "train").is_dir() else whole


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
    train = [split for split in splits if split["name"] == "train"] or splits
    count = sum(int(length) for split in train for length in split["shardLengths"])
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
