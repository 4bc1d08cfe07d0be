"""BEiT pre-training (Bao et al. 2022; microsoft/unilm beit, run_beit_pretraining.py). No labels, but a tokenizer.

    python -m vit_jax.main --workdir=runs/beit-b16 --config=configs/beit.py:b16 \
        --config.beit.tokenizer=runs/tokenizer --config.dataset=imagenet2012            # or a folder of pictures

The tokenizer is any trained by tokenizer.py, or OpenAI's files, which BEiT's weights were made with. Its codes are as many as
`beit.vocab_size`, and a second view of each picture gives one code a patch: half the size where codes are 8 x 8 pixels and
patches 16 x 16.

Models: b16 and l16 on ImageNet-1k (800 epochs), b16,22k and l16,22k on ImageNet-21k (150 epochs). Expected after fine-tuning
with beit_finetune.py: 83.2 and 85.2 from ImageNet-1k, 83.7 and 86.0 from ImageNet-22k. Not measured here at that size; small
runs on CIFAR-10 are in docs/results.md.
"""

from __future__ import annotations

from configs import common, models, simmim
from configs.common import SOME_PATH, Field
from configs.kinds import optional, text, whole

FIELDS = {
    "beit.tokenizer": Field(
        None, optional(SOME_PATH), "the frozen tokenizer: the workdir of a run of tokenizer.py, or OpenAI's files"
    ),
    "beit.tokenizer_sha256": Field(
        None, optional(text("64 hexadecimal digits", r"[0-9a-f]{64}")),
        "checksum of its parameters; None: of those that are found, and kept in the checkpoints",
    ),
    "beit.vocab_size": Field(8192, whole(2, 2**20), "codes of the tokenizer"),
    "beit.num_masked": Field(
        None, optional(whole(1, 1_000_000)), "patches hidden at most; None: 75 of 196, the same share of others"
    ),
    "beit.min_block": Field(
        None, optional(whole(1, 1_000_000)), "patches of the smallest hidden block; None: 16 of 196, the same share of others"
    ),
}  # fmt: skip
NAMES = ("b16", "l16", "b16,22k", "l16,22k")
# What digits.py and folder.py pre-train with, by tokenizers that they trained.
DIGITS = {
    "beit.vocab_size": 64, "pp.second_share": 1.0, "batch": 128, "base_lr": 2e-3, "total_steps": 600, "warmup_steps": 60,
    "eval_every": 300, "checkpoint_every": 300,
}  # fmt: skip
FOLDER = {"beit.vocab_size": 1024, "pp.crop_area": (0.2, 1.0), "b2": 0.95, "base_lr": 6e-4}


def fit(config) -> None:
    """A second view for the tokenizer that folder.py trains of the same pictures: a code a patch, of 8 pixels or fewer."""
    config.pp.second_share = min(8, config.model.patches.size[0]) / config.model.patches.size[0]


def get_config(name: str = "b16"):
    """A published model, and the pictures it learns from."""
    if name not in NAMES:
        raise ValueError(f"Expected beit.py:{{{' '.join(NAMES)}}}, got {name!r}.")
    size, _, pictures = name.partition(",")
    config = common.get_config()
    common.choose(config, "beit", FIELDS)
    config.model = models.from_short_name(size)
    simmim.backbone(config)
    config.model.relative_positions = "shared"
    config.model.transformer.update({"layer_scale": 0.1 if size == "b16" else 1e-5, "drop_path": 0.1})
    config.dataset, config.pp.test = ("imagenet21k", "full[:51200]") if pictures else ("imagenet2012", "validation")
    if pictures:
        config.pp.train = "full[51200:]"  # big_vision's split
    if not pictures:  # [-1, 1] otherwise
        config.pp.mean, config.pp.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    config.pp.crop, config.pp.crop_share, config.pp.crop_area = 224, 0.875, (0.08, 1.0)
    config.pp.interpolation, config.pp.color_jitter = "bicubic", 0.4
    config.pp.second_share, config.pp.second_interpolation = 0.5, "lanczos"
    config.optim, config.optim_dtype = "adamw", "float32"
    config.batch, config.batch_eval = 2048, 1024
    config.base_lr, config.end_lr, config.schedule = 1.5e-3, 1e-5, "beit"
    config.weight_decay = 0.05
    # The mask token and the table of relative positions do decay, the class token does not.
    config.weight_decay_rules = (("(bias|scale1?2?)$", 0.0), ("(^|/)cls$", 0.0), ("", 1.0))
    config.grad_norm_clip = 1.0 if size == "l16" else 3.0
    config.total_steps, config.total_epochs = None, 150 if pictures else 800
    config.warmup_steps, config.warmup_share = (10_000, None) if pictures else (None, 10 / 800)
    config.eval_every, config.checkpoint_every, config.figures_every = 5000, 1000, 5000
    config.remat = "dots"
    return config
