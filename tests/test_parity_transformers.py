"""Forward, loss and gradients against Hugging Face `transformers` on the same weights, pictures and noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

torch = pytest.importorskip("torch", reason="the `torch` extra is not installed")
transformers = pytest.importorskip("transformers", reason="the `torch` extra is not installed")

from tests import tolerances  # noqa: E402
from tests.torch_twins import as_numpy, mae_params, relative, vit_params  # noqa: E402
from vit_jax.contracts import Batch  # noqa: E402
from vit_jax.methods import method_of  # noqa: E402
from vit_jax.methods.building import assemble  # noqa: E402
from vit_jax.methods.mae import MAEConfig, mae_config  # noqa: E402
from vit_jax.ops.masks import from_scores  # noqa: E402
from vit_jax.ops.paths import flat_params  # noqa: E402

# transformers imports and torch kernels warn of things that are not ours
pytestmark = pytest.mark.filterwarnings("ignore")
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}


def randomise(module, seed=0, scale=0.1):
    """Weights away from their initial zeros and ones, so that every one of them matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            if "pos_embed" not in name and "position_embeddings" not in name:
                tensor.add_(scale * torch.randn(tensor.shape, generator=generator))


def set_their_tables(mae):
    """A fresh ViTMAE of transformers 5 has position tables of zeros until its own initialiser is asked for them."""
    embeddings = mae.vit.embeddings
    embeddings.patch_embeddings.projection._is_hf_initialized = False  # else it returns at once
    embeddings.initialize_weights()
    mae.decoder.initialize_weights(embeddings.patch_embeddings.num_patches)
    assert float(embeddings.position_embeddings.abs().max()) > 0.5
    assert float(mae.decoder.decoder_pos_embed.abs().max()) > 0.5


def our_config(small, patch, image, stage):
    config = small(stage)
    config.pp.update({"crop": image, "channels": 3})
    config.pp.mean, config.pp.std = (0.5,), (0.5,)
    config.model.patches.size = (patch, patch)
    config.model.hidden_size = 32
    config.model.transformer.update({"num_layers": 3, "num_heads": 4, "mlp_dim": 64})
    config.model.update({"activation": "gelu_erf", "norm_eps": 1e-6})
    return config


@pytest.mark.parametrize(("patch", "image"), [(2, 8), (16, 64)])
def test_vit_logits_and_gradients(small, patch, image):
    theirs = transformers.ViTForImageClassification(
        transformers.ViTConfig(**SIZES, image_size=image, patch_size=patch, num_labels=7, layer_norm_eps=1e-6)
    )
    randomise(theirs)
    with torch.no_grad():
        theirs.vit.embeddings.position_embeddings.normal_()
    config = our_config(small, patch, image, "scratch")
    config.model.update({"classifier": "token", "positions": "learn", "norm_after_pool": False})
    model = assemble(config, 7, vit_params(as_numpy(theirs.state_dict()), 4))

    pictures = np.random.default_rng(0).normal(size=(3, image, image, 3)).astype(np.float32)
    labels = np.asarray([1, 4, 0])
    result = theirs(torch.tensor(pictures.transpose(0, 3, 1, 2)), labels=torch.tensor(labels))
    result.loss.backward()
    assert relative(model(jnp.asarray(pictures)), result.logits.detach().numpy()) < tolerances.FORWARD

    graph, params = nnx.split(model)

    def loss(params):
        logits = nnx.merge(graph, params)(jnp.asarray(pictures))
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1))

    ours = flat_params(jax.grad(loss)(params))
    expected = vit_params(as_numpy({name: p.grad for name, p in theirs.named_parameters()}), 4)
    assert ours.keys() == expected.keys()
    errors = {name: relative(ours[name], expected[name]) for name in ours}
    assert max(errors.values()) < tolerances.GRADIENT, errors


@pytest.mark.parametrize("normalised", [False, True], ids=["pixels", "normalised"])
@pytest.mark.parametrize(("patch", "image"), [(2, 8), (16, 64)])
def test_mae_forward_loss_and_gradients(small, monkeypatch, patch, image, normalised):
    theirs = transformers.ViTMAEForPreTraining(
        transformers.ViTMAEConfig(
            **SIZES, image_size=image, patch_size=patch, mask_ratio=0.75, norm_pix_loss=normalised, layer_norm_eps=1e-6,
            decoder_hidden_size=24, decoder_num_hidden_layers=2, decoder_num_attention_heads=2,
            decoder_intermediate_size=48,
        )
    )  # fmt: skip
    set_their_tables(theirs)
    randomise(theirs)
    config = our_config(small, patch, image, "pretrain")
    config.mae.num_visible, config.mae.normalised_target = 4, normalised
    config.mae.decoder.update({"hidden_size": 24, "num_layers": 2, "num_heads": 2, "mlp_dim": 48})
    model = assemble(config, None, mae_params(as_numpy(theirs.state_dict()), 4, 2))
    assert isinstance(model.cfg, MAEConfig)
    assert model.cfg == mae_config(config)

    rng = np.random.default_rng(1)
    pictures = rng.integers(0, 256, (3, image, image, 3), dtype=np.uint8)
    pixels = (pictures.astype(np.float32) / 255 - 0.5) / 0.5
    noise = rng.random((3, 16), dtype=np.float32)
    result = theirs(torch.tensor(pixels.transpose(0, 3, 1, 2)), noise=torch.tensor(noise))
    result.loss.backward()

    mask = from_scores(jnp.asarray(noise), 4)
    np.testing.assert_array_equal(mask.hidden, result.mask.detach().numpy() > 0.5)
    assert relative(model(jnp.asarray(pixels), mask), result.logits.detach().numpy()) < tolerances.FORWARD

    monkeypatch.setattr("vit_jax.methods.mae.make_mask", lambda *args: mask)
    objective = method_of(config).objective(config, None)
    batch = Batch(pictures, np.full(3, -1, np.int32), np.ones(3, np.float32))
    graph, params = nnx.split(model)

    def loss(params):
        inputs = objective.prepare(jax.tree.map(jnp.asarray, batch), jax.random.key(0), True)
        keys = jax.random.split(jax.random.key(0), 3)
        return objective.losses(nnx.merge(graph, params), inputs, keys, True)[0].reduce().value()

    value, gradient = jax.value_and_grad(loss)(params)
    assert relative(value, result.loss.item()) < tolerances.FORWARD
    trained = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    expected, ours = mae_params(as_numpy(trained), 4, 2), flat_params(gradient)
    assert ours.keys() == expected.keys()
    errors = {name: relative(ours[name], expected[name]) for name in ours}
    assert max(errors.values()) < tolerances.GRADIENT, errors
