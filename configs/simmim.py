"""SimMIM pre-training of a ViT-B (Xie et al. 2022; microsoft/SimMIM configs/vit_base__800ep). No labels.

    python -m vit_jax.main --workdir=runs/simmim-b16 --config=configs/simmim.py:b16 \
        --config.dataset=imagenet2012            # or a folder of pictures

Expected with simmim_finetune.py: 83.8. Not measured here at that size; small runs on CIFAR-10 are in docs/results.md.
`config.schedule="simmim"` counts steps as the published scheduler does, off by one; "google" is this library's way.
"""

from __future__ import annotations

from collections.abc import Collection

from configs import common, models
from configs.common import Field
from configs.kinds import number, optional, whole

FIELDS = {
    "simmim.mask_unit": Field(
        None,
        optional(whole(1, 65_535)),
        "side of the hidden squares in pixels; None: two patches, the paper's 32",
    ),
    "simmim.mask_ratio": Field(0.6, number(above=0, below=1), "share of the squares hidden"),
}
NAMES = ("b16",)
# What digits.py and folder.py pre-train with.
DIGITS = {
    "simmim.mask_unit": 2, "batch": 128, "base_lr": 2e-3, "total_steps": 800, "warmup_steps": 80,
    "eval_every": 400, "checkpoint_every": 400,
}  # fmt: skip
FOLDER = {"pp.crop_area": (0.67, 1.0), "b2": 0.95, "base_lr": 6e-4}


def get_config(name: str = "b16"):
    """The published model."""
    if name not in NAMES:
        raise ValueError(f"Expected simmim.py:b16, got {name!r}.")
    config = common.get_config()
    common.choose(config, "simmim", FIELDS)
    config.model = models.from_short_name(name)
    backbone(config)
    config.model.relative_positions = "shared"
    config.model.transformer.drop_path = 0.1
    config.dataset = "imagenet2012"
    config.pp.test = "validation"
    config.pp.mean, config.pp.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    config.pp.crop, config.pp.crop_share, config.pp.crop_area = 224, 224 / 256, (0.67, 1.0)
    config.optim, config.optim_dtype = "adamw", "float32"
    config.batch, config.batch_eval = 2048, 1024
    config.base_lr, config.lr_scaling = 1e-4, 512
    config.decay_type, config.decay_boundaries, config.decay_factor = "step", (700 / 800,), 0.1
    config.schedule = "simmim"
    config.weight_decay = 0.05
    # The mask token and the table of relative positions do decay, the class token does not.
    config.weight_decay_rules = (("(bias|scale1?2?)$", 0.0), ("(^|/)cls$", 0.0), ("", 1.0))
    config.grad_norm_clip = 5.0
    config.total_steps, config.total_epochs = None, 800
    config.warmup_steps, config.warmup_share = None, 10 / 800
    config.eval_every, config.checkpoint_every, config.figures_every = 5000, 1000, 5000
    config.remat = "dots"
    derive(config)
    return config


def derive(config, typed: Collection[str] = ()) -> None:
    """The warm-up's first rate goes with the batch, as the peak does."""
    if "warmup_lr" not in typed:
        config.warmup_lr = 5e-7 * config.batch / 512


def backbone(config) -> None:
    """What pre-training and fine-tuning have in common: no position table, layer scale 0.1, q and v biases alone."""
    config.model.update({"init": "beit", "activation": "gelu_erf", "cls_token": True, "classifier": "gap"})
    config.model.update({"positions": "none", "key_bias": False})
    config.model.transformer.update({"layer_scale": 0.1, "dropout_rate": 0.0})
