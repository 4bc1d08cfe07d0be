"""A picture tokenizer: the discrete VAE of DALL-E (Ramesh et al. 2021, appendix A), BEiT's source of targets. No labels.

    python -m vit_jax.main --workdir=runs/tokenizer --config=configs/tokenizer.py:dalle \
        --config.dataset=imagenet2012            # or a folder of pictures

Models: dalle (97.6 M parameters, 8,192 codes, 256 pixels), small (5.7 M parameters, 1,024 codes, 112 pixels; this
project's choice). The paper's settings are from memory (unchecked); it trained on 250 million pictures, batch 512 on 64 V100.
Neither was trained here. Measured: digits.py:pretrain,tokenizer, 400 steps, about 20 s of steps on two busy CPU cores and as
long for compiling; of the test pictures a mean squared error of 0.053 (variance 0.142), 33 of 64 codes used, perplexity 11.6.
"""

from __future__ import annotations

from configs import common
from configs.common import Field
from configs.kinds import number, optional, whole

WIDTH = whole(4, 65_536)
FIELDS = {
    "tokenizer.vocab_size": Field(8192, whole(2, 2**20), "codes"),
    "tokenizer.num_groups": Field(4, whole(1, 8), "all but the last halve the map: 4 give codes of 8 x 8 pixels"),
    "tokenizer.blocks_per_group": Field(2, whole(1, 100), "blocks of four convolutions each"),
    "tokenizer.encoder_width": Field(256, WIDTH, "channels of the first group, twice as many in each next; divisible by 4"),
    "tokenizer.decoder_width": Field(256, optional(WIDTH), "the same, of the last; None: no decoder, codes alone"),
    "tokenizer.decoder_inputs": Field(128, WIDTH, "numbers that a code is looked up into"),
    "tokenizer.temperature_start": Field(1.0, number(above=0), "of the relaxed codes, at the first step"),
    "tokenizer.temperature_end": Field(1 / 16, number(above=0), "and from temperature_steps on"),
    "tokenizer.temperature_steps": Field(150_000, whole(0), "steps from the one to the other, along a cosine"),
    "tokenizer.kl_weight": Field(6.6, number(0), "of the codes' KL from equally likely ones, after kl_steps"),
    "tokenizer.kl_steps": Field(5000, whole(0), "steps from 0 up to it, along a cosine"),
}  # fmt: skip

PIXELS = {"pp.mean": (0.0,), "pp.std": (1.0,)}  # the model takes fractions
SMALL = {
    "tokenizer.vocab_size": 1024, "tokenizer.encoder_width": 64, "tokenizer.decoder_width": 64,
    "tokenizer.temperature_steps": 10_000, "tokenizer.kl_steps": 1000,
}  # fmt: skip
# What digits.py and folder.py train with.
DIGITS = {
    **PIXELS,
    "tokenizer.vocab_size": 64, "tokenizer.num_groups": 2, "tokenizer.blocks_per_group": 1, "tokenizer.encoder_width": 16,
    "tokenizer.decoder_width": 16, "tokenizer.decoder_inputs": 16, "tokenizer.temperature_steps": 300,
    "tokenizer.temperature_start": 2.0, "tokenizer.temperature_end": 0.5, "tokenizer.kl_steps": 1,
    "tokenizer.kl_weight": 0.3,  # a code stands for 4 colour values here, for 192 in the paper
    "batch": 128, "base_lr": 1e-2, "b2": 0.999, "weight_decay": 1e-4, "total_steps": 400, "warmup_steps": 30,
    "eval_every": 200, "checkpoint_every": 200,
}  # fmt: skip
FOLDER = {
    **PIXELS, **SMALL,
    "tokenizer.temperature_steps": 2000, "pp.crop_area": (0.35, 1.0), "base_lr": 6e-4, "weight_decay": 1e-4,
}  # fmt: skip


def fit(config) -> None:
    """Codes as large as the patches of folder.py's ViT, 8 pixels at most; one of fewer colour values may say less."""
    side = min(8, config.model.patches.size[0])
    config.tokenizer.num_groups = side.bit_length()
    config.tokenizer.kl_weight *= (side / 8) ** 2


def get_config(name: str = "dalle"):
    """The paper's model, or the small one."""
    if name not in ("dalle", "small"):
        raise ValueError(f"Expected tokenizer.py:{{dalle,small}}, got {name!r}.")
    config = common.get_config()
    common.choose(config, "tokenizer", FIELDS)
    config.dataset = "imagenet2012"
    config.pp.test = "validation"
    config.pp.update({"crop": 256, "crop_share": 1.0, "crop_area": (0.35, 1.0), "flip": False})
    config.pp.interpolation = "lanczos"  # BEiT's, for the pictures of its tokenizer
    config.optim, config.optim_dtype, config.b1, config.b2 = "adamw", "float32", 0.9, 0.999
    config.weight_decay = 1e-4
    config.weight_decay_rules = (("bias$", 0.0), ("", 1.0))
    config.grad_norm_clip = None
    config.batch, config.batch_eval = 512, 512
    config.base_lr, config.end_lr, config.ema = 1e-4, 1.25e-6, 0.999
    config.total_steps, config.warmup_steps = 1_200_000, 0  # where the rate has fallen; they went on at it to 3,000,000
    config.eval_every, config.checkpoint_every, config.figures_every = 5000, 1000, 5000
    config.update_from_flattened_dict(PIXELS)
    if name == "small":
        config.update_from_flattened_dict(SMALL)
        config.pp.crop = 112
        config.batch, config.batch_eval, config.base_lr = 256, 256, 5e-4
        config.total_steps, config.warmup_steps = 50_000, 1000
    return config
