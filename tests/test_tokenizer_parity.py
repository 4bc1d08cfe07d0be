"""DALL-E's tokenizer beside transformers' FlavaImageCodebook and PyTorch written from the paper's description."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests import tolerances
from tests.torch_twins import relative
from vit_jax import configuration
from vit_jax.contracts import Batch
from vit_jax.conversion.convert import read
from vit_jax.methods.building import assemble
from vit_jax.methods.tokenizer import METHOD, divergence
from vit_jax.models.dvae import DVAE, DVAEConfig, tokens
from vit_jax.ops.logit_laplace import logit_laplace_nll, map_pixels
from vit_jax.ops.paths import flat_params, path_name

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
CFG = DVAEConfig((16, 24), channels=3, vocab_size=32, encoder_width=8, decoder_width=8, decoder_inputs=12)


class Path(torch.nn.Module):
    """x + gain * path(x), as the paper's decoder has it: 1x1, 3x3, 3x3, 3x3."""

    def __init__(self, inputs, outputs, gain):
        super().__init__()
        self.gain, hidden = gain, outputs // 4
        self.skip = torch.nn.Conv2d(inputs, outputs, 1) if inputs != outputs else torch.nn.Identity()
        sizes = [(inputs, hidden, 1), (hidden, hidden, 3), (hidden, hidden, 3), (hidden, outputs, 3)]
        self.convs = torch.nn.ModuleList(torch.nn.Conv2d(i, o, k, padding=k // 2) for i, o, k in sizes)

    def forward(self, x):
        y = x
        for conv in self.convs:
            y = conv(torch.relu(y))
        return self.skip(x) + self.gain * y


class Decoder(torch.nn.Module):
    def __init__(self, cfg):
        super().__init__()
        widths = [cfg.decoder_inputs, *(cfg.decoder_width * factor for factor in (8, 4, 2, 1))]
        self.first = torch.nn.Conv2d(cfg.vocab_size, cfg.decoder_inputs, 1)
        self.groups = torch.nn.ModuleList(
            torch.nn.ModuleList([Path(widths[i], widths[i + 1], 1 / 64), Path(widths[i + 1], widths[i + 1], 1 / 64)])
            for i in range(4)
        )
        self.last = torch.nn.Conv2d(widths[-1], 2 * cfg.channels, 1)

    def forward(self, x):
        x = self.first(x)
        for number, group in enumerate(self.groups):
            for path in group:
                x = path(x)
            x = torch.nn.functional.interpolate(x, scale_factor=2, mode="nearest") if number < 3 else x
        return self.last(torch.relu(x))


def put(params, place, conv):
    params[f"{place}/kernel"] = conv.weight.detach().numpy().transpose(2, 3, 1, 0)
    params[f"{place}/bias"] = conv.bias.detach().numpy()


def decoder_params(twin):
    params = {}
    put(params, "decoder/conv_input", twin.first)
    put(params, "decoder/conv_output", twin.last)
    for i, group in enumerate(twin.groups, 1):
        for j, path in enumerate(group, 1):
            for k, conv in enumerate(path.convs, 1):
                put(params, f"decoder/group{i}/block{j}/conv{k}", conv)
            if isinstance(path.skip, torch.nn.Conv2d):
                put(params, f"decoder/group{i}/block{j}/conv_skip", path.skip)
    return params


def filled(model, params):
    """The abstract model with these parameters, every one."""
    graph, state = nnx.split(model)
    assert set(params) == set(flat_params(state))
    return nnx.merge(graph, jax.tree.map_with_path(lambda path, _: jnp.asarray(params[path_name(path)]), state))


def codebook(hidden, vocab):
    torch.manual_seed(0)
    config = transformers.FlavaImageCodebookConfig(hidden_size=hidden, vocab_size=vocab, freeze=False)
    model = transformers.FlavaImageCodebook(config).eval()
    for tensor in model.parameters():  # its own 0.02 would leave every code alike
        torch.nn.init.normal_(tensor, std=1 / math.sqrt(max(tensor[0].numel(), 16)))
    return model


@pytest.mark.parametrize(("hidden", "vocab"), [(8, 32), pytest.param(256, 8192, marks=pytest.mark.slow)])
def test_encoder_is_transformers(hidden, vocab, tmp_path):
    theirs = codebook(hidden, vocab)
    theirs.save_pretrained(tmp_path)
    weights = read(tmp_path, configuration.completed, stored_size=(16, 24))
    assert weights.source == "flava"
    ours = assemble(weights.config, None, weights.params)
    assert ours.cfg.decoder_width is None
    assert (ours.cfg.vocab_size, ours.cfg.encoder_width, ours.cfg.grid) == (vocab, hidden, (2, 3))
    pixels = np.random.default_rng(0).uniform(size=(2, 16, 24, 3)).astype(np.float32)
    mapped = torch.from_numpy(0.8 * pixels.transpose(0, 3, 1, 2) + 0.1)

    expected, given = theirs(mapped), jnp.asarray(pixels)
    assert relative(nnx.jit(DVAE.logits)(ours, given), expected.detach().permute(0, 2, 3, 1)) < tolerances.FORWARD
    codes = np.asarray(nnx.jit(tokens)(ours, given))
    np.testing.assert_array_equal(codes, theirs.get_codebook_indices(mapped).reshape(2, -1))
    assert len(np.unique(codes)) > 1

    torch.nn.functional.cross_entropy(expected, torch.arange(12).reshape(2, 2, 3)).backward()
    graph, state = nnx.split(ours)

    def loss(state):
        logits = nnx.merge(graph, state).logits(given).reshape(12, -1)
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(12), jnp.arange(12)])

    gradients = flat_params(jax.jit(jax.grad(loss))(state))
    for name, parameter in theirs.named_parameters():
        found = name.replace("blocks.", "", 1).replace("weight", "kernel")
        if found.startswith("input"):
            found = found.replace("input.", "conv_input/")
        elif found.startswith("output"):
            found = found.replace("output.conv.", "conv_output/")
        else:
            found = (
                found.replace("group_", "group").replace(".group.block_", "/block").replace(".id_path.", "/conv_skip/")
            )
            found = found.replace(".res_path.path.conv_", "/conv").replace(".", "/")
        gradient = parameter.grad.numpy()
        gradient = gradient.transpose(2, 3, 1, 0) if gradient.ndim == 4 else gradient
        assert relative(gradients[f"encoder/{found}"], gradient) < tolerances.GRADIENT, name
    assert len(gradients) == len(list(theirs.parameters()))


