"""Twenty steps of BEiT pre-training and fine-tuning beside `transformers`' BEiT and AdamW with the published groups."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

torch = pytest.importorskip("torch", reason="the `torch` extra is not installed")
transformers = pytest.importorskip("transformers", reason="the `torch` extra is not installed")

from tests.networks import for_tiny_networks, networks_for, with_second  # noqa: E402
from tests.test_protocols import batches, small_program  # noqa: E402
from tests.test_trajectories import SEED, TOTAL, WARMUP, begun, compare, recipe  # noqa: E402
from tests.torch_twins import as_numpy, beit_params  # noqa: E402
from vit_jax.methods.beit import hidden_blocks  # noqa: E402
from vit_jax.models.dvae import tokens  # noqa: E402
from vit_jax.ops.keys import fold, key_for  # noqa: E402
from vit_jax.ops.pixels import normalise  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
CLASSES, DECAY, DEPTH = 5, 0.65, 3


def rate(step, config, scale):
    """beit/utils.py, cosine_scheduler, by hand: a linspace with both ends, half a cosine that never reaches its end.

    The optimiser multiplies the whole of it by layer decay's factor (engine_for_finetuning.py).
    """
    rising = np.linspace(0.0, config.base_lr, WARMUP)
    falling = [
        config.end_lr + 0.5 * (config.base_lr - config.end_lr) * (1 + math.cos(math.pi * i / (TOTAL - WARMUP)))
        for i in range(TOTAL - WARMUP)
    ]
    return scale * float([*rising, *falling][step])


def their(kind, config, **fields):
    """A BEiT of `transformers` as small as `config`'s, with numbers in all parameters."""
    body = config.model.transformer
    made = transformers.BeitConfig(
        image_size=config.pp.crop, patch_size=config.model.patches.size[0], hidden_size=config.model.hidden_size,
        num_hidden_layers=body.num_layers, num_attention_heads=body.num_heads, intermediate_size=body.mlp_dim,
        layer_scale_init_value=body.layer_scale, layer_norm_eps=1e-6, drop_path_rate=0.0, **fields,
    )  # fmt: skip
    torch.manual_seed(0)
    model = kind(made).train()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def decays(name, parameter):
    """optim_factory.py: not vectors and biases, nor the class token; the mask token and relative positions do."""
    return 0.0 if parameter.ndim == 1 or name.endswith((".bias", "cls_token")) else 0.05


def test_pre_training():
    config = for_tiny_networks(recipe("beit.py:b16"))
    config.beit.update({"num_masked": 10, "min_block": 8})
    config.grad_norm_clip = 1.0
    networks = networks_for(config)
    program, state, mesh = small_program(config, None, networks)
    model = their(
        transformers.BeitForMaskedImageModeling, config, vocab_size=config.beit.vocab_size, use_mask_token=True,
        use_shared_relative_position_bias=True,
    )  # fmt: skip
    state = begun(state, beit_params(as_numpy(model.state_dict()), heads=4))
    tokenizer, counts, seen = networks.whole()["tokenizer"], [], set()
    coded = nnx.jit(lambda model, second: tokens(model, normalise(second, (0.0,), (1.0,))))

    def fed(*sizes):
        for number, batch in enumerate(batches(*sizes)):
            yield with_second(batch, config, seed=number)

    def theirs(pixels, batch, step):
        keys = fold(jax.random.split(key_for(SEED, "train", step), len(pixels)), 1)
        hidden = np.array(hidden_blocks(keys, config))
        codes = np.array(coded(tokenizer, jnp.asarray(batch.second)))
        counts.extend(hidden.sum(1).tolist())
        seen.update(codes.ravel().tolist())
        return model(
            pixels, bool_masked_pos=torch.from_numpy(hidden), labels=torch.from_numpy(codes[hidden]).long()
        ).loss

    groups = [([parameter], 1.0, decays(name, parameter)) for name, parameter in model.named_parameters()]
    assert {decay for _, _, decay in groups} == {0.0, 0.05}

    def read_back():
        return beit_params(as_numpy(model.state_dict()), heads=4)

    norms = compare(config, None, state, program, mesh, theirs, groups, read_back, rate, fed)
    assert len(set(counts)) > 2  # 10 patches, fewer, or none: a mean over pictures would be another number
    assert len(seen) > 4
    assert min(norms) < config.grad_norm_clip < max(norms)


def layer_of(name):
    """optim_factory.py, get_num_layer_for_vit: what comes before the blocks 0, block i is i + 1, the rest last."""
    if name.startswith("beit.embeddings."):
        return 0
    return int(name.split(".")[2]) + 1 if name.startswith("beit.layers.") else DEPTH + 1


def test_fine_tuning():
    """A table a block, the mean of the patches, no clip."""
    config = recipe("beit_finetune.py:b16")
    assert (config.layer_decay, config.weight_decay, config.model.relative_positions) == (DECAY, 0.05, "block")
    assert (config.schedule, config.end_lr, config.grad_norm_clip) == ("beit", 1e-6, None)
    program, state, mesh = small_program(config, CLASSES)
    model = their(
        transformers.BeitForImageClassification, config, num_labels=CLASSES, use_relative_position_bias=True,
    )  # fmt: skip
    state = begun(state, beit_params(as_numpy(model.state_dict()), heads=4))
    groups = [
        ([parameter], DECAY ** (DEPTH + 1 - layer_of(name)), decays(name, parameter))
        for name, parameter in model.named_parameters()
    ]
    assert len({scale for _, scale, _ in groups}) == DEPTH + 2

    def theirs(pixels, batch, step):
        labels = torch.from_numpy(batch.label).long()
        return torch.nn.functional.cross_entropy(model(pixels).logits, labels, label_smoothing=config.label_smoothing)

    def read_back():
        return beit_params(as_numpy(model.state_dict()), heads=4)

    compare(config, CLASSES, state, program, mesh, theirs, groups, read_back, rate)
