"""Relative position bias: its index by hand, its place in attention, its resizing against the original's formula."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.interpolate import RectBivariateSpline

from tests import tolerances
from vit_jax import configuration
from vit_jax.models.attention import attention_weights, padded_attention
from vit_jax.models.registry import vit_config
from vit_jax.models.vit import ViT
from vit_jax.ops.positions import relative_index, resample_relative


def test_index_by_hand():
    index = relative_index((2, 3), True)
    assert index.shape == (7, 7)
    assert index.max() == 3 * 5 + 2
    assert (index[0, 0], set(index[0, 1:]), set(index[1:, 0])) == (17, {15}, {16})
    patches = index[1:, 1:]
    # query (row 1, column 2) and key (row 0, column 0): one down, two right of it
    assert patches[5, 0] == (1 + 1) * 5 + 2 + 2
    assert patches[0, 5] == 0
    assert set(np.diag(patches)) == {(3 * 5) // 2}
    np.testing.assert_array_equal(relative_index((2, 3), False), patches)


def theirs(table, old, new):
    """The steps of the published loader, one head after another, for square grids."""
    src, dst = 2 * old - 1, 2 * new - 1
    left, right = 1.01, 1.5
    while right - left > 1e-6:
        q = (left + right) / 2.0
        reach = sum(q**power for power in range(src // 2))
        left, right = (left, q) if reach > dst // 2 else (q, right)
    distances, current = [], 1.0
    for place in range(src // 2):
        distances.append(current)
        current += q ** (place + 1)
    x = [-distance for distance in reversed(distances)] + [0.0] + distances
    steps = np.arange(-(dst // 2.0), dst // 2.0 + 0.1, 1.0)
    heads = [
        RectBivariateSpline(x, x, table[:-3, head].reshape(src, src))(steps, steps).reshape(-1)
        for head in range(table.shape[1])
    ]
    return np.concatenate([np.stack(heads, axis=1), table[-3:]])


@pytest.mark.parametrize(("old", "new"), [(14, 24), (3, 14), (7, 11), (14, 7), (6, 6)])
def test_resizing_follows_the_loader(old, new):
    table = np.random.default_rng(0).standard_normal(((2 * old - 1) ** 2 + 3, 2))
    made = resample_relative(table, (old, old), (new, new))
    expected = table if old == new else theirs(table, old, new)
    np.testing.assert_allclose(made, expected, atol=1e-9)
    stacked = resample_relative(np.stack([table, 2 * table]), (old, old), (new, new))
    np.testing.assert_allclose(stacked, np.stack([made, 2 * made]), atol=1e-9)


def test_the_middle_stays_where_the_grid_grows():
    """Offset zero and the nearest ones are whole numbers in both grids."""
    table = np.random.default_rng(0).standard_normal((27 * 9 + 3, 1))
    made = resample_relative(table, (14, 5), (24, 9))
    centres = [
        values[:-3].reshape(rows, columns)[rows // 2 - 1 : rows // 2 + 2, columns // 2 - 1 : columns // 2 + 2]
        for values, rows, columns in ((made, 47, 17), (table, 27, 9))
    ]
    np.testing.assert_allclose(*centres, atol=1e-9)


def test_one_patch_a_side_cannot_be_resized():
    with pytest.raises(ValueError, match="3 patches"):
        resample_relative(np.zeros((3 + 3, 1)), (1, 2), (4, 4))


def config_with(kind, **model):
    config = configuration.default_fields()
    config.pp.crop = (8, 12)
    config.compute_dtype = "float32"
    config.model.update({"hidden_size": 16, "relative_positions": kind, "init": "beit", "key_bias": False} | model)
    config.model.patches.size = (4, 4)
    config.model.transformer.update({"num_layers": 2, "num_heads": 2, "mlp_dim": 32, "layer_scale": 0.1})
    return config


def test_a_shared_table_is_the_same_table_in_every_block():
    shared, block = (ViT(vit_config(config_with(kind), 3), rngs=nnx.Rngs(0)) for kind in ("shared", "block"))
    table = 5 * jnp.asarray(np.random.default_rng(0).standard_normal((18, 2)), jnp.float32)
    shared.transformer.relative_positions[...] = table
    theirs = dict(nnx.to_flat_state(nnx.split(shared)[1]))
    graph, params = nnx.split(block)
    taken = [(path, theirs.get(path, value)) for path, value in nnx.to_flat_state(params)]
    block = nnx.merge(graph, nnx.from_flat_state(taken))
    pictures = jnp.asarray(np.random.default_rng(1).standard_normal((2, 8, 12, 3)), jnp.float32)
    plain, expected = block.features(pictures), shared.features(pictures)
    assert float(jnp.abs(plain - expected).max()) > 1e-5
    block.transformer.blocks.attention.relative_positions[...] = jnp.stack([table, table])
    assert float(jnp.abs(block.features(pictures) - expected).max()) < 1e-6


def test_keys_have_no_bias_and_queries_and_values_do():
    attention = ViT(vit_config(config_with("none"), 3), rngs=nnx.Rngs(0)).transformer.blocks.attention
    assert not hasattr(attention.qkv, "bias")
    assert attention.qv_bias[...].shape == (2, 2, 2, 8)  # blocks, query and value, heads, width


@pytest.mark.parametrize("multiple", [1, 2])
def test_padded_attention_with_a_bias_is_attention(multiple):
    rng = np.random.default_rng(0)
    query, key, value = (jnp.asarray(rng.standard_normal((2, 5, 2, 4)), jnp.float32) for _ in range(3))
    bias = jnp.asarray(rng.standard_normal((1, 2, 5, 5)), jnp.float32)
    expected = jnp.einsum("bhmn,bnhe->bmhe", attention_weights(query, key, bias), value)
    found = padded_attention(query, key, value, "xla", bias, multiple=multiple)
    assert float(jnp.abs(found - expected).max()) < tolerances.FORWARD


def test_initial_values_are_cut_and_shrink_with_depth():
    config = config_with("shared", hidden_size=64)
    config.model.transformer.mlp_dim = 256
    model = ViT(vit_config(config, 3), rngs=nnx.Rngs(0))
    fc1, fc2 = (
        np.asarray(part.kernel[...]) for part in (model.transformer.blocks.mlp.fc1, model.transformer.blocks.mlp.fc2)
    )
    assert np.abs(fc1).max() <= 0.02
    assert fc1.std() == pytest.approx(0.02 * 0.5396, rel=0.02)  # of a normal cut at one deviation
    for block in range(2):
        assert np.abs(fc2[block]).max() <= 0.02 / np.sqrt(2 * (block + 1)) + 1e-9
        assert fc2[block].std() == pytest.approx(fc1.std() / np.sqrt(2 * (block + 1)), rel=0.05)
    assert 0 < np.abs(np.asarray(model.cls[...])).max() <= 0.02
    assert not np.asarray(model.transformer.relative_positions[...]).any()


def test_relative_positions_need_one_token_before_the_patches_at_most():
    with pytest.raises(ValueError, match=r"model\.relative_positions or model\.dist_token"):
        vit_config(config_with("block", dist_token=True), 3)
