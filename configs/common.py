"""Every field but a method's own: its default, what it may hold, what it means. A config starts from here.

Names are those of Google's ViT code (google-research/vision_transformer, vit_jax/configs/common.py) where it has them.
A method's own fields are FIELDS of the recipe of its name (mae.py), and nothing else may be set.
`vit-jax train --config=FILE:ARG --fields` prints the whole table with the values of a recipe.
"""

from __future__ import annotations

import importlib
import pathlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any, NamedTuple

import ml_collections

from configs.kinds import (
    Kind,
    ascending,
    either,
    flag,
    number,
    one_of,
    optional,
    rules,
    several,
    size,
    split,
    text,
    whole,
)


class Field(NamedTuple):
    """One setting. Where others decide it unless it is set, the default is None and `meaning` names them."""

    default: Any
    kind: Kind
    meaning: str


SOME_PATH = text("a path or an address", r"[^\0]+")
STEPS = 2**31 - 1
WAYS = either(whole(-1, -1), whole(1, 2**20))._replace(words="a whole number from 1, or -1 for the rest")

DATA = {
    "dataset": Field("digits", text("a data set", r"[^\0]+"), '"digits", "fake", a folder of pictures, or a TFDS name'),
    "tfds_data_dir": Field(None, optional(SOME_PATH), "where prepared TFDS data sets lie; None: TFDS's own folder"),
    "tfds_manual_dir": Field(
        None, optional(SOME_PATH), "Google's, for `tfds build --manual_dir`; nothing is done with it"
    ),
    "num_workers": Field(0, whole(0, 1024), "worker processes for decoding; 0: threads of this process"),
    "num_threads": Field(0, whole(0, 1024), "decoding threads; 0: one a core"),
    "prefetch": Field(2, whole(1, 1024), "batches decoded ahead"),
    "shuffle_buffer": Field(0, whole(0), "for Google's sake only: the order is a full shuffle of every epoch"),
    "max_unreadable": Field(0.01, number(0, 1), "share of unreadable pictures at which the run stops"),
}

PICTURES = {
    "pp.train": Field("train", split(), 'the split to train on, TFDS syntax: "train[:98%]"'),
    "pp.test": Field("test", split(), "the split to evaluate on"),
    "pp.crop": Field(224, size(), "picture the model sees: pixels, or (height, width)"),
    "pp.crop_share": Field(
        None, optional(number(above=0, high=1, usual=(0.5, 1))),
        "evaluation: share of the short side that the centre crop keeps; None: the whole picture, resized to the crop",
    ),
    "pp.resize": Field(
        None, optional(whole(1, 65_535)),
        "evaluation: short side before the centre crop; None: from pp.crop and pp.crop_share",
    ),
    "pp.train_crop": Field(
        "random_resized", one_of("random_resized", "random_resized_once", "simple", "resize"),
        '"random_resized_once": one try, cut to the picture (MAE\'s linear probe); "simple": pad and crop',
    ),
    "pp.crop_area": Field((0.05, 1.0), ascending(number(above=0, high=1)), "share of the picture that a random crop covers"),
    "pp.crop_aspect": Field((3 / 4, 4 / 3), ascending(number(above=0, usual=(0.1, 10))), "width / height of a random crop"),
    "pp.flip": Field(True, flag(), "left and right exchanged for every other training picture"),
    "pp.randaugment": Field(
        "", text('"" or timm\'s words such as "rand-m9-mstd0.5-inc1"', r"|rand(-(m|n|mstd|p)\d+(\.\d+)?|-inc1)*"),
        "RandAugment; \"\": none",
    ),
    "pp.erasing": Field(0.0, number(0, 1), "probability of random erasing"),
    "pp.interpolation": Field("bilinear", one_of("bilinear", "bicubic", "lanczos"), "how pictures are resized"),
    "pp.color_jitter": Field(
        0.0, number(0, usual=(0, 0.8)),
        "training: brightness, contrast and saturation times 1 - this to 1 + this, in any order, before the crop (BEiT)",
    ),
    "pp.second_share": Field(
        None, optional(number(above=0, high=16, usual=(0.25, 4))),
        "a second view of the same crop, this share as large, for a tokenizer (BEiT: 0.5, 112 of 224 pixels); None: none",
    ),
    "pp.second_interpolation": Field("lanczos", one_of("bilinear", "bicubic", "lanczos"), "how the second view is resized"),
    "pp.channels": Field(3, whole(1, 1024), "of a picture: 1, 3 or 4 for files"),
    "pp.mean": Field((0.5,), several(number(usual=(0, 1))), "of pixels / 255, one or one a channel; Google's give [-1, 1]"),
    "pp.std": Field((0.5,), several(number(above=0, usual=(0.01, 1))), "of pixels / 255"),
}  # fmt: skip