@pytest.fixture(scope="module")
def both():
    torch.manual_seed(1)
    twin, rng = Decoder(CFG), np.random.default_rng(0)
    ours = jax.eval_shape(lambda: DVAE(CFG, rngs=nnx.Rngs(0)))
    shapes = {path: leaf.shape for path, leaf in flat_params(nnx.state(ours)).items()}
    encoder = {
        path: (rng.standard_normal(shape) / math.sqrt(math.prod(shape[:-1]))).astype(np.float32)
        for path, shape in shapes.items()
        if path.startswith("encoder/")
    }
    return filled(ours, encoder | decoder_params(twin)), twin


def test_decoder_and_likelihood_are_torchs(both):
    """Outputs, the logit-Laplace density by PyTorch's own distributions, and every gradient."""
    ours, twin = both
    rng = np.random.default_rng(2)
    shares = rng.dirichlet(np.full(32, 0.3), size=(2, 2, 3)).astype(np.float32)
    pixels = rng.uniform(size=(2, 16, 24, 3)).astype(np.float32)
    theirs = twin(torch.from_numpy(shares.transpose(0, 3, 1, 2))).permute(0, 2, 3, 1)
    mean, log_scale = nnx.jit(DVAE.decode)(ours, jnp.asarray(shares))
    assert relative(jnp.concatenate([mean, log_scale], -1), theirs.detach()) < tolerances.FORWARD

    laplace = torch.distributions.Laplace(theirs[..., :3], theirs[..., 3:].exp())
    density = torch.distributions.TransformedDistribution(laplace, torch.distributions.SigmoidTransform())
    expected = -density.log_prob(torch.from_numpy(0.8 * pixels + 0.1))
    found = logit_laplace_nll(map_pixels(jnp.asarray(pixels)), mean, log_scale)
    assert relative(found, expected.detach()) < tolerances.FORWARD

    expected.mean().backward()
    graph, state = nnx.split(ours)

    def loss(state):
        return jnp.mean(
            logit_laplace_nll(map_pixels(jnp.asarray(pixels)), *nnx.merge(graph, state).decode(jnp.asarray(shares)))
        )

    gradients = flat_params(jax.jit(jax.grad(loss))(state))
    for parameter in twin.parameters():
        parameter.data = parameter.grad
    for path, gradient in decoder_params(twin).items():
        assert relative(gradients[path], gradient) < tolerances.GRADIENT, path


