"""Fine-tune a MAE encoder end to end (facebookresearch/mae FINETUNE.md, main_finetune.py).

    python -m vit_jax.main --workdir=runs/mae-b16-ft --config=configs/mae_finetune.py:b16 \
        --config.init_from=runs/mae-b16

Expected on ImageNet-1k after 1600 epochs of pre-training: B 83.664, L 85.952, H 86.928. Not measured here; on CIFAR-10
see docs/results.md. The paper's Table 9 has base_lr 1e-3 and layer decay 0.75 for all; these are the repository's.
"""

from __future__ import annotations

from configs import common, mae

# base_lr, layer decay, drop path, epochs
RECIPES = {"b16": (5e-4, 0.65, 0.1, 100), "l16": (1e-3, 0.75, 0.2, 50), "h14": (1e-3, 0.75, 0.3, 50)}


def get_config(name: str = "b16"):
    """One of the paper's three models."""
    if name not in RECIPES:
        raise ValueError(f"Expected mae_finetune.py:{{{','.join(RECIPES)}}}, got {name!r}.")
    config = mae.get_config(name)
    config.topology = ""
    common.choose(config, "classify")
    config.base_lr, config.layer_decay, config.model.transformer.drop_path, config.total_epochs = RECIPES[name]
    config.model.update({"norm_after_pool": True, "train_positions": True, "head_std": 2e-5})
    config.pp.crop_area = (0.08, 1.0)
    config.pp.randaugment, config.pp.erasing = "rand-m9-mstd0.5-inc1", 0.25
    config.mixup, config.cutmix, config.label_smoothing = 0.8, 1.0, 0.1
    config.b2 = 0.999
    config.batch = 1024
    config.end_lr = 1e-6
    config.weight_decay_rules = (("(bias|scale)$", 0.0), ("(^|/)(cls|positions)$", 0.0), ("", 1.0))
    config.warmup_share = 5 / config.total_epochs
    config.figures_every = 0
    return config
