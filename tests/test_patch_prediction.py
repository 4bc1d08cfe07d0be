"""The ViT paper's masked patch prediction: corruption and targets by hand, the model and its losses beside PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests import tolerances
from tests.test_protocols import batches
from vit_jax import UserError, configuration
from vit_jax.methods import method_of
from vit_jax.methods.building import assemble, build
from vit_jax.methods.patch_prediction import colour_classes, corrupt
from vit_jax.ops.paths import flat_params

pytestmark = pytest.mark.filterwarnings("ignore")
TARGETS = ("mean_colour", "colours_4x4", "pixels")


def small_recipe(target="mean_colour"):
    config = configuration.load("patch_prediction.py:b16")
    config.update({"compute_dtype": "float32", "batch": 8, "remat": "none"})
    config.pp.crop = 32
    config.model.patches.size, config.model.hidden_size = (8, 8), 32
    config.model.transformer.update({"num_layers": 2, "num_heads": 4, "mlp_dim": 64})
    config.patch_prediction.target = target
    return config


def test_corruption_is_80_10_10_of_half():
    section = configuration.load("patch_prediction.py:b16").patch_prediction
    found = corrupt(jax.random.split(jax.random.key(0), 400), (14, 14), section)
    corrupted, masked, source = (np.asarray(part) for part in found)
    assert (corrupted.sum(1) == 98).all()
    assert not (masked & ~corrupted).any()
    swapped = source != np.arange(196)[None]
    assert not (swapped & masked).any()
    assert not (swapped & ~corrupted).any()
    shares = [part.sum() / corrupted.sum() for part in (masked, swapped)]
    np.testing.assert_allclose(shares, [0.8, 0.1], atol=0.006)  # four deviations of 39,200 draws
    distances = (source - np.arange(196)[None])[swapped] % 196
    assert np.bincount(distances, minlength=196)[1:].min() > 0  # every other patch has its turn


def test_classes_by_hand():
    picture = np.zeros((1, 16, 8, 3), np.uint8)
    picture[0, :8] = (255, 0, 36)  # highest, lowest, second level
    picture[0, 8:, :4], picture[0, 8:, 4:] = (31, 31, 31), (33, 33, 33)  # their mean is the first of the second level
    assert np.asarray(colour_classes(jnp.asarray(picture), (8, 8), 1))[0, :, 0].tolist() == [7 * 64 + 1, 64 + 8 + 1]
    cells = np.asarray(colour_classes(jnp.asarray(picture), (8, 8), 4))[0]
    assert (cells[0] == 7 * 64 + 1).all()
    np.testing.assert_array_equal(cells[1].reshape(4, 4), [[0, 0, 73, 73]] * 4)


class Theirs:
    """The model in PyTorch, from the papers: pre-norm blocks, class token, learned positions, one linear head."""

    def __init__(self, torch, config, outputs):
        nn, body, d = torch.nn, config.model.transformer, config.model.hidden_size
        self.torch = torch
        self.embedding, self.predict = nn.Linear(8 * 8 * 3, d), nn.Linear(d, outputs)
        layer = lambda: nn.TransformerEncoderLayer(  # noqa: E731
            d, body.num_heads, body.mlp_dim, dropout=0.0, activation=lambda x: nn.functional.gelu(x, approximate="tanh"),
            layer_norm_eps=1e-6, batch_first=True, norm_first=True,
        )  # fmt: skip
        self.blocks = [layer() for _ in range(body.num_layers)]
        self.norm = nn.LayerNorm(d, eps=1e-6)
        self.cls, self.mask, self.positions = (nn.Parameter(torch.zeros(n, d)) for n in (1, 1, 17))
        modules = [self.embedding, self.predict, self.norm, *self.blocks]
        self.parameters = [p for part in modules for p in part.parameters()] + [self.cls, self.mask, self.positions]
        torch.manual_seed(0)
        for parameter in self.parameters:
            nn.init.normal_(parameter, std=0.1)

    def __call__(self, patches, corruption):
        torch = self.torch
        x = self.embedding(patches)
        x = torch.gather(x, 1, corruption["source"][..., None].expand(-1, -1, x.shape[-1]))
        x = torch.where(corruption["masked"][..., None], self.mask, x) + self.positions[1:]
        x = torch.cat([(self.cls + self.positions[:1]).expand(len(x), 1, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        return self.predict(self.norm(x)[:, 1:])

    def ours(self, read=lambda p: p):
        """Parameters (or what `read` takes of them) by our paths."""
        value = lambda p: read(p).detach().numpy()  # noqa: E731
        d, heads = self.cls.shape[1], self.blocks[0].self_attn.num_heads
        stack = lambda take: np.stack([take(block) for block in self.blocks])  # noqa: E731
        linear = lambda path, of: {  # noqa: E731
            f"{path}/kernel": stack(lambda b: value(of(b).weight).T), f"{path}/bias": stack(lambda b: value(of(b).bias))
        }  # fmt: skip
        norm = lambda path, of: {  # noqa: E731
            f"{path}/scale": stack(lambda b: value(of(b).weight)), f"{path}/bias": stack(lambda b: value(of(b).bias))
        }  # fmt: skip
        inner = linear("mlp/fc1", lambda b: b.linear1) | linear("mlp/fc2", lambda b: b.linear2)
        inner |= norm("norm1", lambda b: b.norm1) | norm("norm2", lambda b: b.norm2)
        inner |= linear("attention/out", lambda b: b.self_attn.out_proj)
        inner["attention/out/kernel"] = inner["attention/out/kernel"].reshape(-1, heads, d // heads, d)
        inner["attention/qkv/kernel"] = stack(
            lambda b: value(b.self_attn.in_proj_weight).T.reshape(d, 3, heads, d // heads)
        )
        inner["attention/qkv/bias"] = stack(lambda b: value(b.self_attn.in_proj_bias).reshape(3, heads, d // heads))
        made = {f"encoder/transformer/blocks/{path}": array for path, array in inner.items()}
        for path, part in (("encoder/embedding", self.embedding), ("predict", self.predict)):
            made |= {f"{path}/kernel": value(part.weight).T, f"{path}/bias": value(part.bias)}
        made |= {"encoder/norm/scale": value(self.norm.weight), "encoder/norm/bias": value(self.norm.bias)}
        return made | {
            "encoder/cls": value(self.cls),
            "encoder/positions": value(self.positions),
            "mask_token": value(self.mask),
        }


@pytest.mark.parametrize("target", TARGETS)
def test_forward_loss_and_gradients_equal_pytorchs(target):
    torch = pytest.importorskip("torch", reason="the `torch` extra is not installed")
    config = small_recipe(target)
    outputs = {"mean_colour": 512, "colours_4x4": 16 * 512, "pixels": 192}[target]
    theirs = Theirs(torch, config, outputs)
    model = assemble(configuration.plain(config), None, theirs.ours())
    objective = method_of(config).objective(config, None)
    batch = next(batches(config, None, 1))
    inputs = objective.prepare(jax.tree.map(jnp.asarray, batch), jax.random.key(5), True)
    corruption = {name: torch.from_numpy(np.array(part)) for name, part in inputs["corruption"]._asdict().items()}
    corruption["source"] = corruption["source"].long()
    cut = lambda array: array.reshape(8, 4, 8, 4, 8, 3).transpose(0, 1, 3, 2, 4, 5).reshape(8, 16, 192)  # noqa: E731
    patches = torch.from_numpy(cut(batch.image).astype(np.float32)) / 127.5 - 1
    predicted = theirs(patches, corruption)
    chosen = corruption["corrupted"]
    if target == "pixels":
        loss = torch.nn.functional.mse_loss(predicted[chosen], patches[chosen])
    else:
        side = 1 if target == "mean_colour" else 4
        cells = cut(batch.image).reshape(8, 16, side, 8 // side, side, 8 // side, 3).mean((3, 5)).reshape(8, 16, -1, 3)
        levels = np.floor(cells / 32).astype(np.int64)
        classes = torch.from_numpy(levels @ np.array([64, 8, 1]))
        logits = predicted.reshape(8, 16, side * side, 512)[chosen]
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, 512), classes[chosen].reshape(-1))
    loss.backward()

    seen = inputs["corruption"]
    found = np.asarray(model(inputs["images"], seen.masked, source=seen.source))
    expected = predicted.detach().numpy()
    assert np.abs(found - expected).max() <= tolerances.FORWARD * np.abs(expected).max()
    graph, params = nnx.split(model)

    def ours(params):
        return objective.losses(nnx.merge(graph, params), inputs, None, False)[0].reduce().value()

    value, gradient = jax.value_and_grad(ours)(params)
    assert abs(float(value) - float(loss)) <= tolerances.FORWARD * float(loss)
    wanted, gradient = theirs.ours(lambda p: p.grad), flat_params(gradient)
    assert gradient.keys() == wanted.keys()
    for path, leaf in gradient.items():
        scale = np.abs(wanted[path]).max()
        error = np.asarray(leaf) - wanted[path]
        if path.endswith("qkv/bias"):  # the key's gradient is zero but for rounding
            error = error[:, ::2]
        assert np.abs(error).max() <= tolerances.GRADIENT * scale, path


def test_accuracy_counts_the_cells_of_corrupted_patches():
    """A head that always says the class of a picture of one colour is right there, and wrong elsewhere."""
    config = small_recipe()
    model = build(config, None)
    model.predict.bias[...] = model.predict.bias[...].at[7 * 64].set(100.0)
    images = np.zeros((2, 32, 32, 3), np.uint8)
    images[0, ..., 0] = 255
    objective = method_of(config).objective(config, None)
    batch = next(batches(config, None, 1))._replace(
        image=images, label=np.zeros(2, np.int32), weight=np.ones(2, np.float32)
    )
    inputs = objective.prepare(jax.tree.map(jnp.asarray, batch), jax.random.key(0), True)
    accuracy = objective.losses(model, inputs, None, False)[1]["accuracy"]
    np.testing.assert_array_equal(accuracy.total, [8.0, 0.0])
    np.testing.assert_array_equal(accuracy.count, [8.0, 8.0])


def test_what_does_not_fit_is_a_sentence():
    config = small_recipe("colours_4x4")
    config.model.patches.size = (2, 2)
    with pytest.raises(UserError, match=r"model\.patches\.size or patch_prediction\.target"):
        build(config, None)
    config = small_recipe()
    config.patch_prediction.swap_share = 0.5
    with pytest.raises(UserError, match="at most 1 together"):
        build(config, None)
    config = configuration.load("patch_prediction.py:b16")
    config.model = configuration.model_config("R26+ViT-S_32")
    with pytest.raises(UserError, match="got a hybrid"):
        build(config, None)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS[::2])
def test_digits_learn_by_it_and_are_drawn(target, tmp_path):
    from vit_jax import train
    from vit_jax.run_figures import draw_run

    config = configuration.load("digits.py:pretrain,patch_prediction")
    config.update({"total_steps": 60, "warmup_steps": 6, "batch": 96, "eval_every": 0, "base_lr": 4e-3})
    config.model.transformer.num_layers = config.unroll = 1
    config.patch_prediction.target = target
    found = train.run(config, tmp_path / "run", draw=draw_run).metrics
    if target == "pixels":
        assert found["loss"] < 0.9
    else:
        assert found["accuracy"] > 0.3  # an eighth by chance, about a quarter by the commonest
    assert (tmp_path / "run" / "figures" / "reconstructions.png").is_file()