def transformer_fields(num_layers: int = 12, num_heads: int = 12, mlp_dim: int = 3072) -> dict[str, Field]:
    """One stack of blocks."""
    return {
        "num_layers": Field(num_layers, whole(1, 10_000, usual=(1, 100)), "blocks"),
        "num_heads": Field(num_heads, whole(1, 10_000), "attention heads; they divide the width"),
        "mlp_dim": Field(mlp_dim, whole(1, 1_000_000), "width inside the MLP"),
        "dropout_rate": Field(0.0, number(0, below=1, usual=(0, 0.5)), "after dense layers and positions"),
        "attention_dropout_rate": Field(0.0, number(0, below=1, usual=(0, 0.5)), "of attention weights"),
        "drop_path": Field(0.0, number(0, below=1, usual=(0, 0.8)), "stochastic depth: linspace(0, drop_path, num_layers)"),
        "layer_scale": Field(0.0, number(0, usual=(0, 1)), "initial value of the branches' scales; 0: none"),
    }  # fmt: skip


MODEL = {
    "model.model_name": Field("ViT-B_16", text("a name", r"[^\0/]+"), "also the name of Google's file in pretrained_dir"),
    "model.patches.size": Field((16, 16), size(), "pixels of a patch (cells of the stem's map, in hybrids)"),
    "model.resnet.num_layers": Field(
        None, optional(several(whole(1, 1000))), "hybrids: units of each stage of the stem; (): its root alone; None: no stem"
    ),
    "model.resnet.width_factor": Field(1, whole(1, 64), "hybrids: times 64 is the width of the stem's root"),
    "model.hidden_size": Field(768, whole(1, 1_000_000), "width of a token"),
    **{f"model.transformer.{name}": field for name, field in transformer_fields().items()},
    "model.classifier": Field(
        "token", one_of("token", "gap", "map", "unpooled", "token_unpooled"), "what the head sees"
    ),
    "model.cls_token": Field(None, optional(flag()), "None: where the classifier needs it"),
    "model.dist_token": Field(False, flag(), "DeiT's distillation token"),
    "model.dist_head": Field(True, flag(), "and its own head; False: only the class token is classified"),
    "model.norm_after_pool": Field(False, flag(), "True: pool first, then the norm (MAE's and BEiT's fc_norm)"),
    "model.head_norm": Field("none", one_of("none", "batch"), '"batch": affine-free BatchNorm before the head (probes)'),
    "model.representation_size": Field(None, optional(whole(1, 1_000_000)), "tanh layer before the head"),
    "model.positions": Field(
        "learn", one_of("learn", "sincos2d", "sincos2d_mae", "none"), '"sincos2d" is big_vision\'s formula'
    ),
    "model.positions_std": Field(
        0.02, optional(number(above=0, usual=(1e-6, 1))), "learned tables' initial values; None: 1/sqrt(hidden_size)"
    ),
    "model.cls_position": Field(True, flag(), "False: no row for the class token in the table (big_vision, DeiT III)"),
    "model.relative_positions": Field(
        "none", one_of("none", "shared", "block"),
        "biases of attention by offset between patches: one table for all blocks, or one a block (BEiT)",
    ),
    "model.train_positions": Field(True, flag(), "False: a sin-cos table stays constant"),
    "model.key_bias": Field(True, flag(), "False: biases of queries and values alone (BEiT)"),
    "model.activation": Field("gelu_tanh", one_of("gelu_tanh", "gelu_erf"), "Google's models, PyTorch's"),
    "model.norm_eps": Field(1e-6, number(above=0, high=1, usual=(1e-12, 1e-3)), "of LayerNorm"),
    "model.init": Field(
        "google", one_of("google", "mae", "beit"),
        '"mae": xavier over the fused qkv, xavier patches, class token normal(0.02); "beit": normal(0.02) cut at 0.02, what '
        "leaves block l divided by sqrt(2 l)",
    ),
    "model.head_std": Field(0.0, number(0, usual=(0, 1)), "of the head's initial kernel; 0: zeros"),
    "model.head_bias": Field(0.0, number(usual=(-20, 20)), "the head's initial bias"),
}  # fmt: skip

