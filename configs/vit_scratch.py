"""ImageNet-1k from scratch: "Better plain ViT baselines for ImageNet-1k" (Beyer et al. 2022).

    python -m vit_jax.main --workdir=runs/s16 --config=configs/vit_scratch.py:s16 [--config.total_epochs=300]

Source: google-research/big_vision, configs/vit_s16_i1k.py. Mean pooling, fixed sin-cos positions, tanh layer before the
head, RandAugment and mixup 0.2. Expected there for S/16: 76.5% after 90 epochs (6-7 h on a TPUv3-8), 80.0% after 300.
Not measured here. RandAugment is timm's 2 x magnitude 10, which draws operations as that library does, not big_vision's.
"""

from __future__ import annotations

from configs import common, models

# The TPU slices these were planned for (docs/performance.md): `vit-jax plan --config=vit_scratch.py:l16`.
PLANNED = {"b16": "v5e:4x4", "l16": "v5e:8x8", "h14": "v5e:8x8", "bigg14": "v5e:16x16"}


def get_config(model: str = "s16"):
    """Any model of configs/models.py by its short name."""
    config = common.get_config()
    config.model = models.from_short_name(model)
    config.model.update({"classifier": "gap", "positions": "sincos2d", "train_positions": False})
    config.model.representation_size = config.model.hidden_size
    config.model.transformer.dropout_rate = 0.0
    config.dataset = "imagenet2012"
    config.pp.train, config.pp.test = "train[:99%]", "validation"
    config.pp.crop, config.pp.crop_share = 224, 224 / 256
    config.pp.randaugment = "rand-m10-n2"
    config.mixup = 0.2
    config.optim = "adamw"
    config.base_lr = 1e-3
    config.weight_decay = 1e-4 / 1e-3  # big_vision's 1e-4 is not multiplied by the rate
    config.weight_decay_rules = (("kernel$", 1.0), ("", 0.0))
    config.batch, config.batch_eval = 1024, 1024
    config.total_steps, config.total_epochs, config.warmup_steps = None, 90, 10_000
    config.eval_every, config.checkpoint_every = 5000, 1000
    if model in PLANNED:
        config.topology, config.remat = PLANNED[model], "dots"
    if model in ("l16", "h14", "bigg14"):
        config.mesh.data, config.mesh.fsdp = 1, -1
    if model == "bigg14":
        config.batch = 4096
    return config
