"""Fine-tune an AugReg model ("How to train your ViT?", Steiner et al. 2021) on a data set.

    python -m vit_jax.main --workdir=runs/pets --config=configs/augreg.py:R_Ti_16 --config.dataset=oxford_iiit_pet \
        --config.base_lr=0.01   # weights: the recommended file of gs://vit_models/augreg; or --config.init_from=ANY_FILE

Source: google-research/vision_transformer, vit_jax/configs/augreg.py: 500 steps, 100 of them warm-up, base_lr 0.03,
crop 384, no dropout. There pp.resize 448 is written down and not read; here evaluation crops the centre 384 of 448.
`vit-jax models augreg` lists the recommended files. Not measured here.
"""

from __future__ import annotations

from configs import models, vit

# AugReg's names of the models, which are good in addresses, too: R26_S_32 for R26+ViT-S_32.
NAMES = {name.replace("ViT-", "").replace("+", "_"): name for name in models.NAMES}


def get_config(model_or_filename: str = "B_16"):
    """A model by AugReg's name (Ti_16, R26_S_32), or a file of AugReg's without .npz (Ti_16-i21k-300ep-lr_0.001-...)."""
    name = model_or_filename.partition("-")[0]
    if name not in NAMES:
        raise ValueError(f"Expected augreg.py:MODEL or :FILE, MODEL of {', '.join(NAMES)}, got {model_or_filename!r}.")
    config = vit.fine_tuning()
    config.pretrained_dir = "gs://vit_models/augreg"
    config.model_or_filename = model_or_filename
    config.model = models.model_config(NAMES[name])
    config.model.transformer.dropout_rate = 0.0
    config.dataset = "cifar10"  # none there: it has to be given
    config.pp.crop_share = 384 / 448
    config.total_steps, config.warmup_steps = 500, 100
    return config
