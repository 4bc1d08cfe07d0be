"""Parameter counts of the papers, stages, masks that do not leak, settings that change speed only."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vit_jax
from tests import tolerances
from vit_jax import UserError, configuration
from vit_jax.methods.building import build
from vit_jax.methods.mae import MAE, MAEConfig
from vit_jax.models.layers import TransformerConfig
from vit_jax.models.registry import count_params
from vit_jax.models.vit import ViT, ViTConfig
from vit_jax.ops.masks import make_mask
from vit_jax.ops.paths import flat_params

# google-research/vision_transformer models_test.py at 224 pixels, 1000 classes, no pre_logits
PUBLISHED = {
    "ViT-Ti_16": 5_717_416, "ViT-S_16": 22_050_664, "ViT-S_32": 22_878_952, "ViT-B_8": 86_576_872,
    "ViT-B_16": 86_567_656, "ViT-B_32": 88_224_232, "ViT-L_16": 304_326_632, "ViT-L_32": 306_535_400,
    "ViT-H_14": 632_045_800, "R+ViT-Ti_16": 6_337_704, "R26+ViT-S_32": 36_431_912, "R26+ViT-B_32": 101_383_976,
    "R50+ViT-B_16": 98_659_112, "R50+ViT-L_32": 328_994_856,
}  # fmt: skip
# Scaling ViT: with the attention-pooling head, without the classifier
SCALING = {"ViT-G_14": 1_881_132_416}
SCALING_BODY = {"ViT-g_14": 1_011_199_616, "ViT-G_14": 1_842_772_352}
# MAE (recipes of the paper's three models): with the two frozen position tables, which here are constants
MAE_COUNTS = {"b16": (111_907_840, 768, 197), "l16": (329_541_888, 1024, 197), "h14": (657_074_508, 1280, 257)}

SMALL = TransformerConfig(hidden_size=16, num_layers=2, num_heads=2, mlp_dim=32)


def shapes(config, num_classes):
    return nnx.split(jax.eval_shape(lambda: build(config, num_classes)))[1]


def config_of(name, **fields):
    config = configuration.default_fields()
    config.model = configuration.model_config(name)
    config.model.update(fields)
    return config


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_are_googles(name):
    assert count_params(shapes(config_of(name), 1000)) == PUBLISHED[name]


def test_every_published_size_is_in_the_table():
    from configs.models import MODEL_CONFIGS

    assert set(MODEL_CONFIGS) == set(PUBLISHED) | set(SCALING_BODY)


def test_parameter_counts_of_variants():
    assert count_params(shapes(config_of("ViT-S_16", classifier="gap"), 1000)) == 22_049_896
    assert count_params(shapes(config_of("ViT-B_16", classifier="gap"), 1000)) == 86_566_120
    assert count_params(shapes(config_of("ViT-B_16", representation_size=768), 1000)) == 87_158_248
    for name, expected in SCALING.items():
        assert count_params(shapes(config_of(name), None)) == expected
    for name, expected in SCALING_BODY.items():
        body = {
            path: leaf for path, leaf in flat_params(shapes(config_of(name), None)).items() if "map_head" not in path
        }
        assert count_params(body) == expected


@pytest.mark.parametrize("name", MAE_COUNTS)
def test_mae_parameter_counts(name):
    total, width, tokens = MAE_COUNTS[name]
    constants = tokens * (width + 512)
    assert count_params(shapes(configuration.load(f"mae.py:{name}"), None)) == total - constants


@pytest.mark.parametrize("classifier", ["token", "gap", "map", "unpooled", "token_unpooled"])
@pytest.mark.parametrize("representation_size", [None, 24])
def test_classifiers_and_any_picture_shape(classifier, representation_size):
    cfg = ViTConfig(SMALL, (8, 12), (4, 2), channels=5, num_classes=3, classifier=classifier,
                    representation_size=representation_size, head_std=0.1)  # fmt: skip
    model = ViT(cfg, rngs=nnx.Rngs(0))
    out = model(jnp.ones((2, 8, 12, 5)))
    tokens = {"unpooled": (12,), "token_unpooled": (13,)}.get(classifier, ())
    assert out.shape == (2, *tokens, 3)
    assert float(jnp.abs(out).max()) > 0


@pytest.mark.parametrize("positions", ["learn", "sincos2d", "sincos2d_mae", "none"])
def test_positions_matter_unless_there_are_none(positions):
    cfg = ViTConfig(SMALL, (8, 8), (4, 4), classifier="gap", positions=positions, train_positions=False)
    model = ViT(cfg, rngs=nnx.Rngs(0))
    images = jax.random.normal(jax.random.key(0), (1, 8, 8, 3))
    moved = jnp.concatenate([images[:, 4:], images[:, :4]], axis=1)
    difference = float(jnp.abs(model(images) - model(moved)).max())
    assert (difference < 1e-5) == (positions == "none")
    assert hasattr(model, "positions") == (positions == "learn")


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
@pytest.mark.parametrize("unroll", [1, 2])
def test_remat_and_unroll_change_nothing(small, remat, unroll):
    def gradient(**changes):
        config = small("scratch", **changes)
        graph, params = nnx.split(build(config, 4, 0))
        images = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
        return flat_params(jax.grad(lambda p: jnp.sum(nnx.merge(graph, p).features(images) ** 2))(params))

    plain, other = gradient(), gradient(remat=remat, unroll=unroll)
    for path, value in plain.items():
        np.testing.assert_allclose(
            other[path], value, rtol=1e-4, atol=tolerances.SUM_ORDER * float(jnp.abs(value).max() + 1)
        )


def test_hidden_pixels_do_not_reach_the_prediction():
    cfg = MAEConfig(ViTConfig(SMALL, (16, 16), (4, 4), cls_token=True, positions="sincos2d_mae"), SMALL, num_visible=5)
    model = MAE(cfg, rngs=nnx.Rngs(0))
    mask = make_mask("random", jax.random.split(jax.random.key(0), 2), (4, 4), 5)
    images = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
    hidden = jnp.repeat(jnp.repeat(mask.hidden.reshape(2, 4, 4), 4, 1), 4, 2)[..., None]
    changed = jnp.where(hidden, 100.0, images)
    np.testing.assert_array_equal(model(images, mask), model(changed, mask))
    seen = jnp.where(hidden, images, 100.0)
    assert not np.array_equal(model(images, mask), model(seen, mask))


def test_hidden_patches_cost_nothing_in_the_encoder():
    from vit_jax.training.flops import count_flops

    def flops(num_visible):
        config = configuration.load("mae.py:b16")
        config.mae.num_visible = num_visible
        config.compute_dtype = "float32"
        graph, params = nnx.split(jax.eval_shape(lambda: build(config, None)))
        images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
        visible = jax.ShapeDtypeStruct((1, num_visible), jnp.int32)

        def encode(params, images, visible):
            encoder = nnx.merge(graph, params).encoder
            return encoder.encode(encoder.placed(encoder.embed(encoder.patches(images), visible), visible))

        return count_flops(encode, params, images, visible)

    def by_hand(k):  # patches, then 12 blocks of 4 d^2 + 2 d m a token and 2 t^2 d of attention, two FLOPs each
        d, m, t = 768, 3072, k + 1
        return 2 * (k * d * d + 12 * (t * (4 * d * d + 2 * d * m) + 2 * t * t * d))

    assert flops(49) == by_hand(49)
    assert flops(195) == by_hand(195)


def test_bfloat16_stays_bfloat16_through_every_block():
    config = config_of("ViT-Ti_16", positions="sincos2d")
    config.compute_dtype = "bfloat16"
    graph, params = nnx.split(jax.eval_shape(lambda: build(config, 10)))

    def run(params, images):
        model = nnx.merge(graph, params)
        placed = model.placed(model.embed(model.patches(images)))
        return placed, model.transformer.every_layer(placed), model(images)

    placed, layers, logits = jax.eval_shape(run, params, jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32))
    assert placed.dtype == layers.dtype == jnp.bfloat16
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_training_without_keys_is_an_error_and_with_them_random():
    noisy = TransformerConfig(16, 2, 2, 32, dropout_rate=0.2, attention_dropout_rate=0.2, drop_path=0.3)
    model = ViT(ViTConfig(noisy, (8, 8), (4, 4), num_classes=None), rngs=nnx.Rngs(0))
    images = jnp.ones((4, 8, 8, 3))
    with pytest.raises(ValueError, match="keys"):
        model(images, train=True)
    keys = jax.random.split(jax.random.key(0), 4)
    first, again = model(images, train=True, keys=keys), model(images, train=True, keys=keys)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, model(images))
    # an example's noise is its own key's: the batch around it does not matter
    np.testing.assert_allclose(model(images[:2], train=True, keys=keys[:2]), first[:2], rtol=1e-5, atol=1e-5)


def test_layer_scale_and_initialisation_by_origin():
    scaled = ViT(ViTConfig(TransformerConfig(16, 2, 2, 32, layer_scale=0.1), (8, 8), (4, 4)), rngs=nnx.Rngs(0))
    np.testing.assert_allclose(scaled.transformer.blocks.scale1[...], np.full((2, 16), 0.1), rtol=1e-6)
    for init, bound in (("google", np.sqrt(6 / (768 + 768))), ("mae", np.sqrt(6 / (768 + 3 * 768)))):
        config = config_of("ViT-B_16", init=init)
        config.model.transformer.num_layers = 1
        kernel = np.asarray(build(config, None).transformer.blocks.attention.qkv.kernel[...])
        assert 0.99 * bound < np.abs(kernel).max() <= bound


def test_create_by_name():
    model = vit_jax.create("ViT-Ti_16", num_classes=10, image_size=(32, 48), channels=1, classifier="gap")
    assert model(jnp.zeros((1, 32, 48, 1))).shape == (1, 10)
    with pytest.raises(UserError, match="ViT-X_16"):
        vit_jax.create("ViT-X_16")
    with pytest.raises(UserError, match="whole number"):
        vit_jax.create("ViT-Ti_16", image_size=100)
    with pytest.raises(UserError, match="clasifier"):
        vit_jax.create("ViT-Ti_16", clasifier="gap")
    with pytest.raises(ValueError, match=r"change pp\.crop"):
        model(jnp.zeros((1, 32, 32, 1)))
