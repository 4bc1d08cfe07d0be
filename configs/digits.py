"""Everything on 1,797 real 8x8 handwritten digits, in minutes on a CPU: the demo's recipes.

    python -m vit_jax.main --workdir=runs/digits --config=configs/digits.py:scratch
    arguments: pretrain (no labels; by MAE, or pretrain,METHOD), finetune (set --config.init_from), scratch

Data: scikit-learn's copy of the UCI optical digits, embedded: nothing is downloaded. Cost and result: measured by
`make demo`, see docs/results.md.
"""

from __future__ import annotations

from configs import common

STAGES = ("pretrain", "finetune", "scratch")


def get_config(stage_and_method: str = "scratch"):
    """One stage of the small study."""
    stage, comma, method = stage_and_method.partition(",")
    if stage not in STAGES or (comma and (not method or stage != "pretrain")):
        raise ValueError(
            f"Expected digits.py:{{{','.join(STAGES)}}} or digits.py:pretrain,METHOD, got {stage_and_method!r}."
        )
    config = common.get_config()
    config.dataset = "digits"
    config.compute_dtype, config.unroll = "float32", 4
    config.pp.update({"crop": 8, "channels": 1, "flip": False, "train_crop": "simple"})
    config.pp.mean, config.pp.std = (0.306,), (0.377,)  # of the training pictures
    config.model.model_name = "digits"
    config.model.patches.size = (2, 2)
    config.model.hidden_size = 64
    config.model.update({"init": "mae", "cls_token": True, "positions": "sincos2d_mae", "classifier": "gap"})
    config.model.transformer.update({"num_layers": 4, "num_heads": 4, "mlp_dim": 256})
    config.model.norm_after_pool = True
    config.optim, config.optim_dtype, config.b2 = "adamw", "float32", 0.95
    config.weight_decay = 0.05
    config.weight_decay_rules = (("(bias|scale)$", 0.0), ("", 1.0))
    config.batch_eval = 360
    config.progress_every = 25
    if stage == "pretrain":
        config.model.norm_after_pool = False
        recipe = common.pretraining(method or "mae")
        common.choose(config, method or "mae", recipe.FIELDS)
        config.update_from_flattened_dict(recipe.DIGITS)
    else:
        config.pp.train = "train[:100]"  # few labels: that is what pre-training is for
        config.batch, config.base_lr = 50, 4e-3
        config.total_steps, config.warmup_steps = 300, 30
        config.layer_decay = 0.75 if stage == "finetune" else None
        config.model.head_std = 2e-5
        config.label_smoothing = 0.1
        config.eval_every = config.checkpoint_every = 150
    return config
