"""Masked patch prediction, the ViT paper's own self-supervision (Dosovitskiy et al. 2021, B.1.2). No labels.

    python -m vit_jax.main --workdir=runs/mpp-b16 --config=configs/patch_prediction.py:b16 \
        --config.dataset=imagenet2012            # or a folder of pictures

The paper: ViT-B/16, JFT-300M, 1M steps (about 14 epochs) of 4096 pictures, Adam, 2e-4, warm-up of 10k steps, cosine; little
gain after 100k steps, and similar gains from ImageNet. Expected after fine-tuning on ImageNet: 79.9, two points above
training from scratch. The paper says nothing of a decay of weights: none here. Not measured here at that size; small runs on
CIFAR-10 are in docs/results.md.
"""

from __future__ import annotations

from configs import common, models
from configs.common import Field
from configs.kinds import number, one_of

FIELDS = {
    "patch_prediction.target": Field(
        "mean_colour", one_of("mean_colour", "colours_4x4", "pixels"), "what is predicted of a corrupted patch"
    ),
    "patch_prediction.mask_ratio": Field(0.5, number(above=0, below=1), "share of the patches corrupted"),
    "patch_prediction.mask_share": Field(0.8, number(0, 1), "of those: share that becomes the mask embedding"),
    "patch_prediction.swap_share": Field(0.1, number(0, 1), "share that becomes another patch's; the rest stays"),
}
NAMES = ("ti16", "s16", "b16", "l16", "h14")
# What digits.py and folder.py pre-train with.
DIGITS = {
    "batch": 128, "base_lr": 2e-3, "total_steps": 800, "warmup_steps": 80, "eval_every": 400, "checkpoint_every": 400,
}  # fmt: skip
FOLDER = {"pp.crop_area": (0.2, 1.0), "b2": 0.95, "base_lr": 6e-4}


def get_config(name: str = "b16"):
    """A ViT by its short name; the paper's is b16."""
    if name not in NAMES:
        raise ValueError(f"Expected patch_prediction.py:{{{','.join(NAMES)}}}, got {name!r}.")
    config = common.get_config()
    common.choose(config, "patch_prediction", FIELDS)
    config.model = models.from_short_name(name)
    config.model.transformer.dropout_rate = 0.0
    config.dataset = "imagenet2012"
    config.pp.test = "validation"
    config.optim, config.b1, config.b2 = "adamw", 0.9, 0.999
    config.base_lr, config.weight_decay = 2e-4, 0.0
    config.batch, config.batch_eval = 4096, 1024
    config.total_steps, config.warmup_steps = 100_000, 10_000
    config.grad_norm_clip = None
    config.eval_every, config.checkpoint_every, config.figures_every = 5000, 1000, 5000
    config.remat = "dots"
    return config
