"""Fine-tune a SimMIM ViT-B end to end (microsoft/SimMIM configs/vit_base__800ep, simmim_finetune).

    python -m vit_jax.main --workdir=runs/simmim-b16-ft --config=configs/simmim_finetune.py:b16 \
        --config.init_from=runs/simmim-b16

Every block gets a table of relative positions of its own, a copy of the one they shared. Expected on ImageNet-1k: 83.8. Not
measured here.
"""

from __future__ import annotations

from collections.abc import Collection

from configs import common, simmim

NAMES = simmim.NAMES


def get_config(name: str = "b16"):
    """The published model."""
    config = simmim.get_config(name)
    common.choose(config, "classify")
    config.model.update({"relative_positions": "block", "norm_after_pool": True, "head_std": 2e-5})
    config.pp.crop_area, config.pp.interpolation = (0.08, 1.0), "bicubic"
    config.pp.randaugment, config.pp.erasing = "rand-m9-mstd0.5-inc1", 0.25
    config.mixup, config.cutmix, config.label_smoothing = 0.8, 1.0, 0.1
    config.base_lr, config.decay_type, config.decay_boundaries = 1.25e-3, "cosine", ()
    config.layer_decay = 0.65
    config.total_epochs, config.warmup_share = 100, 20 / 100
    config.figures_every = 0
    derive(config)
    return config


def derive(config, typed: Collection[str] = ()) -> None:
    """First and last rate go with the batch, as the peak does."""
    for field in ("warmup_lr", "end_lr"):
        if field not in typed:
            config[field] = 2.5e-7 * config.batch / 512
