"""Fine-tune a BEiT end to end (microsoft/unilm beit, README.md, get_started_for_image_classification.md).

    python -m vit_jax.main --workdir=runs/beit-b16-ft --config=configs/beit_finetune.py:b16 \
        --config.init_from=runs/beit-b16         # or beit_base_patch16_224_pt22k.pth, or its Hugging Face folder

Every block gets a table of relative positions of its own, a copy of the one they shared; at 384 pixels the tables are
resized geometrically, as the published loader does it.

b16, l16: ImageNet-1k from the pre-trained encoder; expected 83.7 and 86.0 after pre-training on ImageNet-22k.
b16,22k and l16,22k: the intermediate fine-tuning on ImageNet-22k's 21,841 classes, from the pre-trained encoder.
b16,after22k and l16,after22k: ImageNet-1k from what that gave; expected 85.2 and 87.4, and 86.8 and 88.4 with
b16,after22k,384 and l16,after22k,384. Not measured here.
"""

from __future__ import annotations

from configs import beit, common

# (base_lr, batch, epochs, warm-up epochs, layer decay, drop path, clip)
STAGES = {
    "b16": (4e-3, 1024, 100, 20, 0.65, 0.1, None),
    "l16": (1e-3, 1024, 50, 5, 0.75, 0.2, None),
    "b16,22k": (3e-3, 4096, 90, 5, 0.65, 0.2, 3.0),
    "l16,22k": (2e-3, 2048, 90, 5, 0.75, 0.2, 1.0),
    "b16,after22k": (2e-5, 512, 30, 5, 0.85, 0.1, None),
    "l16,after22k": (2e-5, 512, 30, 5, 0.9, 0.4, None),
}
NAMES = (*STAGES, "b16,after22k,384", "l16,after22k,384")


def get_config(name: str = "b16"):
    """A model and a stage of the paper's way to a classifier."""
    if name not in NAMES:
        raise ValueError(f"Expected beit_finetune.py:{{{' '.join(NAMES)}}}, got {name!r}.")
    stage = name.removesuffix(",384")
    size, _, pictures = stage.partition(",")
    config = beit.get_config(f"{size},22k" if pictures == "22k" else size)
    common.choose(config, "classify")
    config.base_lr, config.batch, config.total_epochs, warmup, config.layer_decay, drop_path, clip = STAGES[stage]
    config.model.update({"relative_positions": "block", "norm_after_pool": True, "head_std": 2e-5})
    config.model.transformer.drop_path, config.grad_norm_clip = drop_path, clip
    config.pp.crop_area, config.pp.color_jitter, config.pp.second_share = (0.08, 1.0), 0.0, None
    config.pp.mean, config.pp.std = (0.5,), (0.5,)  # the published encoders'; another's come with its weights
    config.pp.randaugment, config.pp.erasing, config.label_smoothing = "rand-m9-mstd0.5-inc1", 0.25, 0.1
    if not pictures:
        config.mixup, config.cutmix = 0.8, 1.0
    if pictures == "after22k":
        config.weight_decay = 1e-8
    config.end_lr, config.batch_eval, config.figures_every = 1e-6, 512, 0
    config.warmup_steps, config.warmup_share = None, warmup / config.total_epochs
    if name.endswith(",384"):
        config.pp.crop, config.pp.crop_share = 384, 1.0
    return config
