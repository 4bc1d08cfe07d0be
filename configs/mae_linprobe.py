"""Linear probe of a MAE encoder, all 90 epochs of it (facebookresearch/mae main_linprobe.py, FINETUNE.md).

    python -m vit_jax.main --workdir=runs/mae-b16-lin --config=configs/mae_linprobe.py:b16 \
        --config.init_from=mae_pretrain_vit_base.pth

The class token through the encoder's norm, affine-free BatchNorm, one linear layer, LARS without decay. Expected on
ImageNet-1k: B 67.8, L 76.0, H 77.2 (the paper: 68.0, 75.8, 76.6). Not measured here; CIFAR-10 in docs/results.md.
`vit-jax probe` judges frozen features in minutes instead.
"""

from __future__ import annotations

from configs import common, mae


def get_config(name: str = "b16"):
    """One of the paper's three models."""
    config = mae.get_config(name)
    config.topology = ""
    common.choose(config, "classify")
    config.model.update({"classifier": "token", "head_norm": "batch", "head_std": 0.01})
    config.train_blocks = 0
    config.pp.train_crop, config.pp.crop_area = "random_resized_once", (0.08, 1.0)
    config.optim, config.momentum, config.weight_decay = "lars", 0.9, 0.0
    config.batch = 16384
    config.base_lr, config.lr_scaling = 0.1, 256  # 0.1 * 16384 / 256 = 6.4
    config.total_epochs, config.warmup_share = 90, 10 / 90
    config.figures_every = 0
    return config