def test_objective_is_the_bound_in_torch(both):
    """Evaluation of two pictures, one of them padding: hard codes, the final KL weight, a mean over colour values."""
    ours, _ = both
    config = configuration.load("tokenizer.py:dalle")
    config.pp.crop, config.compute_dtype, config.tokenizer.kl_weight = (16, 24), "float32", 3.0
    objective = METHOD.objective(config, None)
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, (2, 16, 24, 3), dtype=np.uint8)
    batch = jax.tree.map(jnp.asarray, Batch(images, np.zeros(2, np.int32), np.asarray([1, 0], np.float32)))
    inputs = objective.inputs(batch, jax.random.key(0), False)
    loss, metrics = nnx.jit(lambda model, inputs: objective.losses(model, inputs, None, False))(ours, inputs)

    pixels = torch.from_numpy(images[:1].astype(np.float32) / 255)
    logits = torch.from_numpy(np.array(nnx.jit(DVAE.logits)(ours, jnp.asarray(pixels))))
    codes = logits.argmax(-1)
    mean, log_scale = nnx.jit(DVAE.decode)(ours, jax.nn.one_hot(np.asarray(codes), 32))
    mean, scale = torch.from_numpy(np.array(mean)), torch.from_numpy(np.array(log_scale)).exp()
    x = 0.8 * pixels + 0.1
    nll = -torch.log(torch.exp(-(torch.logit(x) - mean).abs() / scale) / (2 * scale * x * (1 - x)))
    uniform = torch.full((32,), 1 / 32)
    kl = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=logits), torch.distributions.Categorical(uniform)
    )
    assert relative(divergence(jnp.asarray(logits.numpy())), kl.sum((1, 2))) < tolerances.FORWARD
    decoded = ((torch.sigmoid(mean) - 0.1) / 0.8).clip(0, 1)
    expected = {"nll": nll.mean(), "kl": kl.mean(), "mse": (decoded - pixels).square().mean()}
    for name, value in expected.items():
        assert relative(metrics[name].total[0], value) < tolerances.FORWARD, name
    assert relative(loss.total[0], nll.mean() + 3.0 * kl.sum() / (16 * 24 * 3)) < tolerances.FORWARD
    assert (float(loss.total[1]), float(loss.count[1])) == (0.0, 0.0)
    counts = np.bincount(codes.reshape(-1).numpy(), minlength=32)
    np.testing.assert_array_equal(metrics["codes"].total, [counts, 0 * counts])
    np.testing.assert_array_equal(metrics["codes"].count, [6, 0])


def test_codes_are_looked_up(both):
    """A table's row is what a convolution of one-hot shares gives."""
    ours, _ = both
    codes = jnp.asarray(np.random.default_rng(4).integers(0, 32, (2, 2, 3)))
    by_shares, by_number = ours.decode(jax.nn.one_hot(codes, 32)), ours.decode_codes(codes)
    for one, other in zip(by_shares, by_number, strict=True):
        assert relative(other, one) < tolerances.FORWARD
