"""Fine-tune an AugReg model ("How to train your ViT?", Steiner et al. 2021) on a data set.

    python -m vit_jax.main --workdir=runs/augreg --config=configs/augreg.py:B_16 --config.dataset=cifar10 \
        --config.init_from=WORKDIR_OF_A_PRETRAINED_MODEL

Source: google-research/vision_transformer, vit_jax/configs/augreg.py: 500 steps, 100 of them warm-up, base_lr 0.03,
resize 448 and crop 384, no dropout. Hybrid models (R_Ti_16, ...) need the ResNet stem and are refused until it is there.
Not measured here.
"""

from __future__ import annotations

from configs import common, models


def get_config(name: str = "B_16"):
    """A model by AugReg's name: Ti_16, S_16, S_32, B_16, B_32, L_16."""
    if name.startswith("R"):
        raise ValueError(f"Expected a model without a ResNet stem, got {name!r}: hybrids are not there yet.")
    config = common.get_config()
    config.model = models.model_config(f"ViT-{name}")
    config.model.transformer.dropout_rate = 0.0
    config.dataset = "cifar10"
    config.pp.crop, config.pp.resize = 384, 448
    config.base_lr, config.total_steps, config.warmup_steps = 0.03, 500, 100
    config.batch, config.batch_eval = 512, 512
    config.eval_every = 100
    return config