COMPUTE = {
    "compute_dtype": Field(
        "bfloat16", one_of("bfloat16", "float32"), "of activations; parameters, norms, softmax and losses stay float32"
    ),
    "attention": Field("xla", one_of("xla", "cudnn"), '"cudnn": fused attention on NVIDIA GPUs'),
    "remat": Field("none", one_of("none", "dots", "full"), "less memory, more time"),
    "unroll": Field(1, whole(1, 10_000), "blocks per scan step; num_layers compiles to a plain loop"),
}

OPTIMISER = {
    "batch": Field(512, whole(1, 2**20), "pictures a step, of all devices and accumulation steps together"),
    "batch_eval": Field(512, whole(1, 2**20), "pictures at a time in evaluation"),
    "accum_steps": Field(1, whole(1, 2**20), "micro-batches a step; the step equals the full batch"),
    "optim": Field("sgd", one_of("sgd", "adamw", "lars"), "the optimiser"),
    "optim_dtype": Field("bfloat16", one_of("bfloat16", "float32"), "of the momentum"),
    "momentum": Field(0.9, number(0, below=1), "of sgd and lars"),
    "b1": Field(0.9, number(0, below=1), "of adamw"),
    "b2": Field(0.999, number(0, below=1), "of adamw"),
    "adam_eps": Field(1e-8, number(above=0, high=1, usual=(1e-12, 1e-3)), "of adamw"),
    "base_lr": Field(0.03, number(0, usual=(1e-9, 10)), "the learning rate after warm-up"),
    "lr_scaling": Field(None, optional(number(above=0)), "lr = base_lr * batch / lr_scaling; None: lr = base_lr"),
    "end_lr": Field(0.0, number(0), "the learning rate at the end of the decay"),
    "warmup_lr": Field(0.0, number(0), "the learning rate at the start of the warm-up"),
    "schedule": Field(
        "google", one_of("google", "beit", "simmim"), "how steps are counted, to the step as the reference codes have it"
    ),
    "decay_type": Field("cosine", one_of("cosine", "linear", "constant", "step"), "the learning rate after warm-up"),
    "decay_boundaries": Field((), several(number(0, 1)), '"step": shares of the progress'),
    "decay_factor": Field(0.1, number(above=0, usual=(0, 1)), '"step": at each of them'),
    "total_steps": Field(10_000, optional(whole(1, STEPS)), "length of the run; this or total_epochs"),
    "total_epochs": Field(None, optional(number(above=0)), "the same in passes over the training pictures"),
    "warmup_steps": Field(500, optional(whole(0, STEPS)), "linear warm-up; this or warmup_epochs"),
    "warmup_epochs": Field(None, optional(number(0)), "the same in passes over the training pictures"),
    "warmup_share": Field(
        None, optional(number(0, below=1)), "warm-up as a share of the run, where neither steps nor epochs of it are set"
    ),
    "grad_norm_clip": Field(1.0, optional(number(above=0)), "of all gradients together"),
    "weight_decay": Field(0.0, number(0, usual=(0, 1)), "decoupled, times the learning rate (PyTorch's AdamW)"),
    "weight_decay_rules": Field(
        (("kernel$", 1.0), ("", 0.0)), rules(), "(pattern in the parameter's path, factor), first match wins"
    ),
    "layer_decay": Field(None, optional(number(above=0, high=1)), "learning rate x this, block by block downwards"),
    "train_blocks": Field(
        None, optional(either(whole(0, 10_000), Kind("0.5", lambda value: value == 0.5, float))),
        "partial fine-tuning: the last blocks that train, with what comes after; 0.5: the last MLP alone; 0: the head",
    ),
    "trust_coefficient": Field(0.001, number(above=0), "of lars"),
    "ema": Field(None, optional(number(above=0, below=1, usual=(0.5, 1))), "moving average of the parameters"),
}  # fmt: skip

