"""Frozen networks for tests: as their recipes have them, tiny, with random parameters."""

import jax
import numpy as np
from flax import nnx

from vit_jax import configuration, derived, train
from vit_jax.methods import method_of
from vit_jax.methods.building import build
from vit_jax.methods.method import Network, Networks

TOKENIZER = {"vocab_size": 16, "num_groups": 2, "blocks_per_group": 1, "encoder_width": 8, "decoder_width": 8,
             "decoder_inputs": 8}  # fmt: skip


def networks_for(config, seed=0):
    """Networks that fit `config` (a tokenizer of codes of 2 x 2 pixels)."""
    networks = Networks()
    for name, spec in method_of(config).frozen.items():
        made = configuration.load(spec.recipe)
        made.tokenizer.update(TOKENIZER)
        made.pp.crop, made.pp.channels, made.compute_dtype = 8, config.pp.channels, "float32"
        spec.fits(made, config)
        graph, params = nnx.split(build(made, None, seed))
        networks[name] = Network(graph, jax.tree.map(np.asarray, params))
    return networks


def for_tiny_networks(config):
    """Change `config` so that `networks_for` can give it networks."""
    if config.objective == "beit":
        patch = config.model.patches.size
        config.beit.update({"vocab_size": TOKENIZER["vocab_size"], "num_masked": None, "min_block": None})
        config.pp.second_share = 2 / (patch if isinstance(patch, int) else patch[0])
    return config


def trained_networks(config, folder):
    """`config` with the workdirs of networks that fit it, each trained for a step of made-up pictures."""
    for name, spec in method_of(config).frozen.items():
        made = configuration.load("digits.py:pretrain,tokenizer")
        made.update({"dataset": "fake", "batch": 16, "total_steps": 1, "warmup_steps": 0, "num_threads": 1})
        made.pp.update({"train": "train", "crop": 8, "channels": config.pp.channels})
        made.tokenizer.update(TOKENIZER)
        spec.fits(made, config)
        train.run(made, folder / name)
        config.update_from_flattened_dict({spec.field: str(folder / name)})
    return config


def with_second(batch, config, seed=1):
    """The same batch with a second view, of noise, where `config` asks for one."""
    size = derived.second_crop(config.pp)
    if size is None:
        return batch
    shape = (len(batch.image), *size, batch.image.shape[-1])
    return batch._replace(second=np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))
