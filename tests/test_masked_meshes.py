"""SimMIM and BEiT on every mesh: one device's numbers, with the frozen tokenizer laid out over it."""

import jax
import numpy as np
import pytest

from tests.networks import for_tiny_networks, networks_for
from tests.test_sharding import MESHES, assert_equal_steps, one_step
from tests.test_training import busy
from vit_jax import configuration, sharding
from vit_jax.methods import method_of
from vit_jax.methods.beit import hidden_blocks
from vit_jax.ops.paths import flat_params
from vit_jax.planning.hlo import KINDS

ORDINARY = [(1, 8, 1), (2, 2, 2)]  # (data, fsdp, tensor); the other meshes are slow


def masked(small, method):
    """Dropout, drop path, masks, relative positions and accumulation all on."""
    config = for_tiny_networks(busy(small, f"pretrain,{method}", accum_steps=2))
    config.model.update({"positions": "none", "relative_positions": "shared", "key_bias": False, "init": "beit"})
    config.model.transformer.layer_scale = 0.1
    if method == "beit":
        config.beit.update({"num_masked": 10, "min_block": 8})  # 10 of 16 patches, fewer, or none
    return config


@pytest.fixture(scope="module")
def kept():
    return {}


@pytest.fixture(autouse=True)
def _all_is_large(monkeypatch):
    """A kernel of hundreds of numbers is split by every axis, as one of thousands is otherwise."""
    monkeypatch.setattr(sharding, "LARGE", 64)


@pytest.mark.parametrize(
    "sizes", [s if s in ORDINARY else pytest.param(s, marks=pytest.mark.slow) for s in MESHES], ids=str
)
@pytest.mark.parametrize("method", ["simmim", "beit"])
def test_eight_devices_equal_one(small, kept, method, sizes):
    """Padded rows in both batches; losses, metrics of the step and of evaluation, and gradients."""
    config = masked(small, method)
    networks = networks_for(config)
    if method not in kept:
        kept[method] = one_step(masked(small, method), {"data": 1}, networks=networks)
    one, given = kept[method], None if sizes == (2, 2, 2) else kept[method].first
    together = one_step(config, dict(zip(sharding.AXES, sizes, strict=True)), given, networks)
    assert_equal_steps(one, together)
    assert {"loss", *one.report.means} - {"examples"} <= set(one.metrics)
    assert bool(method_of(config).frozen) == bool(together.frozen)
    for tree in (together.last.params, *together.frozen):
        leaves = flat_params(tree)
        split = [path for path, leaf in leaves.items() if not leaf.sharding.is_fully_replicated]
        assert bool(split) == (sizes[1] * sizes[2] > 1)
        shares = [leaves[path].addressable_shards[0].data.size / leaves[path].size for path in split]
        assert not split or min(shares) == 1 / (sizes[1] * sizes[2])


def test_no_device_waits_for_others_to_hide_its_patches():
    """Blocks are placed until they fit: over a split batch that is a question to all devices each round."""
    mesh, config = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2}), configuration.load("beit.py:b16")
    keys = jax.random.split(jax.random.key(0), 16)

    def masks(keys):
        with sharding.over(mesh):
            return hidden_blocks(keys, config)

    layout = sharding.batch_layout(mesh)
    compiled = jax.jit(masks, in_shardings=layout, out_shardings=layout).lower(keys).compile()
    assert not any(kind in compiled.as_text() for kind in KINDS)
    np.testing.assert_array_equal(compiled(jax.device_put(keys, layout)), hidden_blocks(keys, config))


def test_masks_of_one_batch_hide_different_numbers(small):
    """Or the test above would not see a mean over pictures."""
    config = masked(small, "beit")
    counts = np.asarray(hidden_blocks(jax.random.split(jax.random.key(0), 64), config)).sum(1)
    assert len(set(counts.tolist())) > 2
