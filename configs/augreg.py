"""Fine-tune an AugReg model ("How to train your ViT?", Steiner et al. 2021) on a data set.

    python -m vit_jax.main --workdir=runs/augreg --config=configs/augreg.py:B_16 --config.dataset=cifar10 \
        --config.init_from=AUGREG_FILE.npz

Source: google-research/vision_transformer, vit_jax/configs/augreg.py: 500 steps, 100 of them warm-up, base_lr 0.03,
resize 448 and crop 384, no dropout. `vit-jax models` lists the published files. Not measured here.
"""

from __future__ import annotations

from configs import common, models


def get_config(name: str = "B_16"):
    """A model by AugReg's name: Ti_16, S_16, S_32, B_16, B_32, L_16, R_Ti_16, R26_S_32, R50_L_32."""
    config = common.get_config()
    stem, _, rest = name.rpartition("_")[0].rpartition("_")
    patch = name.rpartition("_")[2]
    config.model = models.model_config(f"{stem}+ViT-{rest}_{patch}" if stem else f"ViT-{name}")
    config.model.transformer.dropout_rate = 0.0
    config.dataset = "cifar10"
    config.pp.crop, config.pp.crop_share = 384, 384 / 448
    config.base_lr, config.total_steps, config.warmup_steps = 0.03, 500, 100
    config.batch, config.batch_eval = 512, 512
    config.eval_every = 100
    return config