LOSS = {
    "task": Field(
        "classes",
        one_of("classes", "multilabel", "regression"),
        "what a label is: one class, any number of classes, one number or more",
    ),
    "label_columns": Field(
        (),
        several(text("a name", r"[^\0]+")),
        "columns of labels.csv, or features of a TFDS set, with the labels; (): all columns, the feature label or labels",
    ),
    "loss": Field(
        None,
        optional(one_of("softmax", "sigmoid", "l2", "huber")),
        "None: softmax for classes, sigmoid for multilabel, l2 for regression",
    ),
    "class_weights": Field(
        None,
        optional(either(one_of("balanced"), several(number(above=0)))),
        '"balanced": by how often each is a label in training; with sigmoid, of the pictures that have the class',
    ),
    "label_smoothing": Field(
        0.0,
        number(0, below=1, usual=(0, 0.5)),
        "share of the target spread over all classes, over yes and no in multilabel",
    ),
    "threshold": Field(0.5, number(above=0, below=1), "multilabel: probability from which on a class counts as there"),
    "target_mean": Field(
        None,
        optional(several(number())),
        "regression: taken off the numbers to learn; None: mean of the training labels",
    ),
    "target_std": Field(
        None, optional(several(number(above=0))), "regression: they are divided by this; None: of the training labels"
    ),
    "huber_delta": Field(1.0, number(above=0), "error, in deviations, from which on huber grows linearly"),
    "mixup": Field(0.0, number(0, usual=(0, 10)), "Beta parameter; 0: off"),
    "cutmix": Field(0.0, number(0, usual=(0, 10)), "Beta parameter; 0: off"),
}

