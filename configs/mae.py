"""MAE pre-training (He et al. 2022, Table 8; facebookresearch/mae PRETRAIN.md). No labels.

    python -m vit_jax.main --workdir=runs/mae-b16 --config=configs/mae.py:b16 \
        --config.dataset=imagenet2012            # or a folder of pictures

Models: b16, l16, h14. Expected with mae_finetune.py after 1600 epochs: B 83.6, L 85.9, H 86.9. Cost there: ViT-L,
800 epochs, about 42 h on 64 V100. Not measured here; a short run on a thousand pictures is in docs/results.md.
"""

from __future__ import annotations

from configs import common, models

# The TPU slices these were planned for (docs/performance.md): `vit-jax plan --config=mae.py:h14`.
PLANNED = {"b16": "v5e:4x4", "l16": "v5e:8x8", "h14": "v5e:16x16"}


def get_config(name: str = "b16"):
    """One of the paper's three models."""
    if name not in PLANNED:
        raise ValueError(f"Expected mae.py:{{{','.join(PLANNED)}}}, got {name!r}.")
    config = common.get_config()
    config.objective = "mae"
    config.model = models.from_short_name(name)
    config.model.update({"init": "mae", "activation": "gelu_erf", "cls_token": True, "classifier": "gap"})
    config.model.update({"positions": "sincos2d_mae", "train_positions": False})
    config.model.transformer.dropout_rate = 0.0
    config.mae.mask_ratio = 0.75  # 49 of 196 patches stay visible, 64 of 256
    config.dataset = "imagenet2012"
    config.pp.test = "validation"
    config.pp.mean, config.pp.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    config.pp.crop, config.pp.crop_share, config.pp.crop_area = 224, 224 / 256, (0.2, 1.0)
    config.pp.interpolation = "bicubic"
    config.optim, config.optim_dtype, config.b1, config.b2 = "adamw", "float32", 0.9, 0.95
    config.batch, config.batch_eval = 4096, 1024
    config.base_lr, config.lr_scaling = 1.5e-4, 256  # 1.5e-4 * 4096 / 256 = 2.4e-3
    config.weight_decay = 0.05
    config.weight_decay_rules = (("(bias|scale)$", 0.0), ("", 1.0))  # class and mask token do decay
    config.grad_norm_clip = None
    config.total_steps, config.total_epochs = None, 800
    config.warmup_steps, config.warmup_share = None, 40 / 800  # epochs
    config.eval_every, config.checkpoint_every, config.figures_every = 5000, 1000, 5000
    config.topology, config.remat = PLANNED[name], "dots"
    if name != "b16":
        config.mesh.data, config.mesh.fsdp = 1, -1
    return config
