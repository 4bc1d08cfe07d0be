"""MAE pre-training (He et al. 2022, Table 8; facebookresearch/mae PRETRAIN.md). No labels.

    python -m vit_jax.main --workdir=runs/mae-b16 --config=configs/mae.py:b16 \
        --config.dataset=imagenet2012            # or a folder of pictures

Models: b16, l16, h14. Expected with mae_finetune.py after 1600 epochs: B 83.6, L 85.9, H 86.9. Cost there: ViT-L,
800 epochs, about 42 h on 64 V100. Not measured here; a short run on a thousand pictures is in docs/results.md.
"""

from __future__ import annotations

from configs import common, models
from configs.common import Field, transformer_fields
from configs.kinds import flag, number, one_of, optional, whole

FIELDS = {
    "mae.mask_ratio": Field(0.75, number(above=0, below=1), "share of the patches hidden"),
    "mae.num_visible": Field(None, optional(whole(1)), "patches that stay visible; None: from mae.mask_ratio and the grid"),
    "mae.mask": Field("random", one_of("random", "block", "grid"), "how hidden patches are chosen"),
    "mae.normalised_target": Field(True, flag(), "per-patch normalised pixels"),
    "mae.decoder.hidden_size": Field(512, whole(1, 1_000_000), "width of the decoder's tokens"),
    **{f"mae.decoder.{name}": field for name, field in transformer_fields(8, 16, 2048).items()},
}  # fmt: skip

# What digits.py and folder.py pre-train with.
DIGITS = {
    "mae.num_visible": 6,  # of 16
    "mae.normalised_target": False,  # four pixels a patch leave little to normalise by
    "mae.decoder.hidden_size": 32, "mae.decoder.num_layers": 2, "mae.decoder.num_heads": 4, "mae.decoder.mlp_dim": 128,
    "model.train_positions": False, "batch": 128, "base_lr": 2e-3, "total_steps": 800, "warmup_steps": 80,
    "eval_every": 400, "checkpoint_every": 400,
}  # fmt: skip
FOLDER = {
    "mae.decoder.hidden_size": 128, "mae.decoder.num_layers": 4, "mae.decoder.num_heads": 4, "mae.decoder.mlp_dim": 512,
    "model.train_positions": False, "pp.crop_area": (0.2, 1.0), "b2": 0.95, "base_lr": 6e-4,
}  # fmt: skip
# The TPU slices these were planned for (docs/performance.md): `vit-jax plan --config=mae.py:h14`.
PLANNED = {"b16": "v5e:4x4", "l16": "v5e:8x8", "h14": "v5e:16x16"}


def get_config(name: str = "b16"):
    """One of the paper's three models."""
    if name not in PLANNED:
        raise ValueError(f"Expected mae.py:{{{','.join(PLANNED)}}}, got {name!r}.")
    config = common.get_config()
    common.choose(config, "mae", FIELDS)
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