RUN = {
    "init_from": Field(
        None, optional(SOME_PATH),
        "weights to start from: another run's workdir, a file of Google's, MAE's, DeiT's or timm's, a Hugging Face folder",
    ),
    "pretrained_dir": Field(None, optional(SOME_PATH), "Google's way: start from <model.model_name>.npz in it"),
    "model_or_filename": Field(
        None, optional(text("a model such as R_Ti_16 or a file name", r"[^\0/]+")),
        "in pretrained_dir: this file (without .npz), or AugReg's recommended one of this model",
    ),
    "trainer": Field("train", one_of("train", "inference_time"), "Google's; inference_time is not here"),
    "topology": Field(
        "", text("a slice such as v5e:4x4, or empty", r"|v\w+:[1-9]\d{0,3}(x[1-9]\d{0,3}){1,2}"),
        "TPU slice that the recipe was planned for (`vit-jax plan`); training takes what is there",
    ),
    "mesh.data": Field(-1, WAYS, "ways to split the batch; -1: the rest of the devices"),
    "mesh.fsdp": Field(1, WAYS, "ways to split batch and parameters"),
    "mesh.tensor": Field(1, WAYS, "ways to split heads and MLPs"),
    "eval_every": Field(500, whole(0), "steps; 0: only at the end"),
    "progress_every": Field(50, whole(0), "steps between log lines; 0: only at the end"),
    "checkpoint_every": Field(500, whole(0), "steps; 0: only at the end"),
    "checkpoint_minutes": Field(15.0, number(0, usual=(0, 1440)), "a checkpoint also after so long; 0: by steps alone"),
    "keep_checkpoints": Field(2, whole(1, 100_000), "the newest ones"),
    "keep_best": Field(
        None, optional(text("the name of a metric", r"\w+")),
        "the metric of the evaluation (accuracy, loss) whose best checkpoint is kept in WORKDIR/best; None: none is",
    ),
    "patience": Field(
        None, optional(whole(1, STEPS)),
        "evaluations without a better keep_best after which the run ends early; None: it never does",
    ),
    "loggers": Field(
        ("tensorboard",), several(text("a logger", r"\w+"), what="names of loggers such as tensorboard,wandb"),
        'where numbers go besides metrics.jsonl: "tensorboard", "wandb" (Weights & Biases)',
    ),
    "figures_every": Field(0, whole(0), "steps between pictures; 0: only at the end"),
    "hang_seconds": Field(
        None, optional(number(0)),
        "without a step for so long the run is taken for hung and ends with status 4 (ten times as long for compiling, "
        "evaluating, saving and drawing); None: 300, or 20 steps where that is longer; 0: never",
    ),
    "max_skipped_steps": Field(10, whole(1), "non-finite steps in a row at which the run stops"),
}  # fmt: skip

FIELDS: dict[str, Field] = {
    "seed": Field(0, whole(0, 2**31 - 1), "initial parameters, order, augmentation and masks follow from it"),
    "objective": Field(
        "classify", text("a method of vit_jax/methods, or package.module:NAME", r"\w+|[\w.]+:\w+"),
        "what is learned; a method's own fields are in the section of its name",
    ),
    **DATA, **PICTURES, **MODEL, **COMPUTE, **OPTIMISER, **LOSS, **RUN,
}  # fmt: skip


def section(fields: Mapping[str, Field]) -> ml_collections.ConfigDict:
    """Fields with their defaults."""
    config = ml_collections.ConfigDict()
    for name, field in fields.items():
        *sections, last = name.split(".")
        place = config
        for inner in sections:
            if inner not in place:
                place[inner] = ml_collections.ConfigDict()
            place = place[inner]
        # A field that may hold values of several types says so, or ConfigDict would refuse all but the default's.
        several_types = field.kind.type is object
        place[last] = ml_collections.FieldReference(field.default, object) if several_types else field.default
    return config


def get_config() -> ml_collections.ConfigDict:
    """The defaults: plain supervised training of a ViT-B/16."""
    return section(FIELDS).lock()


def choose(config: ml_collections.ConfigDict, objective: str, fields: Mapping[str, Field] | None = None) -> None:
    """Set `config.objective`, and give `config` that method's own section, with its defaults, in place of another's."""
    general = {name.partition(".")[0] for name in FIELDS}
    with config.unlocked():
        for name in [name for name in config if name not in general]:
            del config[name]
        config.update(section(fields or {}))
        config.objective = objective


def pretraining_methods() -> list[str]:
    """Methods that digits.py and folder.py can pre-train by: their recipes say how in DIGITS and FOLDER."""
    files = sorted(pathlib.Path(__file__).parent.glob("*.py"))
    return [file.stem for file in files if "\nFOLDER = {" in file.read_text()]


def pretraining(method: str) -> ModuleType:
    """The recipe of a method to pre-train by.

    Raises:
      ValueError: no such recipe; the error lists those there are.
    """
    if method not in pretraining_methods():
        raise ValueError(f"Expected a method of {', '.join(pretraining_methods())} to pre-train by, got {method!r}.")
    return importlib.import_module(f"configs.{method}")


def model_defaults() -> ml_collections.ConfigDict:
    """ViT-B/16 as Google's."""
    return section({name.removeprefix("model."): field for name, field in MODEL.items()})
